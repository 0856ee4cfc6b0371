"""How the route table reaches the gateways: long polls with acknowledgements.

The hub holds the newest table. A gateway polls with the revision that it already uses; that is at
the same time its acknowledgement. A swap is complete once every live gateway has acknowledged its
revision. Plain asyncio; ray_hub.py puts an actor around it.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from ..errors import DeadlineExceededError
from .table import RouteTable


@dataclass(frozen=True, slots=True, kw_only=True)
class HubTimes:
    """Seconds of the poll protocol."""

    poll_s: float = 1.0
    """A poll is answered after this long even if nothing changed, so that the hub sees who
    lives. Changes are answered at once."""
    liveness_s: float = 3.0
    """A gateway that has not polled for this long is taken for dead: three missed polls."""


class Hub:
    """The newest route table, and who has it.

    Used from one event loop; the actor calls `put` with tables that it read on a thread.
    """

    def __init__(self, *, clock: Callable[[], float], times: HubTimes | None = None) -> None:
        self._clock = clock
        self._times = times or HubTimes()
        self._table: RouteTable | None = None
        self._changed = asyncio.Condition()
        self._acks: dict[str, tuple[int, float]] = {}
        self._born = clock()

    @property
    def revision(self) -> int:
        """Revision of the newest table; -1 before the first."""
        return -1 if self._table is None else self._table.revision

    @property
    def table(self) -> RouteTable | None:
        """The newest table."""
        return self._table

    async def put(self, table: RouteTable) -> None:
        """Takes a newly read table; an older one than the present is ignored."""
        async with self._changed:
            if table.revision > self.revision:
                self._table = table
                self._changed.notify_all()

    async def poll(self, gateway_id: str, have: int) -> tuple[int, RouteTable | None]:
        """Waits for a newer table than `have`.

        Args:
            gateway_id: who asks; unique for each start of a gateway.
            have: the revision that the gateway uses now, -1 for none. This acknowledges it.

        Returns:
            The newest revision, and the table if it is another one than `have`.
        """
        async with self._changed:
            self._acks[gateway_id] = (have, self._clock())
            self._changed.notify_all()
            try:
                async with asyncio.timeout(self._times.poll_s):
                    await self._changed.wait_for(lambda: self.revision > have)
            except TimeoutError:
                pass
            # The poll itself was a sign of life until now.
            if gateway_id in self._acks:
                self._acks[gateway_id] = (have, self._clock())
        return self.revision, self._table if self.revision != have else None

    async def leave(self, gateway_id: str) -> None:
        """A gateway stops: nobody waits for its acknowledgement any more."""
        async with self._changed:
            self._acks.pop(gateway_id, None)
            self._changed.notify_all()

    def live(self) -> dict[str, int]:
        """Returns the acknowledged revision of every live gateway."""
        now = self._clock()
        dead = [g for g, (_, at) in self._acks.items() if now - at > self._times.liveness_s]
        for gateway_id in dead:
            del self._acks[gateway_id]
        return {gateway_id: revision for gateway_id, (revision, _) in self._acks.items()}

    async def wait_acked(self, revision: int, timeout_s: float) -> list[str]:
        """Waits until every live gateway uses `revision` or a later one.

        A hub that has just started does not know its gateways; it listens for one liveness
        period before it believes that there are none.

        Returns:
            The gateways that use it, sorted; empty if none runs.

        Raises:
            DeadlineExceededError: some gateway still uses an older table after `timeout_s`.
        """
        until = self._clock() + timeout_s
        async with self._changed:
            while True:
                live = self.live()
                behind = sorted(g for g, have in live.items() if have < revision)
                now = self._clock()
                known = bool(live) or now - self._born > self._times.liveness_s
                if known and not behind:
                    return sorted(live)
                if now >= until:
                    raise DeadlineExceededError(
                        f"{len(behind)} of {len(live)} gateways do not use route revision "
                        f"{revision} after {timeout_s} s ({', '.join(behind) or 'none known'}); "
                        "they get it as soon as they reach the hub",
                        reason="GATEWAYS_BEHIND",
                    )
                # Liveness runs out without a notification, so look again from time to time.
                try:
                    async with asyncio.timeout(min(0.1, until - now)):
                        await self._changed.wait()
                except TimeoutError:
                    continue
