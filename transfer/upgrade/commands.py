"""What operators ask for, as writes to the catalog. The controller makes it so.

Blocking and quick: servicers call these on a thread. A command that a concurrent writer overtakes
is decided anew on what is then there.
"""

import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from lorebase.serving.artifacts import ArtifactStore
from lorebase.serving.catalog import Catalog, NewEvent
from lorebase.serving.catalog.records import Migration, Upgrade
from lorebase.serving.errors import (
    ConflictError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
)

from . import history
from .advance import Happened, advance
from .keys import migration_id
from .plan import Plan, adapters_on, plan_upgrade
from .ports import Clock
from .states import ACTIVE_STATES, MigrationEvent, MigrationState, UpgradeEvent, UpgradeState
from .writes import MAX_TRIES, apply_event, move_upgrade

MAX_REQUEST_ID_CHARS = 128


def _new_id() -> str:
    return "u-" + uuid.uuid4().hex[:12]


@dataclass(frozen=True, slots=True, kw_only=True)
class Commands:
    """The operators' commands on one catalog."""

    catalog: Catalog
    store: ArtifactStore
    clock: Clock = time.time
    new_id: Callable[[], str] = field(default=_new_id)

    def plan(self, to_base: str, adapters: Sequence[str]) -> Plan:
        """Plans; see `plan_upgrade`."""
        if not to_base:
            raise InvalidArgumentError("to_base is empty, expected a base id")
        return plan_upgrade(self.catalog, self.store, to_base, adapters)

    def start(self, to_base: str, adapters: Sequence[str], request_id: str) -> Upgrade:
        """Creates the upgrade with one pending migration per adapter, infeasible ones included.

        Raises:
            FailedPreconditionError: another upgrade has not ended, or nothing can migrate.
        """
        if len(request_id) > MAX_REQUEST_ID_CHARS:
            raise InvalidArgumentError(
                f"request_id has {len(request_id)} characters, expected at most "
                f"{MAX_REQUEST_ID_CHARS}"
            )
        earlier = self._find_request(request_id)
        if earlier is not None:
            return earlier
        plan = self.plan(to_base, adapters)
        if not any(one.feasible for one in plan.migrations):
            reasons = "; ".join(f"{one.adapter}: {one.reason}" for one in plan.migrations[:5])
            raise FailedPreconditionError(
                f"no adapter can migrate to {to_base!r}: {reasons}", reason="NOTHING_FEASIBLE"
            )
        upgrade = Upgrade(
            id=self.new_id(),
            from_base=plan.from_base,
            to_base=to_base,
            state=UpgradeState.STARTING_ENGINE.value,
            request_id=request_id or None,
            created_at=self.clock(),
        )
        migrations = [
            Migration(
                id=migration_id(upgrade.id, one.adapter),
                upgrade_id=upgrade.id,
                adapter=one.adapter,
                state=MigrationState.PENDING.value,
                path=one.path,
                source_version=one.source_version,
                updated_at=self.clock(),
            )
            for one in plan.migrations
        ]
        return self.catalog.create_upgrade(upgrade, migrations)

    def _find_request(self, request_id: str) -> Upgrade | None:
        """Looks among recent upgrades, so that a repeated call is not planned anew."""
        if not request_id:
            return None
        recent = self.catalog.list_upgrades(limit=100)
        return next((one for one in recent if one.request_id == request_id), None)

    def pause(self, upgrade_id: str) -> Upgrade:
        """No new background work; idempotent."""
        return self._move(upgrade_id, UpgradeEvent.PAUSE, already=UpgradeState.PAUSED)

    def resume(self, upgrade_id: str) -> Upgrade:
        """Goes on after a pause or a failure; failed migrations are taken up again."""
        upgrade = self._get(upgrade_id)
        state = UpgradeState(upgrade.state)
        failed = self._in_state(upgrade.id, MigrationState.FAILED)
        resumable = state in (UpgradeState.PAUSED, UpgradeState.FAILED)
        if not resumable and not (failed and state in _OPEN):
            raise FailedPreconditionError(
                f"upgrade {upgrade.id} is {state.value} and no migration of it has failed: there "
                "is nothing to resume"
            )
        note = NewEvent(upgrade_id=upgrade.id, kind=history.RESUMED, data={"failed": len(failed)})
        self.catalog.append_event(note)
        for migration in failed:
            self._save(migration.id, upgrade.id, MigrationEvent.RESUME)
        if resumable:
            return self._move(upgrade.id, UpgradeEvent.RESUME)
        return self._reopen(upgrade.id)

    def promote(self, upgrade_id: str, adapters: Sequence[str]) -> Upgrade:
        """Lets the controller route adapters to their shadows although the gate said no.

        Raises:
            InvalidArgumentError: no adapter is named.
            FailedPreconditionError: an adapter has no shadow, or is not rejected.
        """
        if not adapters:
            raise InvalidArgumentError("no adapters given: name those to promote")
        upgrade = self._get(upgrade_id)
        if upgrade.state not in _OPEN:
            raise FailedPreconditionError(
                f"upgrade {upgrade.id} is {upgrade.state}: promote works until it has ended; start "
                "another upgrade for what is left"
            )
        chosen = self._named(upgrade.id, adapters)
        for migration in chosen:  # all or nothing, as far as can be seen now
            happened = Happened(event=MigrationEvent.OPERATOR_PROMOTE, at=self.clock())
            advance(migration, happened, max_attempts=1)
        for migration in chosen:
            self._save(migration.id, upgrade.id, MigrationEvent.OPERATOR_PROMOTE)
        return self._reopen(upgrade.id)

    def rollback(self, upgrade_id: str, adapters: Sequence[str]) -> tuple[Upgrade, int | None]:
        """Moves routes back to the source versions, each in one transaction.

        Without names the whole upgrade is rolled back: what still runs is aborted first, so
        that nothing is promoted behind this call's back.

        Returns:
            The upgrade and the last route revision, None if no route moved.
        """
        upgrade = self._get(upgrade_id)
        if adapters:
            if upgrade.state not in _OPEN:
                raise FailedPreconditionError(
                    f"upgrade {upgrade.id} is {upgrade.state}: its rollback window is closed"
                )
            names = [one.id for one in self._named(upgrade.id, adapters)]
            revisions = [self._save(one, upgrade.id, MigrationEvent.ROLLBACK) for one in names]
        else:
            upgrade = self._move(
                upgrade.id, UpgradeEvent.ROLLBACK, already=UpgradeState.ROLLED_BACK
            )
            revisions = self._settle(upgrade.id, roll_back=True)
        moved = [revision for revision in revisions if revision is not None]
        return self._get(upgrade.id), max(moved, default=None)

    def abort(self, upgrade_id: str) -> Upgrade:
        """Stops the upgrade; what is promoted stays promoted. Idempotent."""
        upgrade = self._move(upgrade_id, UpgradeEvent.ABORT, already=UpgradeState.ABORTED)
        self._settle(upgrade.id, roll_back=False)
        return self._get(upgrade.id)

    def finish(self, upgrade_id: str) -> tuple[Upgrade, int | None]:
        """Closes the rollback window; the next base becomes the current one. Idempotent.

        The old base leaves the route table here, unless routes hold it; the controller stops its
        engine once the requests in flight are done.

        Returns:
            The upgrade and the route revision without the old base, None if that stays.
        """
        upgrade = self._get(upgrade_id)
        if upgrade.state == UpgradeState.COMPLETED:
            self.catalog.set_current_base(upgrade.to_base)
        elif upgrade.state in (UpgradeState.STARTING_ENGINE, UpgradeState.MIGRATING):
            raise FailedPreconditionError(
                f"upgrade {upgrade.id} is {upgrade.state}: wait until it is completed, or abort it"
            )
        holders = adapters_on(self.catalog, upgrade.from_base)
        note = (
            f"the engine of base {upgrade.from_base!r} keeps running: routes of "
            f"{', '.join(holders)} lead to it"
            if holders
            else None
        )
        upgrade = self._move(
            upgrade.id, UpgradeEvent.FINISH, already=UpgradeState.FINISHED, error=note
        )
        return upgrade, None if holders else self._stop_serving(upgrade.from_base)

    def _stop_serving(self, base_id: str) -> int | None:
        if base_id not in self.catalog.serving_bases() or base_id == self.catalog.current_base():
            return None
        try:
            return self.catalog.set_serving(base_id, False)
        except FailedPreconditionError:
            return None  # an adapter was routed to it just now

    def _get(self, upgrade_id: str) -> Upgrade:
        return self.catalog.get_upgrade(upgrade_id or None)

    def _in_state(self, upgrade_id: str, *states: MigrationState) -> list[Migration]:
        found = self.catalog.migrations_of(upgrade_id)
        return [one for one in found if MigrationState(one.state) in states]

    def _named(self, upgrade_id: str, adapters: Sequence[str]) -> list[Migration]:
        by_name = {one.adapter: one for one in self.catalog.migrations_of(upgrade_id)}
        unknown = sorted(set(adapters) - set(by_name))
        if unknown:
            raise NotFoundError(f"upgrade {upgrade_id} does not migrate {', '.join(unknown)}")
        return [by_name[name] for name in dict.fromkeys(adapters)]

    def _settle(self, upgrade_id: str, *, roll_back: bool) -> list[int | None]:
        """Ends every migration after the upgrade itself has ended; returns route revisions."""
        revisions: list[int | None] = []
        for _ in range(MAX_TRIES):
            stoppable = self._in_state(upgrade_id, *ACTIVE_STATES, MigrationState.FAILED)
            promoted = self._in_state(upgrade_id, MigrationState.PROMOTED) if roll_back else []
            if not stoppable and not promoted:
                return revisions
            for migration in stoppable:
                self._save(migration.id, upgrade_id, MigrationEvent.ABORT, drop=True)
            for migration in promoted:
                revisions.append(
                    self._save(migration.id, upgrade_id, MigrationEvent.ROLLBACK, drop=True)
                )
        raise ConflictError(f"upgrade {upgrade_id} keeps moving; call again")

    def _save(
        self, migration_id: str, upgrade_id: str, event: MigrationEvent, *, drop: bool = False
    ) -> int | None:
        """Applies an operator's event; with `drop`, one that no longer fits is left out."""
        happened = Happened(event=event, at=self.clock())
        try:
            return apply_event(self.catalog, upgrade_id, migration_id, happened, max_attempts=1)
        except FailedPreconditionError:
            if drop:
                return None
            raise

    def _reopen(self, upgrade_id: str) -> Upgrade:
        """A completed upgrade has work again; the controller would see it too, but later."""
        upgrade = self._get(upgrade_id)
        if upgrade.state != UpgradeState.COMPLETED:
            return upgrade
        return self._move(upgrade_id, UpgradeEvent.REOPEN, already=UpgradeState.STARTING_ENGINE)

    def _move(
        self,
        upgrade_id: str,
        event: UpgradeEvent,
        *,
        already: UpgradeState | None = None,
        error: str | None = None,
    ) -> Upgrade:
        return move_upgrade(
            self.catalog,
            upgrade_id or None,
            event,
            at=self.clock(),
            already=already,
            error=error,
        )


_OPEN = (
    UpgradeState.STARTING_ENGINE,
    UpgradeState.MIGRATING,
    UpgradeState.PAUSED,
    UpgradeState.COMPLETED,
)
"""States in which single adapters can be promoted and rolled back."""
