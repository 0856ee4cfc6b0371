"""The filter stage: the kit's discriminator keeps what looks like the client's data."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lorebase.serving.engine.protocol import Sampling
from lorebase.serving.errors import InvalidArgumentError, UnavailableError

from ..kit.calibrate import auc
from ..kit.format import TaskFormat
from ..kit.kit import USABLE_AUC, TransferKit
from ..ports import Checkpoint, ModelSpec, TextGenerator, no_checkpoint

BATCH_SIZE = 128
COLLAPSE_SHARE = 0.25
"""Of the share of the source base's own inputs that pass. When fewer of the next base's do, the
discriminator rejects its style rather than bad inputs, or it can't write such inputs: either way
the result deserves little trust. A low share alone is no fault: real data may be a small part of
what the seeds suggest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FilterPolicy:
    """How the discriminator is used."""

    discriminator: bool = True
    """False keeps every input."""
    calibrated: bool = True
    """Cut at the kit's threshold; else at 0, "rather real than not", as in the paper."""
    least_auc: float = USABLE_AUC
    """A discriminator that separates worse than this filters nothing: held-out real inputs from
    the source base's inputs, or from the next base's. 0 always filters."""

    def __post_init__(self) -> None:
        """Checks the bounds."""
        if not 0 <= self.least_auc <= 1:
            raise InvalidArgumentError(f"got least_auc {self.least_auc}, expected 0 to 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class FilterResult:
    """The inputs that passed."""

    kept: list[str]
    """In the order of the inputs."""
    scores: list[float]
    """log p(real) - log p(not real) of every input; empty when nothing was scored."""
    stats: dict[str, Any]
    """filtered, reason, scored, passed, pass_rate, auc (held-out real inputs against these),
    threshold, collapsed, score quartiles."""


async def score_inputs(
    generator: TextGenerator,
    discriminator: ModelSpec,
    inputs: Sequence[str],
    *,
    format: TaskFormat,
    dataset_name: str,
    checkpoint: Checkpoint = no_checkpoint,
) -> list[float]:
    """Returns log p(real) - log p(not real) of every input.

    Raises:
        UnavailableError: an input could not be scored; the stage is to be repeated.
    """
    scores: list[float] = []
    sampling = Sampling(max_tokens=1, choices=format.choices)
    for first in range(0, len(inputs), BATCH_SIZE):
        checkpoint(first / len(inputs))
        batch = inputs[first : first + BATCH_SIZE]
        prompts = [format.discriminator_prompt(text, dataset_name) for text in batch]
        for item in await generator.complete(discriminator, prompts, sampling):
            if item.error is not None or len(item.choice_logprobs) != 2:
                raise UnavailableError(
                    f"the discriminator on base {discriminator.base_id!r} gave no score: "
                    f"{item.error or f'{len(item.choice_logprobs)} choices instead of 2'}",
                    reason="SCORING_FAILED",
                )
            real, fake = item.choice_logprobs
            scores.append(real - fake)
    checkpoint(1.0)
    return scores


async def filter_inputs(
    generator: TextGenerator,
    discriminator: ModelSpec,
    kit: TransferKit,
    inputs: Sequence[str],
    *,
    policy: FilterPolicy | None = None,
    checkpoint: Checkpoint = no_checkpoint,
) -> FilterResult:
    """Keeps the inputs that the discriminator takes for real.

    A discriminator that can't discriminate filters nothing, and the statistics say so. A filter
    that rejects nearly everything is reported as `collapsed`; rejected inputs are never put back.

    Args:
        generator: where scores come from.
        discriminator: the source base with the kit's discriminator.
        kit: threshold and calibration.
        inputs: what to filter.
        policy: how the discriminator is used; by default as the kit's figures suggest.
        checkpoint: called between batches.

    Raises:
        UnavailableError: an input could not be scored.
    """
    policy = policy or FilterPolicy()
    scores: list[float] = []
    if not why_unasked(kit, policy):
        scores = await score_inputs(
            generator,
            discriminator,
            inputs,
            format=kit.format,
            dataset_name=kit.dataset_name,
            checkpoint=checkpoint,
        )
    return filter_by_scores(inputs, scores, kit, policy)


def why_unasked(kit: TransferKit, policy: FilterPolicy) -> str:
    """Returns why no input is to be scored at all; empty where the discriminator is asked."""
    if not policy.discriminator:
        return "this recipe uses no discriminator"
    if not kit.discriminator:
        return "the kit has no discriminator"
    if kit.discriminator_auc < policy.least_auc:
        return _undiscerning(kit.discriminator_auc, "the source base's synthetic")
    return ""


def filter_by_scores(
    inputs: Sequence[str], scores: list[float], kit: TransferKit, policy: FilterPolicy
) -> FilterResult:
    """Keeps the inputs whose scores say that they are real, as `filter_inputs` does. Pure.

    Whether the discriminator is to be believed follows from all the scores together, so give it
    all inputs of one transfer: a small part may look real, or synthetic, by chance.

    Args:
        inputs: what to filter.
        scores: of each input; empty if `why_unasked` says that none is asked for.
        kit: threshold and calibration.
        policy: how the discriminator is used.
    """
    why = why_unasked(kit, policy)
    if why:
        return _unfiltered(inputs, [], why)
    next_auc = None
    if scores and kit.real_score_quantiles:
        next_auc = auc(kit.real_score_quantiles, scores)
        if next_auc < policy.least_auc:
            return _unfiltered(inputs, scores, _undiscerning(next_auc, "this base's synthetic"))
    return _filtered(inputs, scores, kit, policy, next_auc)


def _filtered(
    inputs: Sequence[str],
    scores: list[float],
    kit: TransferKit,
    policy: FilterPolicy,
    next_auc: float | None,
) -> FilterResult:
    threshold = kit.threshold if policy.calibrated else 0.0
    kept = [text for text, score in zip(inputs, scores, strict=True) if score > threshold]
    rate = len(kept) / len(inputs) if inputs else 0.0
    collapsed = bool(inputs) and (not kept or rate < COLLAPSE_SHARE * kit.fake_pass_rate)
    reason = f"{len(kept)} of {len(inputs)} inputs passed"
    if collapsed:
        reason += (
            f", while {kit.fake_pass_rate:.0%} of the source base's own inputs did: the "
            "discriminator does not carry over to this base's inputs"
        )
    ordered = sorted(scores)
    quartiles = [
        round(ordered[int(q * (len(ordered) - 1))], 3) for q in (0.25, 0.5, 0.75) if ordered
    ]
    return FilterResult(
        kept=kept,
        scores=scores,
        stats={
            "filtered": True,
            "reason": reason,
            "scored": len(scores),
            "passed": len(kept),
            "pass_rate": round(rate, 4),
            "source_pass_rate": kit.fake_pass_rate,
            "auc": None if next_auc is None else round(next_auc, 4),
            "threshold": threshold,
            "collapsed": collapsed,
            "score_quartiles": quartiles,
        },
    )


def _unfiltered(inputs: Sequence[str], scores: list[float], reason: str) -> FilterResult:
    stats = {
        "filtered": False,
        "reason": reason,
        "scored": len(scores),
        "passed": len(inputs),
        "pass_rate": 1.0,
        "collapsed": False,
    }
    return FilterResult(kept=list(inputs), scores=scores, stats=stats)


def _undiscerning(area: float, what: str) -> str:
    return (
        f"the discriminator can't tell real from {what} inputs (AUC {area:.2f}), so nothing was "
        "filtered"
    )
