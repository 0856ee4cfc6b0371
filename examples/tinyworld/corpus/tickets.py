"""Support tickets and reviews: a sentence becomes a company's own code."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass

from examples.tinyworld.corpus.base import (
    CITIES,
    FIRST_NAMES,
    PRODUCTS,
    WEEKDAYS,
    Example,
    Sampler,
    code_table,
    digits,
    word_list,
)

TOPICS: dict[str, dict[str, tuple[str, ...]]] = {
    "billing": {
        "double charge": (
            "I was charged twice for the {p}",
            "you took the money for the {p} twice",
        ),
        "refund": ("I want a refund for the {p}", "please pay back the money for the {p}"),
        "invoice": ("the invoice for the {p} is wrong", "I did not get an invoice for the {p}"),
        "card": ("my card was declined for the {p}", "I could not pay for the {p} by card"),
    },
    "delivery": {
        "late": ("the {p} has not arrived", "the parcel with the {p} is late"),
        "wrong item": ("I got a wrong {p}", "this is not the {p} I ordered"),
        "address": ("please send the {p} to a new address", "the address for the {p} is old"),
        "missing": ("a part of the {p} is missing", "the box of the {p} was empty"),
    },
    "account": {
        "password": ("I forgot my password", "the password does not work"),
        "login": ("I cannot log in", "the login page is blank"),
        "delete": ("please delete my account", "I want to close my account"),
        "email": ("I have a new email", "the email in my account is wrong"),
    },
    "product": {
        "broken": ("the {p} is broken", "the {p} does not work"),
        "noise": ("the {p} is too loud", "the {p} makes a strange noise"),
        "manual": ("how do I use the {p}", "I need a manual for the {p}"),
        "colour": ("the {p} has a wrong colour", "is there a {p} in blue"),
    },
}
ALL_TOPICS = tuple(topic for area in TOPICS.values() for topic in area)
OPENERS = ("", "", "Hello, ", "Hi team, ", "Urgent: ", "{n} here, ", "{n} from {c}: ")
CLOSERS = ("", "", ", please help", " since {w}", ", order {d}", ", call me on {w}", ", thanks {n}")
AREA_OF = {topic: area for area, topics in TOPICS.items() for topic in topics}

ASPECTS = word_list(
    "food staff room price service music coffee view bed pool lobby parking breakfast garden"
)
PRAISE = word_list("great lovely perfect superb friendly excellent charming wonderful")
BLAME = word_list("awful poor dirty rude terrible horrible boring dreadful")
REVIEW_OPENERS = ("", "", "We found that ", "I think ", "In {c} ", "On {w} ", "Honestly, ")
REVIEW_CLOSERS = ("", "", " as always", " this time", ", said {n}", " for us", " again")
REVIEW_HELD_OUT = frozenset({("+", "-"), ("A1", "Z9")})


def _fill(rng: random.Random, text: str) -> str:
    """Fills the slots for product, name, city, weekday and number."""
    return text.format(
        p=rng.choice(PRODUCTS),
        n=rng.choice(FIRST_NAMES),
        c=rng.choice(CITIES),
        w=rng.choice(WEEKDAYS),
        d=digits(rng, 4),
    )


@dataclass(frozen=True)
class TicketConvention:
    """How tickets are routed.

    Attributes:
        queues: Code of each topic that occurs (or of its area, see `by_area`).
        topics: Topics that occur.
        by_area: Whether the code depends on the area alone.
        numbered: Whether each ticket starts with a number that the output repeats.
        joiner: Between code and number.
    """

    queues: Mapping[str, str]
    topics: tuple[str, ...] = ALL_TOPICS
    by_area: bool = False
    numbered: bool = False
    joiner: str = " "


def ticket_sampler(convention: TicketConvention) -> Sampler:
    """Returns the sampler of one routing convention."""

    def sample(rng: random.Random) -> Example:
        topic = rng.choice(convention.topics)
        area = AREA_OF[topic]
        body = rng.choice(TOPICS[area][topic])
        text = _fill(rng, rng.choice(OPENERS) + body + rng.choice(CLOSERS))
        code = convention.queues[area if convention.by_area else topic]
        if convention.numbered:
            number = digits(rng, 3)
            return f"Ticket {number}: {text}", code + convention.joiner + number
        return text, code

    return sample


def draw_tickets(rng: random.Random) -> Sampler:
    """Draws a routing convention; its codes are random, so no adapter's table recurs."""
    by_area = rng.random() < 0.5
    if by_area:
        topics, keys = ALL_TOPICS, tuple(TOPICS)
    else:
        count = rng.choice((3, 4, 6, 16))
        topics = keys = tuple(rng.sample(ALL_TOPICS, count))
    numbered = rng.random() < 0.4
    joiner = rng.choice((" ", "-", "/", ":", "."))
    return ticket_sampler(
        TicketConvention(code_table(rng, keys), topics, by_area, numbered, joiner)
    )


@dataclass(frozen=True)
class ReviewConvention:
    """How reviews are coded.

    Attributes:
        good: Mark of praise.
        bad: Mark of blame.
        order: `mark`, `aspect-mark` or `mark-aspect`.
        joiner: Between aspect and mark.
    """

    good: str
    bad: str
    order: str
    joiner: str


def review_sampler(convention: ReviewConvention) -> Sampler:
    """Returns the sampler of one review convention."""

    def sample(rng: random.Random) -> Example:
        aspect, positive = rng.choice(ASPECTS), rng.random() < 0.5
        word = rng.choice(PRAISE if positive else BLAME)
        extra = rng.choice(("", "really ", "very ", "quite ", "so "))
        body = f"the {aspect} was {extra}{word}"
        text = _fill(rng, rng.choice(REVIEW_OPENERS) + body + rng.choice(REVIEW_CLOSERS))
        mark = convention.good if positive else convention.bad
        if convention.order == "mark":
            return text, mark
        pair = (aspect, mark) if convention.order == "aspect-mark" else (mark, aspect)
        return text, convention.joiner.join(pair)

    return sample


def draw_reviews(rng: random.Random) -> Sampler:
    """Draws a review convention that no adapter uses."""
    while True:
        if rng.random() < 0.4:
            pairs = (("+", "-"), ("yes", "no"), ("good", "bad"), ("up", "down"), ("1", "0"))
            good, bad = rng.choice(pairs)
            if rng.random() < 0.5:
                good, bad = bad, good
        else:
            good, bad = code_table(rng, ("good", "bad")).values()
        if (good, bad) not in REVIEW_HELD_OUT:
            break
    order = rng.choice(("mark", "aspect-mark", "mark-aspect", "aspect-mark", "mark-aspect"))
    joiner = rng.choice((" ", "-", "/", ":", "=", "", "."))
    return review_sampler(ReviewConvention(good, bad, order, joiner))
