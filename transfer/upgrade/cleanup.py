"""What remains to be done when an upgrade has ended: retire the engines that nobody needs."""

import asyncio
from collections import Counter

import structlog

from lorebase.serving.catalog.records import Upgrade
from lorebase.serving.errors import FailedPreconditionError, NotFoundError

from . import history
from .advance import Happened
from .deps import Deps
from .plan import adapters_on
from .states import MigrationEvent, MigrationState, UpgradeState
from .writes import apply_event

DRAIN_POLL_S = 0.2
FORMER_UPGRADES = 20
"""Upgrades whose left-over engines a new controller looks for."""
DRAIN_FAILURES = 3
"""Failed looks at an engine, one after the other, after which it counts as gone."""

_log = structlog.get_logger(__name__)


class Cleaner:
    """Makes the cluster match an upgrade that has ended.

    Level-triggered: it may run at any time, does only what is missing, and a crash in between is
    made good by the next run.

    Args:
        deps: the world.
    """

    def __init__(self, deps: Deps) -> None:
        self._deps = deps
        self._clean: tuple[str, str, int] | None = None
        self._stopping: set[str] | None = None

    def forget(self) -> None:
        """An upgrade runs again: what is clean now need not stay so."""
        self._clean = None

    async def clean(self) -> None:
        """Retires every engine that nobody needs; a no-op once all is done.

        Leaves off when a new upgrade starts meanwhile, which then comes first.
        """
        deps = self._deps
        try:
            upgrade = deps.catalog.get_upgrade(None)
        except NotFoundError:
            return
        # Routes that hold an engine may move on later, and that raises the revision.
        seen = (upgrade.id, upgrade.state, deps.catalog.route_revision())
        if self._clean == seen:
            return
        for base_id in self._unneeded(upgrade):
            await self._retire(upgrade, base_id)
            if deps.catalog.active_upgrade() is not None:
                return
        if upgrade.state == UpgradeState.FINISHED:
            self._retire_migrations(upgrade)
        migrations = deps.catalog.migrations_of(upgrade.id)
        deps.metrics.migrations(Counter(one.state for one in migrations))
        self._clean = (upgrade.id, upgrade.state, deps.catalog.route_revision())

    def _unneeded(self, upgrade: Upgrade) -> list[str]:
        """Returns bases that are out of use, but for routes that may hold them.

        Those of former upgrades are among them: what held their engines then may be gone by now.
        """
        if self._stopping is None:
            self._stopping = self._left_behind()
        left = leftover(upgrade)
        found = [*([left] if left else []), *self._stopping, *self._deps.catalog.serving_bases()]
        current = self._deps.catalog.current_base()
        return [base_id for base_id in dict.fromkeys(found) if base_id != current]

    def _left_behind(self) -> set[str]:
        """Returns bases whose engine was to go and, as far as is known, never did.

        A new upgrade came between, and then this process was another one.
        """
        found: set[str] = set()
        gone: set[object] = set()
        for upgrade in self._deps.catalog.list_upgrades(limit=FORMER_UPGRADES):
            events = self._deps.events(upgrade.id)
            gone |= {one.data.get("base") for one in events if one.kind == history.ENGINE_RETIRED}
            left = leftover(upgrade)
            if left is not None and left not in gone:
                found.add(left)
        return found

    async def _retire(self, upgrade: Upgrade, base_id: str) -> None:
        """Stops an engine unless routes lead to it; then it says which."""
        deps = self._deps
        holders = adapters_on(deps.catalog, base_id)
        if not holders:
            try:
                if not await self._drain(base_id):
                    return
            except FailedPreconditionError:
                holders = adapters_on(deps.catalog, base_id)
        if holders:
            self._note_kept(upgrade, base_id, holders)
            return
        await deps.cluster.retire_engine(base_id)
        if self._stopping is not None:
            self._stopping.discard(base_id)
        if not self._told_retired(upgrade, base_id):
            deps.append(upgrade.id, None, history.ENGINE_RETIRED, base=base_id)
            _log.info("engine_retired", base=base_id)

    def _told_retired(self, upgrade: Upgrade, base_id: str) -> bool:
        return any(
            event.kind == history.ENGINE_RETIRED and event.data.get("base") == base_id
            for event in self._deps.events(upgrade.id)
        )

    async def _drain(self, base_id: str) -> bool:
        """Takes the base out of the route table, then lets requests in flight finish.

        Returns:
            False if a new upgrade started meanwhile; it may be one to this very base.

        Raises:
            FailedPreconditionError: an adapter is routed to it.
        """
        deps = self._deps
        if base_id in deps.catalog.serving_bases():
            deps.catalog.set_serving(base_id, False)
        if self._stopping is not None:
            self._stopping.add(base_id)
        await deps.cluster.refresh_routes()
        revision = deps.catalog.route_revision()
        await deps.cluster.wait_acks(revision, deps.settings.ack_timeout_s)
        try:
            async with asyncio.timeout(deps.settings.drain_timeout_s):
                while await self._busy(base_id):
                    if deps.catalog.active_upgrade() is not None:
                        return False
                    await asyncio.sleep(DRAIN_POLL_S)
        except TimeoutError:
            _log.warning("drain_timed_out", base=base_id)
        return True

    async def _busy(self, base_id: str) -> bool:
        """Whether an engine has requests of clients, those that wait for their turn included."""
        trouble = ""
        for _ in range(DRAIN_FAILURES):
            try:
                stats = await self._deps.cluster.engine_stats(base_id)
            except Exception as error:
                trouble = repr(error)
                await asyncio.sleep(DRAIN_POLL_S)
            else:
                return stats.running_foreground + stats.waiting_foreground > 0
        _log.info("engine_gone_before_drain", base=base_id, error=trouble)
        return False

    def _note_kept(self, upgrade: Upgrade, base_id: str, holders: list[str]) -> None:
        known = [
            event.data.get("adapters")
            for event in self._deps.events(upgrade.id)
            if event.kind == history.ENGINE_KEPT and event.data.get("base") == base_id
        ]
        if holders not in known[-1:]:
            _log.info("engine_kept", base=base_id, adapters=holders)
            self._deps.append(upgrade.id, None, history.ENGINE_KEPT, base=base_id, adapters=holders)

    def _retire_migrations(self, upgrade: Upgrade) -> None:
        for migration in self._deps.catalog.migrations_of(upgrade.id):
            if migration.state == MigrationState.PROMOTED:
                event = Happened(event=MigrationEvent.RETIRE, at=self._deps.clock())
                apply_event(self._deps.catalog, upgrade.id, migration.id, event, max_attempts=1)


def leftover(upgrade: Upgrade) -> str | None:
    """Returns the base that an ended upgrade leaves without work, if it does."""
    match UpgradeState(upgrade.state):
        case UpgradeState.FINISHED:
            return upgrade.from_base
        case UpgradeState.ABORTED | UpgradeState.ROLLED_BACK | UpgradeState.FAILED:
            return upgrade.to_base
        case _:
            return None
