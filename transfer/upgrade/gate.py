"""The checkpoint inside a worker process: reports progress, blocks without a lease. No Ray."""

import threading
import time
from collections.abc import Callable

from lorebase.transfer.ports import StageCancelledError

SILENCE_S = 30.0
"""A worker that hears nothing for this long has lost its controller and gives up; what it made is
kept as a resume point."""


class LeaseGate:
    """One job's checkpoint; the training thread calls it, a control thread steers it.

    Args:
        clock: monotonic seconds.
        silence_s: see `SILENCE_S`.
    """

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, silence_s: float = SILENCE_S
    ) -> None:
        self._clock = clock
        self._silence_s = silence_s
        self._changed = threading.Condition()
        self._granted = True
        self._cancelled = False
        self._heard_at = clock()
        self._progress = 0.0

    def __call__(self, progress: float) -> None:
        """Reports progress; returns when the lease is granted.

        Raises:
            StageCancelledError: cancelled, or the controller is gone.
        """
        with self._changed:
            self._progress = progress
            while not self._cancelled and not self._granted and not self._orphaned():
                self._changed.wait(timeout=min(1.0, self._silence_s))
            if self._cancelled:
                raise StageCancelledError("the stage was cancelled")
            if self._orphaned():
                raise StageCancelledError(f"the controller was silent for {self._silence_s} s")

    def hear(self, granted: bool) -> float:
        """Tells whether the lease is granted; returns the progress."""
        with self._changed:
            self._granted = granted
            self._heard_at = self._clock()
            self._changed.notify_all()
            return self._progress

    def cancel(self) -> None:
        """The work is not wanted any more."""
        with self._changed:
            self._cancelled = True
            self._changed.notify_all()

    def _orphaned(self) -> bool:
        return self._clock() - self._heard_at > self._silence_s
