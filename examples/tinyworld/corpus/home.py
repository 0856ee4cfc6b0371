"""Home commands: a spoken command becomes a short action record or code."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from examples.tinyworld.corpus.base import SEPARATORS, Example, Sampler, code_table, word_list

ROOMS = word_list(
    "kitchen bedroom bathroom hallway garage office attic cellar library nursery studio lounge"
)
DEVICES = word_list("lamp heater fan radio door window blind oven camera speaker pump alarm")
ACTIONS = {
    "on": ("turn on", "switch on", "start"),
    "off": ("turn off", "switch off", "stop"),
    "open": ("open", "unlock"),
    "close": ("close", "shut", "lock"),
    "check": ("check", "look at"),
    "reset": ("reset", "restart"),
}
OPENERS = ("", "", "please ", "hey, ", "now ", "can you ")
CLOSERS = ("", "", " please", " now", " for an hour", " at seven", " until morning", " again")
FIELDS = ("action", "device", "room")
KEY_NAMES = {
    "action": ("act", "do", "cmd", "mode"),
    "device": ("dev", "item", "unit", "obj"),
    "room": ("room", "loc", "zone", "place"),
}


@dataclass(frozen=True)
class HomeConvention:
    """How a command is written down.

    Attributes:
        order: Fields of the output, in order.
        separator: Between the fields.
        keys: Key of each field, or empty for bare values.
        assign: Between key and value.
        codes: Codes that replace the values of a field, by field.
        rooms: Rooms that occur.
        devices: Devices that occur.
    """

    order: tuple[str, ...]
    separator: str
    keys: dict[str, str] = field(default_factory=dict)
    assign: str = "="
    codes: dict[str, dict[str, str]] = field(default_factory=dict)
    rooms: tuple[str, ...] = tuple(ROOMS)
    devices: tuple[str, ...] = tuple(DEVICES)


# (order, separator) pairs that belong to adapters.
HELD_OUT = frozenset(
    {
        (("room", "device", "action"), ";"),
        (("device", "action"), "+"),
        (("action", "room", "device"), "_"),
    }
)


def sampler(convention: HomeConvention) -> Sampler:
    """Returns the sampler of one command convention."""

    def sample(rng: random.Random) -> Example:
        action = rng.choice(tuple(ACTIONS))
        values = {
            "action": action,
            "device": rng.choice(convention.devices),
            "room": rng.choice(convention.rooms),
        }
        verb = rng.choice(ACTIONS[action])
        text = f"{verb} the {values['device']} in the {values['room']}"
        text = rng.choice(OPENERS) + text + rng.choice(CLOSERS)
        parts = []
        for name in convention.order:
            value = convention.codes.get(name, {}).get(values[name], values[name])
            key = convention.keys.get(name)
            parts.append(f"{key}{convention.assign}{value}" if key else value)
        return text, convention.separator.join(parts)

    return sample


def draw(rng: random.Random) -> Sampler:
    """Draws a command convention that no adapter uses."""
    while True:
        order = tuple(rng.sample(FIELDS, rng.choice((2, 2, 3, 3, 3))))
        separator = rng.choice(SEPARATORS)
        if (order, separator) not in HELD_OUT:
            break
    keys = {n: rng.choice(KEY_NAMES[n]) for n in order} if rng.random() < 0.35 else {}
    codes = {}
    if rng.random() < 0.6:
        codes["action"] = code_table(rng, tuple(ACTIONS))
    if rng.random() < 0.2:
        codes["device"] = code_table(rng, tuple(DEVICES))
    if rng.random() < 0.2:
        codes["room"] = code_table(rng, tuple(ROOMS))
    return sampler(HomeConvention(order, separator, keys, rng.choice("=:"), codes))
