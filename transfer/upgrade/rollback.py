"""The way back: routes to the source versions, each in a transaction of its own.

One adapter's trouble never keeps the others from moving.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from lorebase.serving.catalog import Catalog
from lorebase.serving.catalog.records import Migration, Upgrade
from lorebase.serving.errors import FailedPreconditionError, LorebaseError, NotFoundError

from .advance import Happened
from .ports import Clock
from .states import MigrationEvent, MigrationState
from .writes import apply_event, read_migration

GONE = frozenset({"ADAPTER_NOT_FOUND", "VERSION_NOT_FOUND", "ROUTE_MOVED"})
"""Why a route can't lead back: the adapter was deleted, or is another one under the same name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RolledBack:
    """What a rollback came to."""

    upgrade: Upgrade
    revision: int | None
    """The last route revision; None if no route moved."""
    failed: dict[str, str]
    """Why adapters still lead to the next base, by name; repeat the call for them."""


def roll_back(
    catalog: Catalog, upgrade_id: str, migrations: Sequence[Migration], clock: Clock
) -> RolledBack:
    """Rolls promoted migrations back.

    Where an adapter was deleted, or is another one by now, there is no way back: the migration
    ends as rolled back all the same, and the route is left alone.
    """
    revision: int | None = None
    failed: dict[str, str] = {}
    for migration in migrations:
        try:
            revision = _one(catalog, upgrade_id, migration.id, clock()) or revision
        except LorebaseError as error:
            failed[migration.adapter] = str(error)
    return RolledBack(upgrade=catalog.get_upgrade(upgrade_id), revision=revision, failed=failed)


def _one(catalog: Catalog, upgrade_id: str, migration_id: str, at: float) -> int | None:
    """Returns the route revision; None if no route moved."""
    back = Happened(event=MigrationEvent.ROLLBACK, at=at)
    try:
        return apply_event(catalog, upgrade_id, migration_id, back, max_attempts=1)
    except (NotFoundError, FailedPreconditionError) as error:
        if error.reason in GONE:
            left = Happened(event=MigrationEvent.ROLLBACK, at=at, reason=str(error))
            return apply_event(
                catalog, upgrade_id, migration_id, left, max_attempts=1, move_route=False
            )
        now = read_migration(catalog, upgrade_id, migration_id)
        if now.state != MigrationState.ROLLED_BACK:  # nobody else was quicker
            raise
        return None
