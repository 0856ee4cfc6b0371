"""Races between processes and threads on one catalog; run on SQLite and on Postgres.

Subclasses provide a `url` fixture of an empty catalog. Workers are plain functions of the URL,
because they run in fresh processes.
"""

import multiprocessing
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from typing import TypeVar

import pytest

from lorebase.serving.catalog import Catalog, NewEvent
from lorebase.serving.errors import (
    AlreadyExistsError,
    ConflictError,
    FailedPreconditionError,
)
from tests.integration.catalog_samples import adapter, migration, two_bases, upgrade, version

T = TypeVar("T")

PROCESSES = 3
ROUNDS = 12


def save_by_cas(url: str, worker: int) -> int:
    """Adds one to a counter in the decision, ROUNDS times; returns how often it lost."""
    catalog = Catalog.open(url)
    lost = won = 0
    while won < ROUNDS:
        (record,) = catalog.migrations_of("up-1")
        count = int((record.decision or {"n": 0})["n"]) + 1
        event = NewEvent(upgrade_id="up-1", kind="note", data={"n": count, "worker": worker})
        try:
            catalog.save_migration(replace(record, decision={"n": count}), events=[event])
            won += 1
        except ConflictError:
            lost += 1
    catalog.close()
    return lost


def create_adapters(url: str, worker: int) -> list[str]:
    """Tries to create the same adapters as everybody else; returns those that it created."""
    catalog = Catalog.open(url)
    created = []
    for number in range(ROUNDS):
        name = f"acme/a{number}"
        try:
            catalog.create_adapter(adapter(name), version(name, content=f"of {worker}"))
            created.append(name)
        except AlreadyExistsError:
            pass
    catalog.close()
    return created


def start_upgrades(url: str, worker: int) -> int:
    """Starts and ends upgrades as fast as possible; returns how many were its own."""
    catalog = Catalog.open(url)
    started = 0
    for number in range(ROUNDS):
        try:
            mine = catalog.create_upgrade(upgrade(f"up-{worker}-{number}"), [])
        except FailedPreconditionError:
            continue
        started += 1
        active = catalog.active_upgrade()
        assert active == mine, f"{mine.id} is active, but {active} was found"
        catalog.save_upgrade(replace(mine, state="finished"))
    catalog.close()
    return started


def count_busy(url: str, worker: int) -> None:
    """Counts up busy seconds and moves routes between them."""
    catalog = Catalog.open(url)
    for number in range(ROUNDS):
        catalog.add_busy_seconds("up-1", 0.5)
        catalog.set_serving("new", (number + worker) % 2 == 0)
    catalog.close()


def _race(pool: ProcessPoolExecutor, work: Callable[[str, int], T], url: str) -> list[T]:
    return list(pool.map(work, [url] * PROCESSES, range(PROCESSES)))


class RacesContract:
    @pytest.fixture(scope="class")
    @classmethod
    def pool(cls) -> Iterator[ProcessPoolExecutor]:
        # One for the class: a fresh interpreter takes longer to import than to race.
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(PROCESSES, mp_context=spawn) as pool:
            yield pool

    @pytest.fixture
    def catalog(self, url: str) -> Iterator[Catalog]:
        catalog = Catalog.open(url)
        two_bases(catalog)
        yield catalog
        catalog.close()

    def test_no_update_is_lost_between_processes(
        self, catalog: Catalog, url: str, pool: ProcessPoolExecutor
    ) -> None:
        catalog.create_upgrade(upgrade(), [migration("acme/a")])
        _race(pool, save_by_cas, url)
        (record,) = catalog.migrations_of("up-1")
        notes = [event.data for event in catalog.events("up-1") if event.kind == "note"]
        total = PROCESSES * ROUNDS
        assert record.decision == {"n": total}
        assert record.record_version == total + 1
        assert [note["n"] for note in notes] == list(range(1, total + 1))
        assert Counter(note["worker"] for note in notes) == dict.fromkeys(range(PROCESSES), ROUNDS)

    def test_each_name_is_created_by_exactly_one_process(
        self, catalog: Catalog, url: str, pool: ProcessPoolExecutor
    ) -> None:
        created = _race(pool, create_adapters, url)
        table = catalog.route_table(str)
        changes = catalog.route_changes()
        winners = {name: worker for worker, names in enumerate(created) for name in names}
        assert sum(len(names) for names in created) == len(winners) == ROUNDS
        for name, worker in winners.items():
            assert table.routes[name].stable == version(name, content=f"of {worker}").id
        revisions = [change.revision for change in changes]
        assert len(revisions) == len(set(revisions)) == ROUNDS
        assert table.revision == max(revisions)

    def test_two_upgrades_are_never_active_at_once(
        self, catalog: Catalog, url: str, pool: ProcessPoolExecutor
    ) -> None:
        started = _race(pool, start_upgrades, url)
        stored = catalog.list_upgrades()
        assert sum(started) == len(stored) > 0
        assert {one.state for one in stored} == {"finished"}

    def test_counters_add_up_over_processes_and_threads(
        self, catalog: Catalog, url: str, pool: ProcessPoolExecutor
    ) -> None:
        catalog.create_upgrade(upgrade(), [])
        before = catalog.route_revision()
        with ThreadPoolExecutor(2) as threads:
            futures = [threads.submit(count_busy, url, worker) for worker in (8, 9)]
            _race(pool, count_busy, url)
            for future in futures:
                future.result()
        writers = PROCESSES + 2
        busy = catalog.get_upgrade("up-1").background_busy_s
        after = catalog.route_revision()
        assert busy == 0.5 * ROUNDS * writers
        assert after == before + ROUNDS * writers
