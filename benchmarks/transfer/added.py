"""Figures of the tasks that were added after the others' results were seen, told apart from them.

They were made so that a recipe's choice of inputs matters: real inputs are a few percent of what
the wording suggests, and what is to be learned holds for those alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .gated import gate_summary
from .result import NAMED, filtering
from .rows import Row
from .statistics import differences, estimate, gains, recoveries, table_of

ARMS = ("lorebase", "translora", "titok", "legacy", "unfiltered")
"""Names in summary keys of the arms that are told."""


def added_rows(rows: Sequence[Row], *, samples: int) -> list[Row]:
    """Returns what filtering does, task by task."""
    found = gains(table_of(rows, samples), "lorebase", "unfiltered")
    return [{"kind": "filtering-added", "samples": samples, **one} for one in found]


def added_summary(rows: Sequence[Row], *, samples: int) -> dict[str, Any]:
    """Returns recoveries, what ours gains and false promotions; empty without such tasks.

    Args:
        rows: finished cells of the added tasks.
        samples: number of samples of the table.
    """
    table = table_of(rows, samples)
    if not table:
        return {}
    told: dict[str, Any] = {"tasks": sorted({task for task, _ in table})}
    for name in ARMS:
        arm = NAMED[name]
        found = estimate(recoveries(table, arm))
        told[f"recovery_{name}"] = None if found is None else found.rounded()
        gap = estimate(differences(table, "lorebase", arm))
        if arm != "lorebase" and gap is not None:
            told[f"lorebase_minus_{name}_points"] = gap.rounded()
    told |= filtering(table)
    judged = gate_summary(rows)
    told |= {key: value for key, value in judged.items() if key.startswith(("false_", "gated_"))}
    return {"added": told}
