"""Replaces what may identify somebody by random characters of the same shape. Pure."""

import random
import re
import string

_EMAIL = r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+"
_URL = r"(?<=://)\S+"
_NUMBER = r"\d(?:[\d ./:-]*\d)?"
_MIXED = r"\b(?=\w*\d)(?=\w*[A-Za-z])\w{4,}\b"
_IDENTIFYING = re.compile("|".join((_URL, _EMAIL, _MIXED, _NUMBER)))
MIN_DIGITS = 3
"""Shorter numbers are counts and days rather than somebody's."""


def mask(text: str, rng: random.Random) -> str:
    """Returns `text` with addresses, numbers and codes made random, character by character.

    Digits become digits, letters letters of the same case; separators stay, so that what makes
    the format stays too. Names and other words are not recognised: who needs those gone takes
    synthetic seeds.
    """

    def replaced(match: re.Match[str]) -> str:
        found = match[0]
        letters = any(character.isalpha() for character in found)
        if not letters and sum(character.isdigit() for character in found) < MIN_DIGITS:
            return found
        return "".join(_other(character, rng) for character in found)

    return _IDENTIFYING.sub(replaced, text)


def _other(character: str, rng: random.Random) -> str:
    for kind in (string.digits, string.ascii_lowercase, string.ascii_uppercase):
        if character in kind:
            return rng.choice(kind)
    return character
