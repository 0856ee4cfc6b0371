"""The catalog's one entrance: every call is one transaction.

Safe for several threads and processes at once. Calls are synchronous and take milliseconds;
async callers run them in a thread.
"""

import time
from collections.abc import Callable, Sequence

from sqlalchemy import Connection, select

from ..errors import InvalidArgumentError
from ..routing.table import RouteTable
from . import adapters, bases, events, models, routes, upgrades
from .database import Database, parse_url
from .migrate import migrate
from .records import (
    NEXT_KIT,
    Adapter,
    AdapterVersion,
    Base,
    Event,
    Migration,
    NewEvent,
    RouteChange,
    Upgrade,
)

MAX_PAGE = 10_000
"""Rows that one listing may return."""


class Catalog:
    """Bases, adapters, routes, upgrades and their history. Opened with `Catalog.open`.

    Every method may raise UnavailableError when the database can't be reached, besides the
    errors that it names.
    """

    def __init__(self, database: Database, clock: Callable[[], float]) -> None:
        """Use `open` instead: it also brings the schema up to date."""
        self._database = database
        self._clock = clock

    @classmethod
    def open(cls, url: str, *, clock: Callable[[], float] = time.time) -> "Catalog":
        """Opens a catalog, creating it or upgrading its schema if need be.

        Args:
            url: `sqlite:///PATH` (the folder is created) or `postgresql://...`.
            clock: Returns seconds since the epoch.

        Raises:
            InvalidArgumentError: not such a URL.
            FailedPreconditionError: a newer lorebase wrote this catalog.
            UnavailableError: the database can't be reached.
        """
        database = Database(parse_url(url))
        try:
            migrate(database)
        except BaseException:
            database.close()
            raise
        return cls(database, clock)

    def close(self) -> None:
        """Closes all connections."""
        self._database.close()

    # Bases.

    def put_base(self, base: Base) -> None:
        """Adds a base; idempotent by id and revision. See `bases.put`."""
        self._database.write(lambda c: bases.put(c, base))

    def get_base(self, base_id: str) -> Base:
        """Returns a base; NotFoundError."""
        return self._database.read(lambda c: bases.get(c, base_id))

    def list_bases(self) -> list[Base]:
        """Returns all bases, oldest first."""
        return self._database.read(bases.list_all)

    def current_base(self) -> str | None:
        """Returns the current base's id, or None before the first."""
        return self._database.read(bases.current)

    def set_current_base(self, base_id: str) -> None:
        """Makes a base the current one; NotFoundError."""
        self._database.write(lambda c: bases.set_current(c, base_id))

    def serving_bases(self) -> tuple[str, ...]:
        """Returns the ids of bases that should have an engine, oldest first."""
        return self._database.read(bases.serving)

    def set_serving(self, base_id: str, serving: bool) -> int:
        """Says whether a base should have an engine; returns the route revision.

        Raises:
            NotFoundError: no such base.
            FailedPreconditionError: routes lead to the base that is to stop.
        """
        return self._database.write(lambda c: bases.set_serving(c, base_id, serving))

    # Adapters.

    def create_adapter(
        self, adapter: Adapter, version: AdapterVersion, *, request_id: str | None = None
    ) -> int:
        """Adds an adapter, its first version and its route; see `adapters.create`."""
        at = self._clock()
        return self._database.write(
            lambda c: adapters.create(c, adapter, version, request_id=request_id, at=at)
        )

    def get_adapter(self, name: str) -> Adapter:
        """Returns an adapter; NotFoundError."""
        return self._database.read(lambda c: adapters.get(c, name))

    def list_adapters(
        self, *, tenant: str | None = None, after: str | None = None, limit: int = 100
    ) -> list[Adapter]:
        """Returns a page of adapters by name, those after the name `after`."""
        page = _limit(limit)
        return self._database.read(
            lambda c: adapters.list_page(c, tenant=tenant, after=after, limit=page)
        )

    def find_request(self, request_id: str) -> str | None:
        """Returns the adapter that an earlier `create_adapter` with this id made."""
        return self._database.read(lambda c: adapters.find_request(c, request_id))

    def set_kit(
        self, name: str, *, kit_digest: str | None, evaluation_digest: str | None
    ) -> Adapter:
        """Attaches a kit, an evaluation set or both; None leaves what is there. NotFoundError."""
        return self._database.write(
            lambda c: adapters.set_kit(
                c, name, kit_digest=kit_digest, evaluation_digest=evaluation_digest
            )
        )

    def delete_adapter(self, name: str, *, record_version: int | None = None) -> int:
        """Removes an adapter, its route and versions; returns the route revision."""
        at = self._clock()
        return self._database.write(
            lambda c: adapters.remove(c, name, record_version=record_version, at=at)
        )

    def add_version(self, version: AdapterVersion) -> None:
        """Adds a version that nothing is routed to; idempotent. See `adapters.add_version`."""
        self._database.write(lambda c: adapters.add_version(c, version))

    def get_version(self, version_id: str) -> AdapterVersion:
        """Returns a version; NotFoundError."""
        return self._database.read(lambda c: adapters.get_version(c, version_id))

    def versions_of(self, adapter: str) -> list[AdapterVersion]:
        """Returns an adapter's versions, oldest first; NotFoundError."""
        return self._database.read(lambda c: adapters.versions_of(c, adapter))

    # Routes.

    def route_table(self, path_of: Callable[[str], str]) -> RouteTable:
        """Returns all routes as of one instant.

        Args:
            path_of: Local directory of a digest. It is called for every version and should not
                fail for a missing one (`ArtifactStore.locate`): the others must stay routable.
        """
        return self._database.read(lambda c: routes.table(c, path_of))

    def route_revision(self) -> int:
        """Returns the route table's revision: it grows with every change of the table."""
        return self._database.read(routes.revision)

    def route_changes(
        self, *, adapter: str | None = None, after: int = 0, limit: int = 1000
    ) -> list[RouteChange]:
        """Returns the audit trail of swaps after a revision, oldest first."""
        page = _limit(limit)
        return self._database.read(
            lambda c: routes.changes(c, adapter=adapter, after=after, limit=page)
        )

    # Upgrades.

    def create_upgrade(self, upgrade: Upgrade, migrations: Sequence[Migration]) -> Upgrade:
        """Adds an upgrade with its migrations and its first event; see `upgrades.create`."""
        at = self._clock()
        return self._database.write(lambda c: upgrades.create(c, upgrade, migrations, at))

    def get_upgrade(self, upgrade_id: str | None) -> Upgrade:
        """Returns an upgrade, None the newest; NotFoundError."""
        return self._database.read(lambda c: upgrades.get(c, upgrade_id))

    def list_upgrades(self, *, after: str | None = None, limit: int = 100) -> list[Upgrade]:
        """Returns a page of upgrades, newest first: those older than the id `after`."""
        page = _limit(limit)
        return self._database.read(lambda c: upgrades.list_page(c, after=after, limit=page))

    def active_upgrade(self) -> Upgrade | None:
        """Returns the upgrade that has not ended, if any."""
        return self._database.read(upgrades.active)

    def migrations_of(self, upgrade_id: str) -> list[Migration]:
        """Returns an upgrade's migrations as planned; NotFoundError."""
        return self._database.read(lambda c: upgrades.migrations_of(c, upgrade_id))

    def save_upgrade(
        self, upgrade: Upgrade, *, event: NewEvent | None = None, current_base: str | None = None
    ) -> Upgrade:
        """Writes an upgrade by compare-and-set and its event with it; see `upgrades.save`."""
        at = self._clock()
        return self._database.write(
            lambda c: upgrades.save(c, upgrade, event, at, current_base=current_base)
        )

    def save_migration(
        self,
        migration: Migration,
        *,
        events: Sequence[NewEvent] = (),
        promote_to: str | None = None,
        route_reason: str = "promote",
    ) -> tuple[Migration, int | None]:
        """Writes a migration by compare-and-set, its events and, if asked, its swap, at once.

        Returns:
            The stored migration and, with `promote_to`, the new route revision. The `swap`
            event is appended by the catalog itself. See `upgrades.save_migration`.
        """
        at = self._clock()
        return self._database.write(
            lambda c: upgrades.save_migration(
                c, migration, events, promote_to=promote_to, route_reason=route_reason, at=at
            )
        )

    def append_event(self, event: NewEvent) -> None:
        """Appends an event that belongs to no other write; NotFoundError."""
        at = self._clock()
        self._database.write(lambda c: events.append(c, [event], at))

    def events(self, upgrade_id: str, *, after: int = 0, limit: int = 10_000) -> list[Event]:
        """Returns an upgrade's events with ids above `after`, oldest first."""
        page = _limit(limit)
        return self._database.read(lambda c: events.after(c, upgrade_id, after=after, limit=page))

    def add_busy_seconds(self, upgrade_id: str, seconds: float) -> None:
        """Counts up background work in seconds; NotFoundError."""
        self._database.write(lambda c: upgrades.add_busy_seconds(c, upgrade_id, seconds))

    def referenced_digests(self) -> set[str]:
        """Returns every digest that a row names: what garbage collection must keep."""
        return self._database.read(_referenced_digests)


def _referenced_digests(connection: Connection) -> set[str]:
    found: set[str | None] = set()
    for column in (
        models.adapter_versions.c.digest,
        models.adapters.c.kit_digest,
        models.adapters.c.evaluation_digest,
    ):
        found.update(connection.execute(select(column).distinct()).scalars())
    for artifacts in connection.execute(select(models.migrations.c.artifacts)).scalars():
        found.update(artifacts.values())
    for provenance in connection.execute(select(models.adapter_versions.c.provenance)).scalars():
        found.add(provenance.get(NEXT_KIT))
    return {digest for digest in found if digest is not None and digest.startswith("sha256:")}


def _limit(limit: int) -> int:
    if not 1 <= limit <= MAX_PAGE:
        raise InvalidArgumentError(f"page size {limit}: expected 1 to {MAX_PAGE}")
    return limit
