"""Charts as self-contained SVG text: no scripts, no fonts, no network."""

from .bars import Bar, BarPanel, bar_chart
from .dots import Curve, Dot, DotRow, curve_panel, dot_plot
from .gantt import GanttBar, GanttRow, gantt
from .timeline import Mark, Phase, Series, timeline_chart

__all__ = [
    "Bar",
    "BarPanel",
    "Curve",
    "Dot",
    "DotRow",
    "GanttBar",
    "GanttRow",
    "Mark",
    "Phase",
    "Series",
    "bar_chart",
    "curve_panel",
    "dot_plot",
    "gantt",
    "timeline_chart",
]
