"""Takes the real examples out of a kit: synthetic seeds, or real ones with pieces made random."""

import asyncio
import random
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from lorebase.serving.engine.protocol import VersionRef
from lorebase.serving.errors import FailedPreconditionError

from ..ports import Checkpoint, Example, ModelSpec, TextGenerator, no_checkpoint
from ..synthesis.draw import DrawSettings, draw_inputs
from ..synthesis.filter import filter_inputs
from ..synthesis.label import label_inputs
from .audit import NEAR, nearest
from .kit import TransferKit
from .mask import mask
from .storage import (
    DISCRIMINATOR_DIR,
    check_kit_place,
    discriminator_dir,
    load_kit,
    save_kit,
)

Mode = Literal["synthetic", "mask"]

DRAWN_PER_SEED = 24
"""Inputs that the base writes for each seed: near copies, rejects and much alike ones go."""
LEAST_DISTANCE = NEAR
"""A synthetic seed differs from every real one in at least this share of its characters."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scrubber:
    """What scrubbing needs beside the kit: models that it runs."""

    generator: TextGenerator
    base: ModelSpec
    """The kit's base, alone."""
    teacher: ModelSpec
    """That base under the adapter: it answers the new seeds."""
    checkpoint: Checkpoint = no_checkpoint


def scrub_kit(
    kit_dir: Path, out_dir: Path, scrubber: Scrubber, *, mode: Mode = "synthetic", seed: int = 0
) -> TransferKit:
    """Writes a kit like another one, without its real seeds.

    The discriminator, its threshold and the figures stay; real inputs that somebody consented to
    and the digest of the data go. Must not be called from a running event loop.

    Args:
        kit_dir: the kit; it is left alone.
        out_dir: the new kit; a kit there is replaced.
        scrubber: models.
        mode: `synthetic` lets the base write new seeds after the real ones; `mask` keeps the real
            ones' words and makes numbers, codes and addresses random. The adapter answers either.
        seed: fixes everything random.

    Raises:
        InvalidArgumentError: not a kit.
        FailedPreconditionError: the base or the adapter gave too little that is usable.
    """
    kit = load_kit(kit_dir)
    check_kit_place(out_dir)
    if mode == "synthetic":
        seeds = asyncio.run(_synthetic(kit, kit_dir, scrubber, seed))
    else:
        rng = random.Random(f"mask|{seed}")
        texts = [mask(item.input, rng) for item in kit.seeds]
        seeds = asyncio.run(_answered(kit, scrubber, texts))
    provenance = {name: value for name, value in kit.provenance.items() if name != "data_sha256"}
    provenance["seeds"] = "synthetic" if mode == "synthetic" else "masked"
    scrubbed = replace(kit, seeds=tuple(seeds), real_inputs=(), consent=None, provenance=provenance)
    out_dir.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=".scrub-", dir=out_dir.parent))
    try:
        weights = None
        if kit.discriminator:
            weights = shutil.copytree(discriminator_dir(kit_dir), work / DISCRIMINATOR_DIR)
        save_kit(scrubbed, weights, out_dir)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return scrubbed


async def _synthetic(
    kit: TransferKit, kit_dir: Path, scrubber: Scrubber, seed: int
) -> list[Example]:
    wanted = len(kit.seeds)
    drawn = await draw_inputs(
        scrubber.generator,
        scrubber.base,
        format=kit.format,
        seeds=kit.seeds,
        count=DRAWN_PER_SEED * wanted,
        seed=seed,
        max_input_chars=kit.max_input_chars,
        max_input_tokens=kit.max_input_tokens,
        settings=DrawSettings(),
        checkpoint=scrubber.checkpoint,
    )
    ref = VersionRef(
        id="discriminator",
        base_id=kit.base_id,
        digest="",
        path=str(discriminator_dir(kit_dir)),
        rank=1,
    )
    kept = await filter_inputs(
        scrubber.generator,
        ModelSpec(base_id=scrubber.base.base_id, version=ref),
        kit,
        drawn.inputs,
        checkpoint=scrubber.checkpoint,
    )
    real = [item.input for item in kit.seeds]
    far = [
        text
        for text, distance in zip(
            kept.kept, nearest(kept.kept, real) if kept.kept else (), strict=True
        )
        if distance >= LEAST_DISTANCE
    ]
    answered = await label_inputs(
        scrubber.generator, scrubber.teacher, kit, far, checkpoint=scrubber.checkpoint
    )
    if len(answered.examples) < wanted:
        raise _too_few(len(answered.examples), wanted)
    return diverse(answered.examples, wanted)


async def _answered(kit: TransferKit, scrubber: Scrubber, texts: Sequence[str]) -> list[Example]:
    answered = await label_inputs(
        scrubber.generator, scrubber.teacher, kit, texts, checkpoint=scrubber.checkpoint
    )
    if len(answered.examples) < len(texts):
        raise _too_few(len(answered.examples), len(texts))
    return answered.examples


def diverse(examples: Sequence[Example], count: int) -> list[Example]:
    """Returns `count` examples that differ much: each next one is the farthest from those taken.

    The first one starts. Different answers go before different inputs, so that a task with few
    answers shows several of them.
    """
    chosen = [examples[0]]
    rest = list(examples[1:])
    while len(chosen) < count and rest:
        answers = {item.target for item in chosen}
        distances = nearest([item.input for item in rest], [item.input for item in chosen])
        best = max(
            range(len(rest)),
            key=lambda at: (rest[at].target not in answers, float(distances[at])),
        )
        chosen.append(rest.pop(best))
    return chosen


def _too_few(got: int, wanted: int) -> FailedPreconditionError:
    return FailedPreconditionError(
        f"{got} usable new seeds, expected {wanted}: the base writes too little that passes the "
        "discriminator, differs from the real seeds and is answered; keep fewer seeds, or mask",
        reason="SCRUB_STARVED",
    )
