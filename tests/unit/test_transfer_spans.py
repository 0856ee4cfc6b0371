import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorebase.transfer.distill.spans import Span, aligned_chunks, boundaries, carry, top_share


def spans_of(cuts: set[int], length: int) -> list[Span]:
    return list(itertools.pairwise(sorted({0, *cuts, length})))


TOKENIZATIONS = st.integers(1, 24).flatmap(
    lambda length: st.tuples(
        *[st.sets(st.integers(0, length)).map(lambda cuts: spans_of(cuts, length))] * 2
    )
)


@given(TOKENIZATIONS)
def test_every_token_is_in_one_chunk_and_chunks_cover_the_same_characters(
    pair: tuple[list[Span], list[Span]],
) -> None:
    one, other = pair
    chunks = aligned_chunks(one, other)
    for side, spans in ((0, one), (1, other)):
        numbers = [n for chunk in chunks for n in range(chunk[side].start, chunk[side].stop)]
        assert numbers == list(range(len(spans)))
    for mine, theirs in chunks:
        assert one[mine][0][0] == other[theirs][0][0]
        assert one[mine][-1][1] == other[theirs][-1][1]


@given(TOKENIZATIONS)
def test_no_chunk_could_be_split(pair: tuple[list[Span], list[Span]]) -> None:
    one, other = pair
    shared = {end for _, end in one} & {end for _, end in other}
    assert len(aligned_chunks(one, other)) == len(shared)


def test_a_character_of_several_tokens_is_not_cut() -> None:
    snowman_in_bytes = [(0, 1), (1, 2), (1, 2), (1, 2), (2, 3)]
    assert boundaries(snowman_in_bytes) == {1: 1, 2: 4, 3: 5}
    whole = [(0, 1), (1, 2), (2, 3)]
    assert aligned_chunks(snowman_in_bytes, whole) == [
        (slice(0, 1), slice(0, 1)),
        (slice(1, 4), slice(1, 2)),
        (slice(4, 5), slice(2, 3)),
    ]


def test_trimmed_spaces_join_the_chunk_beside_them() -> None:
    trimmed = [(0, 2), (3, 5), (5, 6)]  # a tokenizer that leaves the space out of " bc"
    exact = [(0, 2), (2, 3), (3, 5), (5, 6)]
    assert aligned_chunks(trimmed, exact) == [
        (slice(0, 1), slice(0, 1)),
        (slice(1, 2), slice(1, 3)),
        (slice(2, 3), slice(3, 4)),
    ]


def test_different_ends_make_one_last_chunk() -> None:
    assert aligned_chunks([(0, 1), (1, 2), (2, 3)], [(0, 1), (1, 2)]) == [
        (slice(0, 1), slice(0, 1)),
        (slice(1, 3), slice(1, 2)),
    ]
    assert aligned_chunks([], [(0, 1)]) == []


def test_a_value_is_carried_as_the_mean_of_its_chunk() -> None:
    one = [(0, 2), (2, 3), (3, 6)]
    other = [(0, 3), (3, 4), (4, 6)]
    assert carry([1.0, 0.0, 0.5], one, other) == [0.5, 0.5, 0.5]
    assert carry([0.0, 1.0, 0.0, 1.0], [(0, 1), (1, 2), (2, 3), (3, 4)], [(0, 1), (1, 4)]) == [
        0.0,
        pytest.approx(2 / 3),
    ]
    with pytest.raises(ValueError, match="2 values for 3 tokens"):
        carry([1.0, 2.0], one, other)


@given(TOKENIZATIONS)
def test_carrying_a_constant_gives_the_constant(pair: tuple[list[Span], list[Span]]) -> None:
    assert carry([1.0] * len(pair[0]), *pair) == [1.0] * len(pair[1])


def test_the_largest_values_of_all_groups_are_marked() -> None:
    groups = [[0.1, 0.9], [0.8], [0.2, 0.3, 0.0]]
    assert top_share(groups, 0.5) == [[False, True], [True], [False, True, False]]
    assert top_share(groups, 0.0) == [[False, True], [False], [False, False, False]], "at least one"
    assert top_share([[1.0, 1.0]], 0.5) == [[True, False]]
    assert top_share([[], []], 0.5) == [[], []]
