"""What tables and lines say, as text."""

import io

import pytest
from rich.console import Console, RenderableType

from lorebase.serving.cli import render, render_upgrade
from lorebase.v1 import adapter_pb2, inference_pb2, upgrade_pb2

from .cli_samples import START_S, adapter, at, decision, migration, upgrade


def _text(renderable: RenderableType, width: int = 240) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(renderable)
    return console.file.getvalue()  # type: ignore[attr-defined,no-any-return]


def _row(text: str, start: str) -> str:
    (row,) = (line for line in text.splitlines() if line.startswith(start))
    return row


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (-1, "0 s"),
        (0.4, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (3599, "59 min 59 s"),
        (7620, "2 h 07 min"),
    ],
)
def test_durations_read_well(seconds: float, words: str) -> None:
    assert render.duration(seconds) == words


@pytest.mark.parametrize(
    ("count", "words"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (3 << 30, "3.0 GiB")]
)
def test_sizes_read_well(count: int, words: str) -> None:
    assert render.size(count) == words


def test_an_unset_time_is_a_dash() -> None:
    assert render.moment(adapter_pb2.Adapter().create_time) == "-"
    assert render.moment(at(0)) == "2025-10-09 08:53:20Z"


def test_the_adapter_list_shows_the_rank_of_the_version_that_answers() -> None:
    row = _row(_text(render.adapters([adapter()])), "acme/dates")
    assert row.split()[1:6] == ["old", "v-2", "8", "yes", "no"]


def test_an_empty_list_says_how_to_begin() -> None:
    assert "adapter create" in _text(render.adapters([]))
    assert "upgrade plan" in _text(render_upgrade.upgrades([]))


def test_one_adapter_marks_the_version_that_answers() -> None:
    text = _text(render.adapter(adapter()))
    assert _row(text, "*").split()[1] == "v-2"
    assert "sha256:cdcdcdcdcdcd" in text


def test_models_tell_bases_from_adapters() -> None:
    models = [
        inference_pb2.Model(id="old", kind=inference_pb2.Model.KIND_BASE, base="old"),
        inference_pb2.Model(
            id="a/b", kind=inference_pb2.Model.KIND_ADAPTER, base="old", adapter_version="v-1"
        ),
    ]
    text = _text(render.models(models))
    assert _row(text, "old").split() == ["old", "base", "old", "-"]
    assert _row(text, "a/b").split() == ["a/b", "adapter", "old", "v-1"]


def test_a_plan_says_what_moves_and_what_stays() -> None:
    response = upgrade_pb2.PlanUpgradeResponse(
        from_base="old",
        to_base="next",
        migrations=[
            upgrade_pb2.PlannedMigration(
                adapter="a/moves", path="distill", feasible=True, reason="has a kit", rank=8
            ),
            upgrade_pb2.PlannedMigration(adapter="a/stays", reason="no kit", feasible=False),
        ],
    )
    text = _text(render_upgrade.plan(response))
    assert "old → next: 1 to migrate, 1 stay on old" in text
    assert "distill" in _row(text, "a/moves")
    assert _row(text, "a/stays").split()[1] == "stays"


def test_progress_shows_stage_and_no_scores_before_the_gate_spoke() -> None:
    row = _row(_text(render_upgrade.Progress(upgrade(), START_S + 60)), "acme/dates")
    assert "distilling" in row
    assert "40%" in row
    assert "0.0" not in row


def test_progress_shows_scores_and_verdict_after_it_spoke() -> None:
    done = migration(state="promoted", decision=decision())
    row = _row(_text(render_upgrade.Progress(upgrade(done), START_S)), "acme/dates")
    for part in ("promoted", "0.985", "0.980", "0.040", "-0.005 [-0.020, +0.010]", "200"):
        assert part in row
    assert "%" not in row


