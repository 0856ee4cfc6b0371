"""What two moves in a row lose, where the second one goes on to a third base. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .rows import Row
from .statistics import Estimate, Table, differences, estimate, table_of

HOP_ARMS = ("source", "zero-shot", "lorebase", "hop2")
"""All but the last are the table's own cells."""


def hop_rows(rows: Sequence[Row], *, samples: int) -> list[Row]:
    """Returns each task's mean accuracy on its way, and what it loses."""
    table = table_of(rows, samples)
    told: list[Row] = []
    for task in sorted({task for task, _ in table}):
        ways = [arms for (one, _), arms in table.items() if one == task and "hop2" in arms]
        if not ways:
            continue
        means = {
            arm: round(sum(arms[arm]["accuracy"] for arms in ways) / len(ways), 4)
            for arm in HOP_ARMS
            if all(arm in arms for arms in ways)
        }
        told.append({"kind": "hops", "task": task, "seeds": len(ways), "accuracy": means})
    return told


def hop_losses(table: Table) -> dict[str, Estimate | None]:
    """Returns the points lost after one hop and after two, where there are two."""
    both = {place: arms for place, arms in table.items() if "hop2" in arms}
    return {
        f"hop{hop}_loss_points": estimate(differences(both, "source", arm))
        for hop, arm in ((1, "lorebase"), (2, "hop2"))
    }


def hop_summary(rows: Sequence[Row], *, samples: int) -> dict[str, Any]:
    """Returns what the adapters lose in points after one hop and after two, with intervals."""
    table = table_of(rows, samples)
    places = [place for place, arms in table.items() if "hop2" in arms]
    losses = hop_losses(table)
    return {
        "tasks": len({task for task, _ in places}),
        "seeds": len({seed for _, seed in places}),
        "samples": samples,
        **{key: lost and lost.rounded() for key, lost in losses.items()},
    }
