"""Dot plots: one row a thing, one dot an arm, with intervals; and lines over a log axis."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from . import svg

ROW_HEIGHT = 26
"""Of rows with few dots; with many they are as high as it takes."""
DOT_STEP = 3.4
"""Between the dots of a row, which lie beside each other."""
LEGEND_LINE = 16
TOP = 58
NAMES = 210
"""Room for the rows' names, left of the plot."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dot:
    """One mark of a row."""

    series: str
    value: float
    low: float | None = None
    """Ends of its interval; None draws none."""
    high: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DotRow:
    """One row."""

    name: str
    dots: tuple[Dot, ...]
    bold: bool = False


def dot_plot(
    rows: Sequence[DotRow],
    colours: dict[str, str],
    *,
    title: str,
    low: float = 0.0,
    high: float = 1.0,
    top: float = TOP,
) -> tuple[list[str], float]:
    """Draws rows of dots over one axis.

    Args:
        rows: what to draw, top to bottom.
        colours: colour of each series, in the legend's order; series that are not named are left
            out.
        title: above the legend.
        low: left end of the axis; values beyond either end are drawn at it.
        high: right end.
        top: where to begin.

    Returns:
        Elements and where they end.
    """
    left, right = NAMES, svg.WIDTH - svg.RIGHT
    legend, lower = _legend(colours, left, top - 14, right)
    title_y, top = top - 36, top + lower
    most = max((len(_shown(row, colours)) for row in rows), default=0)
    height = max(ROW_HEIGHT, DOT_STEP * most + 8)
    bottom = top + height * len(rows)

    def x_of(value: float) -> float:
        inside = min(max(value, low), high)
        return left + (right - left) * (inside - low) / (high - low)

    parts = [svg.text(left, title_y, title, css="title"), *legend]
    for tick in _ticks(low, high):
        parts.append(svg.line(x_of(tick), top, x_of(tick), bottom, "grid"))
        parts.append(svg.text(x_of(tick), bottom + 16, f"{tick:g}", anchor="middle"))
    for number, row in enumerate(rows):
        y = top + height * (number + 0.5)
        parts.append(svg.line(left, y, right, y, "row-line"))
        parts.append(
            svg.text(left - 10, y + 4, row.name, anchor="end", css="title" if row.bold else "")
        )
        shown = _shown(row, colours)
        for place, dot in enumerate(shown):
            # Beside each other: dots at the same value must not hide one another.
            at = y + DOT_STEP * (place - (len(shown) - 1) / 2)
            parts += _dot(dot, colours[dot.series], x_of, at, row.name)
    return parts, bottom + 28


def _dot(dot: Dot, colour: str, x_of: object, y: float, row: str) -> list[str]:
    assert callable(x_of)
    parts = []
    if dot.low is not None and dot.high is not None:
        parts.append(
            f'<line x1="{svg.number(x_of(dot.low))}" y1="{svg.number(y)}" '
            f'x2="{svg.number(x_of(dot.high))}" y2="{svg.number(y)}" stroke="{colour}" '
            'stroke-width="1.4" stroke-opacity=".6"/>'
        )
    told = svg.escaped(f"{row}, {dot.series}: {dot.value:.3f}")
    parts.append(
        f'<circle cx="{svg.number(x_of(dot.value))}" cy="{svg.number(y)}" r="3.4" '
        f'fill="{colour}" fill-opacity=".9"><title>{told}</title></circle>'
    )
    return parts


def _shown(row: DotRow, colours: dict[str, str]) -> list[Dot]:
    return [dot for dot in row.dots if dot.series in colours]


def _legend(
    colours: dict[str, str], left: float, y: float, right: float
) -> tuple[list[str], float]:
    """Returns the legend, in lines between `left` and `right`, and the height of all but one."""
    parts: list[str] = []
    x, lower = left, 0.0
    for name, colour in colours.items():
        width = 7.0 * len(name) + 34
        if x > left and x + width > right:
            x, lower = left, lower + LEGEND_LINE
        parts.append(svg.rect(x, y + lower - 8, 10, 10, fill=colour))
        parts.append(svg.text(x + 14, y + lower + 1, name))
        x += width
    return parts, lower


def _ticks(low: float, high: float) -> list[float]:
    raw = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [round(step * n, 10) for n in range(first, math.floor(high / step + 1e-9) + 1)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """One line over a logarithmic axis."""

    series: str
    points: tuple[tuple[float, float], ...]
    """(x above 0, y), in order."""


def curve_panel(
    curves: Sequence[Curve],
    colours: dict[str, str],
    *,
    title: str,
    x_title: str,
    low: float = 0.0,
    high: float = 1.0,
    top: float = TOP,
    height: float = 220,
) -> tuple[list[str], float]:
    """Draws lines over a logarithmic x axis whose ticks are the points that there are.

    Returns:
        Elements and where they end.
    """
    left, right = NAMES, svg.WIDTH - svg.RIGHT
    legend, lower = _legend(colours, left, top - 14, right)
    title_y, top = top - 36, top + lower
    bottom = top + height
    places = sorted({x for curve in curves for x, _ in curve.points})
    if not places:
        return [], top
    span = math.log(places[-1] / places[0]) or 1.0

    def at(x: float, y: float) -> tuple[float, float]:
        inside = min(max(y, low), high)
        across = left + 20 + (right - left - 40) * math.log(x / places[0]) / span
        return across, bottom - height * (inside - low) / (high - low)

    parts = [svg.text(left, title_y, title, css="title"), *legend]
    for tick in _ticks(low, high):
        y = at(places[0], tick)[1]
        parts.append(svg.line(left, y, right, y, "grid"))
        parts.append(svg.text(left - 10, y + 4, f"{tick:g}", anchor="end"))
    for x in places:
        parts.append(svg.text(at(x, low)[0], bottom + 16, f"{x:g}", anchor="middle"))
    parts.append(svg.text(right, bottom + 32, x_title, anchor="end"))
    for curve in curves:
        points = [at(x, y) for x, y in curve.points]
        parts.append(svg.polyline(points, colours[curve.series]))
        parts += [
            f'<circle cx="{svg.number(x)}" cy="{svg.number(y)}" r="3" '
            f'fill="{colours[curve.series]}"/>'
            for x, y in points
        ]
    return parts, bottom + 44
