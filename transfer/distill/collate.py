"""Batches as tensors.

Legend of shape suffixes: B rows, T tokens, C chunks.
"""

from collections.abc import Sequence

import torch

from .batches import TokenPair

IGNORED = -100
"""Label of a position without loss."""


def collate(batch: Sequence[TokenPair], pad_id: int) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Puts examples side by side, padded on the right.

    Under causal attention no real token sees the padding behind it, so no mask is needed and
    attention takes its fastest path.

    Returns:
        ids and labels, both [B, T] int64 (labels are -100 except on answers), and the number of
        last positions whose logits the loss needs.
    """
    width = max(map(len, batch))
    ids_BT = torch.full((len(batch), width), pad_id, dtype=torch.int64)
    labels_BT = torch.full((len(batch), width), IGNORED, dtype=torch.int64)
    for row, example in enumerate(batch):
        start, end = len(example.prompt_ids), len(example)
        ids_BT[row, :end] = torch.tensor(example.prompt_ids + example.answer_ids)
        labels_BT[row, start:end] = ids_BT[row, start:end]
    first_answer = max(1, min(len(example.prompt_ids) for example in batch))
    return ids_BT, labels_BT, width - first_answer + 1


def collate_signals(
    batch: Sequence[TokenPair], width: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Puts weights and chunks where `collate` puts the answers' tokens.

    Returns:
        weights [B, T] (0 off the answers), number of each token's chunk [B, T] (-1: none) and the
        teacher's log-likelihood of each chunk [C].
    """
    weights_BT = torch.zeros(len(batch), width)
    chunk_BT = torch.full((len(batch), width), -1, dtype=torch.int64)
    teacher: list[float] = []
    for row, example in enumerate(batch):
        start, end = len(example.prompt_ids), len(example)
        weights_BT[row, start:end] = torch.tensor(example.weights) if example.weights else 1.0
        for chunk in example.chunks:
            chunk_BT[row, start + chunk.first : start + chunk.stop] = len(teacher)
            teacher.append(chunk.logprob)
    return weights_BT, chunk_BT, torch.tensor(teacher)
