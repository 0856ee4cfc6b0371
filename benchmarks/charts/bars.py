"""Panels of grouped bars with whiskers, on linear or logarithmic scales."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from . import svg

PANEL_HEIGHT = 190
PANEL_GAP = 62
TOP = 58
_EMPTY = 0.12  # of a group's width, on either side


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """One bar with the spread of what it stands for."""

    group: str
    """Label under the axis."""
    series: str
    value: float | None
    """None leaves a gap."""
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BarPanel:
    """One chart; panels lie side by side, two in a row."""

    title: str
    bars: tuple[Bar, ...]
    logarithmic: bool = False


def bar_chart(panels: Sequence[BarPanel], colours: dict[str, str], *, label: str) -> str:
    """Draws panels of grouped bars.

    Args:
        panels: groups appear in the order of their first bar; values must be positive where a
            scale is logarithmic.
        colours: of each series by name, also the legend's order.
        label: for readers that don't see it.

    Returns:
        A self-contained SVG document.
    """
    width = (svg.PLOT_WIDTH - svg.LEFT) / 2
    body = _legend(colours)
    for number, panel in enumerate(panels):
        left = svg.LEFT + (number % 2) * (width + svg.LEFT)
        top = TOP + (number // 2) * (PANEL_HEIGHT + PANEL_GAP)
        body += _panel(panel, colours, left, top, width)
    rows = -(-len(panels) // 2)
    return svg.document(body, TOP + rows * (PANEL_HEIGHT + PANEL_GAP) - PANEL_GAP + 34, label)


def _legend(colours: dict[str, str]) -> list[str]:
    body, x = [], float(svg.LEFT)
    for name, colour in colours.items():
        body.append(
            f'<rect x="{svg.number(x)}" y="10" width="11" height="11" fill="{escape(colour)}"/>'
        )
        body.append(svg.text(x + 16, 20, name))
        x += 34 + 7 * len(name)
    return body


def _panel(
    panel: BarPanel, colours: dict[str, str], left: float, top: float, width: float
) -> list[str]:
    values = [
        v for bar in panel.bars for v in (bar.value, bar.low, bar.high) if v is not None and v > 0
    ]
    low, high = _range(values, panel.logarithmic)

    def y(value: float) -> float:
        if panel.logarithmic:
            share = math.log(max(value, low) / low) / math.log(high / low)
        else:
            share = value / high
        return top + PANEL_HEIGHT * (1 - min(share, 1.0))

    body = [svg.text(left, top - 12, panel.title, css="title")]
    for tick in _ticks(low, high, panel.logarithmic):
        body.append(svg.line(left, y(tick), left + width, y(tick), "grid"))
        body.append(svg.text(left - 6, y(tick) + 4, f"{tick:g}", anchor="end"))
    body.append(svg.line(left, top + PANEL_HEIGHT, left + width, top + PANEL_HEIGHT, "axis"))
    groups = list(dict.fromkeys(bar.group for bar in panel.bars))
    names = [name for name in colours if any(bar.series == name for bar in panel.bars)]
    room = width / max(1, len(groups))
    each = room * (1 - 2 * _EMPTY) / max(1, len(names))
    for index, group in enumerate(groups):
        middle = left + (index + 0.5) * room
        body.append(svg.text(middle, top + PANEL_HEIGHT + 17, group, anchor="middle"))
        for bar in panel.bars:
            if bar.group == group and bar.value is not None:
                x = left + index * room + room * _EMPTY + names.index(bar.series) * each
                body += _bar(bar, colours[bar.series], x, each, y, top + PANEL_HEIGHT)
    return body


def _bar(
    bar: Bar, colour: str, x: float, width: float, y: Callable[[float], float], floor: float
) -> list[str]:
    assert bar.value is not None
    height = max(0.5, floor - y(bar.value))
    body = [
        f'<rect x="{svg.number(x + 1)}" y="{svg.number(floor - height)}" '
        f'width="{svg.number(max(1.0, width - 2))}" height="{svg.number(height)}" '
        f'fill="{escape(colour)}"><title>{escape(f"{bar.series}, {bar.group}: {bar.value:.4g}")}'
        "</title></rect>"
    ]
    if bar.low is not None and bar.high is not None:
        middle = x + width / 2
        body.append(svg.line(middle, y(bar.low), middle, y(bar.high), "axis"))
    return body


def _range(values: Sequence[float], logarithmic: bool) -> tuple[float, float]:
    if not values:
        return (1.0, 10.0) if logarithmic else (0.0, 1.0)
    if not logarithmic:
        return 0.0, max(values) * 1.05
    low = 10.0 ** math.floor(math.log10(min(values) * 0.9))
    return low, max(values) * 1.2


def _ticks(low: float, high: float, logarithmic: bool) -> list[float]:
    if logarithmic:
        first = math.floor(math.log10(low))
        last = math.floor(math.log10(high))
        tens = [10.0**power for power in range(first, last + 1)]
        return [ten * step for ten in tens for step in (1, 3) if low <= ten * step <= high]
    step = 10.0 ** math.floor(math.log10(high / 2))
    step *= next(factor for factor in (1, 2, 5, 10) if high / (step * factor) <= 5)
    return [step * index for index in range(int(high / step) + 1)]
