"""Token sequences and the order in which they are trained on. Pure but for the tokenizer."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

BUCKET_BATCHES = 8
"""Batches whose examples are sorted by length together: little padding, still well mixed."""


class TokenChunk(NamedTuple):
    """Answer tokens whose likelihood the teacher gave, whatever its own tokens are."""

    first: int
    """Among the answer's tokens."""
    stop: int
    logprob: float
    """The teacher's, in nats."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenPair:
    """One training example."""

    prompt_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]
    weights: tuple[float, ...] = ()
    """Of the answer's tokens in the loss; empty is 1 each."""
    chunks: tuple[TokenChunk, ...] = ()
    """For the chunk loss; empty if it is not used."""

    def __post_init__(self) -> None:
        """Checks the lengths."""
        if self.weights and len(self.weights) != len(self.answer_ids):
            raise ValueError(
                f"got {len(self.weights)} weights for {len(self.answer_ids)} answer tokens"
            )

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.answer_ids)


def encode_pairs(
    tokenizer: Any, pairs: Sequence[tuple[str, str]], *, max_tokens: int
) -> tuple[list[TokenPair], int]:
    """Turns (prompt, answer) pairs into token ids.

    The prompt gets the tokenizer's special tokens as at serving time; the answer gets none and
    is encoded apart, because generation starts exactly at that border.

    Returns:
        The sequences and how many were left out for being longer than `max_tokens`.
    """
    kept = [one for one in encode_all(tokenizer, pairs) if fits(one, max_tokens)]
    return kept, len(pairs) - len(kept)


def encode_all(tokenizer: Any, pairs: Sequence[tuple[str, str]]) -> list[TokenPair]:
    """Turns every pair into token ids, however long."""
    if not pairs:
        return []
    prompts = tokenizer([prompt for prompt, _ in pairs])["input_ids"]
    answers = tokenizer([answer for _, answer in pairs], add_special_tokens=False)["input_ids"]
    return [
        TokenPair(prompt_ids=tuple(prompt), answer_ids=tuple(answer))
        for prompt, answer in zip(prompts, answers, strict=True)
    ]


def fits(example: TokenPair, max_tokens: int) -> bool:
    """Tells whether an example can be trained on: it has an answer and is not too long."""
    return bool(example.answer_ids) and len(example) <= max_tokens


def plan_batches(
    lengths: Sequence[int], *, batch_size: int, steps: int, seed: int
) -> list[list[int]]:
    """Returns the indices of every batch of a training run.

    Every pass over the data is a fresh shuffle; within groups of `BUCKET_BATCHES` batches,
    examples of like length come together. Depends on nothing but the arguments, so a resumed run
    goes on with the same batches.

    Args:
        lengths: tokens of each example; at least one.
        batch_size: examples a batch; fewer if there are fewer examples.
        steps: number of batches.
        seed: of the shuffles.
    """
    if not lengths:
        raise ValueError("got no examples, expected at least one")
    rng = random.Random(f"batches|{seed}")
    size = min(batch_size, len(lengths))
    planned: list[list[int]] = []
    while len(planned) < steps:
        order = list(range(len(lengths)))
        rng.shuffle(order)
        # The last batch of a pass is filled up from its start.
        order += order[: -len(order) % size]
        epoch: list[list[int]] = []
        for first in range(0, len(order), size * BUCKET_BATCHES):
            group = sorted(order[first : first + size * BUCKET_BATCHES], key=lengths.__getitem__)
            epoch += [group[at : at + size] for at in range(0, len(group), size)]
        rng.shuffle(epoch)
        planned += epoch
    return planned[:steps]
