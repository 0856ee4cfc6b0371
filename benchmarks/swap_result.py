"""What a run of the swap suite says: rows, figures and plot. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .charts import Mark, Series, timeline_chart
from .load import Acknowledgement, RequestRecord, RouteHistory, RouteStep, wrong_version
from .load.statistics import around, percentile, throughput, timeline
from .suite import SuiteResult
from .upgrades import OperatorMove


@dataclass(slots=True, kw_only=True)
class Run:
    """What one run recorded."""

    started: float
    """Seconds since the epoch, when the clients started."""
    records: list[RequestRecord]
    moves: list[OperatorMove]
    history: RouteHistory
    acks: list[Acknowledgement]
    failures: list[str]


def summarise(done: Run, *, adapters: int) -> SuiteResult:
    """Returns rows, summary and plot of a run over so many adapters."""
    flips = [step for step in done.history.swaps() if step.at >= done.started]
    live = _live(done)
    near = around(live, [step.at for step in flips])
    acked = {ack.revision: ack.at for ack in done.acks}
    spread = [acked[step.revision] - step.at for step in flips if step.revision in acked]
    seen = {
        action: [m.seen_s for m in done.moves if m.action == action]
        for action in ("rollback", "promote")
    }
    end = max(r.end for r in live)
    summary: dict[str, Any] = {
        "swap_requests_failed": sum(not r.ok for r in done.records),
        "swap_answers_wrong_version": sum(
            wrong_version(r, done.history) is not None for r in done.records
        ),
        "fg_p99_around_flip_ratio": _round(near.p99_ratio),
        "fg_p99_around_flip_s": _round(near.near_p99_s),
        "fg_p99_elsewhere_s": _round(near.far_p99_s),
        "fg_p50_around_flip_s": _round(near.near_p50_s),
        "fg_p50_elsewhere_s": _round(near.far_p50_s),
        "requests_around_flips": near.near_n,
        "requests_elsewhere": near.far_n,
        "fg_requests_per_s": _round(throughput(live, done.started, end)),
        "flips": len(flips),
        "adapters": adapters,
        "route_to_all_gateways_p50_s": _round(percentile(spread, 50)),
        "route_to_all_gateways_max_s": _round(percentile(spread, 100)),
        "rollback_seen_p50_s": _round(percentile(seen["rollback"], 50)),
        "rollback_seen_max_s": _round(percentile(seen["rollback"], 100)),
        "promote_seen_p50_s": _round(percentile(seen["promote"], 50)),
        "promote_seen_max_s": _round(percentile(seen["promote"], 100)),
    }
    return SuiteResult(
        rows=_rows(done, flips, acked),
        summary=summary,
        figure_svg=_figure(done, flips),
        failures=done.failures,
    )


def _round(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def _rows(
    done: Run, flips: Sequence[RouteStep], acked: Mapping[int, float]
) -> list[dict[str, Any]]:
    """Returns one row for each flip, then one for each second of the timeline."""
    rows: list[dict[str, Any]] = [
        {
            "kind": "flip",
            "at_s": round(step.at - done.started, 3),
            "adapter": step.adapter,
            "reason": step.reason,
            "to_base": step.base,
            "revision": step.revision,
            "to_all_gateways_s": _round(acked[step.revision] - step.at)
            if step.revision in acked
            else None,
        }
        for step in flips
    ]
    rows += [
        {
            "kind": "move",
            "at_s": round(move.called_at - done.started, 3),
            "adapter": move.adapter,
            "action": move.action,
            "call_s": _round(move.call_s),
            "seen_s": _round(move.seen_s),
        }
        for move in done.moves
    ]
    rows += [
        {
            "kind": "second",
            "at_s": one.start_s,
            "finished": one.finished,
            "failed": one.failed,
            "tokens": one.tokens,
            "p50_s": _round(one.p50_s),
            "p99_s": _round(one.p99_s),
        }
        for one in timeline(_live(done), done.started)
    ]
    return rows


def _live(done: Run) -> list[RequestRecord]:
    return [r for r in done.records if r.kind == "foreground"]


def _figure(done: Run, flips: Sequence[RouteStep]) -> str:
    bins = timeline(_live(done), done.started)
    at = [one.start_s + 0.5 for one in bins]

    def series(panel: str, label: str, colour: str, values: list[float | None]) -> Series:
        return Series(
            panel=panel, label=label, colour=colour, points=tuple(zip(at, values, strict=True))
        )

    rate, latency = "Answers per second", "Latency, ms"
    return timeline_chart(
        [
            series(rate, "answered", "#2f6fb5", [float(b.finished) for b in bins]),
            series(rate, "failed", "#c81e1e", [float(b.failed) for b in bins]),
            series(latency, "p99 of each second", "#d98324", [_ms(b.p99_s) for b in bins]),
            series(latency, "p50", "#2f6fb5", [_ms(b.p50_s) for b in bins]),
        ],
        seconds=len(bins),
        marks=[
            Mark(
                at_s=step.at - done.started,
                label=f"{step.reason} {step.adapter} to {step.base}",
                badge=str(number),
                kind="rollback" if step.reason == "rollback" else "promote",
            )
            for number, step in enumerate(flips, start=1)
        ],
        label="Throughput and latency around route flips",
    )


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1000
