"""What the rows of the table come to: the summary, the gate's record, and the plots. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.charts import Curve, Dot, DotRow, curve_panel, dot_plot, svg
from lorebase.transfer.evaluate import Evidence, GatePolicy, decide

from .arms import ARMS, CURVE
from .cells import Row, from_hex
from .statistics import (
    Estimate,
    Table,
    differences,
    estimate,
    flips,
    gains,
    mean_of,
    recoveries,
    recovery,
    table_of,
)

ENTRUSTED_SHARE = 0.4
"""Of the test inputs stand for the set that a tenant entrusts to the gate; the rest is hidden."""
POLICY = GatePolicy()

COLOURS = {
    "next base, no shots": "#8a94a3",
    "next base, 5 shots": "#b9a06a",
    "Trans-LoRA": "#d98324",
    "TiTok": "#7c3aed",
    "lorebase": "#2f6fb5",
    "real data": "#1f9d67",
}
"""Arms of the dot plot."""
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
    """Returns the figures that others name; see benchmarks/results/README.md.

    Args:
        rows: finished cells of the tasks that count.
        samples: number of samples of the table.
    """
    table = table_of(rows, samples)
    ours = [arms["lorebase"] for arms in table.values() if "lorebase" in arms]
    summary: dict[str, Any] = {
        "tasks": len({task for task, _ in table}),
        "seeds": len({seed for _, seed in table}),
        "samples": samples,
        "tasks_with_headroom": len(recoveries(table, "lorebase")),
    }
    for name, arm in NAMED.items():
        summary |= _told(f"recovery_{name}", estimate(recoveries(table, arm)))
    for name in ("translora", "titok", "unfiltered", "legacy"):
        gap = estimate(differences(table, "lorebase", NAMED[name]))
        summary |= _told(f"lorebase_minus_{name}_points", gap)
    summary |= _told(
        "lorebase_minus_oracle_points", estimate(differences(table, "lorebase", "oracle"))
    )
    filtering = gains(table, "lorebase", "unfiltered")
    lost = flips(table, "lorebase")
    gate = gate_record(table)
    return summary | {
        "tasks_where_filtering_gains": [
            one["task"] for one in filtering if one["significant"] and one["points"] > 0
        ],
        "tasks_where_filtering_harms": [
            one["task"] for one in filtering if one["significant"] and one["points"] < 0
        ],
        "negative_flip_rate_mean": _rounded(mean_of([{"x": v} for v in lost.values()], _x)),
        "negative_flip_rate_worst": _rounded(max(lost.values(), default=None)),
        "false_promotions": gate["false_promotions"],
        "gated_adapters": gate["gated"],
        "gated_worse_than_margin": gate["worse"],
        "promoted": gate["promoted"],
        "hop2_loss_points": None,
        "minutes_per_task": _rounded(mean_of(ours, lambda row: row["cpu_s"] / 60.0)),
        "kit_minutes_per_task": _rounded(
            mean_of(ours, lambda row: row["stage"].get("kit_cpu_s", 0.0) / 60.0)
        ),
        "tokens_written_per_task": _rounded(mean_of(ours, lambda row: row["tokens_written"])),
        "tokens_trained_per_task": _rounded(mean_of(ours, lambda row: row["tokens_trained"])),
        "cpu_s_by_arm": {
            arm: _rounded(mean_of([a[arm] for a in table.values() if arm in a], _cpu))
            for arm in ARMS
            if any(arm in arms for arms in table.values())
        },
        "recovery_by_samples": {
            curve.series: {f"{x:g}": round(y, 4) for x, y in curve.points}
            for curve in curves_of(rows)
        },
        "cpu_s_by_samples": _by_samples(rows, "lorebase"),
        "shared_work_gain": _rounded(shared_gain(rows)),
    }


def _told(key: str, found: Estimate | None) -> dict[str, Any]:
    if found is None:
        return {key: None}
    mean, low, high = found.rounded()
    return {key: mean, f"{key}_interval": [low, high]}


def _x(row: Row) -> float:
    return float(row["x"])


def _cpu(row: Row) -> float:
    return float(row["cpu_s"])


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def _by_samples(rows: Sequence[Row], arm: str) -> dict[str, float | None]:
    """Returns an arm's mean CPU seconds by number of samples, over the tasks that have all."""
    counts = sorted({row["samples"] for row in rows if row["arm"] == arm})
    by_count = {n: [r for r in rows if r["arm"] == arm and r["samples"] == n] for n in counts}
    tasks = [{row["task"] for row in some} for some in by_count.values()]
    common = set.intersection(*tasks) if tasks else set()
    return {
        str(n): _rounded(mean_of([r for r in some if r["task"] in common], _cpu))
        for n, some in by_count.items()
    }


def shared_gain(rows: Sequence[Row]) -> float | None:
    """Returns CPU seconds that generation would take without sharing, over those it took."""
    whole = sum(row["gather_cpu_s"] for row in rows)
    fresh = sum(row["gather_fresh_cpu_s"] for row in rows)
    return whole / fresh if fresh > 0 else None


