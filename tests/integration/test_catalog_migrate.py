"""Opening a catalog: schema, several openers at once, catalogs of other versions."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import inspect, text

from lorebase.serving.catalog import Catalog
from lorebase.serving.catalog.database import Database, parse_url
from lorebase.serving.catalog.migrate import alembic_config, migrate
from lorebase.serving.catalog.models import metadata
from lorebase.serving.errors import FailedPreconditionError, UnavailableError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "catalog.db"


def test_the_folder_is_created_and_opening_again_keeps_the_rows(path: Path) -> None:
    Catalog.open(f"sqlite:///{path}").close()
    assert path.is_file()
    again = Catalog.open(f"sqlite:///{path}")
    assert again.route_revision() == 0
    assert again.list_adapters() == []
    again.close()


def test_migrations_lead_exactly_to_the_models(path: Path) -> None:
    database = Database(parse_url(f"sqlite:///{path}"))
    migrate(database)
    options = {"compare_type": True, "compare_server_default": True}
    differences = database.read(
        lambda c: compare_metadata(MigrationContext.configure(c, opts=options), metadata)
    )
    checks = database.read(
        lambda c: {
            table: sorted(str(one["name"]) for one in inspect(c).get_check_constraints(table))
            for table in ("upgrades", "catalog_state")
        }
    )
    database.close()
    assert differences == []
    assert checks == {
        "upgrades": ["ck_upgrades_active_follows_state", "ck_upgrades_active_is_one"],
        "catalog_state": ["ck_catalog_state_one_row"],
    }


def test_the_migration_can_be_taken_back(path: Path) -> None:
    database = Database(parse_url(f"sqlite:///{path}"))
    migrate(database)
    database.write(lambda c: command.downgrade(alembic_config(c), "base"))
    assert database.read(lambda c: inspect(c).get_table_names()) == ["alembic_version"]
    migrate(database)
    assert "routes" in database.read(lambda c: inspect(c).get_table_names())
    database.close()


def test_a_catalog_of_a_newer_lorebase_is_left_alone(path: Path) -> None:
    database = Database(parse_url(f"sqlite:///{path}"))
    migrate(database)
    database.write(lambda c: c.execute(text("UPDATE alembic_version SET version_num = '9999'")))
    database.close()
    with pytest.raises(FailedPreconditionError, match="'9999', which this lorebase does not know"):
        Catalog.open(f"sqlite:///{path}")


def test_a_held_lock_is_reported_and_not_waited_for_without_end(path: Path) -> None:
    database = Database(parse_url(f"sqlite:///{path}"))
    migrate(database)
    code = (
        "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.flock(f, fcntl.LOCK_EX);"
        "print('held', flush=True); sys.stdin.read()"
    )
    command_line = [sys.executable, "-c", code, f"{path}.lock"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command_line, stdin=pipe, stdout=pipe, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(UnavailableError, match="another process has been migrating"):
            migrate(database, timeout_s=0.1)
        holder.communicate()
    migrate(database, timeout_s=0.1)
    database.close()


def test_many_threads_may_open_a_new_catalog_at_once(path: Path) -> None:
    def opened(_: int) -> int:
        catalog = Catalog.open(f"sqlite:///{path}")
        revision = catalog.route_revision()
        catalog.close()
        return revision

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(opened, range(16))) == [0] * 16


def test_many_processes_may_open_a_new_catalog_at_once(path: Path) -> None:
    code = (
        "import sys; from lorebase.serving.catalog import Catalog;"
        "c = Catalog.open(sys.argv[1]); print(c.route_revision()); c.close()"
    )
    command_line = [sys.executable, "-c", code, f"sqlite:///{path}"]
    pipe = subprocess.PIPE
    openers = [
        subprocess.Popen(command_line, stdout=pipe, stderr=pipe, text=True) for _ in range(3)
    ]
    outputs = [opener.communicate(timeout=60) for opener in openers]
    assert [opener.returncode for opener in openers] == [0] * 3, outputs
    assert [out for out, _ in outputs] == ["0\n"] * 3
