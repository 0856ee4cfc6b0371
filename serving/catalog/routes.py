"""Routes, the route table's revision and the audit trail of swaps.

The revision numbers the whole route table: it grows with every change of what a gateway may
see (routes, known versions, served bases), so a hub that compares revisions misses nothing.
`route_changes` holds the revisions that moved a route.
"""

from collections import defaultdict
from collections.abc import Callable

from sqlalchemy import Connection, delete, insert, select, update

from ..engine.protocol import VersionRef
from ..errors import FailedPreconditionError, NotFoundError
from ..routing.table import Route, RouteTable
from .models import adapter_versions, bases, catalog_state, route_changes, routes
from .records import RouteChange


def bump(connection: Connection) -> int:
    """Takes the next revision; first in a transaction, so that writers of routes queue here."""
    statement = (
        update(catalog_state)
        .values(route_revision=catalog_state.c.route_revision + 1)
        .returning(catalog_state.c.route_revision)
    )
    return int(connection.execute(statement).scalar_one())


def revision(connection: Connection) -> int:
    """Returns the revision of the route table."""
    return int(connection.execute(select(catalog_state.c.route_revision)).scalar_one())


def create(connection: Connection, revision: int, adapter: str, version_id: str, at: float) -> None:
    """Adds an adapter's first route under a revision from `bump`."""
    connection.execute(insert(routes).values(adapter=adapter, stable=version_id))
    _record(connection, revision, adapter, version_id, at, "create")


def remove(connection: Connection, revision: int, adapter: str, at: float) -> None:
    """Removes an adapter's route under a revision from `bump`."""
    connection.execute(delete(routes).where(routes.c.adapter == adapter))
    _record(connection, revision, adapter, None, at, "delete")


def stable_of(connection: Connection, adapter: str) -> str:
    """Returns the version id that answers for an adapter.

    Raises:
        NotFoundError: no such adapter.
    """
    statement = select(routes.c.stable).where(routes.c.adapter == adapter).with_for_update()
    found = connection.execute(statement).scalar_one_or_none()
    if found is None:
        raise NotFoundError(
            f"adapter {adapter!r} has no route: it was deleted", reason="ADAPTER_NOT_FOUND"
        )
    return str(found)


def move(
    connection: Connection,
    revision: int,
    *,
    adapter: str,
    to: str,
    allowed_from: frozenset[str],
    at: float,
    reason: str,
) -> str:
    """Sets an adapter's stable version under a revision from `bump`; returns the former one.

    Args:
        connection: Open write transaction.
        revision: The new revision.
        adapter: Name whose route moves.
        to: Version id of this adapter.
        allowed_from: Version ids that the route may hold now.
        at: Time in seconds since the epoch.
        reason: See `RouteChange.reason`.

    Raises:
        NotFoundError: no such adapter, or it has no such version.
        FailedPreconditionError: the route holds another version, so somebody else moved it; or
            the version's base is not serving, so the swap would break the adapter.
    """
    before = stable_of(connection, adapter)
    if before not in allowed_from:
        raise FailedPreconditionError(
            f"the route of {adapter!r} holds {before}, expected one of {sorted(allowed_from)}: the "
            "adapter was replaced meanwhile; start a new upgrade for it",
            reason="ROUTE_MOVED",
        )
    joined = adapter_versions.join(bases, adapter_versions.c.base_id == bases.c.id)
    statement = (
        select(bases.c.id, bases.c.serving)
        .select_from(joined)
        .where(adapter_versions.c.id == to, adapter_versions.c.adapter == adapter)
    )
    base = connection.execute(statement).one_or_none()
    if base is None:
        raise NotFoundError(
            f"adapter {adapter!r} has no version {to!r}: add_version must come first",
            reason="VERSION_NOT_FOUND",
        )
    if not base.serving:
        raise FailedPreconditionError(
            f"version {to} of {adapter!r} needs base {base.id!r}, which no engine serves: start "
            "that engine and call set_serving first",
            reason="BASE_NOT_SERVED",
        )
    connection.execute(update(routes).where(routes.c.adapter == adapter).values(stable=to))
    _record(connection, revision, adapter, to, at, reason)
    return before


def changes(
    connection: Connection, *, adapter: str | None, after: int, limit: int
) -> list[RouteChange]:
    """Returns the audit trail after a revision, oldest first."""
    columns = route_changes.c
    statement = select(route_changes).where(columns.revision > after)
    if adapter is not None:
        statement = statement.where(columns.adapter == adapter)
    rows = connection.execute(statement.order_by(columns.revision).limit(limit)).mappings()
    return [RouteChange(**row) for row in rows]


def table(connection: Connection, path_of: Callable[[str], str]) -> RouteTable:
    """Reads the whole route table: one query for each SQL table, in one snapshot."""
    state = connection.execute(select(catalog_state)).one()
    serving = connection.execute(
        select(bases.c.id).where(bases.c.serving).order_by(bases.c.created_at, bases.c.id)
    ).scalars()
    columns = adapter_versions.c
    rows = connection.execute(
        select(columns.id, columns.adapter, columns.base_id, columns.digest, columns.rank).order_by(
            columns.sequence
        )
    )
    versions: dict[str, VersionRef] = {}
    versions_of: defaultdict[str, list[str]] = defaultdict(list)
    for row in rows:
        versions[row.id] = VersionRef(
            id=row.id,
            base_id=row.base_id,
            digest=row.digest,
            path=path_of(row.digest),
            rank=row.rank,
        )
        versions_of[row.adapter].append(row.id)
    stable = connection.execute(select(routes.c.adapter, routes.c.stable))
    return RouteTable(
        revision=state.route_revision,
        current_base=state.current_base or "",
        serving_bases=tuple(serving),
        routes={row.adapter: Route(adapter=row.adapter, stable=row.stable) for row in stable},
        versions=versions,
        versions_of={adapter: tuple(ids) for adapter, ids in versions_of.items()},
    )


def _record(
    connection: Connection,
    revision: int,
    adapter: str,
    version_id: str | None,
    at: float,
    reason: str,
) -> None:
    base_id = None
    if version_id is not None:
        base_id = connection.execute(
            select(adapter_versions.c.base_id).where(adapter_versions.c.id == version_id)
        ).scalar_one()
    connection.execute(
        insert(route_changes).values(
            revision=revision,
            adapter=adapter,
            version_id=version_id,
            base_id=base_id,
            at=at,
            reason=reason,
        )
    )