def gate_record(table: Table) -> dict[str, int]:
    """Lets the gate judge every trained adapter on a part of the test inputs, hides the rest.

    Returns:
        gated: adapters judged; promoted; worse: adapters that lose more than the margin on the
        hidden inputs; false_promotions: those of them that were promoted.
    """
    record = {"gated": 0, "promoted": 0, "worse": 0, "false_promotions": 0}
    for _, arms in sorted(table.items()):
        if "source" not in arms or "zero-shot" not in arms:
            continue
        source, bare = (from_hex(arms[a]["right"], arms[a]["n"]) for a in ("source", "zero-shot"))
        cut = round(len(source) * ENTRUSTED_SHARE)
        for row in arms.values():
            if "train" not in row:
                continue
            shadow = from_hex(row["right"], row["n"])
            evidence = Evidence(
                kind="entrusted",
                source_correct=tuple(source[:cut]),
                shadow_correct=tuple(shadow[:cut]),
                bare_correct=tuple(bare[:cut]),
            )
            promoted = decide(evidence, POLICY).verdict == "promote"
            hidden = len(source) - cut
            loss = (sum(source[cut:]) - sum(shadow[cut:])) / hidden if hidden else 0.0
            record["gated"] += 1
            record["promoted"] += promoted
            record["worse"] += loss > POLICY.margin
            record["false_promotions"] += promoted and loss > POLICY.margin
    return record


def extra_rows(rows: Sequence[Row], *, samples: int) -> list[Row]:
    """Returns what is worth reading beside the cells: recoveries, filtering task by task."""
    table = table_of(rows, samples)
    lost = {arm: flips(table, arm) for arm in ("lorebase", "trans-lora", "titok")}
    told: list[Row] = [
        {"kind": "filtering", "seeds_pooled": True, **one}
        for one in gains(table, "lorebase", "unfiltered")
    ]
    for task in sorted({task for task, _ in table}):
        told.append(
            {
                "kind": "task",
                "task": task,
                "recovery": {
                    arm: _rounded(_mean(recoveries(table, arm).get(task, ())))
                    for arm in ARMS
                    if arm not in ("source", "zero-shot", "oracle")
                },
                "accuracy": {arm: _rounded(_accuracy(table, task, arm)) for arm in ARMS},
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


def figure(rows: Sequence[Row], *, samples: int) -> str:
    """Draws accuracy by task and recovery against the number of samples."""
    table = table_of(rows, samples)
    dots = [_dot_row(table, task) for task in sorted({task for task, _ in table})]
    parts, bottom = dot_plot(
        dots, COLOURS, title="Accuracy on held-out test inputs (bars: lowest and highest seed)"
    )
    curves = curves_of(rows)
    if curves:
        colours = {"ours without filter": "#8a94a3", "Trans-LoRA": "#d98324", "lorebase": "#2f6fb5"}
        more, bottom = curve_panel(
            curves,
            colours,
            title="Mean recovery against the number of synthetic examples",
            x_title="examples trained on at most",
            low=min(0.0, *(y for curve in curves for _, y in curve.points)),
            high=1.05,
            top=bottom + 70,
        )
        parts += more
    return svg.document(parts, bottom, "Accuracy and recovery by recipe")


def _dot_row(table: Table, task: str) -> DotRow:
    dots = []
    for arm in ARMS.values():
        values = [
            arms[arm.name]["accuracy"]
            for (name, _), arms in sorted(table.items())
            if name == task and arm.name in arms
        ]
        if values:
            dots.append(
                Dot(
                    series=arm.label,
                    value=sum(values) / len(values),
                    low=min(values),
                    high=max(values),
                )
            )
    return DotRow(name=task, dots=tuple(dots))


def curves_of(rows: Sequence[Row]) -> list[Curve]:
    """Returns mean recovery by number of samples, over the tasks and seeds that have them all.

    Bare and oracle are those of the largest number of samples.
    """
    counts = sorted({row["samples"] for row in rows if row["arm"] in CURVE})
    if len(counts) < 2:
        return []
    tables: Mapping[int, Table] = {count: table_of(rows, count) for count in counts}
    whole = tables[counts[-1]]
    common = [
        place
        for place in whole
        if all(place in tables[n] and set(CURVE) <= tables[n][place].keys() for n in counts)
    ]
    curves = []
    for arm in CURVE:
        points = []
        for count in counts:
            ends = {place: {**whole[place], arm: tables[count][place][arm]} for place in common}
            values = [
                value for arms in ends.values() if (value := recovery(arms[arm], arms)) is not None
            ]
            if values:
                points.append((float(count), sum(values) / len(values)))
        curves.append(Curve(series=ARMS[arm].label, points=tuple(points)))
    return [curve for curve in curves if curve.points]
