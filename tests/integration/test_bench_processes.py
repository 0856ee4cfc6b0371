"""Watching and ending a real process tree."""

import subprocess
import sys
import time

import psutil
import pytest

from benchmarks.processes import TreeSampler, stop_tree

PARENT = """
import subprocess, sys, time, signal
signal.signal(signal.SIGTERM, {on_term})
code = "import time; x = b'x' * 60_000_000; time.sleep(60)"
child = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
print(child.pid, flush=True)
time.sleep(60)
"""


def spawn(on_term: str) -> tuple[subprocess.Popen[bytes], psutil.Process]:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT.format(on_term=on_term)], stdout=subprocess.PIPE
    )
    assert parent.stdout is not None
    return parent, psutil.Process(int(parent.stdout.readline()))


@pytest.mark.parametrize("on_term", ["signal.SIG_DFL", "signal.SIG_IGN"])
def test_stop_ends_the_child_and_what_it_left_behind(on_term: str) -> None:
    parent, grandchild = spawn(on_term)
    sampler = TreeSampler(parent.pid, every_s=0.1)
    sampler.start()
    try:
        deadline = time.monotonic() + 20
        while sampler.peak_bytes < 60_000_000 and time.monotonic() < deadline:
            time.sleep(0.1)
        assert grandchild in sampler.seen
        assert 60_000_000 <= sampler.peak_bytes < 2_000_000_000
        killed = stop_tree(parent, sampler.seen, grace_s=1.0)
    finally:
        sampler.stop()
        if parent.stdout is not None:
            parent.stdout.close()
    assert parent.poll() is not None
    assert not grandchild.is_running() or grandchild.status() == psutil.STATUS_ZOMBIE
    assert grandchild.pid in killed
    assert (parent.pid in killed) == (on_term == "signal.SIG_IGN")


def test_stopping_what_has_ended_kills_nothing() -> None:
    parent = subprocess.Popen([sys.executable, "-c", "pass"])
    parent.wait(timeout=20)
    assert stop_tree(parent) == []
