"""UpgradeService: every call is a read or a write of the catalog; the controller does the work.

Loaded by the gateway through `gateway.extra_servicers`, so serving never imports transfer.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Protocol

import grpc
import grpc.aio
import structlog

from lorebase.serving.artifacts import ArtifactStore
from lorebase.serving.catalog import Catalog
from lorebase.serving.catalog.records import Event, Upgrade
from lorebase.serving.config import Settings
from lorebase.serving.errors import DeadlineExceededError, InvalidArgumentError, UnavailableError
from lorebase.v1 import upgrade_pb2, upgrade_pb2_grpc

from .commands import Commands
from .convert import plan_to_proto, upgrade_state, upgrade_to_proto
from .deps import read_events
from .history import eta_seconds, stage_records
from .states import RESTING_UPGRADE_STATES

SERVICE = "lorebase.v1.UpgradeService"
WATCH_POLL_S = 0.3
"""How often a watch looks at the catalog."""
WATCH_BEAT_S = 2.0
"""A watch sends at least this often, so that the time left keeps moving."""
MAX_PAGE_SIZE = 1000
DEFAULT_PAGE_SIZE = 100

_log = structlog.get_logger(__name__)
_Context = grpc.aio.ServicerContext[Any, Any]


class RoutePublisher(Protocol):
    """Makes a new revision of the routes take effect."""

    async def publish(self, revision: int) -> None:
        """Returns once every gateway uses `revision`; raises if some do not yet."""
        ...


class ServicerContext(Protocol):
    """What the gateway hands over; its GatewayContext is one."""

    @property
    def settings(self) -> Settings:
        """The configuration."""
        ...

    @property
    def catalog(self) -> Catalog:
        """The catalog."""
        ...

    @property
    def artifacts(self) -> ArtifactStore:
        """The artifact store."""
        ...

    @property
    def publisher(self) -> RoutePublisher:
        """The way of new routes to the gateways."""
        ...


class UpgradeView:
    """Reads one upgrade again and again without reading its whole history each time.

    Args:
        catalog: where.
        parallel: migrations that work at once, for the time left.
        clock: seconds since the epoch.
    """

    def __init__(self, catalog: Catalog, parallel: int, commands: Commands) -> None:
        self._catalog = catalog
        self._parallel = parallel
        self._clock = commands.clock
        self._events: list[Event] = []

    def read(self, upgrade_id: str | None) -> upgrade_pb2.Upgrade:
        """Returns the upgrade as it is now; blocking.

        Raises:
            NotFoundError: no such upgrade.
        """
        upgrade = self._catalog.get_upgrade(upgrade_id)
        migrations = self._catalog.migrations_of(upgrade.id)
        last = self._events[-1].id if self._events else 0
        self._events += read_events(self._catalog, upgrade.id, after=last)
        records = stage_records(self._events)
        eta = 0.0
        if upgrade.state not in RESTING_UPGRADE_STATES:
            eta = eta_seconds(migrations, records, now=self._clock(), parallel=self._parallel)
        return upgrade_to_proto(upgrade, migrations, records, eta_seconds=eta)


class UpgradeServicer(upgrade_pb2_grpc.UpgradeServiceServicer):
    """The service on one gateway.

    Args:
        context: what the gateway hands over.
        commands: what operators may ask for.
    """

    def __init__(self, context: ServicerContext, commands: Commands) -> None:
        self._catalog = context.catalog
        self._publisher = context.publisher
        self._parallel = 2 + 2 * context.settings.upgrade.workers
        self._commands = commands

    def _view(self) -> UpgradeView:
        return UpgradeView(self._catalog, self._parallel, self._commands)

    async def _show(self, upgrade: Upgrade) -> upgrade_pb2.Upgrade:
        return await asyncio.to_thread(self._view().read, upgrade.id)

    async def PlanUpgrade(
        self, request: upgrade_pb2.PlanUpgradeRequest, context: _Context
    ) -> upgrade_pb2.PlanUpgradeResponse:
        """Plans; changes nothing."""
        adapters = list(request.adapters)
        return plan_to_proto(
            await asyncio.to_thread(self._commands.plan, request.to_base, adapters)
        )

    async def StartUpgrade(
        self, request: upgrade_pb2.StartUpgradeRequest, context: _Context
    ) -> upgrade_pb2.StartUpgradeResponse:
        """Starts; a repeated request id returns the first one's upgrade."""
        upgrade = await asyncio.to_thread(
            self._commands.start, request.to_base, list(request.adapters), request.request_id
        )
        return upgrade_pb2.StartUpgradeResponse(upgrade=await self._show(upgrade))

    async def GetUpgrade(
        self, request: upgrade_pb2.GetUpgradeRequest, context: _Context
    ) -> upgrade_pb2.GetUpgradeResponse:
        """Returns one upgrade, the newest by default."""
        upgrade = await asyncio.to_thread(self._view().read, request.id or None)
        return upgrade_pb2.GetUpgradeResponse(upgrade=upgrade)

    async def ListUpgrades(
        self, request: upgrade_pb2.ListUpgradesRequest, context: _Context
    ) -> upgrade_pb2.ListUpgradesResponse:
        """Returns a page, newest first."""
        size = request.page_size or DEFAULT_PAGE_SIZE
        if not 1 <= size <= MAX_PAGE_SIZE:
            raise InvalidArgumentError(
                f"page_size is {request.page_size}, expected 0 to {MAX_PAGE_SIZE}"
            )
        return await asyncio.to_thread(self._list, size, request.page_token or None)

    def _list(self, size: int, after: str | None) -> upgrade_pb2.ListUpgradesResponse:
        found = self._catalog.list_upgrades(after=after, limit=size)
        return upgrade_pb2.ListUpgradesResponse(
            upgrades=[self._view().read(one.id) for one in found],
            next_page_token=found[-1].id if len(found) == size else "",
        )

    async def WatchUpgrade(
        self, request: upgrade_pb2.WatchUpgradeRequest, context: _Context
    ) -> AsyncIterator[upgrade_pb2.WatchUpgradeResponse]:
        """Sends the upgrade when it changes, until it rests or has ended."""
        view = self._view()
        upgrade_id = (await asyncio.to_thread(self._catalog.get_upgrade, request.id or None)).id
        resting = {upgrade_state(state) for state in RESTING_UPGRADE_STATES}
        sent: upgrade_pb2.Upgrade | None = None
        silent_s = 0.0
        while True:
            now = await asyncio.to_thread(view.read, upgrade_id)
            if sent is None or _changed(sent, now) or silent_s >= WATCH_BEAT_S:
                sent, silent_s = now, 0.0
                yield upgrade_pb2.WatchUpgradeResponse(upgrade=now)
            if now.state in resting:
                return
            await asyncio.sleep(WATCH_POLL_S)
            silent_s += WATCH_POLL_S

    async def PauseUpgrade(
        self, request: upgrade_pb2.PauseUpgradeRequest, context: _Context
    ) -> upgrade_pb2.PauseUpgradeResponse:
        """Pauses background work."""
        upgrade = await asyncio.to_thread(self._commands.pause, request.id)
        return upgrade_pb2.PauseUpgradeResponse(upgrade=await self._show(upgrade))

    async def ResumeUpgrade(
        self, request: upgrade_pb2.ResumeUpgradeRequest, context: _Context
    ) -> upgrade_pb2.ResumeUpgradeResponse:
        """Goes on after a pause or a failure."""
        upgrade = await asyncio.to_thread(self._commands.resume, request.id)
        return upgrade_pb2.ResumeUpgradeResponse(upgrade=await self._show(upgrade))

    async def PromoteUpgrade(
        self, request: upgrade_pb2.PromoteUpgradeRequest, context: _Context
    ) -> upgrade_pb2.PromoteUpgradeResponse:
        """Promotes against the gate's word; the controller warms and flips."""
        upgrade = await asyncio.to_thread(
            self._commands.promote, request.id, list(request.adapters)
        )
        return upgrade_pb2.PromoteUpgradeResponse(upgrade=await self._show(upgrade))

    async def RollbackUpgrade(
        self, request: upgrade_pb2.RollbackUpgradeRequest, context: _Context
    ) -> upgrade_pb2.RollbackUpgradeResponse:
        """Moves routes back here and now: no controller is needed."""
        done = await asyncio.to_thread(self._commands.rollback, request.id, list(request.adapters))
        if done.revision is not None:
            await self._publish(done.revision)
        if done.failed:
            left = "; ".join(f"{name}: {why}" for name, why in sorted(done.failed.items()))
            raise UnavailableError(
                f"{len(done.failed)} adapters are not rolled back, the others are; repeat the "
                f"call for them: {left[:2000]}",
                reason="ROLLBACK_INCOMPLETE",
                retry_after_s=1.0,
            )
        return upgrade_pb2.RollbackUpgradeResponse(upgrade=await self._show(done.upgrade))

    async def AbortUpgrade(
        self, request: upgrade_pb2.AbortUpgradeRequest, context: _Context
    ) -> upgrade_pb2.AbortUpgradeResponse:
        """Stops; what is promoted stays promoted."""
        upgrade = await asyncio.to_thread(self._commands.abort, request.id)
        return upgrade_pb2.AbortUpgradeResponse(upgrade=await self._show(upgrade))

    async def FinishUpgrade(
        self, request: upgrade_pb2.FinishUpgradeRequest, context: _Context
    ) -> upgrade_pb2.FinishUpgradeResponse:
        """Ends the rollback window."""
        upgrade, revision = await asyncio.to_thread(self._commands.finish, request.id)
        if revision is not None:
            await self._publish(revision)
        return upgrade_pb2.FinishUpgradeResponse(upgrade=await self._show(upgrade))

    async def _publish(self, revision: int) -> None:
        try:
            await self._publisher.publish(revision)
        except (DeadlineExceededError, UnavailableError) as error:
            # Committed: gateways get it as soon as they reach the hub.
            _log.warning("routes_not_everywhere_yet", revision=revision, error=str(error))


def _changed(old: upgrade_pb2.Upgrade, new: upgrade_pb2.Upgrade) -> bool:
    """Whether anything but the running figures differs."""
    pair = []
    for one in (old, new):
        copy = upgrade_pb2.Upgrade()
        copy.CopyFrom(one)
        copy.ClearField("eta_seconds")
        copy.ClearField("background_busy_seconds")
        pair.append(copy)
    return pair[0] != pair[1]


def install(server: grpc.aio.Server, context: ServicerContext) -> list[str]:
    """Adds UpgradeService to a gateway's server; returns the service names for reflection."""
    commands = Commands(catalog=context.catalog, store=context.artifacts)
    servicer = UpgradeServicer(context, commands)
    upgrade_pb2_grpc.add_UpgradeServiceServicer_to_server(servicer, server)
    return [SERVICE]
