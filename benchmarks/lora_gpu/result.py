"""What the samples say: rows, the promised figures, a plot. Pure; needs no GPU."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from benchmarks.charts.bars import Bar, BarPanel, bar_chart
from benchmarks.suite import SuiteResult

from .shapes import Cell

COLOURS = {"ours": "#0f766e", "vllm": "#b45309", "sglang": "#6d28d9"}
MANY = 8
"""Adapters from which on the roofline counts: below, launches do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One cell's samples."""

    cell: Cell
    unique_bytes: int
    operations: int
    seconds: Mapping[str, Sequence[float]]
    """By provider; the n-th samples were taken in one round."""


def quantile(values: Sequence[float], share: float) -> float:
    """The value at `share` of the sorted values, linear in between.

    Raises:
        ValueError: There are none.
    """
    if not values:
        raise ValueError("got no values; expected at least one")
    ordered = sorted(values)
    at = share * (len(ordered) - 1)
    low = int(at)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (at - low)


def ratio(one: Measured, other: str) -> float | None:
    """Median over rounds of the other's time by ours: above 1 ours is faster."""
    if other not in one.seconds:
        return None
    return median(
        theirs / own for theirs, own in zip(one.seconds[other], one.seconds["ours"], strict=True)
    )


def roofline_share(one: Measured, bandwidth: float, provider: str = "ours") -> float:
    """The time that copying the unique bytes takes, by the median time."""
    return one.unique_bytes / bandwidth / median(one.seconds[provider])


def summarise(
    measured: Sequence[Measured],
    *,
    bandwidth: float,
    device: str,
    baselines: Mapping[str, str],
    facts: Mapping[str, Any],
    failures: Sequence[str],
) -> SuiteResult:
    """Makes the result.

    Args:
        measured: the cells.
        bandwidth: of a copy, bytes a second, read and written.
        device: its name.
        baselines: what each baseline is, or why it is missing.
        facts: other things that belong beside the figures.
        failures: correctness gates that did not hold.
    """
    shares = [roofline_share(m, bandwidth) for m in measured if m.cell.adapters >= MANY]
    against = [value for m in measured if (value := ratio(m, "vllm")) is not None]
    padded = [
        ratio(m, "vllm")
        for m in measured
        if (m.cell.tokens, m.cell.adapters, m.cell.ranks) == (64, 64, "r8 of 64")
    ]
    return SuiteResult(
        rows=[_row(m, bandwidth) for m in measured],
        summary={
            "roofline_share_min_at_8plus": _rounded(min(shares, default=None)),
            "vs_vllm_min": _rounded(min(against, default=None)),
            "vs_vllm_r8_of_64": _rounded(padded[0] if padded else None),
            "device": device,
            "copy_tb_per_s": _rounded(bandwidth / 1e12),
            "baselines": dict(baselines),
            **facts,
        },
        figure_svg=_figure(measured, bandwidth) if measured else "",
        failures=list(failures),
    )


def _row(one: Measured, bandwidth: float) -> dict[str, Any]:
    row: dict[str, Any] = {
        "tokens": one.cell.tokens,
        "adapters": one.cell.adapters,
        "ranks": one.cell.ranks,
        "prefill": one.cell.prefill,
        "unique_mb": round(one.unique_bytes / 1e6, 2),
        "gflop": round(one.operations / 1e9, 2),
        "copy_us": round(one.unique_bytes / bandwidth * 1e6, 1),
    }
    for name, seconds in one.seconds.items():
        row[name] = {
            **{f"p{q}_us": round(quantile(seconds, q / 100) * 1e6, 1) for q in (20, 50, 80)},
            "roofline_share": _rounded(roofline_share(one, bandwidth, name)),
            "ours_is_faster_by": _rounded(ratio(one, name)) if name != "ours" else None,
        }
    return row


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


def _figure(measured: Sequence[Measured], bandwidth: float) -> str:
    panels = []
    for ranks in dict.fromkeys(m.cell.ranks for m in measured):
        bars = [
            Bar(
                group=f"{m.cell.tokens}/{m.cell.adapters}",
                series=name,
                value=roofline_share(m, bandwidth, name),
                low=m.unique_bytes / bandwidth / quantile(seconds, 0.8),
                high=m.unique_bytes / bandwidth / quantile(seconds, 0.2),
            )
            for m in measured
            if m.cell.ranks == ranks
            for name, seconds in m.seconds.items()
        ]
        title = f"{ranks}: share of the roofline at tokens/adapters"
        panels.append(BarPanel(title=title, bars=tuple(bars)))
    return bar_chart(panels, COLOURS, label="LoRA on a GPU: share of the copy bandwidth's roofline")
