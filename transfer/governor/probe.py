"""Reads the load: engine statistics through the cluster port, CPU through psutil."""

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Protocol

import psutil

from lorebase.serving.engine.protocol import EngineStats

from .policy import LoadSample

PROBE_TIMEOUT_S = 5.0
"""An engine that does not answer in this time counts as saturated."""


class StatsSource(Protocol):
    """Where engine statistics come from."""

    async def engine_stats(self, base_id: str) -> EngineStats:
        """Returns the load of one engine; raises if it can't be reached."""
        ...


def cpu_free() -> float:
    """Returns the share of CPU time since the last call that was idle or used by yielding work.

    Training threads run SCHED_IDLE and nice, and the kernel books nice time apart: what they use
    is free for anybody else.
    """
    times = psutil.cpu_times_percent(interval=None)
    return float(min(1.0, (times.idle + times.nice + getattr(times, "iowait", 0.0)) / 100.0))


class Probe:
    """Takes load samples.

    Args:
        source: engine statistics.
        clock: monotonic seconds.
        cpu: share of free CPU.
    """

    def __init__(
        self,
        source: StatsSource,
        *,
        clock: Callable[[], float] = time.monotonic,
        cpu: Callable[[], float] = cpu_free,
    ) -> None:
        self._source = source
        self._clock = clock
        self._cpu = cpu

    async def sample(self, bases: Sequence[str]) -> LoadSample:
        """Asks the engines of `bases` at once; an unreachable one counts as slow, not as idle."""
        results = await asyncio.gather(*(self._ask(base) for base in bases))
        stats = [one for one, _ in results if one is not None]
        return LoadSample(
            at=self._clock(),
            waiting_foreground=sum(s.waiting_foreground for s in stats),
            running_foreground=sum(s.running_foreground for s in stats),
            probe_s=max((seconds for _, seconds in results), default=0.0),
            cpu_free=self._cpu(),
        )

    async def _ask(self, base_id: str) -> tuple[EngineStats | None, float]:
        begun = self._clock()
        try:
            async with asyncio.timeout(PROBE_TIMEOUT_S):
                stats = await self._source.engine_stats(base_id)
        except Exception:
            # Whatever broke, the foreground has trouble enough: report pressure, never raise.
            return None, PROBE_TIMEOUT_S
        return stats, self._clock() - begun
