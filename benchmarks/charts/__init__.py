"""Charts as self-contained SVG text: no scripts, no fonts, no network."""

from .gantt import GanttBar, GanttRow, gantt
from .timeline import Mark, Phase, Series, timeline_chart

__all__ = ["GanttBar", "GanttRow", "Mark", "Phase", "Series", "gantt", "timeline_chart"]
