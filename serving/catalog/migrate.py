"""Brings a catalog's schema up to date when it is opened, whoever opens it first.

Gateways, hub and controller all open the catalog at start. One at a time may migrate: a file
lock guards SQLite (also against the switch to WAL, which can't wait for others), an advisory
lock guards Postgres.
"""

import fcntl
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text

from ..errors import FailedPreconditionError, UnavailableError
from .database import Database, is_sqlite

OPEN_TIMEOUT_S = 60.0
"""Longest wait for another process that is migrating the same catalog."""
_ADVISORY_KEY = 0x6C6F7265
"""Any constant will do: `lore` in ASCII."""
_POLL_S = 0.02
_alembic = threading.Lock()
"""Alembic keeps the running migration in module globals: one thread at a time."""


def migrate(database: Database, *, timeout_s: float = OPEN_TIMEOUT_S) -> None:
    """Upgrades the schema to this code's newest revision; a no-op if it is there already.

    Raises:
        FailedPreconditionError: the catalog was made by a newer lorebase.
        UnavailableError: another process held the lock for longer than `timeout_s` seconds.
    """
    if is_sqlite(database.url):
        path = Path(str(database.url.database))
        with _file_lock(path.with_name(path.name + ".lock"), timeout_s):
            database.use_wal()
            database.write(_upgrade)
    else:
        database.write(lambda connection: _upgrade_locked(connection, timeout_s))


def alembic_config(connection: Connection | None = None) -> Config:
    """Returns the configuration with which alembic finds the packaged migrations."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.set_main_option("path_separator", "os")
    if connection is not None:
        config.attributes["connection"] = connection
    return config


def _upgrade(connection: Connection) -> None:
    config = alembic_config(connection)
    script = ScriptDirectory.from_config(config)
    found = MigrationContext.configure(connection).get_current_revision()
    if found == script.get_current_head():
        return
    known = {revision.revision for revision in script.walk_revisions()}
    if found is not None and found not in known:
        raise FailedPreconditionError(
            f"the catalog has schema revision {found!r}, which this lorebase does not know (its "
            f"newest is {script.get_current_head()!r}): it was written by a newer lorebase; "
            "upgrade this installation",
            reason="CATALOG_TOO_NEW",
        )
    with _alembic:
        command.upgrade(config, "head")


def _upgrade_locked(connection: Connection, timeout_s: float) -> None:
    connection.execute(
        text("SELECT set_config('lock_timeout', :ms, true)"), {"ms": f"{int(timeout_s * 1000)}ms"}
    )
    # Held until the transaction ends, with the migration inside it.
    connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _ADVISORY_KEY})
    _upgrade(connection)


@contextmanager
def _file_lock(path: Path, timeout_s: float) -> Iterator[None]:
    deadline = time.monotonic() + timeout_s
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise UnavailableError(
                        f"another process has been migrating the catalog for {timeout_s:.0f} s "
                        f"(lock file {path.name}); retry, or end that process",
                        reason="CATALOG_LOCKED",
                    ) from None
                time.sleep(_POLL_S)
        yield
    finally:
        # Closing gives the lock back; the file stays, because removing it would let two
        # processes lock two different files of the same name.
        os.close(descriptor)
