"""A whole transfer in one process, without catalog or engines: benchmarks, tests, studies.

The stages of an upgrade do the same step by step, with their results kept between the steps.
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from ..kit.kit import TransferKit
from ..ports import Checkpoint, Example, ModelSpec, TextGenerator, no_checkpoint
from ..synthesis import Gatherers, cap_answers, gather_inputs, label_inputs
from .recipe import Recipe


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
    """wanted, real_inputs, drawn, written, passed, labelled, rounds, dropped by cause, the figures
    of the filter over all rounds, and what each round came to."""
    judged: list[str] = field(default_factory=list)
    """All inputs that were written, kept or not: what a carried kit learns to judge."""
    scores: list[float] = field(default_factory=list)
    """The discriminator's score of each of `judged`; empty if it was not asked."""


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

    See `gather_inputs`, which the stages of an upgrade use, too.

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
    wanted = round(count * recipe.pool)
    real = kit.real_inputs[:wanted]
    gathered = await gather_inputs(
        generator,
        kit,
        Gatherers(
            writer=cast.next_base if recipe.writer == "next-base" else cast.teacher,
            discriminator=cast.discriminator,
            draw=recipe.draw,
            policy=recipe.filter,
        ),
        wanted=wanted - len(real),
        seed=seed,
        known=real,
        checkpoint=checkpoint,
    )
    kept, rounds = gathered.result.kept, gathered.rounds
    dropped = Counter[str]()
    for one in rounds:
        dropped.update(one["dropped"])
    inputs = [*real, *kept][:wanted]
    labelled = await label_inputs(generator, cast.teacher, kit, inputs, checkpoint=checkpoint)
    return Gathered(
        examples=cap_answers(labelled.examples, recipe.answer_share),
        stats={
            "wanted": wanted,
            "real_inputs": len(real),
            "drawn": sum(one["drawn"] for one in rounds),
            "written": len(gathered.inputs),
            "passed": len(kept),
            "labelled": len(labelled.examples),
            "rounds": len(rounds),
            "by_round": rounds,
            "dropped": dict(sorted(dropped.items())),
            "filter": gathered.result.stats,
            "labels": labelled.stats,
        },
        judged=gathered.inputs,
        scores=gathered.result.scores,
    )
