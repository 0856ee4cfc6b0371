"""Sizes of the measured part of suite `gate`. Plain: what trains stands in `gate_live`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveShape:
    """How much is trained."""

    tasks: int
    steps: tuple[int, ...]
    """One shadow for each: training steps."""
    training: int
    """Synthetic inputs to train on."""
    held_out: int
    """Synthetic inputs for the label-free evidence."""
    hidden: int
    """Hidden test inputs for the truth."""
    seed: int = 0


LIVE_FULL = LiveShape(tasks=12, steps=(8, 15, 30, 70), training=250, held_out=200, hidden=240)
LIVE_QUICK = LiveShape(tasks=1, steps=(5, 40), training=40, held_out=40, hidden=40)


def spread(items: Sequence[Item], count: int) -> list[Item]:
    """Returns about `count` items evenly over their order, first and last among them."""
    last, count = len(items) - 1, min(count, len(items))
    if count < 2:
        return list(items[:count])
    return [items[round(place * last / (count - 1))] for place in range(count)]
