"""What the grid of each recipe's training came to. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .rows import Row
from .studies import GRID, used_setting
from .world import World


def tuning_rows(rows: Sequence[Row]) -> list[Row]:
    """Returns for each setting its mean accuracy, over all tasks and seeds and by task."""
    told: list[Row] = []
    for recipe, arms in GRID.items():
        for arm in arms:
            cells = [row for row in rows if row["arm"] == arm]
            if not cells:
                continue
            tasks = sorted({row["task"] for row in cells})
            told.append(
                {
                    "kind": "setting",
                    "recipe": recipe,
                    "setting": arm,
                    "accuracy": _mean(cells),
                    "cells": len(cells),
                    "by_task": {
                        task: _mean([row for row in cells if row["task"] == task]) for task in tasks
                    },
                }
            )
    return told


def tuning_summary(rows: Sequence[Row], world: World) -> dict[str, Any]:
    """Returns each recipe's best setting, the one that the table uses, and their gap in points.

    Of settings that are equally good the first of the grid is called the best.
    """
    settings = tuning_rows(rows)
    summary: dict[str, Any] = {
        "tasks": len({row["task"] for row in rows}),
        "seeds": len({row["seed"] for row in rows}),
        "samples": max((row["samples"] for row in rows), default=0),
    }
    for recipe in GRID:
        mine = {one["setting"]: one["accuracy"] for one in settings if one["recipe"] == recipe}
        if not mine:
            continue
        best, used = max(mine, key=lambda name: mine[name]), used_setting(world, recipe)
        name = recipe.replace("-", "")
        summary |= {
            f"{name}_settings": len(mine),
            f"{name}_best": best,
            f"{name}_best_accuracy": mine[best],
            f"{name}_used": used,
            f"{name}_used_accuracy": mine.get(used),
            f"{name}_used_below_best_points": (
                round(100.0 * (mine[best] - mine[used]), 2) if used in mine else None
            ),
        }
    return summary


def _mean(rows: Sequence[Row]) -> float:
    return round(sum(row["accuracy"] for row in rows) / len(rows), 4)
