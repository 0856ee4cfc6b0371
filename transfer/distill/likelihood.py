"""Log-likelihoods of given answers under a transformers model.

Legend of shape suffixes: B rows, T tokens, K last positions, V vocabulary.
"""

from collections.abc import Sequence
from typing import Any

import torch

from lorebase.serving.errors import InvalidArgumentError

from ..ports import Checkpoint, no_checkpoint
from .batches import TokenPair
from .collate import collate
from .spans import Span

BATCH_SIZE = 32


def answer_spans(tokenizer: Any, answers: Sequence[str]) -> list[tuple[Span, ...]]:
    """Returns the characters that each token of each answer covers.

    Raises:
        InvalidArgumentError: the tokenizer is a slow one, which can't tell.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise InvalidArgumentError(
            f"{type(tokenizer).__name__} can't tell which characters a token covers: this recipe "
            "needs a fast tokenizer (tokenizer.json)",
            reason="SLOW_TOKENIZER",
        )
    if not answers:
        return []
    encoded = tokenizer(list(answers), add_special_tokens=False, return_offsets_mapping=True)
    return [tuple((int(a), int(b)) for a, b in spans) for spans in encoded["offset_mapping"]]


def answer_logprobs(
    model: Any, examples: Sequence[TokenPair], *, checkpoint: Checkpoint = no_checkpoint
) -> list[tuple[float, ...]]:
    """Returns log p of every answer token, given the prompt and the tokens before it, in nats.

    Args:
        model: transformers causal language model in evaluation mode.
        examples: in the model's tokens.
        checkpoint: called between batches.
    """
    order = sorted(range(len(examples)), key=lambda number: len(examples[number]))
    found: list[tuple[float, ...]] = [()] * len(examples)
    device = next(model.parameters()).device
    for first in range(0, len(order), BATCH_SIZE):
        checkpoint(first / len(order))
        numbers = order[first : first + BATCH_SIZE]
        batch = [examples[number] for number in numbers]
        ids_BT, labels_BT, keep = collate(batch, pad_id=0)
        with torch.inference_mode():
            logits_BKV = model(
                input_ids=ids_BT.to(device), use_cache=False, logits_to_keep=keep
            ).logits
            logprobs_BKV = logits_BKV[:, :-1].float().log_softmax(-1).cpu()
        wanted_BK = labels_BT[:, labels_BT.shape[1] - keep + 1 :]
        picked_BK = logprobs_BKV.gather(-1, wanted_BK.clamp(min=0)[..., None])[..., 0]
        for row, number in enumerate(numbers):
            found[number] = tuple(picked_BK[row][wanted_BK[row] >= 0].tolist())
    checkpoint(1.0)
    return found
