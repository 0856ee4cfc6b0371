"""What `lorebase kit build` runs: files in, a kit out. Free of any command-line library."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lorebase.serving.artifacts import base_revision
from lorebase.serving.errors import InvalidArgumentError

from ..ports import Checkpoint, Example, no_checkpoint
from .format import FORMATS
from .kit import TransferKit
from .storage import check_kit_place

MAX_DATA_BYTES = 1 << 30
EXPECTED_LINES = "one JSON object a line with the strings `input` and `target`"


def read_examples(path: Path) -> list[Example]:
    """Reads examples from a JSONL file.

    Raises:
        InvalidArgumentError: no such file, too big, or a line that is no example.
    """
    if not path.is_file():
        raise InvalidArgumentError(f"no file {path}: expected {EXPECTED_LINES}")
    if path.stat().st_size > MAX_DATA_BYTES:
        raise InvalidArgumentError(f"{path} is larger than {MAX_DATA_BYTES} bytes")
    examples = []
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                text, target = row["input"], row["target"]
            except (ValueError, TypeError, KeyError) as error:
                raise InvalidArgumentError(
                    f"{path}:{number} is no example ({error!r}): expected {EXPECTED_LINES}"
                ) from error
            if not isinstance(text, str) or not isinstance(target, str):
                raise InvalidArgumentError(
                    f"{path}:{number}: input and target must be strings, got "
                    f"{type(text).__name__} and {type(target).__name__}"
                )
            examples.append(Example(input=text, target=target))
    return examples


def build_kit_from_files(
    base_dir: Path,
    adapter_examples_jsonl: Path,
    out_dir: Path,
    *,
    base_id: str,
    dataset_name: str,
    seeds: int = 5,
    seed: int = 0,
    format: str = "document",
    checkpoint: Checkpoint = no_checkpoint,
) -> TransferKit:
    """Builds a kit from a base's directory and a file of examples; see `build_kit`.

    Raises:
        InvalidArgumentError: unknown format, unreadable file or base, too little data.
        FailedPreconditionError: something that is no kit is in the kit's place, or the base
            writes no usable negatives.
    """
    if format not in FORMATS:
        raise InvalidArgumentError(
            f"unknown task format {format!r}: expected {' or '.join(sorted(FORMATS))}"
        )
    check_kit_place(out_dir)
    examples = read_examples(adapter_examples_jsonl)
    # Imports torch and transformers, which takes seconds: bad arguments are told at once.
    from ..distill.distill import load_base
    from .build import KitRecipe, build_kit

    model, tokenizer = load_base(base_dir)
    return build_kit(
        model=model,
        tokenizer=tokenizer,
        examples=examples,
        dataset_name=dataset_name,
        base_id=base_id,
        format=FORMATS[format],
        out_dir=out_dir,
        seed=seed,
        recipe=KitRecipe(seeds=seeds),
        base_revision=base_revision(base_dir),
        checkpoint=checkpoint,
    )


def run(
    *,
    base_dir: Path,
    base_id: str,
    data: Path,
    dataset_name: str,
    out: Path,
    seeds: int = 5,
    seed: int = 0,
    format: str = "document",
) -> dict[str, Any]:
    """Builds a kit and returns what a person wants to know of it, as plain data.

    Raises:
        InvalidArgumentError: see `build_kit_from_files`.
        FailedPreconditionError: the base writes no usable negatives.
    """
    kit = build_kit_from_files(
        base_dir,
        data,
        out,
        base_id=base_id,
        dataset_name=dataset_name,
        seeds=seeds,
        seed=seed,
        format=format,
    )
    return {
        "kit": str(out),
        "base": kit.base_id,
        "dataset": kit.dataset_name,
        "dataset_size": kit.dataset_size,
        "seeds": len(kit.seeds),
        "format": kit.format.name,
        "discriminator_auc": round(kit.discriminator_auc, 4),
        "discriminator": kit.provenance["discriminator"],
        "threshold": round(kit.threshold, 4),
        "real_pass_rate": round(kit.real_pass_rate, 4),
        "fake_pass_rate": round(kit.fake_pass_rate, 4),
        "size_bytes": _size(out),
    }


def _size(directory: Path) -> int:
    return sum(path.stat().st_size for path in _files(directory))


def _files(directory: Path) -> Sequence[Path]:
    return [path for path in directory.rglob("*") if path.is_file()]
