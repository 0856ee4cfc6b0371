"""The report holds what later readers look for, in one file."""

import dataclasses
import json
import re
from html.parser import HTMLParser
from pathlib import Path

from examples.tinyworld.demo.report import summary, write
from examples.tinyworld.demo.settings import DemoSettings
from examples.tinyworld.demo.verdict import check_all
from tests.unit.demo_samples import NAMES, facts, record

SETTINGS = DemoSettings()


def written(folder: Path, **changes: object) -> tuple[str, dict[str, object]]:
    run = facts(**changes)
    settings = dataclasses.replace(SETTINGS, report_dir=folder)
    page, data = write(run, check_all(run, settings), settings)
    assert sorted(p.name for p in folder.iterdir()) == [page.name, data.name]
    return page.read_text(), json.loads(data.read_text())


def test_the_json_has_the_promised_fields_with_accuracies_between_0_and_1(tmp_path: Path) -> None:
    _, data = written(tmp_path)
    assert data["requests_sent"] == 3200
    assert data["requests_failed"] == 0
    assert data["answers_wrong_version"] == 0
    assert data["seconds"] == 410.0
    assert data["peak_rss_gb"] == 6.18
    assert data["passed"] is True
    adapters = data["adapters"]
    assert isinstance(adapters, list)
    assert {"name", "bare", "few_shot", "source", "shadow", "n", "decision"} <= adapters[0].keys()
    assert (adapters[0]["bare"], adapters[0]["source"]) == (0.04, 0.98)
    assert [a["decision"] for a in adapters] == ["promoted"] * 7 + ["rejected"]


def test_the_page_needs_no_other_file(tmp_path: Path) -> None:
    page, _ = written(tmp_path)
    assert not re.findall(r"""(?:src|href)=["']|@import|url\(""", page)
    assert "<script" not in page
    assert page.count("<svg") == 2


def test_the_page_is_well_formed_and_escapes_what_the_gate_said(tmp_path: Path) -> None:
    page, _ = written(tmp_path)
    open_tags: list[str] = []

    class Balance(HTMLParser):
        def handle_starttag(self, tag: str, attrs: object) -> None:
            if tag not in {"meta", "br"}:
                open_tags.append(tag)

        def handle_endtag(self, tag: str) -> None:
            assert open_tags.pop() == tag

        def handle_startendtag(self, tag: str, attrs: object) -> None:
            return

    Balance().feed(page)
    assert open_tags == []
    assert "flips &lt;b&gt;12 %&lt;/b&gt;" in page


def test_a_bad_run_is_reported_as_bad(tmp_path: Path) -> None:
    page, data = written(tmp_path, wrong=[(record(1.0), "names v-2, answered by v-1")])
    assert data["passed"] is False
    assert data["answers_wrong_version"] == 1
    assert "a check failed" in page
    assert '<li class="no">No answer by a wrong version' in page
    assert page.count('<li class="no">') == 1
    assert "names v-2, answered by v-1" in page


def test_an_adapter_without_a_shadow_has_no_figure_for_it(tmp_path: Path) -> None:
    run = facts()
    first = dataclasses.replace(run.adapters[7], scores={}, difference=None, error="no kit", n=0)
    page, data = written(tmp_path, adapters=[*run.adapters[:7], first])
    row = data["adapters"][7]  # type: ignore[index]
    assert row["shadow"] is None
    assert row["difference_interval"] is None
    assert NAMES[7] in page


def test_latency_near_swaps_is_compared_with_elsewhere() -> None:
    near = summary(facts(), [])["foreground"]["near_swaps"]
    # Seven swaps, 2 s each, eight requests a second.
    assert 100 < near["n"] < 130
    assert 0.3 < near["ratio"] < 3
