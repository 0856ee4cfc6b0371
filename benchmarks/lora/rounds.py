"""Rounds of measurements whose order must not favour anybody."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def rotated(items: Sequence[T], number: int) -> list[T]:
    """Returns the items in another order each round, so that none always follows the same one."""
    first = number % len(items)
    return [*items[first:], *items[:first]]
