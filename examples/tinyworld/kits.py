"""Builds what each tenant leaves beside its adapter: a transfer kit, and often an evaluation set.

Run as `python -m examples.tinyworld.kits --threads 1 [--only acme/date-long-to-dot ...]` after
`examples.tinyworld.adapters`. The kit is made from the training data alone. An evaluation set is
drawn from the test split without the held-out examples: those stay for the outside judge.
"""

from __future__ import annotations

import argparse
import json

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from examples.tinyworld.adapters import ADAPTERS_DIR, BASE_ID, HELD_OUT_EXAMPLES
from examples.tinyworld.bases import base_dir, load
from examples.tinyworld.tasks import TASKS, Task
from lorebase.serving.artifacts import base_revision
from lorebase.transfer.kit import DOCUMENT, TransferKit
from lorebase.transfer.kit.build import build_kit
from lorebase.transfer.ports import Example

EVALUATION_EXAMPLES = 240
MIN_EVALUATION_EXAMPLES = 100
SEED = 0


def kit_of(
    task: Task, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, revision: str
) -> TransferKit:
    """Builds one task's kit from its training data and writes it beside the adapter."""
    pairs = task.examples("train", task.train_examples)
    return build_kit(
        model=model,
        tokenizer=tokenizer,
        examples=[Example(input=text, target=answer) for text, answer in pairs],
        dataset_name=task.dataset_name,
        base_id=BASE_ID,
        format=DOCUMENT,
        out_dir=ADAPTERS_DIR / task.slug / "kit",
        seed=SEED,
        base_revision=revision,
    )


def write_evaluation_set(task: Task) -> int:
    """Writes what the tenant entrusts to the service; returns the number of examples.

    Label-free tenants entrust nothing, nor do those with too little data to spare.
    """
    path = ADAPTERS_DIR / task.slug / "evaluation.jsonl"
    path.unlink(missing_ok=True)
    held_out = {text for text, _ in task.examples("test", HELD_OUT_EXAMPLES)}
    spare = [pair for pair in task.pool("test") if pair[0] not in held_out]
    if task.label_free or len(spare) < MIN_EVALUATION_EXAMPLES:
        return 0
    chosen = spare[:EVALUATION_EXAMPLES]
    lines = (json.dumps({"input": text, "target": answer}) for text, answer in chosen)
    path.write_text("\n".join(lines) + "\n")
    return len(chosen)


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", nargs="*", choices=sorted(TASKS), help="tasks to build for")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model, tokenizer = load("old")
    revision = base_revision(base_dir("old"))
    print("| adapter | discriminator AUC | real pass | fake pass | evaluation set |")
    print("|---|---|---|---|---|")
    for name in args.only or TASKS:
        task = TASKS[name]
        kit = kit_of(task, model, tokenizer, revision)
        entrusted = write_evaluation_set(task)
        print(
            f"| {name} | {kit.discriminator_auc:.2f} | {kit.real_pass_rate:.2f} | "
            f"{kit.fake_pass_rate:.2f} | {entrusted or 'none'} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
