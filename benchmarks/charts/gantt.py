"""Who was busy with what, and when."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from . import svg

ROW_HEIGHT = 22
TOP = 34
NAME_WIDTH = 190


@dataclass(frozen=True, slots=True, kw_only=True)
class GanttBar:
    """One piece of work."""

    start_s: float
    end_s: float
    kind: str
    """Key of the colour map; also shown in the tooltip and the legend."""
    label: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class GanttRow:
    """All work of one name."""

    name: str
    bars: tuple[GanttBar, ...]
    end_mark: str = ""
    """A short word after the last bar, such as the gate's verdict."""


def gantt(
    rows: Sequence[GanttRow],
    *,
    seconds: float,
    colours: Mapping[str, str],
    label: str = "Stages",
) -> str:
    """Draws one row for each name.

    Args:
        rows: names from top to bottom.
        seconds: length of the time axis.
        colours: colour of each kind of bar, in the legend's order; unknown kinds are grey.
        label: accessible name of the chart.
    """
    bottom = TOP + ROW_HEIGHT * len(rows)
    scale = (svg.WIDTH - NAME_WIDTH - svg.RIGHT - 74) / max(seconds, 1e-9)
    parts = _legend(colours)
    for at in svg.time_ticks(seconds):
        x = NAME_WIDTH + at * scale
        parts.append(svg.line(x, TOP, x, bottom, "grid"))
        parts.append(svg.text(x, bottom + 16, svg.clock(at), anchor="middle"))
    for index, row in enumerate(rows):
        y = TOP + index * ROW_HEIGHT
        parts.append(svg.line(0, y + ROW_HEIGHT, svg.WIDTH - svg.RIGHT, y + ROW_HEIGHT, "row-line"))
        parts.append(svg.text(NAME_WIDTH - 8, y + 15, row.name, anchor="end"))
        last = 0.0
        for bar in row.bars:
            last = max(last, bar.end_s)
            took = bar.end_s - bar.start_s
            parts.append(
                svg.rect(
                    NAME_WIDTH + bar.start_s * scale,
                    y + 4,
                    max(took * scale, 1.0),
                    ROW_HEIGHT - 8,
                    fill=colours.get(bar.kind, "#9aa3af"),
                    tip=f"{row.name}: {bar.label or bar.kind}, {took:.1f} s",
                )
            )
        if row.end_mark:
            parts.append(svg.text(NAME_WIDTH + last * scale + 5, y + 15, row.end_mark))
    return svg.document(parts, bottom + 26, label)


def _legend(colours: Mapping[str, str]) -> list[str]:
    parts, x = [], float(NAME_WIDTH)
    for kind, colour in colours.items():
        parts.append(svg.rect(x, 6, 12, 10, fill=colour))
        parts.append(svg.text(x + 16, 15, kind))
        x += 6.8 * len(kind) + 36
    return parts
