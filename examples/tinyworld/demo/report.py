"""demo-report.html and demo-report.json from the facts."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.load.records import RequestRecord
from benchmarks.load.statistics import around, percentile, throughput

from .facts import CONDITIONS, AdapterFacts, DemoFacts
from .page import render
from .settings import DemoSettings
from .verdict import Check


def write(facts: DemoFacts, checks: Sequence[Check], settings: DemoSettings) -> tuple[Path, Path]:
    """Writes both reports and returns their paths, HTML first."""
    settings.report_dir.mkdir(parents=True, exist_ok=True)
    page = settings.report_dir / "demo-report.html"
    data = settings.report_dir / "demo-report.json"
    _replace(page, render(facts, checks, settings, summary(facts, checks)))
    _replace(data, json.dumps(summary(facts, checks), indent=2) + "\n")
    return page, data


def _replace(path: Path, text: str) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def summary(facts: DemoFacts, checks: Sequence[Check]) -> dict[str, Any]:
    """Returns the machine-readable report; accuracies are between 0 and 1."""
    return {
        "passed": all(check.ok for check in checks),
        "requests_sent": len(facts.records),
        "requests_failed": len(facts.failed),
        "answers_wrong_version": len(facts.wrong),
        "seconds": round(facts.seconds, 1),
        "peak_rss_gb": round(facts.peak_bytes / 1e9, 2),
        "adapters": [_adapter_row(adapter) for adapter in facts.adapters],
        "requests_by_kind": dict(Counter(record.kind for record in facts.records)),
        "foreground": _foreground(facts),
        "texts": {
            "compared": facts.text_check.compared,
            "as_pinned": facts.text_check.as_pinned,
            "of_other_version": facts.text_check.of_other_version,
        },
        "swaps": [
            {
                "adapter": swap.adapter,
                "revision": swap.revision,
                "at_s": round(swap.at - facts.started, 3),
                "reason": swap.reason,
                "to_base": swap.to_base,
                "propagation_s": _round(swap.propagation_s),
            }
            for swap in facts.swaps
        ],
        "operator_moves": [
            {
                "adapter": m.adapter,
                "action": m.action,
                "call_s": _round(m.call_s),
                "seen_s": _round(m.seen_s),
            }
            for m in facts.moves
        ],
        "phases": [
            {"name": p.label, "start_s": round(p.start_s, 1), "end_s": round(p.end_s, 1)}
            for p in facts.phases
        ],
        "upgrade": {
            "from_base": facts.old_base,
            "to_base": facts.next_base,
            "state": facts.upgrade_state,
            "background_busy_s": round(facts.background_busy_s, 1),
            "retired_bases": facts.retired_bases,
        },
        "checks": [{"name": c.name, "ok": c.ok, "detail": c.detail} for c in checks],
        "environment": facts.environment,
    }


def _foreground(facts: DemoFacts) -> dict[str, Any]:
    live = facts.live
    latencies = [r.latency_s for r in live if r.ok]
    near = around(live, [swap.at for swap in facts.swaps])
    return {
        "clients": facts.clients,
        "think_s": list(facts.think_s),
        "requests_per_s": _round(_live_rate(live)),
        "p50_s": _round(percentile(latencies, 50)),
        "p99_s": _round(percentile(latencies, 99)),
        "ttft_p50_s": _round(percentile(_ttfts(live), 50)),
        "near_swaps": {
            "n": near.near_n,
            "p99_s": _round(near.near_p99_s),
            "p99_elsewhere_s": _round(near.far_p99_s),
            "ratio": _round(near.p99_ratio),
        },
    }


def _adapter_row(adapter: AdapterFacts) -> dict[str, Any]:
    row: dict[str, Any] = {"name": adapter.name, "family": adapter.family}
    for condition in CONDITIONS:
        found = adapter.scores.get(condition)
        row[condition] = None if found is None else round(found.value, 4)
    low_high = adapter.difference
    return row | {
        "n": adapter.n,
        "decision": adapter.decision,
        "difference": None if low_high is None else round(low_high.value, 4),
        "difference_interval": None
        if low_high is None
        else [round(low_high.low, 4), round(low_high.high, 4)],
        "benchmark": adapter.benchmark,
        "rank": adapter.rank,
        "evidence": adapter.gate.evidence,
        "attempts": adapter.attempts,
        "reason": adapter.gate.reason or adapter.error,
        "migration_s": round(adapter.migration_s, 1),
        "answers_from": adapter.answers_from,
    }


def _round(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def _live_rate(live: Sequence[RequestRecord]) -> float:
    if not live:
        return 0.0
    return throughput(live, min(r.start for r in live), max(r.end for r in live) + 1e-6)


def _ttfts(records: Sequence[RequestRecord]) -> list[float]:
    return [r.ttft_s for r in records if r.ttft_s is not None]
