"""What a run of the lora-churn suite says: rows, figures and plot. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ..charts import Bar, BarPanel, bar_chart
from ..load.statistics import percentile, significant, spread
from ..suite import SuiteResult
from .churn import Served

COLOURS = {"lorebase": "#2f6fb5", "stock vLLM": "#b8bfca", "p50": "#2f6fb5", "p99": "#d98324"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Saturated:
    """One run with as many requests at a time as the engine takes."""

    registered: int
    round: int
    """Runs of one round have the same trace, one after the other."""
    warm: bool
    """Whether a long load had gone before."""
    tokens: int
    seconds: float
    first_touches: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Stall:
    """What one first touch cost everybody else: time in which no step ran."""

    rank: int
    asked: bool
    """Whether a request brought it in. Otherwise it may have been loaded before, without one, and
    have met its first step here."""
    load_s: float
    slot_s: float


@dataclass(slots=True, kw_only=True)
class Churn:
    """Everything that a run measured."""

    saturated: list[Saturated] = field(default_factory=list)
    played: list[Served] = field(default_factory=list)
    stalls: list[Stall] = field(default_factory=list)
    revisits_s: list[float] = field(default_factory=list)
    """Seconds into a slot for adapters that were in host memory."""
    bookkeeping: list[dict[str, Any]] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)


def summarise(done: Churn) -> SuiteResult:
    """Returns rows, summary and plot."""
    counts = sorted({run.registered for run in done.saturated})
    summary: dict[str, Any] = {}
    for count in counts[1:]:
        key = f"throughput_{count}_vs_{counts[0]}"
        summary[key] = significant(percentile(against_fewest(done.saturated, count), 50))
        cold = against_fewest(done.saturated, count, warm=False)
        if cold:
            summary[f"{key}_cold"] = significant(percentile(cold, 50))
    for row in done.bookkeeping:
        if row["arm"] == "ours":
            key = f"step_bookkeeping_ms_{row['in_batch']}_of_{row['registered']}"
            summary[key] = row["steady_ms"]["p50"]
    touches = [1e3 * (s.load_s + s.slot_s) for s in done.stalls if s.rank == 8 and s.asked]
    summary["first_touch_p99_ms_r8"] = significant(percentile(touches, 99))
    for count in counts:
        ttfts = [1e3 * one.ttft_s for one in done.played if one.registered == count]
        summary[f"ttft_p99_ms_{count}"] = significant(percentile(ttfts, 99))
    return SuiteResult(
        rows=[*_throughput_rows(done, counts), *_latency_rows(done, counts), *_stall_rows(done)],
        summary={**summary, **done.facts},
        figure_svg=_figure(done, counts),
        failures=done.failures,
    )


def against_fewest(runs: Sequence[Saturated], count: int, *, warm: bool = True) -> list[float]:
    """Returns throughput at `count` over that at the fewest adapters, round by round."""
    runs = [run for run in runs if run.warm == warm]
    fewest = min((run.registered for run in runs), default=0)
    rates = {(run.registered, run.round): run.tokens / run.seconds for run in runs}
    rounds = sorted(r for n, r in rates if n == count and (fewest, r) in rates)
    return [rates[count, r] / rates[fewest, r] for r in rounds]


def _throughput_rows(done: Churn, counts: Sequence[int]) -> list[dict[str, Any]]:
    rows = []
    for warm, count in ((warm, count) for warm in (True, False) for count in counts):
        of = [run for run in done.saturated if run.registered == count and run.warm == warm]
        if not of:
            continue
        rows.append(
            {
                "kind": "throughput" if warm else "throughput, cold",
                "registered": count,
                "tokens_per_s": spread([run.tokens / run.seconds for run in of]),
                "over_fewest": spread(against_fewest(done.saturated, count, warm=warm)),
                "first_touches": [run.first_touches for run in of],
                "seconds": [round(run.seconds, 3) for run in of],
            }
        )
    return rows


def _latency_rows(done: Churn, counts: Sequence[int]) -> list[dict[str, Any]]:
    rows = []
    for count in counts:
        of = [one for one in done.played if one.registered == count]
        for name, some in (
            ("all", of),
            ("first touch", [one for one in of if one.first]),
            ("known", [one for one in of if not one.first]),
        ):
            rows.append(
                {
                    "kind": "ttft",
                    "registered": count,
                    "requests": name,
                    "n": len(some),
                    "ms": spread([1e3 * one.ttft_s for one in some], (50, 90, 99)),
                }
            )
    return rows


def _stall_rows(done: Churn) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = [
        {
            "kind": "first touch stall" if asked else "first step's stall, of some loaded before",
            "rank": rank,
            "n": len(of),
            "load_ms": spread([1e3 * s.load_s for s in of], (50, 99)),
            "slot_ms": spread([1e3 * s.slot_s for s in of], (50, 99)),
            "ms": spread([1e3 * (s.load_s + s.slot_s) for s in of], (50, 99, 100)),
        }
        for asked, rank in sorted({(s.asked, s.rank) for s in done.stalls}, reverse=True)
        for of in [[s for s in done.stalls if (s.asked, s.rank) == (asked, rank)]]
    ]
    rows.append(
        {
            "kind": "revisit",
            "n": len(done.revisits_s),
            "ms": spread([1e3 * s for s in done.revisits_s], (50, 99)),
        }
    )
    return [*rows, *({"kind": "bookkeeping", **row} for row in done.bookkeeping)]


def _figure(done: Churn, counts: Sequence[int]) -> str:
    def bar(group: str, series: str, values: Sequence[float]) -> Bar:
        return Bar(
            group=group,
            series=series,
            value=percentile(values, 50),
            low=percentile(values, 20),
            high=percentile(values, 80),
        )

    throughput = [
        bar(
            f"{count:,}",
            "lorebase",
            [r.tokens / r.seconds for r in done.saturated if r.registered == count and r.warm],
        )
        for count in counts
    ]
    ttft = [
        Bar(group=f"{count:,}", series=f"p{q}", value=percentile(values, q))
        for count in counts
        for values in [[1e3 * s.ttft_s for s in done.played if s.registered == count]]
        for q in (50, 99)
    ]
    asked = [s for s in done.stalls if s.asked]
    ranks = sorted({s.rank for s in asked})
    stalls = [
        Bar(group=f"rank {rank}", series=f"p{q}", value=percentile(values, q))
        for rank in ranks
        for values in [[1e3 * (s.load_s + s.slot_s) for s in asked if s.rank == rank]]
        for q in (50, 99)
    ]
    steps = [
        Bar(
            group=f"{row['in_batch']} of {row['registered']:,}",
            series="lorebase" if row["arm"] == "ours" else "stock vLLM",
            value=row["steady_ms"]["p50"],
            low=row["steady_ms"]["p20"],
            high=row["steady_ms"]["p80"],
        )
        for row in done.bookkeeping
    ]
    return bar_chart(
        [
            BarPanel(title="Tokens per second, by registered adapters", bars=tuple(throughput)),
            BarPanel(title="Time to first token, ms", bars=tuple(ttft), logarithmic=True),
            BarPanel(title="Engine stands still at a first touch, ms", bars=tuple(stalls)),
            BarPanel(title="Bookkeeping of a steady step, ms", bars=tuple(steps), logarithmic=True),
        ],
        COLOURS,
        label="Many adapters: throughput, latency, stalls and bookkeeping",
    )
