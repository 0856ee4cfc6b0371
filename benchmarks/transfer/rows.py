"""Rows of the result: plain data, with the judgements of many answers as one short text."""

from collections.abc import Sequence
from typing import Any

Row = dict[str, Any]


def to_hex(right: Sequence[bool]) -> str:
    """Packs judgements into hexadecimal digits, four a digit, the first highest."""
    bits = "".join("01"[one] for one in right)
    return f"{int(bits or '0', 2):0{-(-len(right) // 4)}x}" if right else ""


def from_hex(text: str, n: int) -> list[bool]:
    """Unpacks `n` judgements."""
    return [bit == "1" for bit in f"{int(text, 16):0{n}b}"] if n else []


def cpu_seconds(row: Row) -> float:
    """Returns what gathering and training of a cell took."""
    return float(row["cpu_s"])
