"""What single changes of our recipe came to, against the recipe as it is. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .rows import Row, cpu_seconds
from .statistics import differences, estimate, mean_of, table_of
from .studies import CHANGE_SAMPLES, CHANGES


def change_rows(rows: Sequence[Row]) -> list[Row]:
    """Returns for each change its accuracy, its gain over `lorebase` and its price.

    Returns:
        arm; accuracy, a mean over tasks and seeds; points: gain in points of a hundred with its
        95 % interval, paired by task and seed; by_task; cpu_ratio: CPU seconds over `lorebase`'s.
    """
    table = table_of(rows, CHANGE_SAMPLES)
    ours = [arms["lorebase"] for arms in table.values() if "lorebase" in arms]
    base = mean_of(ours, cpu_seconds)
    told: list[Row] = []
    for arm in ("lorebase", *CHANGES):
        cells = [arms[arm] for arms in table.values() if arm in arms]
        gained = differences(table, arm, "lorebase")
        found = estimate(gained)
        if not cells or found is None:
            continue
        cpu = mean_of(cells, cpu_seconds)
        told.append(
            {
                "kind": "change",
                "arm": arm,
                "accuracy": round(mean_of(cells, lambda row: row["accuracy"]) or 0.0, 4),
                "points": found.rounded(),
                "cells": len(cells),
                "by_task": {
                    task: round(sum(points) / len(points), 2)
                    for task, points in sorted(gained.items())
                },
                "cpu_ratio": round(cpu / base, 2) if cpu and base else None,
            }
        )
    return told


def change_summary(rows: Sequence[Row]) -> dict[str, Any]:
    """Returns each change's gain over `lorebase` in points, with its interval."""
    told = change_rows(rows)
    return {
        "tasks": len({row["task"] for row in rows}),
        "seeds": len({row["seed"] for row in rows}),
        "samples": CHANGE_SAMPLES,
        **{f"{one['arm']}_minus_lorebase_points": one["points"] for one in told[1:]},
        "changes_that_gain": [one["arm"] for one in told[1:] if one["points"][1] > 0],
        "changes_that_harm": [one["arm"] for one in told[1:] if one["points"][2] < 0],
    }
