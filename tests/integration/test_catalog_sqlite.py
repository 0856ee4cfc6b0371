"""The catalog on SQLite: its contract, and what is special to files."""

import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import event, text

from lorebase.serving.catalog import Catalog
from lorebase.serving.catalog.database import Database, parse_url
from lorebase.serving.errors import InvalidArgumentError, UnavailableError
from tests.integration.catalog_contract import CatalogContract
from tests.integration.catalog_races import RacesContract
from tests.integration.catalog_samples import adapter, ticking, two_bases, version


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty catalog, migrated once and copied for each test."""
    path = tmp_path_factory.mktemp("catalog") / "template.db"
    Catalog.open(f"sqlite:///{path}").close()
    return path


@pytest.fixture
def url(template: Path, tmp_path: Path) -> str:
    shutil.copyfile(template, tmp_path / "catalog.db")
    return f"sqlite:///{tmp_path / 'catalog.db'}"


@pytest.fixture
def catalog(url: str) -> Iterator[Catalog]:
    clock = ticking()
    opened = Catalog.open(url, clock=lambda: next(clock))
    yield opened
    opened.close()


class TestSqlite(CatalogContract):
    pass


class TestSqliteRaces(RacesContract):
    pass


def test_another_opener_sees_every_commit_at_once(catalog: Catalog, url: str) -> None:
    two_bases(catalog)
    other = Catalog.open(url)
    catalog.create_adapter(adapter("acme/a"), version("acme/a"))
    assert other.route_table(str) == catalog.route_table(str)
    other.close()


def test_the_file_is_in_wal_mode_and_commits_are_durable(catalog: Catalog, url: str) -> None:
    database = Database(parse_url(url))
    pragmas = [
        database.read(lambda c, pragma=pragma: c.execute(text(f"PRAGMA {pragma}")).scalar_one())  # type: ignore[misc]
        for pragma in ("journal_mode", "synchronous", "foreign_keys")
    ]
    database.close()
    assert pragmas == ["wal", 2, 1]


def test_a_reader_is_not_held_up_by_a_writer(catalog: Catalog, url: str) -> None:
    two_bases(catalog)
    database = Database(parse_url(url))

    def slow(connection: object) -> str | None:
        return catalog.current_base()

    assert database.write(slow) == "old"
    database.close()


def test_a_writer_that_waits_too_long_says_so(url: str) -> None:
    holder = Database(parse_url(url))
    waiting = Database(parse_url(url), busy_timeout_s=0.05)

    def blocked(connection: object) -> None:
        waiting.write(lambda c: c.execute(text("DELETE FROM events")))

    with pytest.raises(UnavailableError, match=r"unreachable or busy .*locked") as caught:
        holder.write(blocked)
    assert caught.value.retry_after_s == 1.0
    holder.close()
    waiting.close()


def test_more_threads_than_connections_wait_their_turn(catalog: Catalog) -> None:
    two_bases(catalog)
    with ThreadPoolExecutor(48) as pool:
        revisions = list(pool.map(lambda _: catalog.set_serving("new", True), range(96)))
    assert len(set(revisions)) == 96


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("no url at all", "can't be parsed"),
        ("mysql://u:secret@host/db", "expected sqlite"),
        ("sqlite://", "needs a file"),
        ("sqlite:///:memory:", "needs a file"),
    ],
)
def test_urls_that_no_cluster_can_share_are_refused(url: str, said: str) -> None:
    with pytest.raises(InvalidArgumentError, match=said) as caught:
        Catalog.open(url)
    assert "secret" not in str(caught.value)


def test_a_password_never_shows_in_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PGHOST", raising=False)
    with pytest.raises(UnavailableError) as caught:
        Catalog.open("postgresql://user:secret@127.0.0.1:1/lorebase")
    assert "user:***@" in str(caught.value)
    assert "secret" not in str(caught.value)


def test_the_route_table_of_two_thousand_adapters_is_quick(catalog: Catalog) -> None:
    two_bases(catalog)
    names = [f"acme/adapter-{number:04}" for number in range(2000)]
    # Straight into the tables: 2,000 transactions with fsync are not what is measured.
    _bulk(catalog, names)
    statements: list[str] = []

    def count(_c: object, _cursor: object, statement: str, *_: object) -> None:
        statements.append(statement)

    event.listen(catalog._database._engine, "before_cursor_execute", count)
    # Processor time: how busy the machine is with other things does not count.
    started = time.process_time()
    table = catalog.route_table(lambda of: of)
    seconds = time.process_time() - started
    assert len([one for one in statements if one.startswith("SELECT")]) == 4
    assert len(table.routes) == 2000
    assert len(table.versions) == 4000
    assert table.routes[names[-1]].stable == version(names[-1]).id
    assert seconds < 1.0, f"{seconds:.2f} s for 2,000 adapters"


def _bulk(catalog: Catalog, names: list[str]) -> None:
    from lorebase.serving.catalog.models import adapter_versions, adapters, routes
    from lorebase.serving.catalog.records import Adapter, AdapterVersion

    versions = [version(name, base_id) for name in names for base_id in ("old", "new")]
    rows = [{f: getattr(one, f) for f in AdapterVersion.__dataclass_fields__} for one in versions]
    owners = [adapter(name) for name in names]

    def fill(connection: object) -> None:
        run = connection.execute  # type: ignore[attr-defined]
        run(
            adapters.insert(),
            [{f: getattr(one, f) for f in Adapter.__dataclass_fields__} for one in owners],
        )
        run(adapter_versions.insert(), rows)
        run(routes.insert(), [{"adapter": n, "stable": version(n).id} for n in names])

    catalog._database.write(fill)
