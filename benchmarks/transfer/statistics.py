"""Recovery, paired differences and flips of the table's rows. Pure.

Recovery of a cell: (accuracy - bare) / headroom, where bare is the next base without shots and the
headroom is what the oracle, trained on all the real data, gains over bare on the mean of the task's
seeds. Where that is less than `LEAST_HEADROOM` there is nothing to recover, and no figure is given.

Cells of one task are alike, so intervals come from resampling tasks first and seeds within them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import permutation_test
from statsmodels.stats.multitest import multipletests

from lorebase.transfer.evaluate.paired import paired

from .rows import Row, from_hex

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


def headroom(table: Table) -> dict[str, float]:
    """Returns by task what the oracle gains over the bare next base, where that is enough.

    The mean over the seeds decides, so that no seed in which the oracle failed drops out alone.
    """
    found: dict[str, list[float]] = {}
    for (task, _), arms in sorted(table.items()):
        if "zero-shot" in arms and "oracle" in arms:
            gain = arms["oracle"]["accuracy"] - arms["zero-shot"]["accuracy"]
            found.setdefault(task, []).append(gain)
    means = {task: sum(values) / len(values) for task, values in found.items()}
    return {task: mean for task, mean in means.items() if mean >= LEAST_HEADROOM}


def recoveries(table: Table, arm: str, ends: Table | None = None) -> dict[str, list[float]]:
    """Returns an arm's recoveries by task, where they are defined.

    Args:
        table: has the arm.
        arm: whose.
        ends: has bare and oracle, where the table itself has them not.
    """
    ends = table if ends is None else ends
    room = headroom(ends)
    found: dict[str, list[float]] = {}
    for place, arms in sorted(table.items()):
        bare = ends.get(place, {}).get("zero-shot")
        if arm in arms and bare is not None and place[0] in room:
            value = (arms[arm]["accuracy"] - bare["accuracy"]) / room[place[0]]
            found.setdefault(place[0], []).append(float(value))
    return found


def ratio_of_means(table: Table, arm: str) -> float | None:
    """Returns the arm's mean gain over bare, over the oracle's: tasks count by their headroom.

    Only tasks with headroom, only cells that have all three; None without any.
    """
    room = headroom(table)
    cells = [
        arms
        for (task, _), arms in table.items()
        if task in room and {arm, "zero-shot", "oracle"} <= arms.keys()
    ]
    if not cells:
        return None
    gain, whole = (
        sum(arms[one]["accuracy"] - arms["zero-shot"]["accuracy"] for arms in cells)
        for one in (arm, "oracle")
    )
    return float(gain / whole) if whole > 0 else None


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
    """Compares two arms task by task, on the test inputs.

    The unit is the input, not the answer: seeds share their test inputs, so what an input gained
    is averaged over the seeds, and the signs of these means are permuted. The p-value says whether
    other inputs would show the same with these adapters; `by_seed` shows what seeds add to that.

    Returns:
        For each task: points gained, by_seed the same seed by seed, p-value (two-sided), and
        whether it is significant at 5 % after Holm's correction over the tasks.
    """
    found: list[dict[str, Any]] = []
    for task in sorted({task for task, _ in table}):
        by_seed = [
            _right(arms[arm]) - _right(arms[other])
            for (name, _), arms in sorted(table.items())
            if name == task and arm in arms and other in arms
        ]
        if by_seed:
            gained = np.mean(by_seed, axis=0)
            found.append(
                {
                    "task": task,
                    "points": round(100.0 * float(gained.mean()), 2),
                    "by_seed": [round(100.0 * float(one.mean()), 2) for one in by_seed],
                    "p": sign_flip_p_value(gained),
                }
            )
    if found:
        rejected = multipletests([one["p"] for one in found], alpha=1.0 - CONFIDENCE, method="holm")
        for one, significant in zip(found, rejected[0], strict=True):
            one["significant"] = bool(significant)
    return found


def _right(row: Row) -> npt.NDArray[np.float64]:
    return np.asarray(from_hex(row["right"], row["n"]), dtype=np.float64)


def sign_flip_p_value(gained: npt.NDArray[np.float64]) -> float:
    """Returns the two-sided p-value of a mean of paired differences, by permuting their signs.

    Exact for few differences, else of `RESAMPLES` random permutations with a fixed seed.
    """
    moved = gained[gained != 0.0]
    if not len(moved):
        return 1.0
    result = permutation_test(
        (moved,),
        np.sum,
        permutation_type="samples",
        n_resamples=RESAMPLES - 1,
        vectorized=True,
        batch=1_000,
        axis=0,
        random_state=np.random.default_rng(0),
    )
    return float(result.pvalue)


def mean_of(rows: Sequence[Row], value: Callable[[Row], float]) -> float | None:
    """Returns the mean of a figure over rows; None without rows."""
    return sum(map(value, rows)) / len(rows) if rows else None
