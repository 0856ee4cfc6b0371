"""Live progress on a terminal and in a log."""

import io

import pytest
from rich.console import Console

from examples.tinyworld.demo.board import Board
from lorebase.v1 import upgrade_pb2
from tests.unit.demo_samples import NAMES, record


def upgrade(state: str) -> upgrade_pb2.Upgrade:
    decision = upgrade_pb2.Decision(
        verdict=upgrade_pb2.VERDICT_PROMOTE,
        evidence="entrusted",
        n=200,
        source_score=0.98,
        shadow_score=0.97,
    )
    migration = upgrade_pb2.Migration(
        adapter=NAMES[0], state=state, attempt=1, stage_progress=0.5, decision=decision
    )
    return upgrade_pb2.Upgrade(
        from_base="old",
        to_base="next",
        state=upgrade_pb2.UPGRADE_STATE_MIGRATING,
        migrations=[migration],
        eta_seconds=75,
    )


@pytest.mark.parametrize("terminal", [True, False])
def test_states_failures_and_rates_are_shown(terminal: bool) -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=140, color_system=None)
    with Board(console) as board:
        board.phase("upgrade")
        board.update(upgrade("distilling"))
        board.record(record(0.0))
        board.record(record(0.0, code="UNAVAILABLE", error="no engine"))
        board.update(upgrade("promoted"))
    shown = out.getvalue()
    assert "UNAVAILABLE no engine" in shown
    assert f"promoted {NAMES[0]}" in shown
    assert "source 0.98, shadow 0.97" in shown
    if terminal:
        assert "2 requests, 1 failed" in shown
        assert "upgrade ends in about 1:15" in shown
        assert "old to next: migrating" in shown


def test_an_infeasible_migration_says_why() -> None:
    out = io.StringIO()
    board = Board(Console(file=out, width=140))
    found = upgrade("rejected")
    found.migrations[0].ClearField("decision")
    found.migrations[0].error = "no transfer kit"
    board.update(found)
    assert "no transfer kit" in out.getvalue()
