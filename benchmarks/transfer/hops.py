"""What two moves in a row lose, where the second one goes on to a third base. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .rows import Row
from .statistics import differences, estimate, table_of

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


def hop_summary(rows: Sequence[Row], *, samples: int) -> dict[str, Any]:
    """Returns what the adapters lose in points after one hop and after two, with intervals."""
    both = {place: arms for place, arms in table_of(rows, samples).items() if "hop2" in arms}
    told: dict[str, Any] = {
        "tasks": len({task for task, _ in both}),
        "seeds": len({seed for _, seed in both}),
        "samples": samples,
    }
    for hop, arm in ((1, "lorebase"), (2, "hop2")):
        found = estimate(differences(both, "source", arm))
        told[f"hop{hop}_loss_points"] = None if found is None else found.rounded()
    return told
