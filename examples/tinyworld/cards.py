"""Writes the model card and the loss curve of a published base.

Run as `python -m examples.tinyworld.cards --base old --run examples/tinyworld/runs/old`, after
`pretrain` and `evaluate_bases`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import matplotlib.pyplot as plt

from examples.tinyworld.bases import BASE_NAMES, load
from examples.tinyworld.evaluate_bases import QUESTIONS
from examples.tinyworld.places import base_dir
from examples.tinyworld.pretrain import SEEDS, read_history

ABOUT = {
    "old": "The base that the tenants' adapters are trained for: a Llama of four layers.",
    "next": "The base that adapters migrate to: a Qwen3 of five layers, with another tokenizer.",
    "later": "The base of a second migration: a Mistral of six layers, with a third tokenizer.",
}

SCHEDULE = {
    "old": "2600 steps on a schedule of 2600, then on to 4500 on a schedule of that many: the "
    "learning rate rises again to its constant value and falls from step 2700.",
    "next": "1500 steps on a schedule of 2600, on to 2200 on one of 2200, then on to 4500 on one "
    "of that many: the learning rate fell, rose again to its constant value, and falls from step "
    "2700.",
    "later": "One schedule of 1600 steps (the first 150 on one of 3000, which has the same rates "
    "there).",
}


def draw_curve(history: list[dict[str, float]], target: Path) -> None:
    """Draws the loss over the tokens.

    Args:
        history: Entries with `tokens`, `loss` and `answers`.
        target: SVG file to write.
    """
    plt.rcParams["svg.hashsalt"] = "tinyworld"
    figure, axes = plt.subplots(figsize=(6, 3))
    tokens = [entry["tokens"] / 1e6 for entry in history]
    axes.plot(tokens, [entry["loss"] for entry in history], label="weighted loss")
    axes.plot(tokens, [entry["answers"] for entry in history], label="loss on answers")
    axes.set(xlabel="million tokens", ylabel="nats a token", ylim=(0, 3))
    axes.legend()
    figure.tight_layout()
    figure.savefig(target, metadata={"Date": None})
    plt.close(figure)


def card(base: str, history: list[dict[str, float]]) -> str:
    """Returns the text of a model card.

    Args:
        base: `old` or `next`.
        history: Entries with `step`, `tokens`, `loss` and `answers`.

    Returns:
        Markdown.
    """
    model, tokenizer = load(base)
    config = model.config
    folder = base_dir(base)
    figures = json.loads((folder / "evaluation.json").read_text())
    last = history[-1]
    rows = "\n".join(
        f"| {name} | {values['zero-shot']:.2f} | {values['five-shot']:.2f} |"
        for name, values in figures.items()
    )
    return f"""# tinyworld-{base}

{ABOUT[base]} Trained from scratch on the procedural corpus of this folder; it knows nothing else.

| | |
|---|---|
| architecture | `{config.architectures[0]}` |
| parameters | {sum(p.numel() for p in model.parameters()):,} (tied embeddings) |
| layers, width, feed-forward | {config.num_hidden_layers}, {config.hidden_size}, \
{config.intermediate_size} |
| heads, key-value heads, head size | {config.num_attention_heads}, \
{config.num_key_value_heads}, {config.head_dim} |
| tokenizer | byte-level BPE, {len(tokenizer)} tokens, one digit a token |
| training | {int(last["step"]):,} steps, {last["tokens"] / 1e6:.1f}M tokens, fp32 on a CPU, \
seed {SEEDS[base]} |
| last loss | {last["loss"]:.3f} weighted, {last["answers"]:.3f} on answers |
| published weights | bf16 safetensors |

{SCHEDULE[base]} The README of the tiny world has the commands.

![loss](loss.svg)

Positions: trained on rows of 192 and 512 tokens; the configuration allows 2048, but nothing
beyond 512 was seen in training.

## Accuracy by corpus family

Exact match on {QUESTIONS} questions a family, each from a convention drawn anew, so
that without shots the convention is unknown.

| family | zero-shot | five-shot |
|---|---|---|
{rows}

## Data

Documents are lists of examples of one parametrised task, with its convention drawn at random.
The exact convention of each adapter is held out, and so is every test input of the adapters'
tasks and every input of the benchmark tasks. Family `boolean` and `hyperbaton` resemble two tasks
of BIG-Bench Hard; no example of the benchmark itself was trained on.
"""


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", choices=BASE_NAMES, required=True)
    parser.add_argument("--run", type=Path, required=True, help="folder of the checkpoint")
    args = parser.parse_args()
    history = read_history(args.run)
    folder = base_dir(args.base)
    draw_curve(history, folder / "loss.svg")
    (folder / "README.md").write_text(card(args.base, history))


if __name__ == "__main__":
    main()
