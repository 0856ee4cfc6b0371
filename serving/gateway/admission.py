"""Admission: a bounded number of requests at work, a bounded number waiting, the rest refused.

Pure asyncio, one event loop. First come, first served.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

from ..errors import ResourceExhaustedError

_SMOOTHING = 0.1
"""Weight of the newest request in the running mean of service times."""


class Admission:
    """Slots of one gateway."""

    def __init__(self, *, max_concurrency: int, max_queue: int, clock: Callable[[], float]) -> None:
        """Starts with all slots free.

        Args:
            max_concurrency: requests that may be at the engines.
            max_queue: requests that may wait for a slot.
            clock: seconds, monotonic.
        """
        self._max_concurrency = max_concurrency
        self._max_queue = max_queue
        self._clock = clock
        self._running = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._mean_service_s = 1.0

    @property
    def running(self) -> int:
        """Requests that hold a slot."""
        return self._running

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return len(self._waiting)

    @property
    def full(self) -> bool:
        """Whether a request that comes now has to wait."""
        return self._running >= self._max_concurrency

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[float]:
        """Holds a slot for the length of the block; yields the seconds waited for it.

        Raises:
            ResourceExhaustedError: the queue is full; retry_after_s estimates when it is not.
        """
        asked = self._clock()
        await self._acquire()
        got = self._clock()
        try:
            yield got - asked
        finally:
            self._mean_service_s += _SMOOTHING * (self._clock() - got - self._mean_service_s)
            self._release()

    async def _acquire(self) -> None:
        if self._running < self._max_concurrency:
            self._running += 1
            return
        if len(self._waiting) >= self._max_queue:
            raise ResourceExhaustedError(
                f"{self._running} requests run and {len(self._waiting)} wait, expected at most "
                f"{self._max_concurrency} and {self._max_queue}; retry later or add gateways",
                retry_after_s=self._retry_after_s(),
            )
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                # The slot was handed over in the same moment: pass it on.
                self._release()
            else:
                with suppress(ValueError):  # _release may have skipped over it already
                    self._waiting.remove(turn)
            raise

    def _release(self) -> None:
        # A slot goes straight to the next in line, so that a newcomer can't overtake.
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self._running -= 1

    def _retry_after_s(self) -> float:
        turns = (len(self._waiting) + 1) / self._max_concurrency
        return min(30.0, max(0.1, turns * self._mean_service_s))
