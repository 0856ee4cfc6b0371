"""Connections and transactions: the only module that knows SQLite from Postgres.

SQLite runs in WAL mode and every writer begins with BEGIN IMMEDIATE, so that writers queue at
the start of a transaction (up to the busy timeout) instead of failing in the middle. Postgres
writers rely on compare-and-set and unique constraints; what loses a race is run again.
"""

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import (
    ArgumentError,
    DataError,
    DBAPIError,
    IntegrityError,
    OperationalError,
    StatementError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from ..errors import ConflictError, InvalidArgumentError, LorebaseError, UnavailableError

BUSY_TIMEOUT_S = 15.0
"""How long a writer waits for its turn; a transaction takes a few milliseconds."""
WRITE_ATTEMPTS = 4
"""A write that lost a race sees the winner's rows the next time; more means something is wrong."""

_POOL_SIZE = 4
_POOL_OVERFLOW = 28
"""Enough for every thread of asyncio's default executor on a large machine."""
_WRITES = "lorebase_writes"
_POSTGRES_RACES = frozenset({"40001", "40P01"})
"""SQLSTATE of serialization failure and deadlock: nothing was written, try again."""

T = TypeVar("T")


def parse_url(url: str) -> URL:
    """Parses and normalises a catalog URL.

    Raises:
        InvalidArgumentError: not a URL, another database, or SQLite in memory.
    """
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise InvalidArgumentError(
            "the catalog URL can't be parsed: expected sqlite:///PATH or "
            "postgresql://USER:PASSWORD@HOST/DATABASE"
        ) from None
    if parsed.drivername in ("postgresql", "postgres"):
        parsed = parsed.set(drivername="postgresql+psycopg")
    if parsed.drivername not in ("sqlite", "sqlite+pysqlite", "postgresql+psycopg"):
        raise InvalidArgumentError(
            f"catalog URL with {parsed.drivername!r}: expected sqlite:///PATH or postgresql://..."
        )
    if is_sqlite(parsed) and parsed.database in (None, "", ":memory:"):
        raise InvalidArgumentError(
            "a catalog in SQLite needs a file, because several processes share it: use "
            "sqlite:///PATH"
        )
    return parsed


def is_sqlite(url: URL) -> bool:
    """Returns whether the URL names a SQLite file."""
    return url.get_backend_name() == "sqlite"


def _pool(timeout_s: float) -> dict[str, Any]:
    return {
        "pool_size": _POOL_SIZE,
        "max_overflow": _POOL_OVERFLOW,
        "pool_timeout": timeout_s,
    }


class Database:
    """A pool of connections with read and write transactions."""

    def __init__(self, url: URL, *, busy_timeout_s: float = BUSY_TIMEOUT_S) -> None:
        """Prepares the pool; connects to nothing yet."""
        self.url = url
        if is_sqlite(url):
            Path(str(url.database)).parent.mkdir(parents=True, exist_ok=True)
            self._engine = create_engine(
                url, connect_args={"timeout": busy_timeout_s}, **_pool(busy_timeout_s)
            )
            _prepare_sqlite(self._engine, busy_timeout_s)
            self._reading = self._engine
        else:
            try:
                self._engine = create_engine(
                    url,
                    pool_pre_ping=True,
                    connect_args={"connect_timeout": max(1, int(busy_timeout_s))},
                    **_pool(busy_timeout_s),
                )
            except ModuleNotFoundError as error:
                raise InvalidArgumentError(
                    "a Postgres catalog needs the driver psycopg: install lorebase[postgres]"
                ) from error
            # All queries of one read see the same snapshot, as they do on SQLite.
            self._reading = self._engine.execution_options(isolation_level="REPEATABLE READ")
        self._writing = self._engine.execution_options(**{_WRITES: True})

    def close(self) -> None:
        """Closes all pooled connections."""
        self._engine.dispose()

    def use_wal(self) -> None:
        """Switches a SQLite file to write-ahead logging, which it then keeps.

        Raises:
            UnavailableError: another connection is in the middle of a transaction.
        """
        try:
            connection = self._engine.raw_connection()
            try:
                connection.cursor().execute("PRAGMA journal_mode = WAL")
            finally:
                connection.close()
        except (sqlite3.Error, DBAPIError) as error:
            raise UnavailableError(
                f"can't open the catalog {self.url.database} in WAL mode ({error}): expected a "
                "writable file on a local file system"
            ) from error

    def read(self, work: Callable[[Connection], T]) -> T:
        """Runs `work` on one consistent snapshot.

        Raises:
            UnavailableError: the database can't be reached or is busy.
        """
        try:
            with self._reading.begin() as connection:
                return work(connection)
        except PoolTimeoutError as error:
            raise _exhausted() from error
        except DBAPIError as error:
            raise self._translate(error) from error

    def write(self, work: Callable[[Connection], T]) -> T:
        """Runs `work` in a transaction: all of it happens or nothing.

        `work` may run several times, so it must only touch the database.

        Raises:
            ConflictError: lost against concurrent writers again and again.
            UnavailableError: the database can't be reached or is busy.
            InvalidArgumentError: a value that the database or JSON can't hold.
        """
        for attempt in range(1, WRITE_ATTEMPTS + 1):
            try:
                with self._writing.begin() as connection:
                    return work(connection)
            except PoolTimeoutError as error:
                raise _exhausted() from error
            except StatementError as error:
                if not _lost_race(error) or attempt == WRITE_ATTEMPTS:
                    raise self._translate(error) from error
        raise AssertionError("the last attempt returns or raises")

    def _translate(self, error: StatementError) -> LorebaseError:
        if _lost_race(error):
            return ConflictError(
                f"the catalog refused a write {WRITE_ATTEMPTS} times because of concurrent "
                f"writers ({error.orig}); read again and retry"
            )
        if isinstance(error, DataError) or not isinstance(error, DBAPIError):
            return InvalidArgumentError(f"a value can't be stored in the catalog: {error.orig}")
        if isinstance(error, OperationalError):
            return UnavailableError(
                f"the catalog {self.url.render_as_string(hide_password=True)} is unreachable or "
                f"busy ({error.orig}); retry",
                reason="CATALOG_UNAVAILABLE",
                retry_after_s=1.0,
            )
        return LorebaseError(f"the catalog's database failed: {error.orig}")


def _exhausted() -> UnavailableError:
    return UnavailableError(
        f"all {_POOL_SIZE + _POOL_OVERFLOW} connections of this process to the catalog were busy "
        "for too long; retry",
        reason="CATALOG_UNAVAILABLE",
        retry_after_s=1.0,
    )


def _lost_race(error: StatementError) -> bool:
    if isinstance(error, IntegrityError):
        return True
    return getattr(error.orig, "sqlstate", None) in _POSTGRES_RACES


def _prepare_sqlite(engine: Engine, busy_timeout_s: float) -> None:
    @event.listens_for(engine, "connect")
    def on_connect(connection: Any, _record: Any) -> None:
        # The driver's own transaction control begins too late and never IMMEDIATE.
        connection.isolation_level = None
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout = {int(busy_timeout_s * 1000)}")
        cursor.execute("PRAGMA foreign_keys = ON")
        # The catalog is the truth: a commit must survive a power failure.
        cursor.execute("PRAGMA synchronous = FULL")
        cursor.close()

    @event.listens_for(engine, "begin")
    def on_begin(connection: Connection) -> None:
        writes = connection.get_execution_options().get(_WRITES, False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
