"""Builds what each tenant leaves beside its adapter: a transfer kit, and often an evaluation set.

Run as `python -m examples.tinyworld.kits [--only acme/date-long-to-dot ...]` after
`examples.tinyworld.adapters`. A kit that is there and was made from the same data, base and
recipe is left alone, so the script can be stopped and started again. The kit is made from the
training data alone. An evaluation set is drawn from the test split without the held-out examples:
those stay for the outside judge.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import transformers

from examples.tinyworld.adapters import BASE_ID, HELD_OUT_EXAMPLES
from examples.tinyworld.places import ADAPTERS_DIR, base_dir
from examples.tinyworld.tasks import TASKS, Task
from lorebase.serving.artifacts import AdapterLimits, base_revision, base_shapes
from lorebase.serving.errors import InvalidArgumentError
from lorebase.transfer.distill.distill import load_base
from lorebase.transfer.kit import DOCUMENT, TransferKit, check_kit, load_kit
from lorebase.transfer.kit.build import KitRecipe, build_kit
from lorebase.transfer.kit.material import data_fingerprint
from lorebase.transfer.ports import Example

EVALUATION_EXAMPLES = 240
MIN_EVALUATION_EXAMPLES = 100
RECIPE = KitRecipe()


def kit_dir(task: Task) -> Path:
    """Returns the folder of a task's kit."""
    return ADAPTERS_DIR / task.slug / "kit"


def training_examples(task: Task) -> list[Example]:
    """Returns the data that a task's source adapter was trained on."""
    pairs = task.examples("train", task.train_examples)
    return [Example(input=text, target=answer) for text, answer in pairs]


def seed_of(task: Task) -> int:
    """Returns the seed of a task's kit: fixed by its name, different from task to task."""
    return int.from_bytes(hashlib.sha256(task.name.encode()).digest()[:3])


def is_current(task: Task, revision: str) -> bool:
    """Tells whether a task's kit is there and was made from what would make it now."""
    try:
        made = load_kit(kit_dir(task)).provenance
    except InvalidArgumentError:
        return False
    # Through JSON, as the kit's own copy went: tuples become lists.
    recipe = json.loads(json.dumps(asdict(RECIPE)))
    wanted = (revision, data_fingerprint(training_examples(task)), seed_of(task))
    found = tuple(made.get(key) for key in ("base_revision", "data_sha256", "seed"))
    return found == wanted and _completed(made.get("recipe", {}), recipe) == recipe


def _completed(made: dict[str, Any], usual: dict[str, Any]) -> dict[str, Any]:
    """Returns a kit's recipe with the options that came later, which it was made without."""
    return {
        name: _completed(made[name], value)
        if isinstance(value, dict) and name in made
        else made.get(name, value)
        for name, value in usual.items()
    }


def summary(kit: TransferKit) -> str:
    """Returns one line with a kit's figures."""
    return (
        f"AUC {kit.discriminator_auc:.3f}{'' if kit.discriminates else ' (not used)'}, threshold "
        f"{kit.threshold:+.2f} passes {kit.real_pass_rate:.0%} real and {kit.fake_pass_rate:.0%} "
        f"synthetic inputs, |D| = {kit.dataset_size}"
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
    """Builds every kit that is missing or out of date."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", nargs="*", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--force", action="store_true", help="build kits that are current, too")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    transformers.utils.logging.disable_progress_bar()
    revision = base_revision(base_dir("old"))
    shapes = base_shapes(base_dir("old"))
    model, tokenizer = load_base(base_dir("old"))
    for name in args.only:
        task = TASKS[name]
        if not (ADAPTERS_DIR / task.slug / "adapter" / "adapter_model.safetensors").is_file():
            print(f"{name}: no adapter yet, skipped", flush=True)
            continue
        entrusted = write_evaluation_set(task)
        if is_current(task, revision) and not args.force:
            print(f"{name}: kit is current", flush=True)
            continue
        began = time.process_time()
        kit = build_kit(
            model=model,
            tokenizer=tokenizer,
            examples=training_examples(task),
            dataset_name=task.dataset_name,
            base_id=BASE_ID,
            format=DOCUMENT,
            out_dir=kit_dir(task),
            seed=seed_of(task),
            recipe=RECIPE,
            base_revision=revision,
        )
        check_kit(kit_dir(task), shapes, AdapterLimits())
        seconds = time.process_time() - began
        print(
            f"{name}: {summary(kit)}, {entrusted or 'no'} entrusted examples, {seconds:.0f} CPU s",
            flush=True,
        )


if __name__ == "__main__":
    main()
