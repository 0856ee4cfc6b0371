"""Panels over one time axis, with phases shaded behind and events marked across them."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal

from . import svg

PANEL_HEIGHT = 120
PANEL_GAP = 34
TOP = 46


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One line or one set of bars of a panel."""

    panel: str
    """Panels are drawn in the order in which they first appear; this is their title."""
    label: str
    colour: str
    points: tuple[tuple[float, float | None], ...]
    """(seconds, value); None breaks the line."""
    kind: Literal["line", "area"] = "line"


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """An event such as a swap."""

    at_s: float
    label: str
    """Tooltip."""
    badge: str
    """A character or two, shown on top."""
    kind: Literal["promote", "rollback"] = "promote"


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """A named stretch of time."""

    start_s: float
    end_s: float
    label: str


def timeline_chart(
    series: Sequence[Series],
    *,
    seconds: float,
    marks: Sequence[Mark] = (),
    phases: Sequence[Phase] = (),
    label: str = "Timeline",
) -> str:
    """Draws panels one under the other.

    Args:
        series: what to draw; empty panels are left out.
        seconds: length of the time axis.
        marks: events, drawn as dashed lines through all panels.
        phases: shaded stretches behind all panels.
        label: accessible name of the chart.
    """
    panels = list(dict.fromkeys(s.panel for s in series))
    bottom = TOP + len(panels) * (PANEL_HEIGHT + PANEL_GAP) - PANEL_GAP
    parts = _phases(phases, seconds, bottom)
    for index, panel in enumerate(panels):
        top = TOP + index * (PANEL_HEIGHT + PANEL_GAP)
        parts += _panel(panel, [s for s in series if s.panel == panel], top, seconds)
    parts += _marks(marks, seconds, bottom)
    parts += svg.time_axis(bottom, seconds)
    return svg.document(parts, bottom + 28, label)


def _phases(phases: Sequence[Phase], seconds: float, bottom: float) -> list[str]:
    parts = []
    for index, phase in enumerate(phases):
        left, right = svg.x_of(phase.start_s, seconds), svg.x_of(phase.end_s, seconds)
        parts.append(
            svg.rect(left, 14, right - left, bottom - 14, css=f"phase-{index % 2}", tip=phase.label)
        )
        # About 6.2 units a character at 12 px; a label that does not fit stays a tooltip.
        if right - left > 6.2 * len(phase.label) + 6:
            parts.append(svg.text((left + right) / 2, 10, phase.label, anchor="middle"))
    return parts


def _panel(title: str, series: Sequence[Series], top: float, seconds: float) -> list[str]:
    values = [v for s in series for _, v in s.points if v is not None]
    scale = svg.ticks(max(values, default=1.0))
    ceiling = scale[-1]

    def y_of(value: float) -> float:
        return top + PANEL_HEIGHT * (1 - value / ceiling)

    parts = []
    for tick in scale:
        y = y_of(tick)
        parts.append(svg.line(svg.LEFT, y, svg.WIDTH - svg.RIGHT, y, "grid"))
        parts.append(svg.text(svg.LEFT - 8, y + 4, f"{tick:g}", anchor="end"))
    parts.append(svg.text(svg.LEFT, top - 8, title, css="title"))
    # After the title: marks crowd at the right end more often than at the left.
    x = svg.LEFT + 8.0 * len(title) + 24
    for one in series:
        parts.append(svg.rect(x, top - 16, 12, 8, fill=one.colour))
        parts.append(svg.text(x + 16, top - 8, one.label))
        x += 7.2 * len(one.label) + 32
    for one in series:
        for run in _runs(one.points):
            points = [(svg.x_of(at, seconds), y_of(value)) for at, value in run]
            parts.append(_draw(one, points, top + PANEL_HEIGHT))
    return parts


def _draw(series: Series, points: list[tuple[float, float]], floor: float) -> str:
    if series.kind == "area":
        closed = [(points[0][0], floor), *points, (points[-1][0], floor)]
        joined = " ".join(f"{svg.number(x)},{svg.number(y)}" for x, y in closed)
        return (
            f'<polygon points="{joined}" fill="{series.colour}" fill-opacity=".28"/>'
            + svg.polyline(points, series.colour, width=1.2)
        )
    if len(points) == 1:
        (x, y) = points[0]
        return f'<circle cx="{svg.number(x)}" cy="{svg.number(y)}" r="1.5" fill="{series.colour}"/>'
    return svg.polyline(points, series.colour)


def _runs(points: Sequence[tuple[float, float | None]]) -> list[list[tuple[float, float]]]:
    """Splits a series at its missing values."""
    runs: list[list[tuple[float, float]]] = [[]]
    for at, value in points:
        if value is None:
            if runs[-1]:
                runs.append([])
        else:
            runs[-1].append((at, value))
    return [run for run in runs if run]


def _marks(marks: Sequence[Mark], seconds: float, bottom: float) -> list[str]:
    parts, lane_ends = [], [float("-inf")] * 2
    for mark in sorted(marks, key=lambda m: m.at_s):
        x = svg.x_of(mark.at_s, seconds)
        # Two lanes of badges, so that neighbours do not hide each other.
        lane = 0 if x - lane_ends[0] > 17 else 1
        lane_ends[lane] = x
        y = 22 if lane == 0 else 37
        css = "rollback" if mark.kind == "rollback" else ""
        parts.append(
            svg.line(x, y + 7, x, bottom, f"mark {css}".strip())
            + f'<circle cx="{svg.number(x)}" cy="{y}" r="7.5" class="{f"badge {css}".strip()}">'
            + f"<title>{escape(mark.label)}</title></circle>"
            + svg.text(x, y + 3.4, mark.badge, anchor="middle", css="badge-text")
        )
    return parts
