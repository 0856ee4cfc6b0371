"""Upgrades, their migrations and their events: compare-and-set with history.

What the states mean is the business of transfer.upgrade; here they are strings, except that
an upgrade in one of `ENDED_UPGRADE_STATES` makes room for the next one.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import Connection, Table, insert, select, update

from ..errors import (
    AlreadyExistsError,
    ConflictError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
)
from . import bases, events, routes
from .models import adapter_versions, catalog_state, migrations, upgrades
from .records import ENDED_UPGRADE_STATES, Migration, NewEvent, Upgrade

_FIELDS = tuple(upgrades.c[name] for name in Upgrade.__dataclass_fields__)
_MIGRATION_FIELDS = tuple(migrations.c[name] for name in Migration.__dataclass_fields__)


def create(
    connection: Connection, upgrade: Upgrade, shares: Sequence[Migration], at: float
) -> Upgrade:
    """Adds an upgrade with its migrations; a repeated request id returns the first one's.

    Raises:
        FailedPreconditionError: another upgrade has not ended.
        AlreadyExistsError: the upgrade's id is taken.
        NotFoundError: unknown base.
        InvalidArgumentError: a migration of another upgrade, or two of one adapter.
    """
    # Creators queue here (on SQLite they do anyway): without it one could lose against a row of
    # another again and again, each gone by the time it looks again.
    connection.execute(select(catalog_state.c.id).with_for_update())
    if upgrade.request_id is not None:
        statement = select(*_FIELDS).where(upgrades.c.request_id == upgrade.request_id)
        row = connection.execute(statement).mappings().first()
        if row is not None:
            return Upgrade(**row)
    _check_shares(upgrade, shares)
    bases.get(connection, upgrade.from_base)
    bases.get(connection, upgrade.to_base)
    _refuse_second_active(connection, upgrade)
    statement = select(upgrades.c.id).where(upgrades.c.id == upgrade.id)
    if connection.execute(statement).scalar_one_or_none() is not None:
        raise AlreadyExistsError(f"upgrade {upgrade.id!r} exists already; take a new id")
    values = {name: getattr(upgrade, name) for name in Upgrade.__dataclass_fields__}
    connection.execute(insert(upgrades).values(**values, active=_active(upgrade.state)))
    if shares:
        connection.execute(insert(migrations), [_migration_values(share) for share in shares])
    created = NewEvent(
        upgrade_id=upgrade.id,
        kind="upgrade_state",
        data={"from": None, "to": upgrade.state},
    )
    events.append(connection, [created], at)
    return get(connection, upgrade.id)


def get(connection: Connection, upgrade_id: str | None) -> Upgrade:
    """Returns one upgrade; None means the newest.

    Raises:
        NotFoundError: no such upgrade, or none at all.
    """
    statement = select(*_FIELDS)
    if upgrade_id is not None:
        statement = statement.where(upgrades.c.id == upgrade_id)
    statement = statement.order_by(upgrades.c.sequence.desc()).limit(1)
    row = connection.execute(statement).mappings().first()
    if row is None:
        raise NotFoundError(
            "there is no upgrade yet" if upgrade_id is None else f"unknown upgrade {upgrade_id!r}",
            reason="UPGRADE_NOT_FOUND",
        )
    return Upgrade(**row)


def list_page(connection: Connection, *, after: str | None, limit: int) -> list[Upgrade]:
    """Returns upgrades, newest first; those older than the upgrade `after`."""
    statement = select(*_FIELDS)
    if after is not None:
        mark = select(upgrades.c.sequence).where(upgrades.c.id == after).scalar_subquery()
        statement = statement.where(upgrades.c.sequence < mark)
    rows = connection.execute(statement.order_by(upgrades.c.sequence.desc()).limit(limit))
    return [Upgrade(**row) for row in rows.mappings()]


def active(connection: Connection) -> Upgrade | None:
    """Returns the upgrade that has not ended, if there is one."""
    row = connection.execute(select(*_FIELDS).where(upgrades.c.active == 1)).mappings().first()
    return None if row is None else Upgrade(**row)


def save(
    connection: Connection,
    upgrade: Upgrade,
    event: NewEvent | None,
    at: float,
    *,
    current_base: str | None = None,
) -> Upgrade:
    """Writes an upgrade if its record version is still the stored one.

    With `current_base` that base becomes the current one, in the same transaction.

    `background_busy_s` is not written: `add_busy_seconds` counts it up beside this.

    Raises:
        ConflictError: somebody else wrote it since it was read.
        NotFoundError: no such upgrade or base.
        FailedPreconditionError: it would be active again beside another active one.
    """
    if current_base is not None:
        # First of all, so that every writer of the route table takes its locks in the same order.
        bases.set_current(connection, current_base)
    if upgrade.state in ENDED_UPGRADE_STATES and upgrade.ended_at is None:
        upgrade = replace(upgrade, ended_at=at)
    if upgrade.state not in ENDED_UPGRADE_STATES:
        _refuse_second_active(connection, upgrade)
    values = {
        "state": upgrade.state,
        "error": upgrade.error,
        "ended_at": upgrade.ended_at,
        "active": _active(upgrade.state),
    }
    _compare_and_set(connection, upgrades, upgrade.id, upgrade.record_version, values)
    if event is not None:
        events.append(connection, [event], at)
    return get(connection, upgrade.id)


def add_busy_seconds(connection: Connection, upgrade_id: str, seconds: float) -> None:
    """Counts up background work; concurrent calls add up.

    Raises:
        NotFoundError: no such upgrade.
    """
    total = upgrades.c.background_busy_s + seconds
    statement = update(upgrades).where(upgrades.c.id == upgrade_id)
    if connection.execute(statement.values(background_busy_s=total)).rowcount == 0:
        get(connection, upgrade_id)


def migrations_of(connection: Connection, upgrade_id: str) -> list[Migration]:
    """Returns an upgrade's migrations in the order in which they were planned.

    Raises:
        NotFoundError: no such upgrade.
    """
    statement = select(*_MIGRATION_FIELDS).where(migrations.c.upgrade_id == upgrade_id)
    rows = connection.execute(statement.order_by(migrations.c.sequence)).mappings()
    found = [Migration(**row) for row in rows]
    if not found:
        get(connection, upgrade_id)
    return found


def save_migration(
    connection: Connection,
    migration: Migration,
    new_events: Sequence[NewEvent],
    *,
    promote_to: str | None,
    route_reason: str,
    at: float,
) -> tuple[Migration, int | None]:
    """Writes a migration by compare-and-set and, with `promote_to`, moves its adapter's route.

    The swap's event is appended here, because only here its revision is known.

    Raises:
        ConflictError: somebody else wrote the migration since it was read.
        NotFoundError: no such migration; the adapter or the version is gone.
        FailedPreconditionError: the route holds neither the source nor the shadow version, or
            the base to route to is not serving.
    """
    pending = list(new_events)
    # First of all, so that every writer of routes takes its locks in the same order.
    revision = None if promote_to is None else routes.bump(connection)
    values = _migration_values(migration)
    for fixed in ("id", "upgrade_id", "adapter", "record_version"):
        del values[fixed]
    values["updated_at"] = at
    _compare_and_set(connection, migrations, migration.id, migration.record_version, values)
    if promote_to is not None and revision is not None:
        pending.append(_swap(connection, migration, promote_to, revision, route_reason, at))
    events.append(connection, pending, at)
    statement = select(*_MIGRATION_FIELDS).where(migrations.c.id == migration.id)
    return Migration(**connection.execute(statement).mappings().one()), revision


def _swap(
    connection: Connection, migration: Migration, to: str, revision: int, reason: str, at: float
) -> NewEvent:
    own = {migration.source_version, migration.shadow_version} - {None}
    if to not in own:
        raise InvalidArgumentError(
            f"migration {migration.id!r} can't route {migration.adapter!r} to {to!r}: expected its "
            f"source {migration.source_version!r} or shadow {migration.shadow_version!r} version"
        )
    before = routes.move(
        connection,
        revision,
        adapter=migration.adapter,
        to=to,
        allowed_from=frozenset(version for version in own if version is not None),
        at=at,
        reason=reason,
    )
    base_of = select(adapter_versions.c.base_id).where(adapter_versions.c.id == to)
    data = {
        "revision": revision,
        "from_version": before,
        "to_version": to,
        "to_base": connection.execute(base_of).scalar_one(),
        "reason": reason,
    }
    return NewEvent(
        upgrade_id=migration.upgrade_id, adapter=migration.adapter, kind="swap", data=data
    )


def _compare_and_set(
    connection: Connection, table: Table, key: str, expected: int, values: dict[str, Any]
) -> None:
    statement = (
        update(table)
        .where(table.c.id == key, table.c.record_version == expected)
        .values(**values, record_version=expected + 1)
    )
    if connection.execute(statement).rowcount == 1:
        return
    found = connection.execute(
        select(table.c.record_version).where(table.c.id == key)
    ).scalar_one_or_none()
    if found is None:
        raise NotFoundError(f"unknown {table.name[:-1]} {key!r}")
    raise ConflictError(
        f"{table.name[:-1]} {key!r} is at record version {found}, expected {expected}: somebody "
        "else wrote it; read it again and retry"
    )


def _refuse_second_active(connection: Connection, upgrade: Upgrade) -> None:
    found = active(connection)
    if upgrade.state in ENDED_UPGRADE_STATES or found is None or found.id == upgrade.id:
        return
    raise FailedPreconditionError(
        f"upgrade {found.id!r} to {found.to_base!r} is {found.state}: only one upgrade may run; "
        "finish, roll back or abort it first",
        reason="UPGRADE_ACTIVE",
    )


def _check_shares(upgrade: Upgrade, shares: Sequence[Migration]) -> None:
    if upgrade.from_base == upgrade.to_base:
        raise InvalidArgumentError(
            f"upgrade from {upgrade.from_base!r} to itself: expected another base"
        )
    strangers = [share.id for share in shares if share.upgrade_id != upgrade.id]
    if strangers:
        raise InvalidArgumentError(
            f"migrations {strangers[:3]} belong to another upgrade than {upgrade.id!r}"
        )
    names = [share.adapter for share in shares]
    if len(set(names)) != len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise InvalidArgumentError(f"adapters {twice[:3]} have two migrations in one upgrade")


def _active(state: str) -> int | None:
    return None if state in ENDED_UPGRADE_STATES else 1


def _migration_values(migration: Migration) -> dict[str, Any]:
    values = {name: getattr(migration, name) for name in Migration.__dataclass_fields__}
    values["artifacts"] = dict(migration.artifacts)
    values["decision"] = None if migration.decision is None else dict(migration.decision)
    return values
