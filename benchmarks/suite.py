"""What a suite is given and what it returns."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class SuiteContext:
    """What every suite gets."""

    quick: bool
    """A smoke run: the same code, far fewer samples; its figures mean nothing."""
    work_dir: Path
    """Empty directory for state; removed after a successful run."""
    say: Callable[[str], None]
    """Prints a line of progress."""
    arguments: tuple[str, ...] = ()
    """Arguments after the runner's own, for suites that take any."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SuiteResult:
    """What was measured."""

    rows: list[dict[str, Any]]
    """The data, one object for each thing measured."""
    summary: dict[str, Any]
    """The figures that others name; units are in the names, shares between 0 and 1."""
    figure_svg: str = ""
    """A plot; empty if the suite has none."""
    failures: list[str] = field(default_factory=list)
    """Correctness gates that did not hold. With any, the figures must not be used."""
    name: str = ""
    """Of the result's files, where they are not the whole suite's; empty: the suite's name."""


class Suite(Protocol):
    """A module of benchmarks.suites."""

    run: Callable[[SuiteContext], Awaitable[SuiteResult]]
