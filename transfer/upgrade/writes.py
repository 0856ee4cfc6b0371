"""Compare-and-set writes of upgrades and migrations, each with its history in one transaction.

Controller and operators write the same records; whoever loses a race reads again and decides
anew on what is then there.
"""

from typing import Any

from lorebase.serving.catalog import Catalog, NewEvent
from lorebase.serving.catalog.records import Migration, Upgrade
from lorebase.serving.errors import ConflictError, NotFoundError

from . import history
from .advance import Happened, SetRoute, StaleEventError, advance, advance_upgrade
from .states import UpgradeEvent, UpgradeState

MAX_TRIES = 50
"""Every lost try means that somebody else got on, so this is never reached but by a bug."""


def read_migration(catalog: Catalog, upgrade_id: str, migration_id: str) -> Migration:
    """Returns one migration.

    Raises:
        NotFoundError: no such upgrade or migration.
    """
    for migration in catalog.migrations_of(upgrade_id):
        if migration.id == migration_id:
            return migration
    raise NotFoundError(f"upgrade {upgrade_id!r} has no migration {migration_id!r}")


def apply_event(
    catalog: Catalog,
    upgrade_id: str,
    migration_id: str,
    happened: Happened,
    *,
    max_attempts: int,
    finished: dict[str, Any] | None = None,
    move_route: bool = True,
) -> int | None:
    """Advances a migration; its route moves in the same transaction if the event says so.

    Args:
        catalog: where.
        upgrade_id: of which upgrade.
        migration_id: which migration.
        happened: the event.
        max_attempts: see `advance`.
        finished: data of a `stage_finished` event, for the outcome of a stage.
        move_route: False leaves the route alone, whatever the event says.

    Returns:
        The route revision, if a route moved.

    Raises:
        FailedPreconditionError: the state does not allow the event, or the route was moved by
            somebody else.
        NotFoundError: the adapter or its version is gone.
        StaleEventError: the outcome of a stage that the record has left behind.
    """
    for _ in range(MAX_TRIES):
        record = read_migration(catalog, upgrade_id, migration_id)
        updated, effects = advance(record, happened, max_attempts=max_attempts)
        moves = [one for one in effects if isinstance(one, SetRoute) and move_route]
        route = moves[0] if moves else None
        try:
            _, revision = catalog.save_migration(
                updated,
                events=_history(record, updated, happened, finished),
                promote_to=route.version_id if route else None,
                route_reason=route.reason if route else "promote",
            )
        except StaleEventError:
            raise
        except ConflictError:
            continue
        return revision
    raise ConflictError(f"migration {migration_id} was written {MAX_TRIES} times meanwhile")


def move_upgrade(
    catalog: Catalog,
    upgrade_id: str | None,
    event: UpgradeEvent,
    *,
    at: float,
    already: UpgradeState | None = None,
    error: str | None = None,
    current_base: str | None = None,
) -> Upgrade:
    """Advances an upgrade.

    Args:
        catalog: where.
        upgrade_id: None means the newest.
        event: the event.
        at: seconds since the epoch.
        already: a state in which nothing is left to do.
        error: see `advance_upgrade`.
        current_base: becomes the current base in the same transaction.

    Raises:
        FailedPreconditionError: the state does not allow the event.
    """
    for _ in range(MAX_TRIES):
        upgrade = catalog.get_upgrade(upgrade_id)
        if upgrade.state == already:
            return upgrade
        moved = advance_upgrade(upgrade, event, at=at, error=error)
        data = {"from": upgrade.state, "to": moved.state, "event": event.value, "error": error}
        note = NewEvent(upgrade_id=upgrade.id, kind=history.UPGRADE_STATE, data=data)
        try:
            return catalog.save_upgrade(moved, event=note, current_base=current_base)
        except ConflictError:
            continue
    raise ConflictError(f"upgrade {upgrade_id} was written {MAX_TRIES} times meanwhile")


def _history(
    before: Migration, after: Migration, happened: Happened, finished: dict[str, Any] | None
) -> list[NewEvent]:
    changed = {
        "from": before.state,
        "to": after.state,
        "event": happened.event.value,
        "attempt": after.attempt,
        "reason": happened.reason,
    }
    kinds = [(history.MIGRATION_STATE, changed)]
    if finished is not None:
        kinds.insert(0, (history.STAGE_FINISHED, finished))
    return [
        NewEvent(upgrade_id=after.upgrade_id, adapter=after.adapter, kind=kind, data=data)
        for kind, data in kinds
    ]
