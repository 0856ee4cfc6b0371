"""Admission: bounded at work, bounded in the queue, first come first served."""

import asyncio

import pytest

from lorebase.serving.errors import ResourceExhaustedError
from lorebase.serving.gateway.admission import Admission


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


async def hold(admission: Admission, log: list[str], name: str, release: asyncio.Event) -> None:
    async with admission.slot():
        log.append(name)
        await release.wait()


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_takes_as_many_as_it_may_and_queues_the_next() -> None:
    admission = Admission(max_concurrency=2, max_queue=1, clock=Clock())
    log: list[str] = []
    release = asyncio.Event()
    tasks = [asyncio.create_task(hold(admission, log, name, release)) for name in "abc"]
    await settle()
    assert (log, admission.running, admission.waiting) == (["a", "b"], 2, 1)
    release.set()
    await asyncio.gather(*tasks)
    assert log == ["a", "b", "c"]
    assert (admission.running, admission.waiting) == (0, 0)


async def test_full_queue_refuses_with_a_growing_estimate() -> None:
    clock = Clock()
    admission = Admission(max_concurrency=1, max_queue=2, clock=clock)
    release = asyncio.Event()
    tasks = [asyncio.create_task(hold(admission, [], name, release)) for name in "abc"]
    await settle()
    with pytest.raises(ResourceExhaustedError) as caught:
        async with admission.slot():
            pass
    # Three turns of the initial mean of one second.
    assert caught.value.retry_after_s == pytest.approx(3.0)
    assert "2 wait" in caught.value.message
    clock.now += 11.0
    release.set()
    await asyncio.gather(*tasks)
    release.clear()
    tasks = [asyncio.create_task(hold(admission, [], name, release)) for name in "abc"]
    await settle()
    with pytest.raises(ResourceExhaustedError) as caught:
        async with admission.slot():
            pass
    assert caught.value.retry_after_s is not None
    assert 3.0 < caught.value.retry_after_s <= 30.0
    release.set()
    await asyncio.gather(*tasks)


async def test_waiting_time_is_told() -> None:
    clock = Clock()
    admission = Admission(max_concurrency=1, max_queue=1, clock=clock)
    release = asyncio.Event()
    first = asyncio.create_task(hold(admission, [], "a", release))
    await settle()

    async def second() -> float:
        async with admission.slot() as waited:
            return waited

    task = asyncio.create_task(second())
    await settle()
    clock.now += 2.5
    release.set()
    assert await task == pytest.approx(2.5)
    await first


async def test_one_that_gives_up_waiting_leaves_the_queue_and_takes_no_slot() -> None:
    admission = Admission(max_concurrency=1, max_queue=2, clock=Clock())
    log: list[str] = []
    release = asyncio.Event()
    a = asyncio.create_task(hold(admission, log, "a", release))
    await settle()
    b = asyncio.create_task(hold(admission, log, "b", release))
    c = asyncio.create_task(hold(admission, log, "c", release))
    await settle()
    b.cancel()
    await settle()
    assert admission.waiting == 1
    release.set()
    await asyncio.gather(a, c)
    assert log == ["a", "c"]
    assert admission.running == 0


async def test_slot_handed_to_one_that_is_cancelled_in_the_same_moment_is_passed_on() -> None:
    admission = Admission(max_concurrency=1, max_queue=2, clock=Clock())
    log: list[str] = []
    release = asyncio.Event()
    a = asyncio.create_task(hold(admission, log, "a", release))
    await settle()
    b = asyncio.create_task(hold(admission, log, "b", release))
    c = asyncio.create_task(hold(admission, log, "c", release))
    await settle()
    release.set()
    await asyncio.sleep(0)  # a has woken; b is given the slot when a leaves
    await asyncio.sleep(0)
    b.cancel()
    await asyncio.gather(a, b, c, return_exceptions=True)
    assert "c" in log
    assert admission.running == 0


async def test_one_cancelled_in_the_turn_in_which_a_slot_is_freed_costs_nobody_the_slot() -> None:
    admission = Admission(max_concurrency=1, max_queue=2, clock=Clock())
    log: list[str] = []
    first, second = asyncio.Event(), asyncio.Event()
    second.set()
    a = asyncio.create_task(hold(admission, log, "a", first))
    await settle()
    b = asyncio.create_task(hold(admission, log, "b", second))
    await settle()
    # a runs before b in the next turn: it frees its slot when b is cancelled but not yet told.
    first.set()
    b.cancel()
    with pytest.raises(asyncio.CancelledError):
        await b
    await a
    assert (admission.running, admission.waiting) == (0, 0)
    await hold(admission, log, "c", second)
    assert log == ["a", "c"]


async def test_a_deadline_that_passes_in_the_turn_in_which_a_slot_is_freed_is_a_timeout() -> None:
    admission = Admission(max_concurrency=1, max_queue=2, clock=Clock())
    first = asyncio.Event()
    a = asyncio.create_task(hold(admission, [], "a", first))
    await settle()

    limits: list[asyncio.Timeout] = []

    async def limited() -> None:
        async with asyncio.timeout(None) as deadline:
            limits.append(deadline)
            async with admission.slot():
                pass

    b = asyncio.create_task(limited())
    await settle()
    limits[0].reschedule(0.0)
    first.set()
    with pytest.raises(TimeoutError):
        await b
    await a
    assert (admission.running, admission.waiting) == (0, 0)


async def test_an_error_inside_frees_the_slot() -> None:
    admission = Admission(max_concurrency=1, max_queue=0, clock=Clock())
    with pytest.raises(ValueError, match="inside"):
        async with admission.slot():
            raise ValueError("inside")
    assert admission.running == 0
