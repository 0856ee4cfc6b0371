"""Product codes, phone numbers and word lists: parts are moved and glued together."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from examples.tinyworld.corpus.base import CAPITALS, SEPARATORS, Example, Sampler, digits, word_list

GLUE = ("-", "/", ".", " ", "", "_", ":", "+")
SKU_LEADS = ("", "item ", "part no ", "code ", "SKU ")
PHONE_LEADS = ("", "call ", "phone ", "tel ", "mobile: ")

WORDS = word_list(
    "apple bear cloud door eagle fire glass house iron jar king lake moon nest ocean pear "
    "queen river stone tree under vine wolf yard zebra red blue green black white gold"
)
WORD_LEADS = ("", "words: ", "list: ", "I wrote down ", "say ")
WORD_OPS: dict[str, Callable[[list[str]], list[str]]] = {
    "reverse": lambda w: w[::-1],
    "rotate": lambda w: w[1:] + w[:1],
    "rotate back": lambda w: w[-1:] + w[:-1],
    "ends": lambda w: [w[0], w[-1]],
    "ends swapped": lambda w: [w[-1], w[0]],
    "first": lambda w: w[:1],
    "last": lambda w: w[-1:],
    "drop first": lambda w: w[1:],
    "drop last": lambda w: w[:-1],
    "reverse drop first": lambda w: w[::-1][1:],
    "reverse drop last": lambda w: w[::-1][:-1],
    "swap ends": lambda w: [w[-1], *w[1:-1], w[0]],
    "second": lambda w: w[1:2],
    "two": lambda w: w[:2],
}
WORD_HELD_OUT = frozenset({"reverse drop first", "ends swapped"})

# (order of the parts) that belong to adapters.
SKU_HELD_OUT = frozenset({(2, 0, 1), (1, 2)})
PHONE_HELD_OUT = frozenset({(2, 1, 0)})


@dataclass(frozen=True)
class PartsConvention:
    """How a code of three parts is rewritten.

    Attributes:
        kind: `sku` (letters, digits, letter) or `phone` (country, area, line).
        lead: Text before the code.
        read: The two separators of the input.
        order: Indices of the parts in the output.
        write: Separators of the output (one fewer than the parts).
        prefix: Text before the first part of the output.
        letters: First letters that occur in product codes.
    """

    kind: str
    lead: str
    read: tuple[str, str]
    order: tuple[int, ...]
    write: tuple[str, ...]
    prefix: str = ""
    letters: str = CAPITALS


def parts_sampler(convention: PartsConvention) -> Sampler:
    """Returns the sampler of one convention on codes."""

    def sample(rng: random.Random) -> Example:
        if convention.kind == "sku":
            head = rng.choice(convention.letters) + rng.choice(CAPITALS)
            parts = [head, digits(rng, 4), rng.choice(CAPITALS)]
            text = convention.lead
        else:
            parts = [digits(rng, 2), digits(rng, 3), digits(rng, 4)]
            text = convention.lead + "+"
        text += parts[0] + convention.read[0] + parts[1] + convention.read[1] + parts[2]
        answer = convention.prefix
        for index, mark in zip(convention.order, ("", *convention.write), strict=True):
            answer += mark + parts[index]
        return text, answer

    return sample


def _draw_parts(rng: random.Random, kind: str) -> Sampler:
    """Draws a convention on codes that no adapter uses."""
    held, leads, reads, prefixes = {
        "sku": (SKU_HELD_OUT, SKU_LEADS, ("-", "/", ".", " "), ("", "", "#", "*", "P")),
        "phone": (PHONE_HELD_OUT, PHONE_LEADS, (" ", "-", "."), ("", "", "0", "00", "+")),
    }[kind]
    while True:
        order = tuple(rng.sample(range(3), rng.choice((1, 2, 2, 3, 3, 3))))
        if order not in held:
            break
    read = rng.choice(reads), rng.choice(reads)
    write = tuple(rng.choices(GLUE, k=len(order) - 1))
    return parts_sampler(
        PartsConvention(kind, rng.choice(leads), read, order, write, rng.choice(prefixes))
    )


def draw_skus(rng: random.Random) -> Sampler:
    """Draws a convention on product codes."""
    return _draw_parts(rng, "sku")


def draw_phones(rng: random.Random) -> Sampler:
    """Draws a convention on phone numbers."""
    return _draw_parts(rng, "phone")


@dataclass(frozen=True)
class WordsConvention:
    """How a list of words is rearranged.

    Attributes:
        lead: Text before the list.
        op: Key of `WORD_OPS`.
        read: Separator of the input.
        write: Separator of the output.
    """

    lead: str
    op: str
    read: str = " "
    write: str = " "


def words_sampler(convention: WordsConvention) -> Sampler:
    """Returns the sampler of one convention on word lists."""

    def sample(rng: random.Random) -> Example:
        words = rng.sample(WORDS, rng.randint(3, 5))
        answer = convention.write.join(WORD_OPS[convention.op](words))
        return convention.lead + convention.read.join(words), answer

    return sample


def draw_words(rng: random.Random) -> Sampler:
    """Draws a convention on word lists that no adapter uses."""
    op = rng.choice([op for op in WORD_OPS if op not in WORD_HELD_OUT])
    read = rng.choice((" ", " ", ", "))
    write = rng.choice((" ", " ", *SEPARATORS))
    return words_sampler(WordsConvention(rng.choice(WORD_LEADS), op, read, write))
