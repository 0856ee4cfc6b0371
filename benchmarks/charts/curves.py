"""Figures against figures: lines and points in panels, each with its own axes."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal

from . import svg

PANEL_HEIGHT = 190
PANEL_GAP = 74
TOP = 40
AXIS = 34
"""Room for the x axis' numbers and name below a panel."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """One line or one cloud of points."""

    label: str
    colour: str
    points: tuple[tuple[float, float], ...]
    kind: Literal["line", "dashed", "points"] = "line"
    tips: tuple[str, ...] = ()
    """Tooltips of points, one each; may be left out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One plot."""

    title: str
    x_label: str
    curves: tuple[Curve, ...]
    percent: bool = True
    """Whether both axes show shares as per cent."""


def curves_chart(panels: Sequence[Panel], *, label: str) -> str:
    """Draws panels one under the other; `label` is the chart's accessible name."""
    parts: list[str] = []
    for index, panel in enumerate(panels):
        parts += _panel(panel, TOP + index * (PANEL_HEIGHT + PANEL_GAP))
    height = TOP + len(panels) * (PANEL_HEIGHT + PANEL_GAP) - PANEL_GAP + AXIS + 10
    return svg.document(parts, height, label)


def _panel(panel: Panel, top: float) -> list[str]:
    points = [point for curve in panel.curves for point in curve.points]
    x_scale = svg.ticks(max((x for x, _ in points), default=1.0), about=8)
    y_scale = svg.ticks(max((y for _, y in points), default=1.0))
    bottom = top + PANEL_HEIGHT

    def place(point: tuple[float, float]) -> tuple[float, float]:
        x = svg.LEFT + svg.PLOT_WIDTH * point[0] / x_scale[-1]
        return x, bottom - PANEL_HEIGHT * point[1] / y_scale[-1]

    def name(value: float) -> str:
        return f"{value:.3g}".rstrip() if not panel.percent else f"{100 * value:.3g}%"

    parts = []
    for tick in y_scale:
        _, y = place((0.0, tick))
        parts.append(svg.line(svg.LEFT, y, svg.WIDTH - svg.RIGHT, y, "grid"))
        parts.append(svg.text(svg.LEFT - 8, y + 4, name(tick), anchor="end"))
    for tick in x_scale:
        x, _ = place((tick, 0.0))
        parts.append(svg.line(x, bottom, x, bottom + 4, "axis"))
        parts.append(svg.text(x, bottom + 17, name(tick), anchor="middle"))
    middle = svg.LEFT + svg.PLOT_WIDTH / 2
    parts.append(svg.text(middle, bottom + AXIS, panel.x_label, anchor="middle"))
    parts.append(svg.text(svg.LEFT, top - 22, panel.title, css="title"))
    parts += _legend(panel.curves, top)
    for curve in panel.curves:
        parts += _draw(curve, [place(point) for point in curve.points])
    return parts


def _legend(curves: Sequence[Curve], top: float) -> list[str]:
    parts, x = [], float(svg.LEFT)
    for curve in curves:
        parts.append(svg.rect(x, top - 15, 12, 8, fill=curve.colour))
        parts.append(svg.text(x + 16, top - 7, curve.label))
        x += 6.4 * len(curve.label) + 36
    return parts


def _draw(curve: Curve, places: list[tuple[float, float]]) -> list[str]:
    if curve.kind == "points":
        tips = curve.tips or ("",) * len(places)
        return [
            f'<circle cx="{svg.number(x)}" cy="{svg.number(y)}" r="3.2" fill="{curve.colour}" '
            f'fill-opacity=".65"><title>{escape(tip)}</title></circle>'
            for (x, y), tip in zip(places, tips, strict=True)
        ]
    drawn = svg.polyline(places, curve.colour)
    if curve.kind == "dashed":
        drawn = drawn.replace("<polyline ", '<polyline stroke-dasharray="5 4" ')
    return [drawn]
