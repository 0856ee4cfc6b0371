"""Leases are first come first served, bounded, revocable, and always given back."""

import asyncio

import pytest

from lorebase.serving.engine.protocol import EngineStats
from lorebase.serving.errors import ResourceExhaustedError, UnavailableError
from lorebase.transfer.governor import Capacity, Governor, GovernorPolicy, LeaseTable, Probe
from lorebase.transfer.governor import leases as leases_module


def grant(workers: int, batches: int = 0) -> Capacity:
    return Capacity(workers=workers, batches=batches, batch_size=8)


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def hold(table: LeaseTable, order: list[str], name: str, gate: asyncio.Event) -> asyncio.Task[None]:
    async def body() -> None:
        async with table.lease("train", name):
            order.append(name)
            await gate.wait()

    return asyncio.create_task(body())


async def test_waiters_are_served_in_order_as_capacity_comes() -> None:
    table, order, gate = LeaseTable(), [], asyncio.Event()
    tasks = [hold(table, order, name, gate) for name in "abc"]
    await settle()
    assert order == []
    table.set_capacity(grant(1))
    await settle()
    assert order == ["a"]
    assert table.waiting("train") == 2
    gate.set()
    await asyncio.gather(*tasks)
    assert order == ["a", "b", "c"]
    assert table.granted("train") == table.waiting("train") == 0


async def test_the_task_that_came_first_goes_first_each_time_it_asks() -> None:
    table, order, gate = LeaseTable(), [], asyncio.Event()
    table.set_capacity(grant(1))
    async with table.lease("train", "first/label"):
        second = hold(table, order, "second/label", gate)
        third = hold(table, order, "third/label", gate)
        await settle()
        first = hold(table, order, "first/distill", gate)
        await settle()
    gate.set()
    await asyncio.gather(first, second, third)
    assert order == ["first/distill", "second/label", "third/label"]


async def test_a_newcomer_of_a_senior_task_takes_no_lease_that_is_held() -> None:
    table = LeaseTable()
    table.set_capacity(grant(1))
    async with table.lease("train", "first/label"):
        pass
    async with table.lease("train", "second/label") as held:
        order: list[str] = []
        task = hold(table, order, "first/distill", asyncio.Event())
        await settle()
        assert held.granted
        assert order == []
        task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_a_task_that_ended_and_comes_again_is_the_youngest() -> None:
    table, order, gate = LeaseTable(), [], asyncio.Event()
    gate.set()
    for name in ("first/label", "second/label"):
        task = hold(table, order, name, gate)
        table.set_capacity(grant(1))
        await task
    table.end("first")
    table.set_capacity(grant(0))
    tasks = [hold(table, order, name, gate) for name in ("first/again", "second/distill")]
    await settle()
    table.set_capacity(grant(1))
    await asyncio.gather(*tasks)
    assert order[2:] == ["second/distill", "first/again"]


async def test_shrinking_revokes_the_youngest_and_growing_gives_it_back() -> None:
    table = LeaseTable()
    table.set_capacity(grant(2))
    async with table.lease("train", "old") as old, table.lease("train", "young") as young:
        assert old.granted
        assert young.granted
        table.set_capacity(grant(1))
        assert old.granted
        assert not young.granted
        waiting = asyncio.create_task(young.wait())
        await settle()
        assert not waiting.done()
        table.set_capacity(grant(2))
        await asyncio.wait_for(waiting, 1)


async def test_a_holder_that_fails_gives_its_lease_back() -> None:
    table = LeaseTable()
    table.set_capacity(grant(1))
    with pytest.raises(RuntimeError, match="boom"):
        async with table.lease("train", "x"):
            raise RuntimeError("boom")
    async with asyncio.timeout(1), table.lease("train", "y"):
        assert table.granted("train") == 1


async def test_a_cancelled_waiter_leaves_no_trace() -> None:
    table = LeaseTable()
    order: list[str] = []
    task = hold(table, order, "x", asyncio.Event())
    await settle()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert table.waiting("train") == 0


async def test_kinds_do_not_share_capacity() -> None:
    table = LeaseTable()
    table.set_capacity(grant(0, batches=1))
    async with asyncio.timeout(1), table.lease("generate", "g"):
        assert table.granted("generate") == 1
        assert table.granted("train") == 0


async def test_the_queue_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases_module, "MAX_LEASES", 2)
    table = LeaseTable()
    gate, order = asyncio.Event(), []
    tasks = [hold(table, order, str(n), gate) for n in range(2)]
    await settle()
    with pytest.raises(ResourceExhaustedError, match="at most 2"):
        async with table.lease("train", "one too many"):
            pass
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_every_grant_is_reported_and_every_end_too() -> None:
    seen: list[int] = []
    table = LeaseTable(lambda kind, change: seen.append(change))
    table.set_capacity(grant(1))
    async with table.lease("train", "a"):
        table.set_capacity(grant(0))
        table.set_capacity(grant(1))
    assert seen == [1, -1, 1, -1]


class Engines:
    """Statistics that a test sets."""

    def __init__(self) -> None:
        self.waiting = 0
        self.broken = False

    async def engine_stats(self, base_id: str) -> EngineStats:
        if self.broken:
            raise RuntimeError("unreachable")
        return EngineStats(
            base_id=base_id,
            running_foreground=1,
            waiting_foreground=self.waiting,
            running_background=0,
            loaded_versions=0,
            rss_bytes=0,
        )


async def test_the_governor_follows_the_engines() -> None:
    engines, now = Engines(), [0.0]
    probe = Probe(engines, clock=lambda: now[0], cpu=lambda: 1.0)
    governor = Governor(GovernorPolicy(), probe)

    async def run(seconds: float) -> None:
        for _ in range(int(seconds / 0.5)):
            now[0] += 0.5
            await governor.tick(["old", "next"])

    await run(10)
    assert governor.leases.capacity.workers == 1
    engines.waiting = 3
    await run(10)
    assert governor.leases.capacity.workers == 0
    engines.waiting, engines.broken = 0, True
    await run(60)
    assert governor.leases.capacity.workers == 0, "an engine that does not answer is no idle one"
    engines.broken = False
    await run(60)
    assert governor.leases.capacity.workers == 1


async def test_a_pause_revokes_at_once_whatever_the_load() -> None:
    now = [0.0]
    governor = Governor(GovernorPolicy(), Probe(Engines(), clock=lambda: now[0], cpu=lambda: 1.0))
    for _ in range(20):
        now[0] += 0.5
        await governor.tick(["old"])
    governor.pause(True)
    assert governor.leases.capacity.workers == 0
    await governor.tick(["old"])
    assert governor.leases.capacity.batches == 0
    governor.pause(False)
    assert governor.leases.capacity.workers == 1


async def test_a_governor_outlives_trouble_with_the_catalog() -> None:
    class Idle:
        async def engine_stats(self, base_id: str) -> EngineStats:
            raise AssertionError("there is no engine to ask")

    ticks = 0

    def bases() -> tuple[str, ...]:
        nonlocal ticks
        ticks += 1
        if ticks == 1:
            raise UnavailableError("the catalog is busy")
        return ()

    governor = Governor(GovernorPolicy(calm_s=0.001), Probe(Idle(), cpu=lambda: 1.0))
    running = asyncio.create_task(governor.run(bases, interval_s=0.001))
    try:
        async with asyncio.timeout(5), governor.leases.lease("train", "x"):
            assert ticks > 1
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
