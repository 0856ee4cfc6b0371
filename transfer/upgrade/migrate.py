"""Drives one migration: runs the stage that its record waits for, until it has ended.

Everything it knows is in the catalog, so it can be dropped at any instant and started again.
"""

import asyncio
import contextlib
from contextlib import AsyncExitStack
from typing import Any

import structlog

from lorebase.serving.catalog.records import Migration
from lorebase.serving.errors import (
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
)

from . import history
from .advance import Happened, RunStage, StaleEventError, automatic, due
from .deps import Deps
from .evaluation import run_evaluate
from .inputs import run_filter, run_label, run_synthesize
from .lineage import lineage
from .plan import KEEP, gather_facts, plan_adapter
from .progress import Progress
from .stages import (
    Stage,
    StageContext,
    StageResult,
    StarvedError,
    run_distill,
    run_shadow,
)
from .states import ACTIVE_STATES, MigrationEvent, MigrationState
from .writes import apply_event, read_migration

STAGE_FUNCTIONS: dict[str, Stage] = {
    "synthesize": run_synthesize,
    "filter": run_filter,
    "label": run_label,
    "distill": run_distill,
    "evaluate": run_evaluate,
    "shadow": run_shadow,
}

PERMANENT = (InvalidArgumentError, FailedPreconditionError, NotFoundError, FloatingPointError)
"""Trying again would end the same way."""

MAX_RETRY_WAIT_S = 60.0

_log = structlog.get_logger(__name__)


