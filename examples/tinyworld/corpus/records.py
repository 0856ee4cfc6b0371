"""Records and log lines: named fields are picked, reordered and joined."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from examples.tinyworld.corpus.base import (
    CITIES,
    FIRST_NAMES,
    LAST_NAMES,
    PRODUCTS,
    SEPARATORS,
    WEEKDAYS,
    Example,
    Sampler,
    code_table,
    digits,
    word_list,
)

JOBS = word_list("nurse pilot baker driver teacher lawyer painter farmer cook judge")
LEVELS = ("INFO", "WARN", "ERROR", "FATAL")
HOSTS = word_list("web db cache mail proxy queue")
SERVICES = word_list("auth login disk backup search upload billing network")
FAULTS = (
    "timeout",
    "out of memory",
    "connection lost",
    "access denied",
    "file not found",
    "slow response",
    "restarted",
    "queue full",
)


@dataclass(frozen=True)
class RecordKind:
    """A kind of record.

    Attributes:
        fields: Names of the fields that outputs can pick.
        templates: Ways to write the record; one is drawn per document.
        coded: Fields with few values that a convention can replace by codes.
    """

    fields: tuple[str, ...]
    templates: tuple[str, ...]
    coded: dict[str, tuple[str, ...]] = field(default_factory=dict)


KINDS = {
    "person": RecordKind(
        ("first", "last", "job", "city", "number"),
        (
            "{first} {last}, {job}, {city}, {number}",
            "{last}, {first} ({job}) {city} {number}",
            "name {first} {last}; job {job}; city {city}; id {number}",
            "{number} {first} {last} works as a {job} in {city}",
        ),
        {"job": tuple(JOBS), "city": tuple(CITIES)},
    ),
    "order": RecordKind(
        ("number", "count", "product", "city", "day"),
        (
            "order {number}: {count} x {product} to {city} by {day}",
            "{day}: send {count} {product} to {city}, order {number}",
            "no {number}; item {product}; qty {count}; to {city}; due {day}",
            "{city} wants {count} {product} on {day} ({number})",
        ),
        {"day": tuple(WEEKDAYS), "product": tuple(PRODUCTS)},
    ),
    "log": RecordKind(
        ("time", "level", "host", "service", "fault"),
        (
            "{time} {level} {host} {service}: {fault}",
            "[{level}] {time} {service} on {host}: {fault}",
            "{host} {time} {service} {fault} ({level})",
            "{level} {host}/{service} {fault} at {time}",
        ),
        {"level": LEVELS, "service": tuple(SERVICES), "fault": FAULTS},
    ),
}


@dataclass(frozen=True)
class RecordConvention:
    """How a record is condensed.

    Attributes:
        kind: Key of `KINDS`.
        template: Index of the template.
        order: Fields of the output, in order.
        separators: Separators between them (one fewer than the fields).
        codes: Codes that replace the values of a field, by field.
        only: Values that a field is restricted to, by field.
    """

    kind: str
    template: int
    order: tuple[str, ...]
    separators: tuple[str, ...]
    codes: dict[str, dict[str, str]] = field(default_factory=dict)
    only: dict[str, tuple[str, ...]] = field(default_factory=dict)


# (kind, order) pairs that belong to adapters.
HELD_OUT = frozenset(
    {
        ("person", ("number", "last", "city")),
        ("order", ("city", "count", "product")),
        ("order", ("product", "day", "number")),
        ("log", ("service", "host", "level")),
        ("log", ("level", "service", "time")),
        ("log", ("host", "fault")),
    }
)


def _values(rng: random.Random) -> dict[str, str]:
    """Draws a value for every field of every kind."""
    return {
        "first": rng.choice(FIRST_NAMES),
        "last": rng.choice(LAST_NAMES),
        "job": rng.choice(JOBS),
        "city": rng.choice(CITIES),
        "number": digits(rng, 4),
        "count": str(rng.randint(2, 99)),
        "product": rng.choice(PRODUCTS),
        "day": rng.choice(WEEKDAYS),
        "time": f"{rng.randint(0, 23):02d}:{rng.randint(0, 59):02d}",
        "level": rng.choice(LEVELS),
        "host": rng.choice(HOSTS) + digits(rng, 2),
        "service": rng.choice(SERVICES),
        "fault": rng.choice(FAULTS),
    }


def sampler(convention: RecordConvention) -> Sampler:
    """Returns the sampler of one record convention."""
    template = KINDS[convention.kind].templates[convention.template]

    def sample(rng: random.Random) -> Example:
        values = _values(rng)
        for name, allowed in convention.only.items():
            values[name] = rng.choice(allowed)
        answer = ""
        for name, mark in zip(convention.order, ("", *convention.separators), strict=True):
            answer += mark + convention.codes.get(name, {}).get(values[name], values[name])
        return template.format(**values), answer

    return sample


def draw_kind(rng: random.Random, name: str) -> Sampler:
    """Draws a convention of one kind of record that no adapter uses."""
    kind = KINDS[name]
    while True:
        order = tuple(rng.sample(kind.fields, rng.choice((1, 2, 2, 3, 3, 3))))
        if (name, order) not in HELD_OUT:
            break
    marks = rng.choices(SEPARATORS, k=len(order) - 1)
    if rng.random() < 0.5:
        marks = marks[:1] * len(marks)
    codes = {}
    for key, values in kind.coded.items():
        if rng.random() < 0.35:
            codes[key] = code_table(rng, values)
    template = rng.randrange(len(kind.templates))
    return sampler(RecordConvention(name, template, order, tuple(marks), codes))


def draw_people(rng: random.Random) -> Sampler:
    """Draws a convention on person records."""
    return draw_kind(rng, "person")


def draw_orders(rng: random.Random) -> Sampler:
    """Draws a convention on orders."""
    return draw_kind(rng, "order")


def draw_logs(rng: random.Random) -> Sampler:
    """Draws a convention on log lines."""
    return draw_kind(rng, "log")
