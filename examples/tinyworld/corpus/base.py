"""Shared vocabulary of the corpus: the family type, names, places and small text helpers."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

Example = tuple[str, str]
Sampler = Callable[[random.Random], Example]


@dataclass(frozen=True)
class Family:
    """One family of parametrised tasks.

    Attributes:
        name: Short identifier used in reports.
        weight: Share of the corpus, relative to the other families.
        draw: Draws one convention at random and returns the sampler of its examples.
    """

    name: str
    weight: float
    draw: Callable[[random.Random], Sampler]


def word_list(text: str) -> tuple[str, ...]:
    """Returns the words of a text."""
    return tuple(text.split())


FIRST_NAMES = word_list(
    "Anna Ben Clara David Emma Frank Gina Hugo Ida Jonas Karin Leo Maria Nils Olga Paul "
    "Rosa Sven Tina Viktor"
)
LAST_NAMES = word_list(
    "Berg Costa Dahl Eklund Fischer Gruber Holm Ivanov Jensen Keller Lund Meyer Novak Olsen "
    "Perez Quist Rossi Schmidt Tanaka Weber"
)
CITIES = word_list(
    "Oslo Paris Rome Berlin Madrid Vienna Prague Dublin Lisbon Athens Warsaw Geneva Milan "
    "Porto Turin Ghent"
)
PRODUCTS = word_list(
    "lamp chair table phone camera radio clock printer mirror kettle bottle jacket helmet "
    "carpet blanket keyboard"
)
WEEKDAYS = word_list("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")

SYLLABLES = word_list(
    "ba be bi bo da de di do ka ke ki ko la le li lo ma me mi mo na ne ni no ra re ri ro sa "
    "se si so ta te ti to va ve vi vo"
)
CAPITALS = "ABCDEFGHJKLMNPQRSTUVWXYZ"
SEPARATORS = (" ", "-", "@", "!", "/", "|", ";", ":", ",", ", ", "_", "+", " > ", "#", ".")


def digits(rng: random.Random, count: int) -> str:
    """Returns `count` random digits, the first of which is not zero."""
    return str(rng.randint(10 ** (count - 1), 10**count - 1))


def code_word(rng: random.Random, style: str) -> str:
    """Returns a random code word.

    Args:
        rng: Source of randomness.
        style: One of `CODE_STYLES`.

    Returns:
        A word of that style, such as `K7`, `QB`, `42` or `tori`.
    """
    if style == "letter-digit":
        return rng.choice(CAPITALS) + str(rng.randint(1, 9))
    if style == "letters":
        return rng.choice(CAPITALS) + rng.choice(CAPITALS)
    if style == "number":
        return digits(rng, 2)
    return rng.choice(SYLLABLES) + rng.choice(SYLLABLES)


CODE_STYLES = ("letter-digit", "letters", "number", "syllables")


def code_table(
    rng: random.Random, keys: tuple[str, ...], style: str | None = None
) -> dict[str, str]:
    """Draws a table of distinct code words for `keys`.

    Args:
        rng: Source of randomness.
        keys: What the codes stand for.
        style: One of `CODE_STYLES`, or None to draw one.

    Returns:
        The table, one distinct code a key.
    """
    style = style or rng.choice(CODE_STYLES)
    words: list[str] = []
    while len(words) < len(keys):
        word = code_word(rng, style)
        if word not in words:
            words.append(word)
    return dict(zip(keys, words, strict=True))
