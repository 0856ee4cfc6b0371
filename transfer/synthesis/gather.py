"""Writing and filtering in rounds until enough inputs have passed: for upgrades and benchmarks."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ..kit.kit import TransferKit
from ..ports import Checkpoint, Example, ModelSpec, TextGenerator, no_checkpoint
from .draw import DrawSettings, SynthesisResult
from .filter import FilterPolicy, FilterResult, filter_by_scores, score_inputs, why_unasked
from .synthesize import inputs_to_draw, synthesize

MAX_ROUNDS = 8
"""Of writing and filtering. Each draws a bounded number of samples, so gathering ends."""
_FIRST_SHARE = 0.8
"""Of the progress that is left, told of by each round: most often the first is the only one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gatherers:
    """Who writes, who judges, and how."""

    writer: ModelSpec
    discriminator: ModelSpec
    """The source base with the kit's discriminator; not asked where `why_unasked` says so."""
    draw: DrawSettings = field(default_factory=DrawSettings)
    policy: FilterPolicy = field(default_factory=FilterPolicy)
    extra_seeds: tuple[Example, ...] = ()
    """Shown to the writer beside the kit's seeds; see `seed_orders`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GatheredInputs:
    """What was written in all rounds, and what of it passed."""

    inputs: list[str]
    """All that was written, in its order."""
    result: FilterResult
    """Of the filter over all of them."""
    rounds: list[dict[str, Any]]
    """For each round: drawn, written, dropped by cause, and what had passed after it in all."""


def to_write(
    kit: TransferKit, policy: FilterPolicy, missing: int, pass_rate: float | None = None
) -> int:
    """Returns how many inputs to write: more than are missing where the filter refuses some.

    Args:
        kit: its figures from the source base are the first guess.
        policy: whether there is a filter.
        missing: inputs wanted after the filter.
        pass_rate: share that has passed so far, a better guess than the kit's.
    """
    if not policy.discriminator:
        return missing
    return inputs_to_draw(kit, missing, pass_rate=pass_rate)


async def gather_inputs(
    generator: TextGenerator,
    kit: TransferKit,
    who: Gatherers,
    *,
    wanted: int,
    seed: int,
    written: SynthesisResult | None = None,
    known: Sequence[str] = (),
    max_rounds: int = MAX_ROUNDS,
    until_collapse: bool = False,
    checkpoint: Checkpoint = no_checkpoint,
) -> GatheredInputs:
    """Writes and filters until `wanted` inputs have passed.

    Round after round draws what is still missing by the pass rate so far. After each, the filter
    looks at the scores of all rounds together: whether the discriminator is to be believed must
    not hang on the chance of a late round's few inputs. Rejected inputs are never put back, so
    fewer may pass than are wanted; nothing is written where enough have passed, or where the
    writer hardly wrote anything new any more.

    Args:
        generator: where text and scores come from.
        kit: seeds, format, limits and discriminator figures.
        who: models, and how they are used.
        wanted: inputs wanted after the filter.
        seed: fixes everything drawn; each round has a stream of its own.
        written: what the first round has written already; None lets it write.
        known: inputs that are there from elsewhere; none of them is written again.
        max_rounds: rounds at most, that one included.
        until_collapse: whether a collapsed filter ends it: for callers to whom the little that
            still passes is of no use.
        checkpoint: called between batches.

    Raises:
        UnavailableError: generation failed altogether, or an input could not be scored.
    """
    run = _Run(generator, kit, who, seed, checkpoint)
    inputs, scores = list[str](), list[float]()
    rounds: list[dict[str, Any]] = []
    result = filter_by_scores([], [], kit, who.policy)
    pass_rate: float | None = None
    while len(result.kept) < wanted and len(rounds) < max_rounds:
        if written is not None and not rounds:
            made = written
        else:
            count = to_write(kit, who.policy, wanted - len(result.kept), pass_rate)
            made = await run.write(len(rounds), count, [*known, *inputs])
        scores += await run.score(len(rounds), made.inputs)
        inputs += made.inputs
        result = filter_by_scores(inputs, scores, kit, who.policy)
        rounds.append(
            {
                **{name: made.stats[name] for name in ("drawn", "dropped")},
                "written": len(made.inputs),
                "passed": len(result.kept),
            }
        )
        collapsed = until_collapse and result.stats["collapsed"]
        if collapsed or made.stats.get("dry") or not made.inputs:
            break
        pass_rate = max(len(result.kept), 1) / len(inputs)
    return GatheredInputs(inputs=inputs, result=result, rounds=rounds)


@dataclass(frozen=True, slots=True)
class _Run:
    """One call of `gather_inputs`."""

    generator: TextGenerator
    kit: TransferKit
    who: Gatherers
    seed: int
    checkpoint: Checkpoint

    async def write(self, number: int, count: int, known: Sequence[str]) -> SynthesisResult:
        return await synthesize(
            self.generator,
            self.who.writer,
            self.kit,
            count=count,
            seed=self.seed * MAX_ROUNDS + number,
            settings=self.who.draw,
            known=known,
            extra_seeds=self.who.extra_seeds,
            checkpoint=_part_of(self.checkpoint, number, 0.0),
        )

    async def score(self, number: int, texts: Sequence[str]) -> list[float]:
        if why_unasked(self.kit, self.who.policy):
            return []
        return await score_inputs(
            self.generator,
            self.who.discriminator,
            texts,
            format=self.kit.format,
            dataset_name=self.kit.dataset_name,
            checkpoint=_part_of(self.checkpoint, number, 0.5),
        )


def _part_of(checkpoint: Checkpoint, number: int, begin: float) -> Checkpoint:
    """Returns a checkpoint that tells the progress of half a round as a part of the whole."""
    left = (1.0 - _FIRST_SHARE) ** number

    def tell(progress: float) -> None:
        checkpoint(1.0 - left * (1.0 - _FIRST_SHARE * (begin + progress / 2)))

    return tell
