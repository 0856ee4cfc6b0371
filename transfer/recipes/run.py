"""A whole transfer in one process, without catalog or engines: benchmarks, tests, studies.

The stages of an upgrade do the same step by step, with their results kept between the steps.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Any

from ..kit.kit import TransferKit
from ..ports import Checkpoint, Example, ModelSpec, TextGenerator, no_checkpoint
from ..synthesis import filter_inputs, inputs_to_draw, label_inputs, synthesize
from .recipe import Recipe

MAX_ROUNDS = 8
"""Of writing and filtering. Each draws a bounded number of samples, so gathering ends."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cast:
    """Who does what in one transfer."""

    next_base: ModelSpec
    """The base that the shadow is for, alone."""
    teacher: ModelSpec
    """The source base with the source adapter."""
    discriminator: ModelSpec
    """The source base with the kit's discriminator."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gathered:
    """Labelled inputs for training."""

    examples: list[Example]
    stats: dict[str, Any]
    """wanted, drawn, written, passed, labelled, rounds, dropped by cause, and the figures of the
    first round's filter."""


async def gather_examples(
    recipe: Recipe,
    generator: TextGenerator,
    cast: Cast,
    kit: TransferKit,
    *,
    count: int,
    seed: int,
    checkpoint: Checkpoint = no_checkpoint,
) -> Gathered:
    """Writes, filters and labels until there are `recipe.pool` times `count` inputs.

    Round after round draws what is still missing by the pass rate so far; rejected inputs are
    never put back, so fewer may come out.

    Args:
        recipe: who writes, how it is filtered.
        generator: where text comes from.
        cast: the models.
        kit: seeds, format, limits and discriminator figures.
        count: examples to train on.
        seed: fixes everything drawn.
        checkpoint: called between batches.

    Raises:
        UnavailableError: generation failed altogether.
    """
    writer = cast.next_base if recipe.writer == "next-base" else cast.teacher
    wanted = round(count * recipe.pool)
    kept, seen = list[str](), list[str]()
    dropped, first = Counter[str](), dict[str, Any]()
    drawn, rounds = 0, 0
    pass_rate: float | None = None
    while len(kept) < wanted and rounds < MAX_ROUNDS:
        written = await synthesize(
            generator,
            writer,
            kit,
            count=_to_write(recipe, kit, wanted - len(kept), pass_rate),
            seed=seed * MAX_ROUNDS + rounds,
            settings=recipe.draw,
            known=seen,
            checkpoint=checkpoint,
        )
        filtered = await filter_inputs(
            generator,
            cast.discriminator,
            kit,
            written.inputs,
            policy=recipe.filter,
            checkpoint=checkpoint,
        )
        first = first or filtered.stats
        rounds, drawn = rounds + 1, drawn + written.stats["drawn"]
        dropped.update(written.stats["dropped"])
        seen += written.inputs
        kept += filtered.kept
        if not written.inputs:
            break
        pass_rate = max(len(kept), 1) / len(seen)
    inputs = kept[:wanted]
    labelled = await label_inputs(generator, cast.teacher, kit, inputs, checkpoint=checkpoint)
    return Gathered(
        examples=labelled.examples,
        stats={
            "wanted": wanted,
            "drawn": drawn,
            "written": len(seen),
            "passed": len(kept),
            "labelled": len(labelled.examples),
            "rounds": rounds,
            "dropped": dict(sorted(dropped.items())),
            "filter": first,
            "labels": labelled.stats,
        },
    )


def _to_write(recipe: Recipe, kit: TransferKit, missing: int, pass_rate: float | None) -> int:
    """More than is missing where a discriminator will refuse some."""
    if not recipe.filter.discriminator:
        return missing
    return inputs_to_draw(kit, missing, pass_rate=pass_rate)
