"""The report's page: one HTML file that needs nothing else. Reads nothing but its template."""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from benchmarks.charts import Mark, Series, gantt, timeline_chart
from benchmarks.load.statistics import Bin, Interval, timeline

from .facts import CONDITIONS, DemoFacts
from .settings import DemoSettings
from .verdict import Check, within_margin

STAGE_COLOURS = {
    "synthesize": "#3b82c4",
    "filter": "#56b4b0",
    "label": "#7aa83e",
    "distill": "#d98324",
    "evaluate": "#8b6fc0",
    "shadow": "#b05f8a",
    "promote": "#c2410c",
}
ACCURACY_BIN_S = 5.0


def render(
    facts: DemoFacts, checks: Sequence[Check], settings: DemoSettings, data: dict[str, Any]
) -> str:
    """Returns the page; `data` is the machine-readable report."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": _percent, "interval": _interval, "points": _points}
    return environment.get_template("report.html.j2").render(
        facts=facts,
        checks=checks,
        passed=all(check.ok for check in checks),
        settings=settings,
        data=data,
        conditions=CONDITIONS,
        moved=[a for a in facts.adapters if a.promoted],
        held={a.name for a in facts.adapters if within_margin(a, settings)},
        timeline=Markup(_timeline(facts)),
        stages=Markup(_stages(facts)),
        stage_seconds=_stage_seconds(facts),
        started=datetime.fromtimestamp(facts.started, UTC).strftime("%Y-%m-%d %H:%M UTC"),
        numbers=_swap_numbers(facts),
    )


def _percent(value: Interval | None) -> str:
    return "-" if value is None else f"{value.value * 100:.1f}"


def _interval(value: Interval | None) -> str:
    return "" if value is None else f"{value.low * 100:.1f} to {value.high * 100:.1f}"


def _points(value: float) -> str:
    # U+2212, the minus sign that digits align with.
    return f"{value * 100:+.1f}".replace("-", "\u2212")


def _swap_numbers(facts: DemoFacts) -> dict[int, int]:
    """Returns each swap's number on the timeline, by revision."""
    return {swap.revision: number for number, swap in enumerate(facts.swaps, start=1)}


def _timeline(facts: DemoFacts) -> str:
    # About 300 points, however long it took: more would be noise at this width.
    bin_s = max(1.0, math.ceil(facts.seconds / 300))
    bins = timeline(facts.live, facts.started, bin_s=bin_s)
    rate, latency = "Answers per second", "Latency, ms"
    memory = tuple((s.at - facts.started, s.bytes / 1e9) for s in facts.memory)
    series = [
        _line(rate, "answered", "#2f6fb5", bins, lambda b: b.finished / bin_s, kind="area"),
        _line(rate, "failed", "#c81e1e", bins, lambda b: b.failed / bin_s),
        _line(latency, f"p99 of each {bin_s:g} s", "#d98324", bins, lambda b: _ms(b.p99_s)),
        _line(latency, "p50", "#2f6fb5", bins, lambda b: _ms(b.p50_s)),
        Series(
            panel=f"Right answers, % of each {ACCURACY_BIN_S:g} s",
            label="right",
            colour="#3f8f4f",
            points=_right_shares(facts),
        ),
        Series(
            panel="Memory of all processes, GB",
            label="memory",
            colour="#7c6bb0",
            kind="area",
            points=memory,
        ),
    ]
    return timeline_chart(
        [one for one in series if one.points],
        seconds=facts.seconds,
        marks=_marks(facts),
        phases=facts.phases,
        label="Throughput, latency, correctness and memory over the demo, with every swap marked",
    )


def _line(
    panel: str,
    label: str,
    colour: str,
    bins: Sequence[Bin],
    value: Callable[[Bin], float | None],
    *,
    kind: Literal["line", "area"] = "line",
) -> Series:
    middle = (bins[1].start_s - bins[0].start_s) / 2 if len(bins) > 1 else 0.5
    points = tuple((one.start_s + middle, value(one)) for one in bins)
    return Series(panel=panel, label=label, colour=colour, points=points, kind=kind)


def _right_shares(facts: DemoFacts) -> tuple[tuple[float, float | None], ...]:
    live = facts.live
    wide = timeline(live, facts.started, bin_s=ACCURACY_BIN_S)
    right = [0] * len(wide)
    for record in live:
        if record.correct and record.end >= facts.started:
            right[int((record.end - facts.started) / ACCURACY_BIN_S)] += 1
    return tuple(
        (b.start_s + ACCURACY_BIN_S / 2, 100 * hits / b.finished if b.finished else None)
        for b, hits in zip(wide, right, strict=True)
    )


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1000


def _marks(facts: DemoFacts) -> list[Mark]:
    numbers = _swap_numbers(facts)
    return [
        Mark(
            at_s=swap.at - facts.started,
            label=f"{swap.reason} {swap.adapter} to {swap.to_base}, revision {swap.revision}",
            badge=str(numbers[swap.revision]),
            kind="rollback" if swap.reason == "rollback" else "promote",
        )
        for swap in facts.swaps
    ]


def _stages(facts: DemoFacts) -> str:
    return gantt(
        facts.stages,
        seconds=facts.seconds,
        colours=STAGE_COLOURS,
        label="Stages of every adapter's migration over time",
    )


def _stage_seconds(facts: DemoFacts) -> list[tuple[str, float]]:
    """Returns the seconds spent in each stage over all adapters."""
    totals: dict[str, float] = defaultdict(float)
    for row in facts.stages:
        for bar in row.bars:
            totals[bar.kind] += bar.end_s - bar.start_s
    return [(stage, totals[stage]) for stage in STAGE_COLOURS if totals[stage] > 0]
