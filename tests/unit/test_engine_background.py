"""The background gate: bounded, fair, foreground first."""

import asyncio

import pytest

from lorebase.serving.engine.background import BackgroundGate
from lorebase.serving.errors import InvalidArgumentError, ResourceExhaustedError


class Crowd:
    """Background requests that stay inside until told to leave."""

    def __init__(self, gate: BackgroundGate) -> None:
        self.gate = gate
        self.inside: list[int] = []
        self.leave: dict[int, asyncio.Event] = {}
        self.tasks: dict[int, asyncio.Task[None]] = {}

    async def send(self, *numbers: int) -> None:
        for number in numbers:
            self.leave[number] = asyncio.Event()
            self.tasks[number] = asyncio.create_task(self._run(number))
        await settle()

    async def _run(self, number: int) -> None:
        async with self.gate.enter_background():
            self.inside.append(number)
            try:
                await self.leave[number].wait()
            finally:
                self.inside.remove(number)

    async def release(self, *numbers: int) -> None:
        for number in numbers:
            self.leave[number].set()
        await settle()


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def make(cap: int = 2, busy_cap: int = 1, max_waiting: int = 100) -> Crowd:
    return Crowd(BackgroundGate(cap=cap, busy_cap=busy_cap, max_waiting=max_waiting))


async def test_no_more_than_the_cap_are_inside_and_they_enter_in_order() -> None:
    crowd = make(cap=2)
    await crowd.send(1, 2, 3, 4, 5)
    assert crowd.inside == [1, 2]
    await crowd.release(1)
    assert crowd.inside == [2, 3]
    await crowd.release(2, 3, 4, 5)
    assert (crowd.inside, crowd.gate.running, crowd.gate.waiting) == ([], 0, 0)


async def test_foreground_lowers_the_cap_and_its_end_raises_it() -> None:
    crowd = make(cap=3, busy_cap=1)
    with crowd.gate.enter_foreground():
        await crowd.send(1, 2, 3)
        assert crowd.inside == [1]
    await settle()
    assert crowd.inside == [1, 2, 3]


async def test_those_inside_stay_when_foreground_comes() -> None:
    crowd = make(cap=3, busy_cap=1)
    await crowd.send(1, 2, 3)
    with crowd.gate.enter_foreground():
        await crowd.send(4)
        await crowd.release(1, 2)
        assert crowd.inside == [3]
        await crowd.release(3)
        assert crowd.inside == [4]


async def test_a_busy_cap_of_zero_holds_everything_back() -> None:
    crowd = make(cap=2, busy_cap=0)
    with crowd.gate.enter_foreground():
        await crowd.send(1)
        assert crowd.inside == []
    await settle()
    assert crowd.inside == [1]


async def test_a_full_queue_refuses_at_once() -> None:
    crowd = make(cap=1, max_waiting=1)
    await crowd.send(1, 2)
    with pytest.raises(ResourceExhaustedError, match="most allowed is 1") as caught:
        async with crowd.gate.enter_background():
            pass
    assert caught.value.retry_after_s
    await crowd.release(1)
    assert crowd.inside == [2]


async def test_a_cancelled_waiter_leaves_the_queue() -> None:
    crowd = make(cap=1)
    await crowd.send(1, 2, 3)
    crowd.tasks[2].cancel()
    await settle()
    assert crowd.gate.waiting == 1
    await crowd.release(1)
    assert crowd.inside == [3]


async def test_a_waiter_cancelled_as_it_is_admitted_passes_its_place_on() -> None:
    crowd = make(cap=1)
    await crowd.send(1, 2, 3)
    crowd.leave[1].set()
    await asyncio.sleep(0)  # 1 leaves and 2 is admitted, but has not run yet
    crowd.tasks[2].cancel()
    await settle()
    assert crowd.inside == [3]
    await crowd.release(3)
    assert crowd.gate.running == 0


async def test_a_waiter_cancelled_just_before_a_place_is_free_does_not_take_it() -> None:
    crowd = make(cap=1)
    await crowd.send(1, 2, 3)
    crowd.tasks[2].cancel()
    crowd.leave[1].set()
    await settle()
    assert crowd.inside == [3]


async def test_a_newcomer_does_not_overtake_those_who_wait() -> None:
    crowd = make(cap=2, busy_cap=0)
    with crowd.gate.enter_foreground():
        await crowd.send(1, 2, 3)
    await crowd.send(4)
    assert crowd.inside == [1, 2]


@pytest.mark.parametrize(("cap", "busy"), [(0, 0), (1, 2), (1, -1)])
def test_impossible_caps_are_refused(cap: int, busy: int) -> None:
    with pytest.raises(InvalidArgumentError):
        BackgroundGate(cap=cap, busy_cap=busy, max_waiting=1)
