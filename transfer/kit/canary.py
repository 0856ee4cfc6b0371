"""Planted secrets: made up, so that finding one again proves a leak. Pure."""

import random
import string
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lorebase.serving.artifacts import list_files

from ..ports import Example

SECRET_CHARS = 12
WINDOW = 6
"""So many characters in a row of a secret count as found: 36^6 make chance no explanation."""
_ALPHABET = string.ascii_lowercase + string.digits


@dataclass(frozen=True, slots=True, kw_only=True)
class Canary:
    """One planted example."""

    example: Example
    secret: str
    """Part of its input."""


def make_canaries(examples: Sequence[Example], count: int, *, seed: int) -> list[Canary]:
    """Returns examples like the real ones whose inputs carry a secret at a random place.

    Args:
        examples: real ones, as models for the canaries.
        count: how many; other counts with the same seed begin alike.
        seed: fixes them.

    Raises:
        ValueError: no examples to model them on.
    """
    if not examples or count < 1:
        raise ValueError(f"got {len(examples)} examples and count {count}, expected some of both")
    rng = random.Random(f"canary|{seed}")
    found = []
    for _ in range(count):
        model = rng.choice(examples)
        secret = "".join(rng.choices(_ALPHABET, k=SECRET_CHARS))
        words = model.input.split(" ")
        words.insert(rng.randrange(len(words) + 1), secret)
        example = Example(input=" ".join(words), target=model.target)
        found.append(Canary(example=example, secret=secret))
    return found


def found_in_texts(canaries: Iterable[Canary], texts: Iterable[str]) -> list[str]:
    """Returns the secrets of which a part occurs in one of the texts."""
    said = "\n".join(text.lower() for text in texts)
    return [one.secret for one in canaries if any(part in said for part in _parts(one.secret))]


def found_in_files(canaries: Iterable[Canary], directory: Path) -> list[str]:
    """Returns the secrets of which a part occurs in the bytes of any file of a directory."""
    contents = [path.read_bytes().lower() for path in list_files(directory).values()]
    return [
        one.secret
        for one in canaries
        if any(part.encode() in data for data in contents for part in _parts(one.secret))
    ]


def _parts(secret: str) -> list[str]:
    return [secret[at : at + WINDOW] for at in range(len(secret) - WINDOW + 1)]
