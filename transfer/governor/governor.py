"""The governor: samples the load, applies the policy, moves the leases."""

import asyncio
from collections.abc import Callable, Sequence

import structlog

from .leases import LeaseKind, LeaseTable
from .policy import NOTHING, Capacity, GovernorPolicy, capacity, start, step
from .probe import Probe

_log = structlog.get_logger(__name__)


class Governor:
    """Owns the lease table and keeps its capacity in step with the foreground's load.

    Args:
        policy: limits and thresholds.
        probe: where load samples come from.
        on_change: see `LeaseTable`.
    """

    def __init__(
        self,
        policy: GovernorPolicy,
        probe: Probe,
        on_change: Callable[[LeaseKind, int], None] | None = None,
    ) -> None:
        self.policy = policy
        self.leases = LeaseTable(on_change)
        self._probe = probe
        self._state = start(policy)
        self._paused = False

    @property
    def paused(self) -> bool:
        """Whether everything is revoked, whatever the load."""
        return self._paused

    def pause(self, paused: bool) -> None:
        """Revokes everything at once, or lets the policy decide again."""
        self._paused = paused
        self._apply()

    async def tick(self, bases: Sequence[str]) -> Capacity:
        """Takes one sample over the engines of `bases` and adjusts the leases."""
        self._state = step(self._state, await self._probe.sample(bases), self.policy)
        self._apply()
        return self.leases.capacity

    async def run(self, bases: Callable[[], Sequence[str]], interval_s: float = 0.5) -> None:
        """Ticks until cancelled; `bases` is asked anew each time.

        A tick that fails is logged, the leases stay as they are, and the next one tries again.
        """
        while True:
            try:
                await self.tick(bases())
            except Exception as error:
                # Without a governor nothing would ever be granted or revoked again.
                _log.warning("governor_tick_failed", error=repr(error))
            await asyncio.sleep(interval_s)

    def _apply(self) -> None:
        granted = NOTHING if self._paused else capacity(self._state, self.policy)
        self.leases.set_capacity(granted)
