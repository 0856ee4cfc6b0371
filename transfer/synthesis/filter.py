"""The filter stage: the kit's discriminator keeps what looks like the client's data."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lorebase.serving.engine.protocol import Sampling
from lorebase.serving.errors import UnavailableError

from ..kit.format import TaskFormat
from ..kit.kit import TransferKit
from ..ports import Checkpoint, ModelSpec, TextGenerator, no_checkpoint

BATCH_SIZE = 128
COLLAPSE_SHARE = 0.25
"""Of the share of the source base's own inputs that pass. When fewer of the next base's do, the
discriminator rejects its style rather than bad inputs, or it can't write such inputs: either way
the result deserves little trust. A low share alone is no fault: real data may be a small part of
what the seeds suggest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FilterResult:
    """The inputs that passed."""

    kept: list[str]
    """In the order of the inputs."""
    scores: list[float]
    """log p(real) - log p(not real) of every input; empty when nothing was scored."""
    stats: dict[str, Any]
    """filtered, reason, scored, passed, pass_rate, threshold, collapsed, score quartiles."""


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
    checkpoint: Checkpoint = no_checkpoint,
) -> FilterResult:
    """Keeps the inputs that the discriminator takes for real, at the kit's calibrated threshold.

    A kit whose discriminator can't discriminate filters nothing, and the statistics say so. A
    filter that rejects nearly everything is reported as `collapsed`; rejected inputs are never
    put back.

    Raises:
        UnavailableError: an input could not be scored.
    """
    if not kit.discriminates:
        reason = (
            f"the discriminator can't tell real from synthetic inputs (AUC "
            f"{kit.discriminator_auc:.2f}), so nothing was filtered"
        )
        stats = {"filtered": False, "reason": reason, "scored": 0, "passed": len(inputs)}
        return FilterResult(kept=list(inputs), scores=[], stats=stats | {"collapsed": False})
    scores = await score_inputs(
        generator,
        discriminator,
        inputs,
        format=kit.format,
        dataset_name=kit.dataset_name,
        checkpoint=checkpoint,
    )
    kept = [text for text, score in zip(inputs, scores, strict=True) if score > kit.threshold]
    rate = len(kept) / len(inputs) if inputs else 0.0
    collapsed = bool(inputs) and (not kept or rate < COLLAPSE_SHARE * kit.fake_pass_rate)
    reason = f"{len(kept)} of {len(inputs)} inputs passed"
    if collapsed:
        reason += (
            f", while {kit.fake_pass_rate:.0%} of the source base's own inputs did: the "
            "discriminator does not carry over to this base's inputs"
        )
    ordered = sorted(scores)
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
            "threshold": kit.threshold,
            "collapsed": collapsed,
            "score_quartiles": [
                round(ordered[int(share * (len(ordered) - 1))], 3) for share in (0.25, 0.5, 0.75)
            ]
            if ordered
            else [],
        },
    )