class Migrator:
    """One migration's driver.

    Args:
        deps: the world.
        migration_id: whose.
        upgrade_id: of which upgrade.
        running: set while the upgrade is not paused; every step waits for it.
    """

    def __init__(
        self, deps: Deps, *, migration_id: str, upgrade_id: str, running: asyncio.Event
    ) -> None:
        self._deps = deps
        self._id = migration_id
        self._upgrade_id = upgrade_id
        self._running = running

    async def run(self) -> None:
        """Returns when the migration has ended, or failed with its record saying so."""
        while True:
            await self._running.wait()
            migration = self._read()
            if MigrationState(migration.state) not in ACTIVE_STATES:
                return
            event = automatic(migration)
            if event is not None:
                self._apply(Happened(event=event, at=self._deps.clock()))
                continue
            run = due(migration)
            assert run is not None, f"{migration.state} is active, so something is due"
            try:
                await self._step(migration, run)
            except PERMANENT as error:
                self._fail(run, f"{run.stage}: {error}")
            except Exception as error:
                await self._back_off(run, error)

    async def _step(self, migration: Migration, run: RunStage) -> None:
        if run.stage == "plan":
            self._plan(migration)
        elif run.stage == "promote":
            await self._promote(migration, run)
        else:
            await self._run_stage(migration, run)

    def _plan(self, migration: Migration) -> None:
        deps = self._deps
        upgrade = deps.catalog.get_upgrade(self._upgrade_id)
        adapter = deps.catalog.get_adapter(migration.adapter)
        facts = gather_facts(deps.catalog, deps.store, adapter, migration.source_version)
        planned = plan_adapter(facts, upgrade.to_base)
        event = MigrationEvent.PLANNED if planned.feasible else MigrationEvent.INFEASIBLE
        if planned.path == KEEP:
            event = MigrationEvent.KEPT
        self._apply(
            Happened(event=event, at=deps.clock(), path=planned.path, reason=planned.reason)
        )

    async def _run_stage(self, migration: Migration, run: RunStage) -> None:
        deps, settings = self._deps, self._deps.settings
        made = history.tries(
            deps.events(self._upgrade_id), migration.adapter, run.stage, run.attempt
        )
        if made.failures >= settings.max_stage_failures:
            raise FailedPreconditionError(f"it failed {made.failures} times; see the events")
        if made.starts >= settings.max_stage_starts:
            raise FailedPreconditionError(
                f"it was started {made.starts} times and never finished: its process dies"
            )
        async with AsyncExitStack() as stack:
            lease = None
            if run.stage == "distill":
                lease = await stack.enter_async_context(
                    deps.governor.leases.lease("train", run.key)
                )
            deps.append(
                self._upgrade_id,
                migration.adapter,
                history.STAGE_STARTED,
                stage=run.stage,
                attempt=run.attempt,
            )
            began = deps.clock()
            context = self._context(migration, run, lease)
            try:
                result = await STAGE_FUNCTIONS[run.stage](context)
            except StarvedError as starved:
                result = StageResult(
                    artifact=starved.artifact,
                    event=MigrationEvent.STARVED,
                    summary={"starved": str(starved)},
                    reason=f"{run.stage}: {starved}",
                )
        self._finish_stage(run, result, deps.clock() - began)

    def _context(self, migration: Migration, run: RunStage, lease: Any) -> StageContext:
        deps = self._deps
        shadow = migration.shadow_version
        source = deps.catalog.get_version(migration.source_version)
        return StageContext(
            run=run,
            migration=migration,
            adapter=deps.catalog.get_adapter(migration.adapter),
            source=source,
            source_base=deps.catalog.get_base(source.base_id),
            shadow=deps.catalog.get_version(shadow) if shadow else None,
            lineage=lineage(deps.catalog, source),
            next_base=deps.catalog.get_base(deps.catalog.get_upgrade(self._upgrade_id).to_base),
            settings=deps.settings,
            limits=deps.limits,
            store=deps.store,
            store_root=deps.store_root,
            work_root=deps.work_root,
            generator=deps.generator(run.key, lambda seconds: self._busy(run.stage, seconds)),
            workers=deps.workers,
            cluster=deps.cluster,
            checkpoint=Progress(deps, self._upgrade_id, migration.adapter, run),
            lease=lease,
            clock=deps.clock,
        )

    def _finish_stage(self, run: RunStage, result: StageResult, seconds: float) -> None:
        deps = self._deps
        if result.version is not None:
            deps.catalog.add_version(result.version)
        if result.busy_s:
            self._busy(run.stage, result.busy_s)
        finished = {
            "stage": run.stage,
            "attempt": run.attempt,
            "artifact": result.artifact,
            "seconds": round(seconds, 3),
            "summary": result.summary,
        }
        self._apply(
            Happened(
                event=result.event,
                at=deps.clock(),
                stage=run.stage,
                attempt=run.attempt,
                artifact=result.artifact,
                shadow_version=result.version.id if result.version else None,
                decision=result.decision,
                reason=result.reason,
            ),
            finished,
        )

    async def _promote(self, migration: Migration, run: RunStage) -> None:
        """Flips the route and the record in one transaction, then tells every gateway."""
        deps = self._deps
        began = deps.clock()
        revision = self._apply(
            Happened(event=MigrationEvent.SWAPPED, at=began, stage="promote", attempt=run.attempt)
        )
        if revision is None:
            return
        acked = False
        try:
            await deps.cluster.refresh_routes()
            acked = await deps.cluster.wait_acks(revision, deps.settings.ack_timeout_s)
        except Exception as error:
            # Committed: the hub reads the catalog by itself within a second.
            _log.warning("swap_not_announced", adapter=migration.adapter, error=repr(error))
        seconds = deps.clock() - began
        if acked:
            deps.metrics.swap(seconds)
        deps.append(
            self._upgrade_id,
            migration.adapter,
            history.SWAP_ACKED,
            attempt=run.attempt,
            revision=revision,
            seconds=round(seconds, 4),
            acked=acked,
        )

    def _fail(self, run: RunStage, reason: str) -> None:
        _log.error("migration_failed", migration=self._id, stage=run.stage, reason=reason)
        with contextlib.suppress(FailedPreconditionError):  # it has ended meanwhile
            self._apply(Happened(event=MigrationEvent.FAIL, at=self._deps.clock(), reason=reason))

    async def _back_off(self, run: RunStage, error: Exception) -> None:
        deps = self._deps
        migration = self._read()
        text = f"{type(error).__name__}: {error}"[:2000]
        _log.warning("stage_failed", migration=self._id, stage=run.stage, error=text)
        deps.append(
            self._upgrade_id,
            migration.adapter,
            history.STAGE_FAILED,
            stage=run.stage,
            attempt=run.attempt,
            error=text,
        )
        events = deps.events(self._upgrade_id)
        failures = history.tries(events, migration.adapter, run.stage, run.attempt).failures
        if failures >= deps.settings.max_stage_failures:
            self._fail(run, f"{run.stage} failed {failures} times, last with {text}")
            return
        await asyncio.sleep(
            min(MAX_RETRY_WAIT_S, deps.settings.retry_wait_s * 2 ** max(0, failures - 1))
        )

    def _busy(self, stage: str, seconds: float) -> None:
        self._deps.metrics.busy(stage, seconds)
        self._deps.catalog.add_busy_seconds(self._upgrade_id, seconds)

    def _read(self) -> Migration:
        return read_migration(self._deps.catalog, self._upgrade_id, self._id)

    def _apply(self, happened: Happened, finished: dict[str, Any] | None = None) -> int | None:
        """Saves what an event makes of the record; returns the route revision of a swap.

        An event that the record has left behind (an operator was quicker) is dropped.
        """
        try:
            return apply_event(
                self._deps.catalog,
                self._upgrade_id,
                self._id,
                happened,
                max_attempts=self._deps.settings.max_attempts,
                finished=finished,
            )
        except StaleEventError as error:
            _log.info("event_dropped", migration=self._id, error=str(error))
            return None
