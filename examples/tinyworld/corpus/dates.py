"""Date conversion: a sentence with a date becomes the date in another format."""

from __future__ import annotations

import random
from dataclasses import dataclass

from examples.tinyworld.corpus.base import Example, Sampler, digits, word_list

MONTHS = word_list(
    "January February March April May June July August September October November December"
)
LEADS = (
    "The invoice is dated ",
    "The parcel was shipped on ",
    "Room booked for ",
    "Contract signed on ",
    "Date: ",
    "",
)
SOURCES = ("long", "dmy", "iso", "us", "dot")
TARGETS = ("iso", "us", "dot", "long", "dmy", "compact", "year-month", "day-month", "slash")
HELD_OUT = frozenset({("long", "dot"), ("dmy", "compact"), ("iso", "dmy"), ("dmy", "slash")})


@dataclass(frozen=True)
class DateConvention:
    """How a date task reads and writes.

    Attributes:
        source: Format of the date in the input.
        target: Format of the date in the output.
        lead: Text before the date.
        reference: Word that precedes a reference number in the input, or "" for none.
        joiner: Between the date and the reference number in the output; None drops the number.
        years: First and last year.
        months: First and last month.
    """

    source: str
    target: str
    lead: str
    reference: str = ""
    joiner: str | None = None
    years: tuple[int, int] = (1950, 2049)
    months: tuple[int, int] = (1, 12)


def format_date(style: str, year: int, month: int, day: int) -> str:
    """Writes a date in one of the formats of `SOURCES` and `TARGETS`."""
    name = MONTHS[month - 1]
    return {
        "iso": f"{year}-{month:02d}-{day:02d}",
        "us": f"{month:02d}/{day:02d}/{year}",
        "dot": f"{day:02d}.{month:02d}.{year}",
        "long": f"{name} {day}, {year}",
        "dmy": f"{day} {name} {year}",
        "compact": f"{day:02d}{name[:3].upper()}{year % 100:02d}",
        "year-month": f"{year}/{month:02d}",
        "day-month": f"{day:02d}.{month:02d}",
        "slash": f"{year}/{month:02d}/{day:02d}",
    }[style]


def sampler(convention: DateConvention) -> Sampler:
    """Returns the sampler of one date convention."""

    def sample(rng: random.Random) -> Example:
        date = rng.randint(*convention.years), rng.randint(*convention.months), rng.randint(1, 28)
        text = convention.lead + format_date(convention.source, *date)
        answer = format_date(convention.target, *date)
        if convention.reference:
            number = digits(rng, 4)
            text = f"{convention.reference} {number}: {text}"
            if convention.joiner is not None:
                answer += convention.joiner + number
        return text, answer

    return sample


def draw(rng: random.Random) -> Sampler:
    """Draws a date convention that no adapter uses."""
    while True:
        source, target = rng.choice(SOURCES), rng.choice(TARGETS)
        if source != target and (source, target) not in HELD_OUT:
            break
    reference = rng.choice(("Booking", "Ref", "Invoice", "Order")) if rng.random() < 0.4 else ""
    joiner = rng.choice((" #", "/", "-", " ", " no ")) if rng.random() < 0.6 else None
    return sampler(DateConvention(source, target, rng.choice(LEADS), reference, joiner))
