"""Recovery, paired differences and flips of the table's rows. Pure.

Recovery of a cell: (accuracy - bare) / (oracle - bare), where bare is the next base without shots
and the oracle is trained on the real data in the same way. Where the oracle gains less than
`LEAST_HEADROOM` there is nothing to recover, and no figure is given.

Cells of one task are alike, so intervals come from resampling tasks first and seeds within them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lorebase.transfer.evaluate.paired import mcnemar_p_value, paired

from .cells import Row, from_hex

LEAST_HEADROOM = 0.10
"""Accuracy that the oracle must gain for recovery to mean anything."""
RESAMPLES = 10_000
CONFIDENCE = 0.95

Table = Mapping[tuple[str, int], Mapping[str, Row]]
"""(task, seed) to arm to row."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A mean over tasks and seeds with its interval."""

    mean: float
    low: float
    high: float
    cells: int

    def rounded(self) -> list[float]:
        """Returns (mean, low, high) for a result file."""
        return [round(value, 4) for value in (self.mean, self.low, self.high)]


def table_of(rows: Sequence[Row], samples: int) -> dict[tuple[str, int], dict[str, Row]]:
    """Groups the rows of one number of samples."""
    table: dict[tuple[str, int], dict[str, Row]] = {}
    for row in rows:
        if row["samples"] == samples:
            table.setdefault((row["task"], row["seed"]), {})[row["arm"]] = row
    return table


def recovery(row: Row, arms: Mapping[str, Row]) -> float | None:
    """Returns the recovery of a row beside the rows of its task and seed; None if undefined."""
    if "zero-shot" not in arms or "oracle" not in arms:
        return None
    bare, oracle = arms["zero-shot"]["accuracy"], arms["oracle"]["accuracy"]
    if oracle - bare < LEAST_HEADROOM:
        return None
    return float((row["accuracy"] - bare) / (oracle - bare))


def recoveries(table: Table, arm: str) -> dict[str, list[float]]:
    """Returns an arm's recoveries by task, where they are defined."""
    found: dict[str, list[float]] = {}
    for (task, _), arms in sorted(table.items()):
        if arm in arms and (value := recovery(arms[arm], arms)) is not None:
            found.setdefault(task, []).append(value)
    return found


def differences(table: Table, arm: str, other: str) -> dict[str, list[float]]:
    """Returns accuracy of `arm` minus accuracy of `other` by task, in points of a hundred."""
    found: dict[str, list[float]] = {}
    for (task, _), arms in sorted(table.items()):
        if arm in arms and other in arms:
            gap = 100.0 * (arms[arm]["accuracy"] - arms[other]["accuracy"])
            found.setdefault(task, []).append(gap)
    return found


def estimate(by_task: Mapping[str, Sequence[float]], *, seed: int = 0) -> Estimate | None:
    """Returns the mean over all cells and its percentile bootstrap interval; None without cells."""
    values = [np.asarray(cells, dtype=np.float64) for cells in by_task.values() if len(cells)]
    if not values:
        return None
    means = _resampled(values, np.random.default_rng(seed))
    tail = 50.0 * (1.0 - CONFIDENCE)
    low, high = np.percentile(means, [tail, 100.0 - tail])
    everything = np.concatenate(values)
    return Estimate(
        mean=float(everything.mean()), low=float(low), high=float(high), cells=len(everything)
    )


def _resampled(
    values: Sequence[npt.NDArray[np.float64]], rng: np.random.Generator
) -> npt.NDArray[np.float64]:
    """Returns means of cells drawn again: tasks, and within each as many seeds as it has."""
    sizes = np.array([len(cells) for cells in values])
    padded = np.zeros((len(values), int(sizes.max())))
    for number, cells in enumerate(values):
        padded[number, : len(cells)] = cells
    tasks = rng.integers(len(values), size=(RESAMPLES, len(values)))
    drawn = sizes[tasks][..., None]
    places = (rng.random((*tasks.shape, padded.shape[1])) * drawn).astype(np.int64)
    counted = np.arange(padded.shape[1]) < drawn
    picked = padded[tasks[..., None], places] * counted
    return np.asarray(picked.sum((1, 2)) / counted.sum((1, 2)), dtype=np.float64)


def flips(table: Table, arm: str) -> dict[str, float]:
    """Returns by task the share of test inputs that the source had right and the arm has wrong."""
    lost: dict[str, list[float]] = {}
    for (task, _), arms in sorted(table.items()):
        if arm in arms and "source" in arms:
            source, shadow = (from_hex(r["right"], r["n"]) for r in (arms["source"], arms[arm]))
            lost.setdefault(task, []).append(paired(source, shadow).loss_rate)
    return {task: sum(values) / len(values) for task, values in lost.items()}


def gains(table: Table, arm: str, other: str) -> list[dict[str, Any]]:
    """Compares two arms task by task on the pooled test answers of all seeds.

    Returns:
        For each task: points gained, exact McNemar p-value, and whether it is significant at 5 %
        after Holm's correction over the tasks.
    """
    found = []
    for task in sorted({task for task, _ in table}):
        new, old = list[bool](), list[bool]()
        for (name, _), arms in sorted(table.items()):
            if name == task and arm in arms and other in arms:
                new += from_hex(arms[arm]["right"], arms[arm]["n"])
                old += from_hex(arms[other]["right"], arms[other]["n"])
        if new:
            pair = paired(old, new)
            found.append(
                {
                    "task": task,
                    "points": round(100.0 * pair.difference, 2),
                    "p": mcnemar_p_value(pair),
                }
            )
    _holm(found)
    return found


def _holm(found: list[dict[str, Any]]) -> None:
    still = True
    for rank, one in enumerate(sorted(found, key=lambda one: one["p"])):
        still = still and one["p"] * (len(found) - rank) <= 1.0 - CONFIDENCE
        one["significant"] = bool(still)


def mean_of(rows: Sequence[Row], value: Callable[[Row], float]) -> float | None:
    """Returns the mean of a figure over rows; None without rows."""
    return sum(map(value, rows)) / len(rows) if rows else None
