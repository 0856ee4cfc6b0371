"""What operators ask for, as writes to the catalog. The controller makes it so.

Blocking and quick: servicers call these on a thread. A command that a concurrent writer overtakes
is decided anew on what is then there.
"""

import contextlib
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
from .rollback import RolledBack, roll_back
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
        # The upgrade first: where it may not go on, its migrations stay as they are.
        if resumable:
            self._move(upgrade.id, UpgradeEvent.RESUME)
        else:
            self._reopen(upgrade.id)
        note = NewEvent(upgrade_id=upgrade.id, kind=history.RESUMED, data={"failed": len(failed)})
        self.catalog.append_event(note)
        for migration in failed:
            self._save(migration.id, upgrade.id, MigrationEvent.RESUME)
        return self._get(upgrade.id)

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
        self._reopen(upgrade.id)
        for migration in chosen:
            self._save(migration.id, upgrade.id, MigrationEvent.OPERATOR_PROMOTE)
        return self._get(upgrade.id)

    def rollback(self, upgrade_id: str, adapters: Sequence[str]) -> RolledBack:
        """Moves routes back to the source versions; see `roll_back`.

        Without names the whole upgrade is rolled back: what still runs is aborted first, so
        that nothing is promoted behind this call's back.

        Raises:
            NotFoundError: no such upgrade, or it does not migrate an adapter that is named.
            FailedPreconditionError: the rollback window is closed, or a named adapter is not
                promoted; then nothing has moved.
        """
        upgrade = self._get(upgrade_id)
        if adapters:
            if upgrade.state not in _OPEN:
                raise FailedPreconditionError(
                    f"upgrade {upgrade.id} is {upgrade.state}: its rollback window is closed"
                )
            chosen = self._named(upgrade.id, adapters)
            for migration in chosen:  # all or nothing, as far as can be seen now
                happened = Happened(event=MigrationEvent.ROLLBACK, at=self.clock())
                advance(migration, happened, max_attempts=1)
        else:
            upgrade = self._move(
                upgrade.id, UpgradeEvent.ROLLBACK, already=UpgradeState.ROLLED_BACK
            )
            self._abort_migrations(upgrade.id)
            chosen = self._in_state(upgrade.id, MigrationState.PROMOTED)
        return roll_back(self.catalog, upgrade.id, chosen, self.clock)

    def abort(self, upgrade_id: str) -> Upgrade:
        """Stops the upgrade; what is promoted stays promoted. Idempotent."""
        upgrade = self._move(upgrade_id, UpgradeEvent.ABORT, already=UpgradeState.ABORTED)
        self._abort_migrations(upgrade.id)
        return self._get(upgrade.id)

    def finish(self, upgrade_id: str) -> tuple[Upgrade, int | None]:
        """Closes the rollback window; the next base becomes the current one. Idempotent.

        The old base leaves the route table here, unless routes hold it; the controller stops its
        engine once the requests in flight are done.

        Returns:
            The upgrade and the route revision without the old base, None if that stays.
        """
        upgrade = self._get(upgrade_id)
        if upgrade.state in (UpgradeState.STARTING_ENGINE, UpgradeState.MIGRATING):
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
            upgrade.id,
            UpgradeEvent.FINISH,
            already=UpgradeState.FINISHED,
            error=note,
            current_base=upgrade.to_base,
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

    def _abort_migrations(self, upgrade_id: str) -> None:
        """Ends what still works or failed, after the upgrade itself has ended."""
        for _ in range(MAX_TRIES):
            stoppable = self._in_state(upgrade_id, *ACTIVE_STATES, MigrationState.FAILED)
            if not stoppable:
                return
            for migration in stoppable:
                # It may be over in this moment; the next round sees what it came to.
                with contextlib.suppress(FailedPreconditionError):
                    self._save(migration.id, upgrade_id, MigrationEvent.ABORT)
        raise ConflictError(f"upgrade {upgrade_id} keeps moving; call again")

    def _save(self, migration_id: str, upgrade_id: str, event: MigrationEvent) -> int | None:
        happened = Happened(event=event, at=self.clock())
        return apply_event(self.catalog, upgrade_id, migration_id, happened, max_attempts=1)

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
        current_base: str | None = None,
    ) -> Upgrade:
        return move_upgrade(
            self.catalog,
            upgrade_id or None,
            event,
            at=self.clock(),
            already=already,
            error=error,
            current_base=current_base,
        )


_OPEN = (
    UpgradeState.STARTING_ENGINE,
    UpgradeState.MIGRATING,
    UpgradeState.PAUSED,
    UpgradeState.COMPLETED,
)
"""States in which single adapters can be promoted and rolled back."""
