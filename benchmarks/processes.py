"""A process tree: its memory over time, and its end.

Ray's processes may outlive their parent, so everything ever seen in the tree is remembered by
(pid, start time) and can be ended by id, without ever matching by name.
"""

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass

import psutil


@dataclass(frozen=True, slots=True, kw_only=True)
class MemorySample:
    """Memory of the whole tree at one moment."""

    at: float
    """Seconds since the epoch."""
    bytes: int
    """Proportional set size where the kernel tells it, else resident set size."""
    processes: int


class TreeSampler(threading.Thread):
    """Samples a process tree in the background until stopped."""

    def __init__(self, pid: int, *, every_s: float = 5.0) -> None:
        """Watches `pid` and all its descendants.

        A look walks the page tables of every process: at 2 s it took 6 % of a core.
        """
        super().__init__(name="memory-sampler", daemon=True)
        self.samples: list[MemorySample] = []
        self._root = psutil.Process(pid)
        self._every_s = every_s
        self._done = threading.Event()
        self._seen: set[psutil.Process] = set()

    @property
    def peak_bytes(self) -> int:
        """Returns the highest sample so far."""
        return max((sample.bytes for sample in self.samples), default=0)

    @property
    def seen(self) -> frozenset[psutil.Process]:
        """Returns every descendant ever seen, alive or not, without the root itself."""
        return frozenset(self._seen)

    def run(self) -> None:
        """Samples until `stop`; the first sample comes at once."""
        while True:
            self._sample()
            if self._done.wait(self._every_s):
                return

    def stop(self) -> None:
        """Takes a last look at the tree and ends the thread."""
        self._done.set()
        if self.is_alive():
            self.join(timeout=30)

    def _sample(self) -> None:
        try:
            descendants = self._root.children(recursive=True)
        except psutil.NoSuchProcess:
            return
        self._seen.update(descendants)
        total = sum(_memory(process) for process in [self._root, *descendants])
        self.samples.append(
            MemorySample(at=time.time(), bytes=total, processes=len(descendants) + 1)
        )


def _memory(process: psutil.Process) -> int:
    try:
        return int(process.memory_full_info().pss)
    except (psutil.AccessDenied, AttributeError):
        pass
    except psutil.Error:
        return 0
    try:
        return int(process.memory_info().rss)
    except psutil.Error:
        return 0


def stop_tree(
    child: subprocess.Popen[bytes], seen: Iterable[psutil.Process] = (), *, grace_s: float = 60.0
) -> list[int]:
    """Ends a child and everything that ever descended from it.

    The child gets SIGTERM and `grace_s` seconds to end by itself; what is left then is killed,
    one id at a time.

    Returns:
        Ids of processes that had to be killed.
    """
    remembered = set(seen)
    with contextlib.suppress(psutil.NoSuchProcess):
        remembered.update(psutil.Process(child.pid).children(recursive=True))
    if child.poll() is None:
        child.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(timeout=grace_s)
    killed = []
    if child.poll() is None:
        child.kill()
        child.wait(timeout=30)
        killed.append(child.pid)
    # psutil compares pid and start time, so a reused pid is never hit. The parent's end takes
    # a moment to reach its children; give them that before using force.
    _, alive = psutil.wait_procs([p for p in remembered if p.is_running()], timeout=5)
    for process in alive:
        if process.pid == os.getpid():
            continue
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
            killed.append(process.pid)
    psutil.wait_procs(alive, timeout=10)
    return killed
