"""Keeps a gateway's route table up to date: long polls at the hub, the last table if it is gone."""

import asyncio
from collections.abc import Callable
from typing import Protocol

import structlog

from ..routing.table import RouteTable
from .metrics import GatewayMetrics

_log = structlog.get_logger(__name__)

RETRY_S = 0.2
POLL_TIMEOUT_S = 5.0
"""The hub answers within a second; without an answer for this long it is taken for dead."""


class HubClient(Protocol):
    """The route hub as a gateway sees it."""

    async def poll(self, gateway_id: str, have: int) -> tuple[int, RouteTable | None]:
        """See hub.Hub.poll; raises when the hub can't be reached."""
        ...

    async def leave(self, gateway_id: str) -> None:
        """See hub.Hub.leave; raises when the hub can't be reached."""
        ...


class RoutesWatch:
    """The newest table that this gateway has seen."""

    def __init__(
        self,
        *,
        gateway_id: str,
        hub: HubClient,
        metrics: GatewayMetrics,
        on_table: Callable[[RouteTable], None],
    ) -> None:
        """Does nothing until `run`.

        Args:
            gateway_id: unique for each start of a gateway.
            hub: where to poll.
            metrics: gets revision and updates.
            on_table: called before a table takes effect, to prepare for its bases.
        """
        self._gateway_id = gateway_id
        self._hub = hub
        self._metrics = metrics
        self._on_table = on_table
        self._table: RouteTable | None = None
        self._first = asyncio.Event()

    @property
    def table(self) -> RouteTable | None:
        """The present table; None before the first."""
        return self._table

    async def wait_first(self) -> None:
        """Waits for the first table."""
        await self._first.wait()

    async def run(self) -> None:
        """Polls until cancelled."""
        reachable = True
        while True:
            try:
                async with asyncio.timeout(POLL_TIMEOUT_S):
                    revision, table = await self._hub.poll(self._gateway_id, self._have())
                reachable = True
            except Exception as error:
                if reachable:
                    why = repr(error)[:200]
                    _log.warning("route_hub_unreachable", have=self._have(), error=why)
                reachable = False
                await asyncio.sleep(RETRY_S)
                continue
            if table is not None and revision > self._have():
                self._take(table)

    async def leave(self) -> None:
        """Tells the hub not to wait for this gateway any more; best effort."""
        try:
            async with asyncio.timeout(1.0):
                await self._hub.leave(self._gateway_id)
        except Exception as error:  # the hub forgets silent gateways by itself
            _log.info("hub_not_told_of_leaving", error=repr(error)[:200])

    def _have(self) -> int:
        return -1 if self._table is None else self._table.revision

    def _take(self, table: RouteTable) -> None:
        self._on_table(table)
        # One assignment: requests see the old table or the new one, nothing between.
        self._table = table
        self._metrics.route_revision.set(table.revision)
        self._metrics.route_updates.inc()
        self._first.set()
