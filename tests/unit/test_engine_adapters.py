"""The adapter registry: one load per version, never a confused one, never a lost one."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack

import pytest

from lorebase.serving.engine.adapters import MAX_PREFETCHES, AdapterRegistry
from lorebase.serving.engine.loaded import LoadedAdapter
from lorebase.serving.engine.protocol import VersionRef
from lorebase.serving.errors import InvalidArgumentError, ResourceExhaustedError


def version(name: str, digest: str = "sha256:1") -> VersionRef:
    return VersionRef(id=name, base_id="old", digest=digest, path=f"store/{name}", rank=4)


class FakeEngine:
    """Holds adapters by integer id and breaks if it is asked for the impossible."""

    def __init__(self) -> None:
        self.held: dict[int, str] = {}
        self.loads: list[str] = []
        self.unloads: list[str] = []
        self.most = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.leaving = asyncio.Event()
        self.leaving.set()
        self.stays: Exception | None = None
        self.fail: Callable[[LoadedAdapter], Exception | None] = lambda _: None
        self.taken = 0

    async def load(self, adapter: LoadedAdapter, room: Awaitable[object]) -> int:
        self.loads.append(adapter.version.id)
        await room
        assert adapter.int_id not in self.held
        self.held[adapter.int_id] = adapter.version.id
        self.most = max(self.most, len(self.held))
        await self.gate.wait()
        if (error := self.fail(adapter)) is not None:
            raise error
        return self.taken

    async def unload(self, adapter: LoadedAdapter) -> None:
        await asyncio.sleep(0)
        self.unloads.append(adapter.version.id)
        await self.leaving.wait()
        if self.stays is not None:
            raise self.stays
        self.held.pop(adapter.int_id, None)


def make(capacity: int = 2, wait_s: float = 0.05) -> tuple[FakeEngine, AdapterRegistry]:
    engine = FakeEngine()
    return engine, AdapterRegistry(
        capacity=capacity, load=engine.load, unload=engine.unload, wait_s=wait_s
    )


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_concurrent_first_requests_cause_one_load() -> None:
    engine, registry = make()
    adapters = await asyncio.gather(*(registry.ensure(version("a")) for _ in range(10)))
    assert engine.loads == ["a"]
    assert len({adapter.int_id for adapter in adapters}) == 1


async def test_a_cancelled_first_caller_does_not_fail_the_others() -> None:
    engine, registry = make()
    engine.gate.clear()
    first = asyncio.create_task(registry.ensure(version("a")))
    second = asyncio.create_task(registry.ensure(version("a")))
    await settle()
    first.cancel()
    engine.gate.set()
    assert (await second).version.id == "a"
    assert engine.loads == ["a"]


async def test_a_failed_load_reaches_all_waiters_leaves_nothing_and_may_be_retried() -> None:
    engine, registry = make(capacity=1)
    engine.fail = lambda _: InvalidArgumentError("bad shapes")
    results = await asyncio.gather(
        *(registry.ensure(version("a")) for _ in range(3)), return_exceptions=True
    )
    assert [type(r) for r in results] == [InvalidArgumentError] * 3
    assert engine.held == {}
    assert registry.loaded == ()
    engine.fail = lambda _: None
    await registry.ensure(version("a"))
    assert registry.loaded == ("a",)


async def test_same_id_with_other_content_is_refused() -> None:
    _, registry = make()
    await registry.ensure(version("a", "sha256:1"))
    with pytest.raises(InvalidArgumentError, match="versions are immutable"):
        await registry.ensure(version("a", "sha256:2"))


async def test_the_least_recently_used_idle_version_leaves_for_a_new_one() -> None:
    engine, registry = make(capacity=2)
    for name in ("a", "b", "a", "c"):
        await registry.ensure(version(name))
    assert registry.loaded == ("a", "c")
    assert engine.unloads == ["b"]
    assert engine.most == 2


async def test_a_version_in_use_is_never_evicted() -> None:
    engine, registry = make(capacity=2)
    async with registry.use(version("a")):
        for name in ("b", "c", "d"):
            await registry.ensure(version(name))
        assert "a" in registry.loaded
    assert "a" not in engine.unloads


async def test_those_who_leave_for_several_newcomers_leave_at_a_time() -> None:
    engine, registry = make(capacity=3)
    for name in "abc":
        await registry.ensure(version(name))
    engine.leaving.clear()
    newcomers = [asyncio.create_task(registry.ensure(version(name))) for name in "def"]
    await settle()
    assert engine.unloads == ["a", "b", "c"]  # one after the other would take a step each
    assert engine.loads == [*"abcdef"]
    assert set(engine.held.values()) == {*"abc"}  # the newcomers wait for room
    engine.leaving.set()
    await asyncio.gather(*newcomers)
    assert set(engine.held.values()) == {*"def"}
    assert engine.most == 3


async def test_who_leaves_for_a_load_that_gives_up_leaves_nevertheless() -> None:
    engine, registry = make(capacity=1)
    await registry.ensure(version("a"))
    engine.leaving.clear()
    load = engine.load

    async def impatient(adapter: LoadedAdapter, room: Awaitable[object]) -> int:
        async with asyncio.timeout(0.01):
            return await load(adapter, room)

    registry._load = impatient
    newcomer = asyncio.create_task(registry.ensure(version("b")))
    await asyncio.sleep(0.05)
    engine.leaving.set()
    with pytest.raises(TimeoutError):
        await newcomer
    await settle()
    assert engine.held == {}


async def test_a_newcomer_hears_of_it_when_nobody_could_be_made_to_leave() -> None:
    engine, registry = make(capacity=1)
    await registry.ensure(version("a"))
    engine.stays = RuntimeError("no contact")
    with pytest.raises(RuntimeError, match="no contact"):
        await registry.ensure(version("b"))
    engine.stays = None
    await registry.ensure(version("c"))
    assert registry.loaded == ("c",)


async def test_when_all_are_in_use_a_newcomer_waits_for_the_first_to_be_idle() -> None:
    engine, registry = make(capacity=1, wait_s=5)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(registry.use(version("a")))
        newcomer = asyncio.create_task(registry.ensure(version("b")))
        await settle()
        assert not newcomer.done()
        await stack.aclose()
        await newcomer
    assert engine.unloads == ["a"]
    assert engine.most == 1


async def test_when_all_stay_in_use_a_newcomer_is_told_to_retry() -> None:
    engine, registry = make(capacity=1)
    async with registry.use(version("a")):
        with pytest.raises(ResourceExhaustedError, match="max_cpu_loras") as caught:
            await registry.ensure(version("b"))
    assert caught.value.retry_after_s
    assert engine.loads == ["a"]
    await registry.ensure(version("b"))


async def test_drop_waits_for_users_and_says_whether_there_was_anything() -> None:
    engine, registry = make()
    assert await registry.drop("a") is False
    async with registry.use(version("a")):
        dropping = asyncio.create_task(registry.drop("a"))
        await settle()
        assert not dropping.done()
        assert engine.unloads == []
    assert await dropping is True
    assert engine.unloads == ["a"]
    assert await registry.drop("a") is False


async def test_a_request_during_a_drop_gets_a_fresh_load_under_another_id() -> None:
    engine, registry = make()
    async with registry.use(version("a")) as old:
        dropping = asyncio.create_task(registry.drop("a"))
        await settle()
        async with registry.use(version("a")) as new:
            assert new.int_id != old.int_id
            assert new.name != old.name
            assert len(engine.held) == 2
    await dropping
    assert engine.held == {new.int_id: "a"}


async def test_integer_ids_are_never_used_again() -> None:
    _, registry = make(capacity=1)
    seen = []
    for name in ("a", "b", "a", "b"):
        seen.append((await registry.ensure(version(name))).int_id)
    await registry.drop("b")
    seen.append((await registry.ensure(version("b"))).int_id)
    assert seen == sorted(set(seen))


async def test_a_drop_whose_caller_is_cancelled_still_completes() -> None:
    engine, registry = make(capacity=1)
    async with registry.use(version("a")):
        dropping = asyncio.create_task(registry.drop("a"))
        await settle()
        dropping.cancel()
        await settle()
    await settle()
    assert engine.unloads == ["a"]
    await registry.ensure(version("b"))


async def test_many_requests_over_few_places_never_hold_more_than_the_capacity() -> None:
    engine, registry = make(capacity=3, wait_s=5)

    async def request(number: int) -> None:
        async with registry.use(version(f"v{number % 7}")) as adapter:
            for _ in range(number % 4):
                await asyncio.sleep(0)
                assert engine.held[adapter.int_id] == adapter.version.id

    await asyncio.gather(*(request(n) for n in range(200)))
    assert engine.most <= 3
    assert len(engine.held) <= 3


SIZES = {"small": 10, "big": 60, "huge": 101}


def make_weighed(
    budget_bytes: int = 100, wait_s: float = 0.05, capacity: int = 99
) -> tuple[FakeEngine, AdapterRegistry]:
    engine = FakeEngine()

    async def measure(version: VersionRef) -> int:
        return SIZES[version.id.partition("-")[0]]

    return engine, AdapterRegistry(
        capacity=capacity,
        load=engine.load,
        unload=engine.unload,
        wait_s=wait_s,
        budget_bytes=budget_bytes,
        measure=measure,
    )


async def test_as_many_versions_leave_as_a_new_one_needs_bytes() -> None:
    engine, registry = make_weighed()
    for name in ("small-1", "small-2", "big-1", "small-1"):
        await registry.ensure(version(name))
    assert registry.held_bytes == 80
    await registry.ensure(version("big-2"))
    assert engine.unloads == ["small-2", "big-1"]
    assert registry.loaded == ("small-1", "big-2")
    assert registry.held_bytes == 70


async def test_a_version_that_needs_bytes_of_ones_in_use_waits_and_is_told_of_both_bounds() -> None:
    _, registry = make_weighed()
    async with registry.use(version("big-1")):
        await registry.ensure(version("small-1"))
        with pytest.raises(ResourceExhaustedError, match=r"60 bytes .*adapter_host_bytes \(100\)"):
            await registry.ensure(version("big-2"))
    await registry.ensure(version("big-2"))
    assert registry.held_bytes == 60


async def test_a_version_larger_than_the_budget_is_refused_and_makes_nobody_leave() -> None:
    engine, registry = make_weighed()
    await registry.ensure(version("small-1"))
    with pytest.raises(InvalidArgumentError, match="takes 101 bytes"):
        await registry.ensure(version("huge-1"))
    assert engine.unloads == []
    assert registry.loaded == ("small-1",)


async def test_a_version_that_takes_less_than_was_measured_leaves_room_for_others() -> None:
    engine, registry = make_weighed()
    engine.taken = 30
    for number in (1, 2):  # of 60 bytes each, as it seems
        await registry.ensure(version(f"big-{number}"))
    assert registry.loaded == ("big-1", "big-2")
    assert registry.held_bytes == 60
    await registry.drop("big-1")
    assert registry.held_bytes == 30


async def test_a_failed_load_gives_its_bytes_back() -> None:
    engine, registry = make_weighed()
    engine.fail = lambda _: InvalidArgumentError("bad shapes")
    with pytest.raises(InvalidArgumentError):
        await registry.ensure(version("big-1"))
    assert registry.held_bytes == 0


async def test_a_prefetched_version_is_loaded_before_anybody_asks_and_only_once() -> None:
    engine, registry = make_weighed()
    registry.prefetch(version("small-1"))
    registry.prefetch(version("small-1"))
    await settle()
    assert engine.loads == ["small-1"]
    await registry.ensure(version("small-1"))
    assert engine.loads == ["small-1"]


async def test_an_idle_version_leaves_for_a_prefetched_one_but_none_in_use_or_announced() -> None:
    engine, registry = make(capacity=2)
    async with registry.use(version("a")):
        await registry.ensure(version("b"))
        registry.prefetch(version("c"))
        await settle()
        assert registry.loaded == ("a", "c")
        async with registry.use(version("c")):
            registry.prefetch(version("d"))
            await settle()
            assert engine.loads == ["a", "b", "c"]
    registry.prefetch(version("a"))  # the oldest, but a queued request will use it
    registry.prefetch(version("e"))
    await settle()
    assert registry.loaded == ("a", "e")


async def test_prefetching_never_raises_and_is_bounded() -> None:
    engine, registry = make_weighed()
    engine.fail = lambda _: InvalidArgumentError("bad shapes")
    registry.prefetch(version("small-1"))
    await settle()
    assert registry.held_bytes == 0
    engine.gate.clear()
    for number in range(20):
        registry.prefetch(version(f"small-{number}"))
    await settle()
    assert len(engine.loads) == 1 + MAX_PREFETCHES
