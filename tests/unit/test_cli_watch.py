"""Following an upgrade: live on a terminal, lines elsewhere, and when to stop."""

import io

import pytest
from rich.console import Console

from lorebase.serving.cli.session import Options, Session
from lorebase.serving.cli.watch import exit_code_of, watch
from lorebase.v1 import upgrade_pb2

from .cli_samples import decision, migration, upgrade

COMPLETED = upgrade_pb2.UPGRADE_STATE_COMPLETED


def _session(*, terminal: bool) -> tuple[Session, io.StringIO]:
    session, output = Session(Options()), io.StringIO()
    session.console = Console(file=output, force_terminal=terminal, width=160, color_system=None)
    return session, output


@pytest.mark.parametrize("terminal", [True, False])
def test_it_stops_when_all_migrations_have_ended(terminal: bool) -> None:
    session, output = _session(terminal=terminal)
    done = migration(state="promoted", decision=decision())
    history = iter([upgrade(), upgrade(done, state=COMPLETED), upgrade(migration("late/one"))])
    last = watch(session, history)
    assert last is not None
    assert last.state == COMPLETED
    assert exit_code_of(last) == 0
    assert "promoted" in output.getvalue()
    assert "late/one" not in output.getvalue()
    assert next(history).migrations[0].adapter == "late/one"


def test_a_terminal_is_redrawn_in_place() -> None:
    session, output = _session(terminal=True)
    watch(session, iter([upgrade(), upgrade(state=COMPLETED)]))
    up = "\x1b[1A"
    first, _, rest = output.getvalue().partition(up)
    assert "migrating" in first
    assert "completed" not in first
    assert "completed" in rest


def test_lines_are_never_wrapped() -> None:
    session, output = _session(terminal=False)
    failed = migration(state="failed", error="a long story " * 40)
    watch(session, iter([upgrade(failed, state=upgrade_pb2.UPGRADE_STATE_FAILED)]))
    assert len(output.getvalue().splitlines()) == 3


@pytest.mark.parametrize("terminal", [True, False])
def test_a_stream_without_news_is_a_failure(terminal: bool) -> None:
    session, _ = _session(terminal=terminal)
    assert exit_code_of(watch(session, iter(()))) == 1
