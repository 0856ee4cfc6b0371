"""A worker's checkpoint blocks without a lease, and never for an orphan."""

import threading
from collections.abc import Callable

import pytest

from lorebase.transfer.ports import StageCancelledError
from lorebase.transfer.upgrade.gate import LeaseGate


def in_thread(work: Callable[[], None]) -> tuple[threading.Thread, list[BaseException]]:
    errors: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread, errors


def test_it_passes_while_granted_and_tells_the_progress() -> None:
    gate = LeaseGate()
    gate(0.25)
    assert gate.hear(True) == 0.25


def test_it_blocks_while_revoked_and_goes_on_when_granted() -> None:
    gate = LeaseGate()
    gate.hear(False)
    thread, errors = in_thread(lambda: gate(0.5))
    thread.join(0.1)
    assert thread.is_alive()
    gate.hear(True)
    thread.join(5)
    assert not thread.is_alive()
    assert not errors


def test_cancelling_ends_a_blocked_job() -> None:
    gate = LeaseGate()
    gate.hear(False)
    thread, errors = in_thread(lambda: gate(0.5))
    gate.cancel()
    thread.join(5)
    assert isinstance(errors[0], StageCancelledError)


def test_a_job_whose_controller_is_gone_ends_by_itself() -> None:
    gate = LeaseGate(silence_s=0.05)
    gate.hear(False)
    with pytest.raises(StageCancelledError, match="silent"):
        gate(0.5)  # would wait for ever


def test_a_granted_job_of_a_dead_controller_does_not_run_for_ever() -> None:
    now = [0.0]
    gate = LeaseGate(clock=lambda: now[0], silence_s=30.0)
    gate(0.1)
    now[0] = 31.0
    with pytest.raises(StageCancelledError, match="silent"):
        gate(0.2)
