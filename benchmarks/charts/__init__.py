"""Charts as self-contained SVG text: no scripts, no fonts, no network."""

from .bars import Bar, BarPanel, bar_chart
from .gantt import GanttBar, GanttRow, gantt
from .timeline import Mark, Phase, Series, timeline_chart

__all__ = [
    "Bar",
    "BarPanel",
    "GanttBar",
    "GanttRow",
    "Mark",
    "Phase",
    "Series",
    "bar_chart",
    "gantt",
    "timeline_chart",
]
