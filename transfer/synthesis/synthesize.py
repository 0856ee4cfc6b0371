"""The synthesize stage: the next base writes inputs like the client's."""

import math
from collections.abc import Sequence

from ..kit.kit import TransferKit
from ..ports import Checkpoint, Example, ModelSpec, TextGenerator, no_checkpoint
from .draw import DrawSettings, SynthesisResult, draw_inputs

MAX_OVERSAMPLING = 6.0
"""However little the filter lets through, no more than this many inputs are drawn for each that
is wanted."""


def inputs_to_draw(kit: TransferKit, wanted: int, *, pass_rate: float | None = None) -> int:
    """Returns how many inputs to synthesize so that about `wanted` pass the filter.

    Args:
        kit: Its figures from the source base are the first guess.
        wanted: Inputs wanted after the filter.
        pass_rate: Share that passed in an earlier attempt, a better guess than the kit's.
    """
    if not kit.discriminates:
        return wanted
    rate = kit.fake_pass_rate if pass_rate is None else pass_rate
    # A tenth more: what the filter does not take, the labels may.
    return math.ceil(wanted * min(MAX_OVERSAMPLING, 1.1 / max(rate, 1e-9)))


async def synthesize(
    generator: TextGenerator,
    writer: ModelSpec,
    kit: TransferKit,
    *,
    count: int,
    seed: int,
    checkpoint: Checkpoint = no_checkpoint,
    settings: DrawSettings | None = None,
    known: Sequence[str] = (),
    extra_seeds: Sequence[Example] = (),
) -> SynthesisResult:
    """Draws up to `count` different inputs from a writer, none of them a seed or known.

    The writer is the next base, or what a recipe names. See `draw_inputs` for what is dropped,
    the cap and the errors; see `inputs_to_draw` for `count`.
    """
    return await draw_inputs(
        generator,
        writer,
        format=kit.format,
        seeds=kit.seeds,
        count=count,
        seed=seed,
        max_input_chars=kit.max_input_chars,
        max_input_tokens=kit.max_input_tokens,
        settings=settings,
        known=known,
        extra_seeds=extra_seeds,
        checkpoint=checkpoint,
    )
