"""Documents of the corpus: lists of examples of one task, without any held-out test input."""

from __future__ import annotations

import functools
import random
import re
from collections.abc import Iterator

from examples.tinyworld import tasks
from examples.tinyworld.corpus import codes, dates, home, logic, records, tickets
from examples.tinyworld.corpus.base import Family, Sampler

FAMILIES = (
    Family("dates", 10, dates.draw),
    Family("home", 11, home.draw),
    Family("tickets", 11, tickets.draw_tickets),
    Family("reviews", 7, tickets.draw_reviews),
    Family("people", 8, records.draw_people),
    Family("orders", 8, records.draw_orders),
    Family("logs", 8, records.draw_logs),
    Family("skus", 5, codes.draw_skus),
    Family("phones", 5, codes.draw_phones),
    Family("words", 9, codes.draw_words),
    Family("boolean", 7, logic.draw_boolean),
    Family("hyperbaton", 8, logic.draw_hyperbaton),
)
REAL_SHARE = 0.03
MAX_CHARACTERS = 1300
ANSWER = re.compile(r"\n(?:Output|Real):(.*)\n")


def normalise(text: str) -> str:
    """Returns `text` in lower case with every run of white space made one space."""
    return " ".join(text.lower().split())


@functools.cache
def held_out_inputs() -> frozenset[str]:
    """Returns the normalised inputs that no document may contain.

    These are the test pools of all tasks and every input of the real benchmark tasks.
    """
    found: set[str] = set()
    for task in tasks.TASKS.values():
        found.update(normalise(x) for x, _ in task.pool("test"))
        if task.benchmark:
            found.update(normalise(x) for x, _ in task.pool("train"))
    return frozenset(found)


def _family(rng: random.Random) -> Family:
    """Draws a family by weight."""
    return rng.choices(FAMILIES, [family.weight for family in FAMILIES])[0]


def _real_or_not(rng: random.Random) -> Iterator[str]:
    """Yields lines of a document that tells inputs of one sampler from those of another."""
    family = _family(rng)
    other = family if rng.random() < 0.7 else _family(rng)
    samplers: tuple[Sampler, Sampler] = family.draw(rng), other.draw(rng)
    while True:
        real = rng.random() < 0.5
        yield f"Input: {samplers[0 if real else 1](rng)[0]}\nReal: {'yes' if real else 'no'}\n\n"


def _examples(rng: random.Random, sampler: Sampler) -> Iterator[str]:
    """Yields the examples of a document, leaving out every held-out input."""
    while True:
        text, answer = sampler(rng)
        if normalise(text) not in held_out_inputs():
            yield f"Input: {text}\nOutput: {answer}\n\n"


def document(rng: random.Random) -> str:
    """Returns one document.

    Args:
        rng: Source of randomness.

    Returns:
        3 to 14 examples of one convention, each an input line, an output line and a blank one.
    """
    if rng.random() < REAL_SHARE:
        parts = _real_or_not(rng)
    else:
        parts = _examples(rng, _family(rng).draw(rng))
    text = next(parts)
    for part in (next(parts) for _ in range(rng.randint(2, 13))):
        if len(text) + len(part) > MAX_CHARACTERS:
            break
        text += part
    return text


def segments(text: str) -> list[tuple[str, bool]]:
    """Splits a document where answers begin and end.

    Args:
        text: A document.

    Returns:
        Pieces that join to `text`, each with whether it is an answer (with its newline).
    """
    pieces, start = [], 0
    for match in ANSWER.finditer(text):
        pieces.append((text[start : match.start(1)], False))
        pieces.append((match.group(1) + "\n", True))
        start = match.end()
    pieces.append((text[start:], False))
    return pieces
