"""Charts are well-formed, self-contained SVG whatever the data."""

from xml.etree import ElementTree

import pytest

from benchmarks.charts import (
    Dot,
    DotRow,
    GanttBar,
    GanttRow,
    Mark,
    Phase,
    Series,
    dot_plot,
    gantt,
    svg,
    timeline_chart,
)
from benchmarks.charts.svg import ticks


def parse(text: str) -> ElementTree.Element:
    assert "NaN" not in text
    assert "nan" not in text.replace('nan"', "")
    assert "href" not in text
    return ElementTree.fromstring(text)


@pytest.mark.parametrize(
    ("top", "expected"),
    [
        (7.3, [0, 2, 4, 6, 8]),
        (0.09, [0, 0.05, 0.1]),
        (1000, [0, 500, 1000]),
        (0.0, [0, 1]),
        (float("nan"), [0, 1]),
    ],
)
def test_ticks_are_round_and_cover_the_top(top: float, expected: list[float]) -> None:
    assert ticks(top) == pytest.approx(expected)


def test_timeline_breaks_lines_at_missing_values_and_marks_swaps() -> None:
    series = Series(
        panel="latency", label="p99", colour="#111", points=((0, 1.0), (1, None), (2, 2.0), (3, 1))
    )
    root = parse(
        timeline_chart(
            [series],
            seconds=3,
            marks=[
                Mark(at_s=1.0, label="a & b <x>", badge="1"),
                Mark(at_s=1.01, label="c", badge="2"),
            ],
            phases=[Phase(start_s=0, end_s=2, label="migrating")],
        )
    )
    tags = [child.tag.rpartition("}")[2] for child in root.iter()]
    assert tags.count("polyline") == 1  # (2, 3); the lone first point is a dot
    assert tags.count("circle") == 3
    assert "a & b <x>" in "".join(root.itertext())


def test_charts_without_data_are_still_documents() -> None:
    parse(timeline_chart([], seconds=0))
    parse(gantt([], seconds=0, colours={}))


def test_gantt_draws_a_bar_for_each_piece_of_work() -> None:
    row = GanttRow(
        name="a/b",
        bars=(
            GanttBar(start_s=0, end_s=2, kind="distill"),
            GanttBar(start_s=2, end_s=2, kind="evaluate"),
        ),
        end_mark="promoted",
    )
    root = parse(gantt([row], seconds=4, colours={"distill": "#123456"}))
    rects = [e for e in root.iter() if e.tag.endswith("rect")]
    assert len(rects) == 3  # two bars and one legend entry
    assert "promoted" in "".join(root.itertext())


def test_rows_and_legend_of_a_dot_plot_grow_with_what_is_in_them() -> None:
    def height(series: int) -> tuple[float, float, set[str]]:
        colours = {f"a series with a long name {n}": "#111" for n in range(series)}
        row = DotRow(name="r", dots=tuple(Dot(series=name, value=0.5) for name in colours))
        parts, bottom = dot_plot([row], colours, title="t")
        root = parse(svg.document(parts, bottom, "l"))
        legend = [r for r in root.iter() if r.tag.endswith("rect") and r.get("width") == "10"]
        places = [float(c.get("cy", 0)) for c in root.iter() if c.tag.endswith("circle")]
        assert len(legend) == len(places) == series
        assert all(float(one.get("x", 0)) < svg.WIDTH - 150 for one in legend)
        assert max(places) < bottom - 28
        return bottom, min(places), {one.get("y", "") for one in legend}

    few, many = height(2), height(14)
    assert many[0] > few[0] + 20
    assert (len(few[2]), len(many[2])) == (1, 4)
