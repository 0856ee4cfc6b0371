"""The append-only history of upgrades."""

from collections.abc import Sequence

from sqlalchemy import Connection, insert, select

from ..errors import NotFoundError
from .models import events, upgrades
from .records import Event, NewEvent


def append(connection: Connection, new_events: Sequence[NewEvent], at: float) -> None:
    """Appends events in order; call it last in a transaction, with what they tell of before it.

    Raises:
        NotFoundError: an event of an unknown upgrade.
    """
    for upgrade_id in sorted({event.upgrade_id for event in new_events}):
        # On Postgres this lock makes ids of one upgrade visible in their order, so a reader
        # that asks for "after id N" never misses a late commit. SQLite has one writer anyway.
        statement = select(upgrades.c.id).where(upgrades.c.id == upgrade_id).with_for_update()
        if connection.execute(statement).scalar_one_or_none() is None:
            raise NotFoundError(f"unknown upgrade {upgrade_id!r}", reason="UPGRADE_NOT_FOUND")
    for event in new_events:
        connection.execute(
            insert(events).values(
                upgrade_id=event.upgrade_id,
                adapter=event.adapter,
                at=at,
                kind=event.kind,
                data=dict(event.data),
            )
        )


def after(connection: Connection, upgrade_id: str, *, after: int, limit: int) -> list[Event]:
    """Returns an upgrade's events with ids above `after`, oldest first."""
    columns = events.c
    statement = (
        select(events)
        .where(columns.upgrade_id == upgrade_id, columns.id > after)
        .order_by(columns.id)
        .limit(limit)
    )
    return [Event(**row) for row in connection.execute(statement).mappings()]
