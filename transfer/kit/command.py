"""What `lorebase kit build` runs: files in, a kit out. Free of any command-line library."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from lorebase.serving.artifacts import base_revision
from lorebase.serving.errors import InvalidArgumentError

from ..ports import Checkpoint, Example, no_checkpoint
from .consented import check_consent
from .format import FORMATS
from .kit import Consent, TransferKit
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


@dataclass(frozen=True, slots=True, kw_only=True)
class KitOrder:
    """What kit is wanted."""

    base_id: str
    dataset_name: str
    seeds: int = 5
    """Real examples that stay in the kit."""
    seed: int = 0
    """Of everything random."""
    format: str = "document"
    """Name of a task format."""
    seeds_only: bool = False
    """Without a discriminator: for an adapter of whose data only a few examples are left."""
    with_inputs: int = 0
    """Real inputs, without answers, that the kit holds by consent."""
    consent: str = ""
    """Who allows them, and for what."""

    def leave(self, today: date) -> Consent | None:
        """Returns the consent, given today; None where nothing is asked for."""
        return Consent(text=self.consent, given_on=today.isoformat()) if self.consent else None


def build_kit_from_files(
    base_dir: Path,
    data: Path,
    out_dir: Path,
    *,
    today: date | None = None,
    checkpoint: Checkpoint = no_checkpoint,
    **wanted: Any,
) -> TransferKit:
    """Builds a kit from a base's directory and a file of examples.

    Args:
        base_dir: weights and tokenizer of the source base.
        data: examples, JSONL.
        out_dir: the kit's directory; see `build_kit` and `build_seeds_only`.
        today: day on which consent is given; by default this one.
        checkpoint: called during synthesis and training.
        wanted: fields of `KitOrder`.

    Raises:
        InvalidArgumentError: unknown format, unreadable file or base, too little data, real inputs
            without consent.
        FailedPreconditionError: something that is no kit is in the kit's place, or the base
            writes no usable negatives.
    """
    order = KitOrder(**wanted)
    if order.format not in FORMATS:
        raise InvalidArgumentError(
            f"unknown task format {order.format!r}: expected {' or '.join(sorted(FORMATS))}"
        )
    check_kit_place(out_dir)
    consent = order.leave(today or date.today())
    check_consent(order.with_inputs, consent)
    shared: dict[str, Any] = {
        "examples": read_examples(data),
        "dataset_name": order.dataset_name,
        "base_id": order.base_id,
        "format": FORMATS[order.format],
        "out_dir": out_dir,
        "seed": order.seed,
        "base_revision": base_revision(base_dir),
        "real_inputs": order.with_inputs,
        "consent": consent,
    }
    # Imports torch and transformers, which takes seconds: bad arguments are told at once.
    if order.seeds_only:
        from .seeds_only import build_seeds_only, load_tokenizer

        return build_seeds_only(tokenizer=load_tokenizer(base_dir), seeds=order.seeds, **shared)
    from ..distill.distill import load_base
    from .build import KitRecipe, build_kit

    model, tokenizer = load_base(base_dir)
    recipe = KitRecipe(seeds=order.seeds)
    return build_kit(
        model=model, tokenizer=tokenizer, recipe=recipe, checkpoint=checkpoint, **shared
    )


def run(*, base_dir: Path, data: Path, out: Path, **order: Any) -> dict[str, Any]:
    """Builds a kit and returns what a person wants to know of it, as plain data.

    Args:
        base_dir: weights and tokenizer of the source base.
        data: examples, JSONL.
        out: the kit's directory.
        order: fields of `KitOrder`.

    Raises:
        InvalidArgumentError: see `build_kit_from_files`.
        FailedPreconditionError: the base writes no usable negatives.
    """
    kit = build_kit_from_files(base_dir, data, out, **order)
    figures: dict[str, Any] = {"discriminator": kit.provenance["discriminator"]}
    if kit.discriminator:
        figures |= {
            "discriminator_auc": round(kit.discriminator_auc, 4),
            "threshold": round(kit.threshold, 4),
            "real_pass_rate": round(kit.real_pass_rate, 4),
            "fake_pass_rate": round(kit.fake_pass_rate, 4),
        }
    if kit.consent is not None:
        figures |= {
            "real_inputs": len(kit.real_inputs),
            "consent": f"{kit.consent.text} ({kit.consent.given_on})",
        }
    return {
        "kit": str(out),
        "base": kit.base_id,
        "dataset": kit.dataset_name,
        "dataset_size": kit.dataset_size,
        "seeds": len(kit.seeds),
        "format": kit.format.name,
        **figures,
        "size_bytes": _size(out),
    }


def _size(directory: Path) -> int:
    return sum(path.stat().st_size for path in _files(directory))


def _files(directory: Path) -> Sequence[Path]:
    return [path for path in directory.rglob("*") if path.is_file()]
