"""What the rows of the table come to: the summary, and what is worth a row of its own. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .arms import CURVE, TABLE
from .gated import gate_summary
from .hops import hop_losses
from .rows import Row, cpu_seconds
from .statistics import (
    Estimate,
    Table,
    differences,
    estimate,
    flips,
    gains,
    headroom,
    mean_of,
    ratio_of_means,
    recoveries,
    table_of,
)

NAMED = {
    "lorebase": "lorebase",
    "translora": "trans-lora",
    "titok": "titok",
    "legacy": "legacy",
    "unfiltered": "unfiltered",
    "seeds_only": "seeds-only",
    "random": "random",
    "fewshot": "few-shot",
}
"""Names of arms in summary keys."""


def summarise(rows: Sequence[Row], *, samples: int) -> dict[str, Any]:
    """Returns the figures that others name; see benchmarks/transfer/README.md.

    Args:
        rows: finished cells of the tasks that count.
        samples: number of samples of the table.
    """
    table = table_of(rows, samples)
    summary: dict[str, Any] = {
        "tasks": len({task for task, _ in table}),
        "seeds": len({seed for _, seed in table}),
        "samples": samples,
        "tasks_with_headroom": len(headroom(table)),
    }
    for name, arm in NAMED.items():
        summary |= _told(f"recovery_{name}", estimate(recoveries(table, arm)))
        summary[f"recovery_{name}_ratio_of_means"] = _rounded(ratio_of_means(table, arm))
    for name in ("translora", "titok", "unfiltered", "legacy", "oracle"):
        gap = estimate(differences(table, "lorebase", NAMED.get(name, name)))
        summary |= _told(f"lorebase_minus_{name}_points", gap)
    for key, lost in hop_losses(table).items():
        summary |= _told(key, lost)
    return (
        summary
        | filtering(table)
        | _flipped(flips(table, "lorebase"))
        | gate_summary(rows)
        | _costs(rows, table)
        | {"by_samples": by_samples(rows, samples=samples)}
    )


def filtering(table: Table) -> dict[str, Any]:
    """Returns the tasks where the filter surely gains, and where it surely harms."""
    sure = [one for one in gains(table, "lorebase", "unfiltered") if one["significant"]]
    return {
        "tasks_where_filtering_gains": [one["task"] for one in sure if one["points"] > 0],
        "tasks_where_filtering_harms": [one["task"] for one in sure if one["points"] < 0],
    }


def _flipped(lost: Mapping[str, float]) -> dict[str, Any]:
    return {
        "negative_flip_rate_mean": _rounded(_mean(list(lost.values()))),
        "negative_flip_rate_worst": _rounded(max(lost.values(), default=None)),
    }


def _costs(rows: Sequence[Row], table: Table) -> dict[str, Any]:
    ours = [arms["lorebase"] for arms in table.values() if "lorebase" in arms]
    return {
        "minutes_per_task": _rounded(mean_of(ours, lambda row: row["cpu_s"] / 60.0)),
        "kit_minutes_per_task": _rounded(
            mean_of(ours, lambda row: row["stage"].get("kit_cpu_s", 0.0) / 60.0)
        ),
        "tokens_written_per_task": _rounded(mean_of(ours, lambda row: row["tokens_written"])),
        "tokens_trained_per_task": _rounded(mean_of(ours, lambda row: row["tokens_trained"])),
        "cpu_s_by_arm": {
            arm: _rounded(mean_of([a[arm] for a in table.values() if arm in a], cpu_seconds))
            for arm in TABLE
            if any(arm in arms for arms in table.values())
        },
        "cpu_s_by_samples": _cpu_by_samples(rows, "lorebase"),
        "cache_gain": _rounded(cache_gain(rows)),
    }


def _told(key: str, found: Estimate | None) -> dict[str, Any]:
    if found is None:
        return {key: None}
    mean, low, high = found.rounded()
    return {key: mean, f"{key}_interval": [low, high]}


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def _cpu_by_samples(rows: Sequence[Row], arm: str) -> dict[str, float | None]:
    """Returns an arm's mean CPU seconds by number of samples, over the tasks that have all."""
    counts = sorted({row["samples"] for row in rows if row["arm"] == arm})
    by_count = {n: [r for r in rows if r["arm"] == arm and r["samples"] == n] for n in counts}
    tasks = [{row["task"] for row in some} for some in by_count.values()]
    common = set.intersection(*tasks) if tasks else set()
    return {
        str(n): _rounded(mean_of([r for r in some if r["task"] in common], cpu_seconds))
        for n, some in by_count.items()
    }