def test_a_narrow_terminal_gets_one_line_an_adapter() -> None:
    done = migration("shop/order-line-with-a-long-name", state="promoted", decision=decision())
    text = _text(render_upgrade.Progress(upgrade(done), START_S), width=90)
    row = _row(text, "shop/order-line-with-a-long-name")
    assert row.split()[1:] == ["promoted", "-", "0.985", "0.980", "promote"]


def test_a_rejected_adapter_says_why() -> None:
    refused = migration(
        state="rejected",
        decision=decision(verdict=upgrade_pb2.VERDICT_REJECT, reason="flips over budget"),
    )
    assert "flips over budget" in _text(render_upgrade.Progress(upgrade(refused), START_S))


def test_the_headline_estimates_while_it_runs_and_tells_the_time_after() -> None:
    running = render_upgrade.headline(upgrade(), START_S + 61)
    assert "0/1 adapters done" in running
    assert "1 min 01 s so far" in running
    assert "about 1 min 35 s left" in running
    ended = upgrade(state=upgrade_pb2.UPGRADE_STATE_ROLLED_BACK, end_time=at(120))
    assert "rolled back" in render_upgrade.headline(ended, START_S + 9999)
    assert "took 2 min 00 s" in render_upgrade.headline(ended, START_S + 9999)


@pytest.mark.parametrize(("share", "cells"), [(-1.0, 0), (0.0, 0), (0.5, 5), (1.0, 10), (7.0, 10)])
def test_the_bar_never_leaves_its_frame(share: float, cells: int) -> None:
    bar = render_upgrade.bar(share)
    assert bar.count("█") == cells
    assert bar.count("█") + bar.count("░") == 10


def test_every_state_and_verdict_has_a_word() -> None:
    for state in upgrade_pb2.UpgradeState.values():
        assert "_" not in render_upgrade.state_name(upgrade(state=state))
    words = {
        render_upgrade.verdict_name(upgrade_pb2.Decision(verdict=value))
        for value in upgrade_pb2.Verdict.values()
    }
    assert words == {"-", "promote", "retry", "reject"}


def test_the_first_lines_tell_everything() -> None:
    assert render_upgrade.changes(None, upgrade()) == [
        "upgrade u-1: migrating",
        "acme/dates: distilling",
    ]


def test_nothing_changed_says_nothing() -> None:
    assert render_upgrade.changes(upgrade(), upgrade()) == []


def test_progress_lines_come_in_quarters() -> None:
    before = upgrade(migration(stage_progress=0.26))
    assert render_upgrade.changes(before, upgrade(migration(stage_progress=0.49))) == []
    assert render_upgrade.changes(before, upgrade(migration(stage_progress=0.51))) == [
        "acme/dates: distilling 51%"
    ]


def test_a_new_attempt_and_a_verdict_are_news() -> None:
    before = upgrade(migration(state="evaluating"))
    again = migration(state="synthesizing", attempt=2, stage_progress=0.0)
    assert render_upgrade.changes(before, upgrade(again)) == [
        "acme/dates: synthesizing (attempt 2)"
    ]
    (line,) = render_upgrade.changes(
        before, upgrade(migration(state="promoted", decision=decision()))
    )
    assert line.startswith("acme/dates: promoted, gate: promote, source 0.985, shadow 0.980")


def test_the_report_gives_evidence_reasons_and_times() -> None:
    record = upgrade_pb2.StageRecord(stage="distill", start_time=at(0), end_time=at(90.5))
    unfinished = upgrade_pb2.StageRecord(stage="evaluate", start_time=at(91))
    done = migration(state="promoted", decision=decision(), stages=[record, unfinished])
    text = _text(render_upgrade.report(upgrade(done), START_S))
    row = _row(text, "acme/dates  ")
    for part in ("entrusted", "0.310", "0.050", "0.010 (0.030 ≤ 0.050)"):
        assert part in row
    assert "acme/dates: shadow is not worse than source" in text
    assert _row(text, "distill").split() == ["distill", "1", "1", "min", "30", "s", "1", "min",
                                             "30", "s"]  # fmt: skip
    assert "evaluate" not in text
