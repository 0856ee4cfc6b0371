"""Trains the source adapters on the old base and measures both bases without them.

Run as `python -m examples.tinyworld.adapters --threads 1 [--only acme/date-long-to-dot ...]`.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from examples.tinyworld.bases import load
from examples.tinyworld.generate import accuracy
from examples.tinyworld.lora import LoraSettings, train_lora
from examples.tinyworld.places import ADAPTERS_DIR
from examples.tinyworld.tasks import TASKS, Task, completion, prompt

BASE_ID = "tinyworld-old"
HELD_OUT_EXAMPLES = 240
SHOTS = 5
Base = tuple[PreTrainedModel, PreTrainedTokenizerBase]


def save_adapter(peft: PeftModel, folder: Path) -> None:
    """Writes an adapter in PEFT's format, in bf16 and without any machine path.

    Args:
        peft: The base with the adapter.
        folder: Folder to write to; what is there is replaced.
    """
    shutil.rmtree(folder, ignore_errors=True)
    peft.save_pretrained(str(folder))
    (folder / "README.md").unlink(missing_ok=True)
    weights = folder / "adapter_model.safetensors"
    tensors = {name: x.to(torch.bfloat16) for name, x in load_file(weights).items()}
    save_file(tensors, weights, metadata={"format": "pt"})
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text())
    config["base_model_name_or_path"] = BASE_ID
    config["target_modules"] = sorted(config["target_modules"])
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def rounded_to_bf16(peft: PeftModel) -> PeftModel:
    """Rounds an adapter's weights to what its file holds, so that figures are those of the file."""
    with torch.no_grad():
        for name, param in peft.named_parameters():
            if "lora_" in name:
                param.copy_(param.to(torch.bfloat16))
    return peft


def train_source(task: Task, old: Base) -> None:
    """Trains one source adapter and writes its folder.

    Args:
        task: The task.
        old: The old base, which the adapter is for.
    """
    folder = ADAPTERS_DIR / task.slug
    train = task.examples("train", task.train_examples)
    held_out = task.examples("test", HELD_OUT_EXAMPLES)
    settings = LoraSettings(rank=task.rank, target_modules=task.target_modules)
    pairs = [(prompt(x), completion(y)) for x, y in train]
    peft, loss = train_lora(*old, pairs, settings)
    save_adapter(peft, folder / "adapter")
    rounded_to_bf16(peft)
    meta: dict[str, object] = {
        "adapter": task.name,
        "family": task.family,
        "dataset_name": task.dataset_name,
        "base": BASE_ID,
        "rank": task.rank,
        "alpha": 2 * task.rank,
        "target_modules": list(task.target_modules),
        "skewed": task.skewed,
        "label_free": task.label_free,
        "train_examples": len(train),
        "train_seed": 0,
        "held_out_examples": len(held_out),
        "steps": settings.steps,
        "batch": settings.batch,
        "learning_rate": settings.learning_rate,
        "final_loss": round(loss, 4),
        "seeds": [list(pair) for pair in train[:SHOTS]],
        "accuracy": {
            "old_bare": round(accuracy(*old, held_out), 4),
            "source_adapter": round(accuracy(peft, old[1], held_out), 4),
        },
    }
    lines = (json.dumps({"input": x, "target": y}) for x, y in held_out)
    (folder / "heldout.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "train_meta.json").write_text(json.dumps(meta, indent=2) + "\n")


def measure_next(task: Task, following: Base) -> dict[str, object]:
    """Measures the next base without any adapter and notes it beside the source's figures.

    Args:
        task: A task whose source adapter is trained.
        following: The next base.

    Returns:
        What `train_meta.json` holds.
    """
    path = ADAPTERS_DIR / task.slug / "train_meta.json"
    meta: dict[str, object] = json.loads(path.read_text())
    held_out = task.examples("test", HELD_OUT_EXAMPLES)
    shots = task.examples("train", task.train_examples)[:SHOTS]
    figures = meta["accuracy"]
    assert isinstance(figures, dict)
    figures["next_bare"] = round(accuracy(*following, held_out), 4)
    figures["next_five_shot"] = round(accuracy(*following, held_out, shots), 4)
    path.write_text(json.dumps(meta, indent=2) + "\n")
    return meta


def row(meta: Mapping[str, object]) -> str:
    """Returns a line of the table of figures."""
    figures = meta["accuracy"]
    assert isinstance(figures, dict)
    values = " | ".join(f"{value:.2f}" for value in figures.values())
    return f"| {meta['adapter']} | {meta['rank']} | {meta['held_out_examples']} | {values} |"


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", nargs="*", choices=sorted(TASKS), help="adapters to train")
    parser.add_argument("--stage", choices=("train", "measure"), help="do one stage alone")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    names = args.only or list(TASKS)
    if args.stage != "measure":
        old = load("old")
        for name in names:
            train_source(TASKS[name], old)
            print("trained", name, flush=True)
    if args.stage != "train":
        following = load("next")
        print("| adapter | rank | n | old bare | source adapter | next bare | next 5-shot |")
        print("|---|---|---|---|---|---|---|")
        for name in names:
            print(row(measure_next(TASKS[name], following)), flush=True)


if __name__ == "__main__":
    main()
