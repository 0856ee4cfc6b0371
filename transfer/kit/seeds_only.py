"""Builds a kit of a few examples, for an adapter whose data is gone. Needs a tokenizer only."""

import random
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lorebase.serving.errors import InvalidArgumentError

from ..ports import Example
from .calibrate import LETS_ALL_PASS
from .consented import with_real_inputs
from .format import TaskFormat
from .kit import SCHEMA_VERSION, Consent, TransferKit
from .material import data_fingerprint, length_limits, unique_examples
from .storage import check_kit_place, save_kit

LENGTH_HEADROOM = 2.0
"""A few examples hardly show the longest."""


def load_tokenizer(base_dir: Path) -> Any:
    """Loads a base's tokenizer from its directory.

    Raises:
        InvalidArgumentError: there is none.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(base_dir, local_files_only=True)
    except (OSError, ValueError) as error:
        raise InvalidArgumentError(
            f"can't load a tokenizer from {base_dir}: {error}", reason="BASE_INVALID"
        ) from error


def build_seeds_only(
    *,
    tokenizer: Any,
    examples: Sequence[Example],
    dataset_name: str,
    base_id: str,
    format: TaskFormat,
    out_dir: Path,
    seed: int = 0,
    seeds: int = 5,
    base_revision: str = "",
    real_inputs: int = 0,
    consent: Consent | None = None,
) -> TransferKit:
    """Makes a kit without a discriminator: seeds, their format, and lengths derived from them.

    An adapter with such a kit migrates by the recipe `lorebase-without-kit`: nothing filters what
    the next base writes, and the source adapter's certainty selects instead.

    Args:
        tokenizer: of the source base.
        examples: what is left of the data; five at least.
        dataset_name: short description of it.
        base_id: name of the source base.
        format: how inputs and answers are written.
        out_dir: the kit's directory; an older kit there is replaced.
        seed: fixes the choice of seeds.
        seeds: examples that stay in the kit.
        base_revision: goes into the provenance.
        real_inputs: inputs of further examples that the kit holds by consent.
        consent: to them.

    Raises:
        InvalidArgumentError: too few examples, empty or too long ones, or no consent.
        FailedPreconditionError: something that is no kit is in its place.
    """
    check_kit_place(out_dir)
    unique = unique_examples(examples, seeds=seeds, seeds_only=True)
    random.Random(f"kit|{seed}").shuffle(unique)
    limits: dict[str, Any] = length_limits(
        unique,
        lambda text: len(tokenizer.encode(text, add_special_tokens=False)),
        headroom=LENGTH_HEADROOM,
    )
    kit = TransferKit(
        schema_version=SCHEMA_VERSION,
        base_id=base_id,
        dataset_name=dataset_name,
        dataset_size=len(unique),
        format=format,
        seeds=tuple(unique[:seeds]),
        discriminator=False,
        **LETS_ALL_PASS,
        **limits,
        provenance={
            "seed": seed,
            "base_revision": base_revision,
            "data_sha256": data_fingerprint(examples),
            "lorebase": version("lorebase"),
            "discriminator": f"none: made of {len(unique)} examples, so nothing will be filtered",
        },
    )
    kit = with_real_inputs(kit, unique, real_inputs, consent)
    out_dir.parent.mkdir(parents=True, exist_ok=True)
    save_kit(kit, None, out_dir)
    return kit
