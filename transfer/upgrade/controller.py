"""The reconciler: reads the wanted state from the catalog and makes it so, again and again.

Holds nothing that matters: after a kill -9 a new controller reads the catalog and goes on with
the stages that have no artifact yet.
"""

import asyncio
import contextlib
from collections import Counter
from collections.abc import Sequence

import structlog

from lorebase.serving.catalog.records import Migration, Upgrade
from lorebase.serving.errors import FailedPreconditionError, NotFoundError

from . import history
from .cleanup import Cleaner
from .deps import Deps
from .garbage import GarbageCollector
from .migrate import Migrator
from .states import ACTIVE_STATES, MigrationState, UpgradeEvent, UpgradeState
from .writes import move_upgrade

_log = structlog.get_logger(__name__)


class UpgradeController:
    """Runs upgrades; exactly one per catalog.

    Two at once would still be safe, only wasteful: every write is a compare-and-set.

    Args:
        deps: the world.
    """

    def __init__(self, deps: Deps) -> None:
        self._deps = deps
        self._cleaner = Cleaner(deps)
        self._garbage = GarbageCollector(deps)
        self._runners: dict[str, asyncio.Task[None]] = {}
        self._slots = asyncio.Semaphore(deps.settings.max_parallel_migrations)
        self._running = asyncio.Event()
        self._engine: asyncio.Task[None] | None = None
        self._engine_checked: str | None = None
        self._poked = asyncio.Event()

    def poke(self) -> None:
        """Something here came to an end: look now instead of at the next poll."""
        self._poked.set()

    async def run(self) -> None:
        """Reconciles until cancelled; an error is logged and the next round tries again.

        Raises:
            RuntimeError: the governor has ended, without which no work is ever granted again.
        """
        governor = asyncio.create_task(
            self._deps.governor.run(self._bases, self._deps.settings.governor_tick_s)
        )
        try:
            while True:
                try:
                    await self.reconcile()
                    await self._garbage.collect_if_due()
                except Exception as error:
                    _log.exception("reconcile_failed", error=repr(error))
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._deps.settings.poll_s):
                        await self._poked.wait()
                self._poked.clear()
                if governor.done():
                    raise RuntimeError(f"the governor has ended: {governor}")
        finally:
            governor.cancel()
            await self._stop_work()
            await asyncio.gather(governor, return_exceptions=True)

    async def reconcile(self) -> None:
        """One round: one read of the catalog, and whatever is missing is started."""
        upgrade = self._deps.catalog.active_upgrade()
        if upgrade is None:
            await self._stop_work()
            await self._cleaner.clean()
            return
        self._cleaner.forget()
        migrations = self._deps.catalog.migrations_of(upgrade.id)
        self._deps.metrics.migrations(Counter(one.state for one in migrations))
        state = UpgradeState(upgrade.state)
        self._pause(state is UpgradeState.PAUSED)
        active = [one for one in migrations if MigrationState(one.state) in ACTIVE_STATES]
        if state is UpgradeState.STARTING_ENGINE:
            self._start_engine(upgrade)
        elif state is UpgradeState.MIGRATING and self._engine_checked != upgrade.id:
            # A new controller: the engine may have gone with the old one.
            self._start_engine(upgrade)
        elif state is UpgradeState.MIGRATING:
            self._spawn(upgrade, active)
            if not active and not self._alive():
                self._move(upgrade, UpgradeEvent.MIGRATIONS_ENDED)
                await self._deps.workers.trim(0)
        elif state is UpgradeState.COMPLETED and active:
            self._move(upgrade, UpgradeEvent.REOPEN)

    def _bases(self) -> Sequence[str]:
        """Engines that the governor watches; none while there is nothing to govern."""
        return self._deps.catalog.serving_bases() if self._runners else ()

    def _pause(self, paused: bool) -> None:
        if paused != self._deps.governor.paused:
            self._deps.governor.pause(paused)
        if paused:
            self._running.clear()
        else:
            self._running.set()

    def _alive(self) -> bool:
        self._runners = {key: task for key, task in self._runners.items() if not task.done()}
        return bool(self._runners)

    def _spawn(self, upgrade: Upgrade, active: Sequence[Migration]) -> None:
        self._alive()
        for migration in active:
            if migration.id not in self._runners:
                self._runners[migration.id] = asyncio.create_task(
                    self._migrate(upgrade.id, migration)
                )

    async def _migrate(self, upgrade_id: str, migration: Migration) -> None:
        async with self._slots:
            migrator = Migrator(
                self._deps,
                migration_id=migration.id,
                upgrade_id=upgrade_id,
                running=self._running,
            )
            try:
                await migrator.run()
            except Exception as error:
                # The catalog could not be written, for example; the next round spawns it again.
                _log.exception("migrator_died", adapter=migration.adapter, error=repr(error))
            finally:
                self._deps.governor.leases.end(migration.id)
        self.poke()

    def _start_engine(self, upgrade: Upgrade) -> None:
        if self._engine is None or self._engine.done():
            self._engine = asyncio.create_task(self._bring_up(upgrade))

    async def _bring_up(self, upgrade: Upgrade) -> None:
        """Starts the next base's engine and lets the gateways know; idempotent."""
        deps = self._deps
        try:
            await deps.cluster.deploy_engine(deps.catalog.get_base(upgrade.to_base))
            if upgrade.to_base not in deps.catalog.serving_bases():
                revision = deps.catalog.set_serving(upgrade.to_base, True)
                await deps.cluster.refresh_routes()
                await deps.cluster.wait_acks(revision, deps.settings.ack_timeout_s)
        except Exception as error:
            await self._engine_failed(upgrade, error)
            return
        self._engine_checked = upgrade.id
        if upgrade.state == UpgradeState.STARTING_ENGINE:
            self._move(upgrade, UpgradeEvent.ENGINE_READY)
        self.poke()

    async def _engine_failed(self, upgrade: Upgrade, error: Exception) -> None:
        deps = self._deps
        text = f"{type(error).__name__}: {error}"[:2000]
        _log.error("engine_start_failed", base=upgrade.to_base, error=text)
        deps.append(upgrade.id, None, history.ENGINE_FAILED, base=upgrade.to_base, error=text)
        failures = history.engine_failures(deps.events(upgrade.id))
        permanent = isinstance(error, NotFoundError)
        limit = deps.settings.max_engine_failures
        if upgrade.state == UpgradeState.STARTING_ENGINE and (permanent or failures >= limit):
            self._move(
                upgrade,
                UpgradeEvent.ENGINE_FAILED,
                f"the engine of base {upgrade.to_base!r} did not start ({failures} tries): {text}",
            )
            return
        await asyncio.sleep(min(60.0, deps.settings.retry_wait_s * 2 ** min(6, failures)))

    def _move(self, upgrade: Upgrade, event: UpgradeEvent, error: str | None = None) -> None:
        """Moves the upgrade unless an operator was quicker; the next round sees it."""
        try:
            move_upgrade(self._deps.catalog, upgrade.id, event, at=self._deps.clock(), error=error)
        except FailedPreconditionError as lost:
            _log.info("upgrade_event_dropped", upgrade_id=upgrade.id, error=str(lost))
        self.poke()

    async def _stop_work(self) -> None:
        """Cancels everything that runs; the stages' artifacts stay in the store."""
        tasks = [*self._runners.values(), *([self._engine] if self._engine else [])]
        if not tasks:
            return
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._runners.clear()
        self._engine = self._engine_checked = None
        self._pause(False)
        await self._deps.workers.trim(0)
