"""The catalog on a real Postgres server, which the test starts for itself.

Skipped where no Postgres server or no driver is installed, unless LOREBASE_TEST_POSTGRES_URL
names a database whose `public` schema may be dropped.
"""

import importlib.util
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import text

from lorebase.serving.catalog import Catalog
from lorebase.serving.catalog.database import Database, parse_url
from lorebase.serving.catalog.migrate import migrate
from lorebase.serving.errors import UnavailableError
from tests.integration.catalog_contract import CatalogContract
from tests.integration.catalog_races import RacesContract
from tests.integration.catalog_samples import ticking

_FOREIGN_URL = "LOREBASE_TEST_POSTGRES_URL"


def _programs() -> Path | None:
    """Returns the newest installed server's program folder."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), reverse=True)
    on_path = shutil.which("initdb")
    candidates = [*found, *([Path(on_path)] if on_path else [])]
    return candidates[0].parent if candidates else None


if importlib.util.find_spec("psycopg") is None:
    pytest.skip("needs psycopg: install lorebase[postgres]", allow_module_level=True)
if _programs() is None and _FOREIGN_URL not in os.environ:
    pytest.skip(
        f"needs a Postgres server: install postgresql or set {_FOREIGN_URL}",
        allow_module_level=True,
    )


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """URL of a database of its own, on a Unix socket: no port that could be taken."""
    if _FOREIGN_URL in os.environ:
        yield os.environ[_FOREIGN_URL]
        return
    programs = _programs()
    assert programs is not None
    # Socket paths must stay below 108 bytes, which pytest's own folders do not promise.
    with tempfile.TemporaryDirectory(prefix="lorebase-pg-", ignore_cleanup_errors=True) as folder:
        # The server refuses to run as root.
        prefix = _as_other_user(folder)
        data = f"{folder}/data"
        _run([*prefix, str(programs / "initdb"), "-D", data, "-U", "lorebase", "-A", "trust", "-N"])
        options = f"-c listen_addresses= -c unix_socket_directories={folder} -c fsync=off"
        control = [*prefix, str(programs / "pg_ctl"), "-D", data, "-w", "-t", "60"]
        _run([*control, "-l", f"{folder}/log", "-o", options, "start"])
        try:
            yield f"postgresql://lorebase@/postgres?host={folder}"
        finally:
            _run([*control, "-m", "immediate", "stop"])


def _as_other_user(folder: str) -> list[str]:
    if os.getuid() != 0:
        return []
    for user in ("postgres", "nobody"):
        known = subprocess.run(["id", user], capture_output=True).returncode == 0
        if known and shutil.which("runuser"):
            shutil.chown(folder, user)
            return ["runuser", "-u", user, "--"]
    pytest.skip("Postgres refuses to run as root, and there is no other user to run it")


def _run(command: list[str]) -> None:
    # A file, not a pipe: the server would inherit the pipe and keep it open.
    with tempfile.TemporaryFile() as output:
        code = subprocess.run(command, stdout=output, stderr=output, cwd="/").returncode
        output.seek(0)
        assert code == 0, f"{command}: {output.read().decode()}"


@pytest.fixture
def url(server: str) -> str:
    database = Database(parse_url(server))
    database.write(lambda c: c.execute(text("DROP SCHEMA IF EXISTS public CASCADE")))
    database.write(lambda c: c.execute(text("CREATE SCHEMA public")))
    database.close()
    return server


@pytest.fixture
def catalog(url: str) -> Iterator[Catalog]:
    clock = ticking()
    opened = Catalog.open(url, clock=lambda: next(clock))
    yield opened
    opened.close()


class TestPostgres(CatalogContract):
    pass


class TestPostgresRaces(RacesContract):
    pass


def test_a_held_advisory_lock_is_reported_and_not_waited_for_without_end(url: str) -> None:
    from lorebase.serving.catalog.migrate import _ADVISORY_KEY

    holder, waiting = Database(parse_url(url)), Database(parse_url(url))

    def blocked(connection: object) -> None:
        connection.execute(text(f"SELECT pg_advisory_xact_lock({_ADVISORY_KEY})"))  # type: ignore[attr-defined]
        migrate(waiting, timeout_s=0.1)

    with pytest.raises(UnavailableError, match="lock timeout"):
        holder.write(blocked)
    migrate(waiting)
    holder.close()
    waiting.close()
