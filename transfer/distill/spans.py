"""Carries what is known of one tokenizer's tokens over to another's, by characters. Pure."""

from collections.abc import Sequence
from itertools import pairwise

Span = tuple[int, int]
"""First character of a token and the one after its last."""

Chunk = tuple[slice, slice]
"""Tokens of one tokenizer and of another that cover the same characters."""


def boundaries(spans: Sequence[Span]) -> dict[int, int]:
    """Returns where tokens end: character position to the number of tokens before it.

    Inside a character of several bytes no text can be cut, so a token that ends there makes no
    boundary.
    """
    found = {
        end: count
        for count, ((_, end), (start, _)) in enumerate(pairwise(spans), 1)
        if end <= start
    }
    if spans:
        found[spans[-1][1]] = len(spans)
    return found


def aligned_chunks(one: Sequence[Span], other: Sequence[Span]) -> list[Chunk]:
    """Splits one text's tokens in two tokenizations into the smallest chunks they share.

    Args:
        one: spans of the text's tokens in one tokenizer, in order.
        other: spans of the same text in the other.

    Returns:
        Chunks in order, every token in exactly one; what is left over at the end is a chunk too.
    """
    if not one or not other:
        return []
    mine, theirs = boundaries(one), boundaries(other)
    shared = sorted(mine.keys() & theirs.keys())
    cuts = [(0, 0), *((mine[at], theirs[at]) for at in shared)]
    if cuts[-1] != (len(one), len(other)):
        # The ends differ, which trimmed spaces can cause: the last tokens belong together.
        while len(cuts) > 1 and (cuts[-1][0] == len(one) or cuts[-1][1] == len(other)):
            cuts.pop()
        cuts.append((len(one), len(other)))
    return [
        (slice(left[0], right[0]), slice(left[1], right[1]))
        for left, right in pairwise(cuts)
        if left != right
    ]


def carry(values: Sequence[float], one: Sequence[Span], other: Sequence[Span]) -> list[float]:
    """Carries one value a token over to another tokenization: the mean of each shared chunk.

    Args:
        values: one for each token of `one`.
        one: spans of the text's tokens.
        other: spans of the same text in the other tokenizer.

    Returns:
        One value for each token of `other`.
    """
    if len(values) != len(one):
        raise ValueError(f"got {len(values)} values for {len(one)} tokens, expected as many")
    carried = [0.0] * len(other)
    for mine, theirs in aligned_chunks(one, other):
        part = values[mine]
        mean = sum(part) / len(part) if part else 0.0
        carried[theirs] = [mean] * (theirs.stop - theirs.start)
    return carried


def top_share(groups: Sequence[Sequence[float]], share: float) -> list[list[bool]]:
    """Marks the largest values over all groups together.

    Args:
        groups: values, for example of the tokens of each sample in a batch.
        share: how many of all the values to mark, 0 to 1; at least one is marked. Of equal values
            the earlier ones are.
    """
    places = [(row, at) for row, group in enumerate(groups) for at in range(len(group))]
    count = min(len(places), max(1, int(len(places) * share)))
    best = sorted(places, key=lambda place: -groups[place[0]][place[1]])[:count]
    marked = [[False] * len(group) for group in groups]
    for row, at in best:
        marked[row][at] = True
    return marked
