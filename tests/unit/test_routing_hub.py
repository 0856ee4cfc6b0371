"""The hub: changes arrive at once, acknowledgements count, dead gateways are forgotten."""

import asyncio

import pytest

from lorebase.serving.errors import DeadlineExceededError
from lorebase.serving.routing.hub import Hub, HubTimes

from .gateway_fakes import table

QUICK = HubTimes(poll_s=0.02, liveness_s=5.0)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_first_poll_gets_the_table_at_once() -> None:
    hub = Hub(clock=Clock(), times=QUICK)
    await hub.put(table(3))
    revision, got = await hub.poll("g", -1)
    assert revision == 3
    assert got is not None
    assert got.revision == 3


async def test_poll_without_change_ends_without_a_table() -> None:
    hub = Hub(clock=Clock(), times=QUICK)
    await hub.put(table(3))
    assert await hub.poll("g", 3) == (3, None)


async def test_waiting_poll_is_woken_by_a_change() -> None:
    hub = Hub(clock=Clock(), times=HubTimes(poll_s=3600))
    await hub.put(table(3))
    poll = asyncio.create_task(hub.poll("g", 3))
    await settle()
    await hub.put(table(4))
    revision, got = await asyncio.wait_for(poll, 1)
    assert revision == 4
    assert got is not None


async def test_older_table_is_ignored() -> None:
    hub = Hub(clock=Clock(), times=QUICK)
    await hub.put(table(4))
    await hub.put(table(3))
    assert hub.revision == 4


async def test_acknowledged_once_every_live_gateway_polls_with_it() -> None:
    hub = Hub(clock=Clock(), times=HubTimes(poll_s=3600, liveness_s=5))
    await hub.put(table(1))
    polls = [asyncio.create_task(hub.poll(name, 1)) for name in ("g1", "g2")]
    await settle()
    await hub.put(table(2))
    waiter = asyncio.create_task(hub.wait_acked(2, 10))
    await asyncio.gather(*polls)
    acks = [asyncio.create_task(hub.poll("g1", 2))]
    await settle()
    assert not waiter.done(), "g2 still uses the old table"
    acks.append(asyncio.create_task(hub.poll("g2", 2)))
    assert await asyncio.wait_for(waiter, 1) == ["g1", "g2"]
    for ack in acks:
        ack.cancel()


async def test_gateway_behind_times_out_and_is_named() -> None:
    clock = Clock()
    hub = Hub(clock=clock, times=QUICK)
    await hub.put(table(1))
    await hub.poll("slow", 1)
    waiter = asyncio.create_task(hub.wait_acked(2, 1.0))
    await settle()
    clock.now += 1.5
    with pytest.raises(DeadlineExceededError, match="slow"):
        await waiter


async def test_dead_gateway_is_not_waited_for() -> None:
    clock = Clock()
    hub = Hub(clock=clock, times=QUICK)
    await hub.put(table(1))
    await hub.poll("dead", 1)
    clock.now += 5.1
    await hub.poll("alive", 2)
    assert await hub.wait_acked(2, 1.0) == ["alive"]


async def test_leaving_gateway_is_not_waited_for() -> None:
    hub = Hub(clock=Clock(), times=QUICK)
    await hub.put(table(1))
    await hub.poll("leaving", 1)
    await hub.poll("staying", 2)
    waiter = asyncio.create_task(hub.wait_acked(2, 10))
    await settle()
    assert not waiter.done()
    await hub.leave("leaving")
    assert await asyncio.wait_for(waiter, 1) == ["staying"]


async def test_fresh_hub_does_not_believe_that_there_are_no_gateways() -> None:
    clock = Clock()
    hub = Hub(clock=clock, times=QUICK)
    await hub.put(table(2))
    waiter = asyncio.create_task(hub.wait_acked(2, 60))
    await asyncio.sleep(0.15)
    assert not waiter.done(), "a gateway that polls every second may still come"
    clock.now += 5.1
    assert await asyncio.wait_for(waiter, 1) == []


async def test_long_poll_counts_as_life_until_it_ends() -> None:
    clock = Clock()
    hub = Hub(clock=clock, times=HubTimes(poll_s=0.05, liveness_s=5))
    await hub.put(table(1))
    poll = asyncio.create_task(hub.poll("g", 1))
    await settle()
    clock.now += 4
    await poll
    clock.now += 4
    assert hub.live() == {"g": 1}
    clock.now += 2
    assert hub.live() == {}
