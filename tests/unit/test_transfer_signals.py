import math

import pytest

from lorebase.transfer.distill.batches import TokenChunk, TokenPair
from lorebase.transfer.distill.signals import (
    ScoredAnswer,
    best_samples,
    confidence_weights,
    informative_tokens,
    with_chunks,
    with_mask,
    with_weight,
)

ONE_EACH = ((0, 1), (1, 2), (2, 3), (3, 4))


def answer(*excess: float, logprob: float = -0.1) -> ScoredAnswer:
    """An answer of one-character tokens with the given excess of the adapter."""
    return ScoredAnswer(
        spans=tuple((n, n + 1) for n in range(len(excess))),
        logprobs=(logprob,) * len(excess),
        bare_logprobs=tuple(logprob - one for one in excess),
    )


def test_excess_is_what_the_adapter_adds() -> None:
    scored = ScoredAnswer(
        spans=ONE_EACH[:2], logprobs=(math.log(0.5), 0.0), bare_logprobs=(math.log(0.25), -3.0)
    )
    assert scored.excess == (pytest.approx(math.log(2)), 3.0)
    assert scored.mean_excess == pytest.approx((math.log(2) + 3) / 2)
    assert scored.confidence == pytest.approx(0.5)


def test_the_best_samples_are_kept_in_order() -> None:
    scored = [answer(1.0, 1.0), answer(5.0), answer(0.0, 3.0), answer(0.5)]
    values = [one.mean_excess for one in scored]
    assert best_samples(values, 2) == [1, 2]
    assert best_samples(values, 9) == [0, 1, 2, 3]
    assert best_samples([0.9, 0.2, 0.9, 0.9], 2) == [0, 2], "the first of equals"


def test_tokens_compete_within_their_group_only() -> None:
    scored = [answer(4.0, 1.0), answer(3.0, 2.0), answer(0.2, 0.1)]
    spans = [one.spans for one in scored]
    assert informative_tokens(scored, spans, share=0.5, group=2) == [
        [True, False],
        [True, False],
        [True, False],
    ]


def test_the_choice_goes_by_characters_to_the_students_tokens() -> None:
    """Of "abcd" the teacher's b and c matter; the student has "ab", "c" and "d"."""
    marked = informative_tokens(
        [answer(0.0, 5.0, 5.0, 0.0)], [((0, 2), (2, 3), (3, 4))], share=0.5, group=4
    )
    assert marked == [[False, True, False]], "c whole, ab by half, d not: one of three"
    marked = informative_tokens(
        [answer(0.0, 5.0, 5.0, 0.0)], [((0, 2), (2, 3), (3, 4))], share=0.7, group=4
    )
    assert marked == [[True, True, False]]


def test_confidence_weights_are_one_on_average() -> None:
    weights = confidence_weights([answer(0, logprob=0.0), answer(0, logprob=math.log(0.25))])
    assert weights == [pytest.approx(1.6), pytest.approx(0.4)]
    assert confidence_weights([]) == []
    assert confidence_weights([answer(0, logprob=-1e9)]) == [1.0], "no certainty anywhere"


EXAMPLE = TokenPair(prompt_ids=(1,), answer_ids=(5, 6, 7))


def test_masks_and_weights_multiply() -> None:
    masked = with_mask(EXAMPLE, [True, False, True])
    assert with_weight(masked, 0.5).weights == (0.5, 0.0, 0.5)
    assert with_weight(EXAMPLE, 2.0).weights == (2.0, 2.0, 2.0)
    with pytest.raises(ValueError, match="1 weights for 3 answer tokens"):
        with_mask(EXAMPLE, [True])


def test_chunks_hold_the_teachers_likelihood_of_shared_characters() -> None:
    scored = ScoredAnswer(spans=((0, 1), (1, 3), (3, 4)), logprobs=(-1.0, -2.0, -4.0))
    spans = ((0, 2), (2, 3), (3, 4))
    assert with_chunks(EXAMPLE, scored, spans).chunks == (
        TokenChunk(0, 2, -3.0),
        TokenChunk(2, 3, -4.0),
    )
