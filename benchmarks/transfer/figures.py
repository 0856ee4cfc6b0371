"""The plots of the table: a dot for each arm and task, and recovery by number of samples. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.charts import Curve, Dot, DotRow, curve_panel, dot_plot, svg

from .arms import ARMS, CURVE, TABLE
from .result import by_samples
from .rows import Row
from .statistics import Table, table_of

COLOURS = {
    "source": "#111827",
    "zero-shot": "#9aa3af",
    "few-shot": "#b9a06a",
    "seeds-only": "#d4b5a0",
    "random": "#c9a0c9",
    "unfiltered": "#6b7280",
    "legacy": "#60a5fa",
    "trans-lora": "#d98324",
    "titok": "#7c3aed",
    "lorebase": "#2f6fb5",
    "oracle": "#1f9d67",
    "hop2": "#0e7490",
    "real": "#1f9d67",
}
"""Of arms."""


def figure(rows: Sequence[Row], *, samples: int) -> str:
    """Draws accuracy by task and recovery against the number of samples."""
    table = table_of(rows, samples)
    dots = [_dot_row(table, task) for task in sorted({task for task, _ in table})]
    parts, bottom = dot_plot(
        dots,
        {ARMS[arm].label: COLOURS[arm] for arm in TABLE},
        title="Accuracy on held-out test inputs (bars: lowest and highest seed)",
    )
    curves = curves_of(rows, samples=samples)
    if curves:
        more, bottom = curve_panel(
            curves,
            {ARMS[arm].label: COLOURS[arm] for arm in CURVE},
            title="Mean recovery against the number of examples",
            x_title="examples trained on at most",
            low=min(0.0, *(y for curve in curves for _, y in curve.points)),
            high=1.05,
            top=bottom + 70,
        )
        parts += more
    return svg.document(parts, bottom, "Accuracy and recovery by recipe")


def _dot_row(table: Table, task: str) -> DotRow:
    dots = []
    for arm in TABLE:
        values = [
            arms[arm]["accuracy"]
            for (name, _), arms in sorted(table.items())
            if name == task and arm in arms
        ]
        if values:
            dots.append(
                Dot(
                    series=ARMS[arm].label,
                    value=sum(values) / len(values),
                    low=min(values),
                    high=max(values),
                )
            )
    return DotRow(name=task, dots=tuple(dots))


def curves_of(rows: Sequence[Row], *, samples: int) -> list[Curve]:
    """Returns mean recovery by number of samples, of each arm of the curve."""
    by_count = by_samples(rows, samples=samples)
    curves = [
        Curve(
            series=ARMS[arm].label,
            points=tuple(
                (float(count), told["recovery"][arm])
                for count, told in by_count.items()
                if told["recovery"].get(arm) is not None
            ),
        )
        for arm in CURVE
    ]
    return [curve for curve in curves if len(curve.points) > 1]
