"""What the teacher's likelihoods say about answers, and what training makes of it. Pure.

The teacher is the source base with the source adapter. Its tokens are not the student's: all that
is carried over goes by characters (see `spans`).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from .batches import TokenChunk, TokenPair
from .spans import Span, aligned_chunks, carry, top_share


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredAnswer:
    """One answer in the teacher's tokens."""

    spans: tuple[Span, ...]
    """Characters of the answer that each token covers."""
    logprobs: tuple[float, ...]
    """Log p of each token under the source base with the adapter."""
    bare_logprobs: tuple[float, ...] = ()
    """The same without the adapter; empty if it was not asked."""

    @property
    def confidence(self) -> float:
        """Probability of the whole answer.

        It is also the share of answers, sampled at temperature 1, that agree with this one.
        """
        return math.exp(sum(self.logprobs))

    @property
    def excess(self) -> tuple[float, ...]:
        """What the adapter adds to each token: log p with it - log p without it."""
        return tuple(a - b for a, b in zip(self.logprobs, self.bare_logprobs, strict=True))

    @property
    def mean_excess(self) -> float:
        """Mean of `excess`."""
        return sum(self.excess) / len(self.excess) if self.excess else -math.inf


def best_samples(values: Sequence[float], keep: int) -> list[int]:
    """Returns the numbers of the `keep` largest values, in order; of equal ones the first."""
    order = sorted(range(len(values)), key=lambda number: -values[number])
    return sorted(order[:keep])


def informative_tokens(
    scored: Sequence[ScoredAnswer],
    student_spans: Sequence[Sequence[Span]],
    *,
    share: float,
    group: int,
) -> list[list[bool]]:
    """Marks the student's tokens on which the adapter matters most, after TiTok.

    In each group of answers the `share` of the teacher's tokens with the largest excess is
    chosen; the choice is carried over by characters, and where a chunk is chosen in part, the
    `share` of the student's tokens with the largest part is taken.

    Args:
        scored: answers in the teacher's tokens.
        student_spans: the same answers in the student's.
        share: 0 to 1.
        group: answers whose tokens compete with each other.
    """
    marked: list[list[bool]] = []
    for first in range(0, len(scored), group):
        part = scored[first : first + group]
        chosen = top_share([answer.excess for answer in part], share)
        spans = student_spans[first : first + group]
        carried = [
            carry([float(one) for one in mine], answer.spans, theirs)
            for mine, answer, theirs in zip(chosen, part, spans, strict=True)
        ]
        marked += top_share(carried, share)
    return marked


def confidence_weights(scored: Sequence[ScoredAnswer]) -> list[float]:
    """Returns weights in proportion to the teacher's confidence, 1 on average.

    A label in doubt is wrong more often; wrong labels teach nothing worth knowing.
    """
    confidences = [answer.confidence for answer in scored]
    mean = sum(confidences) / len(confidences) if confidences else 0.0
    return [one / mean if mean > 0 else 1.0 for one in confidences]


def with_mask(example: TokenPair, mask: Sequence[bool]) -> TokenPair:
    """Returns the example with loss on the marked tokens only."""
    return replace(example, weights=tuple(float(one) for one in mask))


def with_weight(example: TokenPair, weight: float) -> TokenPair:
    """Returns the example with its tokens' weights multiplied."""
    weights = example.weights or (1.0,) * len(example.answer_ids)
    return replace(example, weights=tuple(one * weight for one in weights))


def with_chunks(example: TokenPair, scored: ScoredAnswer, spans: Sequence[Span]) -> TokenPair:
    """Returns the example with the teacher's likelihood of each chunk that the tokens share.

    Args:
        example: in the student's tokens.
        scored: the same answer in the teacher's.
        spans: characters of the answer that each student token covers.
    """
    chunks = tuple(
        TokenChunk(theirs.start, theirs.stop, min(0.0, sum(scored.logprobs[mine])))
        for mine, theirs in aligned_chunks(scored.spans, spans)
    )
    return replace(example, chunks=chunks)
