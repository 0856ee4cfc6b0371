"""Whether the source adapter's own weights are a better start on the next base than none.

Where both bases are of one lineage (the next one was trained on from the source, or was quantised,
or merged), modules and shapes are equal and an adapter may still do part of its work as it is. On a
base of another shape it can't be put at all, and on a strange one of the same shape it only harms:
so both are tried on examples that nothing has been trained on yet, and the better one is kept.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lorebase.serving.errors import InvalidArgumentError

from ..distill.attach import attach, detach
from ..distill.batches import TokenPair
from ..distill.files import load_weights
from ..distill.likelihood import answer_logprobs
from .models import Shadow

TRIED = 64
"""Examples that decide, at most."""


def warm_start(shadow: Shadow, examples: Sequence[TokenPair]) -> tuple[Path | None, dict[str, Any]]:
    """Returns what the training should start from, None for a fresh adapter, and figures.

    Args:
        shadow: the next base, the shape of its adapter, and where the source adapter is.
        examples: prompts with the teacher's answers.

    Returns:
        The figures: fits, and if so bare_loss, copied_loss (the mean negative log likelihood of
        the teacher's answers' tokens) and kept. Empty where no source adapter is at hand.
    """
    if shadow.source_dir is None:
        return None, {}
    some = examples[:TRIED]
    adapted = attach(shadow.model, shadow.lora, some, seed=0, base_id=shadow.base_id)
    try:
        load_weights(adapted, shadow.source_dir)
        copied = _loss(adapted.eval(), some)
    except InvalidArgumentError as error:
        return None, {"fits": False, "reason": error.message}
    finally:
        detach(adapted, shadow.model)
    bare = _loss(shadow.model, some)
    kept = copied < bare
    figures = {"fits": True, "bare_loss": bare, "copied_loss": copied, "kept": kept}
    return shadow.source_dir if kept else None, figures


def _loss(model: Any, examples: Sequence[TokenPair]) -> float:
    """Mean over all answers' tokens."""
    logprobs = [one for of_answer in answer_logprobs(model, examples) for one in of_answer]
    return -sum(logprobs) / max(1, len(logprobs))
