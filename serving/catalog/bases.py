"""Bases, which of them should have an engine, and the current one."""

from dataclasses import asdict

from sqlalchemy import Connection, func, insert, select, update

from ..errors import AlreadyExistsError, FailedPreconditionError, NotFoundError
from . import routes as route_rows
from .models import adapter_versions, bases, catalog_state, routes
from .names import check_base_id
from .records import Base

_FIELDS = tuple(bases.c[name] for name in Base.__dataclass_fields__)


def put(connection: Connection, base: Base) -> None:
    """Adds a base; a no-op if the same revision is there under that id.

    Raises:
        AlreadyExistsError: another revision under the same id.
    """
    check_base_id(base.id)
    found = connection.execute(
        select(bases.c.revision).where(bases.c.id == base.id)
    ).scalar_one_or_none()
    if found == base.revision:
        # Where the files lie is not part of what they are: a state folder may move.
        connection.execute(update(bases).where(bases.c.id == base.id).values(path=base.path))
        return
    if found is not None:
        raise AlreadyExistsError(
            f"base {base.id!r} is registered with revision {found}, got {base.revision}: weights "
            "of a base never change under its id; give the new weights a new id",
            reason="BASE_EXISTS",
        )
    connection.execute(insert(bases).values(**asdict(base), serving=False))


def get(connection: Connection, base_id: str) -> Base:
    """Returns one base.

    Raises:
        NotFoundError: no such base.
    """
    row = connection.execute(select(*_FIELDS).where(bases.c.id == base_id)).mappings().first()
    if row is None:
        raise _unknown(connection, base_id)
    return Base(**row)


def list_all(connection: Connection) -> list[Base]:
    """Returns all bases, oldest first."""
    statement = select(*_FIELDS).order_by(bases.c.created_at, bases.c.id)
    return [Base(**row) for row in connection.execute(statement).mappings()]


def current(connection: Connection) -> str | None:
    """Returns the id of the current base, or None before the first."""
    found: str | None = connection.execute(select(catalog_state.c.current_base)).scalar_one()
    return found


def set_current(connection: Connection, base_id: str) -> None:
    """Makes a base the current one.

    Raises:
        NotFoundError: no such base.
    """
    if current(connection) == base_id:
        return
    route_rows.bump(connection)
    get(connection, base_id)
    connection.execute(update(catalog_state).values(current_base=base_id))


def serving(connection: Connection) -> tuple[str, ...]:
    """Returns the ids of bases that should have an engine, oldest first."""
    statement = select(bases.c.id).where(bases.c.serving)
    rows = connection.execute(statement.order_by(bases.c.created_at, bases.c.id)).scalars()
    return tuple(rows)


def set_serving(connection: Connection, base_id: str, wanted: bool) -> int:
    """Says whether a base should have an engine; returns the route table's revision.

    Raises:
        NotFoundError: no such base.
        FailedPreconditionError: routes still lead to the base that is to stop.
    """
    revision = route_rows.bump(connection)
    get(connection, base_id)
    if not wanted:
        _refuse_if_routed(connection, base_id)
    connection.execute(update(bases).where(bases.c.id == base_id).values(serving=wanted))
    return revision


def _refuse_if_routed(connection: Connection, base_id: str) -> None:
    statement = (
        select(func.count(), func.min(routes.c.adapter))
        .select_from(routes.join(adapter_versions, routes.c.stable == adapter_versions.c.id))
        .where(adapter_versions.c.base_id == base_id)
    )
    count, example = connection.execute(statement).one()
    if count:
        raise FailedPreconditionError(
            f"base {base_id!r} can't stop serving: {count} adapters are routed to it (such as "
            f"{example!r}); promote, roll back or delete them first",
            reason="BASE_IN_USE",
        )


def _unknown(connection: Connection, base_id: str) -> NotFoundError:
    known = ", ".join(base.id for base in list_all(connection)) or "none"
    return NotFoundError(f"unknown base {base_id!r}: registered are {known}", reason="BASE_UNKNOWN")