def cache_gain(rows: Sequence[Row]) -> float | None:
    """Returns CPU seconds of generation without the suite's memory of completions, over with it.

    It says what the arms of one task have in common; it is no gain of a single migration.
    """
    whole = sum(row["gather_cpu_s"] for row in rows)
    fresh = sum(row["gather_fresh_cpu_s"] for row in rows)
    return whole / fresh if fresh > 0 else None


def by_samples(rows: Sequence[Row], *, samples: int) -> dict[str, dict[str, Any]]:
    """Returns the table's main figures at each number of samples of the curve.

    Over the tasks and seeds that have all of the curve's arms at every number. Recovery is always
    against the oracle of the whole table, with all real data. Arm `real` has as many real examples
    as the others have synthetic ones; at the table's own number it is the oracle itself.

    Returns:
        By number of samples: cells, recovery by arm, what `lorebase` is above each other arm in
        points, and the tasks where filtering gains and harms. Empty without a curve.
    """
    counts = sorted({row["samples"] for row in rows if row["arm"] in CURVE})
    ends = table_of(rows, samples)
    tables = {count: _with_real(table_of(rows, count), count == samples) for count in counts}
    common = [
        place
        for place in sorted(ends)
        if all(set(CURVE) <= table.get(place, {}).keys() for table in tables.values())
    ]
    if len(counts) < 2 or not common:
        return {}
    told: dict[str, dict[str, Any]] = {}
    for count, table in tables.items():
        part = {place: table[place] for place in common}
        found = {arm: estimate(recoveries(part, arm, ends)) for arm in CURVE}
        told[str(count)] = {
            "cells": len(common),
            "recovery": {arm: _rounded(one.mean if one else None) for arm, one in found.items()},
            "recovery_interval": {
                arm: one.rounded()[1:] for arm, one in found.items() if one is not None
            },
            "lorebase_minus_points": {
                arm: one.rounded()
                for arm in CURVE
                if arm != "lorebase" and (one := estimate(differences(part, "lorebase", arm)))
            },
            **filtering(part),
        }
    return told


def _with_real(table: Table, whole: bool) -> Table:
    if not whole:
        return table
    return {
        place: {**arms, **({"real": arms["oracle"]} if "oracle" in arms else {})}
        for place, arms in table.items()
    }


def extra_rows(rows: Sequence[Row], *, samples: int) -> list[Row]:
    """Returns what is worth reading beside the cells: recoveries, filtering task by task."""
    table = table_of(rows, samples)
    lost = {arm: flips(table, arm) for arm in ("lorebase", "trans-lora", "titok", "hop2")}
    told: list[Row] = []
    for count in sorted({row["samples"] for row in rows}, reverse=True):
        told += [
            {"kind": "filtering", "samples": count, **one}
            for one in gains(table_of(rows, count), "lorebase", "unfiltered")
        ]
    for task in sorted({task for task, _ in table}):
        told.append(
            {
                "kind": "task",
                "task": task,
                "headroom": _rounded(headroom(table).get(task)),
                "recovery": {
                    arm: _rounded(_mean(recoveries(table, arm).get(task, ())))
                    for arm in TABLE
                    if arm not in ("source", "zero-shot", "oracle", "hop2")
                },
                "accuracy": {arm: _rounded(_accuracy(table, task, arm)) for arm in TABLE},
                "negative_flips": {arm: _rounded(lost[arm].get(task)) for arm in lost},
            }
        )
    return told


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _accuracy(table: Table, task: str, arm: str) -> float | None:
    return _mean(
        [arms[arm]["accuracy"] for (name, _), arms in table.items() if name == task and arm in arms]
    )
