"""`upgrade status --watch`: a live table on a terminal, plain lines anywhere else."""

import time
from collections.abc import Iterable

from lorebase.v1 import upgrade_pb2

from . import render_upgrade
from .exits import EXIT_FAILURE, EXIT_OK
from .session import Session
from .upgrades import SETTLED_STATES


def watch(session: Session, updates: Iterable[upgrade_pb2.Upgrade]) -> upgrade_pb2.Upgrade | None:
    """Shows updates until all migrations have ended; returns the last one.

    JSON output is one object a line.
    """
    if session.as_json:
        return _json_lines(session, updates)
    if session.console.is_terminal:
        return _live(session, updates)
    return _lines(session, updates)


def exit_code_of(upgrade: upgrade_pb2.Upgrade | None) -> int:
    """Returns 0 if the upgrade went through (rejected adapters stay served), else 1."""
    failed = (upgrade_pb2.UPGRADE_STATE_FAILED, upgrade_pb2.UPGRADE_STATE_ABORTED)
    return EXIT_FAILURE if upgrade is None or upgrade.state in failed else EXIT_OK


def _live(session: Session, updates: Iterable[upgrade_pb2.Upgrade]) -> upgrade_pb2.Upgrade | None:
    from rich.live import Live

    last = None
    with Live(console=session.console, auto_refresh=False, transient=False) as live:
        for last in updates:
            live.update(render_upgrade.Progress(last, time.time()), refresh=True)
            if last.state in SETTLED_STATES:
                break
    return last


def _lines(session: Session, updates: Iterable[upgrade_pb2.Upgrade]) -> upgrade_pb2.Upgrade | None:
    last = None
    for upgrade in updates:
        stamp = time.strftime("%H:%M:%S")
        for line in render_upgrade.changes(last, upgrade):
            # Log readers want one line an event, however wide.
            session.console.print(f"{stamp} {line}", soft_wrap=True, markup=False, highlight=False)
        last = upgrade
        if last.state in SETTLED_STATES:
            break
    if last is not None:
        session.console.print(
            render_upgrade.headline(last, time.time()), soft_wrap=True, markup=False
        )
    return last


def _json_lines(
    session: Session, updates: Iterable[upgrade_pb2.Upgrade]
) -> upgrade_pb2.Upgrade | None:
    last = None
    for last in updates:
        session.print_json(last, indent=None)
        if last.state in SETTLED_STATES:
            break
    return last
