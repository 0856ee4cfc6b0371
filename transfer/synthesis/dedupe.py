"""Finds inputs that say the same as one that is there already. Pure."""

import re
from collections.abc import Iterable

from rapidfuzz import process
from rapidfuzz.distance import Levenshtein

MAX_EDIT_SHARE = 0.02
"""Two texts are near-duplicates when at most this share of their characters differs. Inputs of
one task often differ in one short field only, so short texts must be equal."""

_SPACE = re.compile(r"\s+")
_DIGITS = re.compile(r"\D+")


def normalise(text: str) -> str:
    """Returns `text` in lower case with single spaces: what counts as the same input."""
    return _SPACE.sub(" ", text).strip().casefold()


class DuplicateIndex:
    """The inputs seen so far."""

    def __init__(self, texts: Iterable[str] = ()) -> None:
        self._seen: set[str] = set()
        # Numbers carry meaning whatever their share of the text: only texts with the same
        # digits are compared, which also keeps the groups small.
        self._by_digits: dict[str, list[str]] = {}
        for text in texts:
            self.add(text)

    def add(self, text: str) -> bool:
        """Adds a text; returns False if it or a near-duplicate was there."""
        key = normalise(text)
        if key in self._seen:
            return False
        digits = _DIGITS.sub(" ", key).strip()
        group = self._by_digits.setdefault(digits, [])
        edits = int(len(key) * MAX_EDIT_SHARE)
        if edits and process.extractOne(
            key, group, scorer=Levenshtein.distance, score_cutoff=edits
        ):
            return False
        self._seen.add(key)
        group.append(key)
        return True
