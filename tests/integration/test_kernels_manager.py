"""Who keeps a place and a slot when both are short: never one that the step itself needs."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

from lorebase.kernels.lora.pool import AdapterPool, PoolFullError
from tests.integration.engine_world import (
    World,
    kept_environment,
    make_world,
    running,
    settings,
)

if TYPE_CHECKING:
    from lorebase.kernels.vllm.manager import PooledWorkerManager

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.filterwarnings("ignore"),  # vLLM and what it imports warn of each other
]
# Ranks of adapters 1 to 6 are 4, 8, 2, 16, 4, 8; the engine has two slots and four places.


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with kept_environment():
        yield make_world(tmp_path_factory.mktemp("world"), "llama")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def idle(world: World) -> "AsyncIterator[PooledWorkerManager]":
    """The manager of an engine that has nothing to do."""
    async with running(settings(world)) as engine:
        core = engine._driver._engine.engine_core.engine_core  # type: ignore[attr-defined]
        yield core.model_executor.driver_worker.worker.model_runner.lora_manager


@pytest.fixture
def manager(
    idle: "PooledWorkerManager", monkeypatch: pytest.MonkeyPatch
) -> "Iterator[PooledWorkerManager]":
    idle.remove_all_adapters()
    with monkeypatch.context():
        yield idle
    idle.remove_all_adapters()


class Steps:
    """Announces adapters to a manager and gives it steps, by number."""

    def __init__(self, manager: "PooledWorkerManager", world: World) -> None:
        from vllm.lora.request import LoRARequest

        self.manager, self.models = manager, manager._manager
        self._requests = {
            number: LoRARequest(f"a{number}", number, str(path))
            for number, path in enumerate(world.adapters, start=1)
        }

    def announce(self, *numbers: int) -> None:
        for number in numbers:
            assert self.manager.add_adapter(self._requests[number])

    def step(self, *numbers: int) -> None:
        """In this order, which vLLM's sets leave to chance."""
        chosen: Any = [self._requests[number] for number in numbers]
        self.manager._apply_adapters(chosen)

    def nbytes(self, *numbers: int) -> int:
        """What adapters take in host memory, and in a buffer."""
        self.announce(*numbers)
        total = sum(self.manager.bytes_of(number) for number in numbers)
        self.manager.remove_all_adapters()
        return total

    @property
    def held(self) -> list[int]:
        return list(self.models._registered_adapters.order)

    @property
    def in_slots(self) -> set[int]:
        """Adapters in slots, each of which holds weights."""
        pool, ids = self.models._weights.pool, self.models.lora_index_to_id
        filled = {
            identity
            for slot, identity in enumerate(ids)
            if identity is not None and any(pool.read(layer, slot)[0] for layer in pool.layers)
        }
        assert filled == {one for one in ids if one} == set(self.models._active_adapters)
        return filled


@pytest.fixture
def steps(manager: "PooledWorkerManager", world: World) -> Steps:
    return Steps(manager, world)


def _bound(steps: Steps, monkeypatch: pytest.MonkeyPatch, budget: int) -> None:
    monkeypatch.setattr(steps.models._registered_adapters, "_budget_bytes", budget)


def _buffer(steps: Steps, monkeypatch: pytest.MonkeyPatch, budget: int) -> None:
    """Lets adapters be copied into so many bytes, as on a device."""
    weights = steps.models._weights
    pool = AdapterPool(slots=2, budget_bytes=budget, dtype=weights.dtype, max_rank=16)
    for layer in weights.pool.layers:
        pool.add_layer(layer.in_features, layer.slice_sizes)
    monkeypatch.setattr(weights, "pool", pool)


async def test_idle_adapters_in_slots_leave_host_memory_for_a_step(
    steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    _bound(steps, monkeypatch, steps.nbytes(1, 2))
    steps.step(1, 2)
    steps.step(3)  # no bytes, and both others are in slots
    assert steps.held == [2, 3]
    assert steps.in_slots == {2, 3}


async def test_adapters_in_slots_leave_after_those_without(
    steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    _bound(steps, monkeypatch, steps.nbytes(1, 2))
    steps.step(1)
    steps.announce(2, 5)
    assert steps.held == [1, 5]


@pytest.mark.parametrize("order", [(3, 1), (1, 3)])
async def test_a_step_never_makes_an_adapter_leave_that_it_uses(
    steps: Steps, monkeypatch: pytest.MonkeyPatch, order: tuple[int, int]
) -> None:
    _bound(steps, monkeypatch, steps.nbytes(1, 2))
    steps.announce(1, 2)  # 1 is the oldest and has no slot yet
    steps.step(*order)
    assert set(steps.held) == steps.in_slots == {1, 3}


@pytest.mark.parametrize("order", [(6, 1), (1, 6)])
async def test_places_are_kept_like_bytes(steps: Steps, order: tuple[int, int]) -> None:
    steps.announce(1, 2, 3, 5)
    steps.step(*order)
    assert set(steps.held) == {1, 3, 5, 6}
    assert steps.in_slots == {1, 6}


async def test_a_step_whose_adapters_do_not_fit_together_says_so(
    steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lorebase.kernels.vllm.registered import HostFullError

    _bound(steps, monkeypatch, steps.nbytes(4))
    steps.announce(1)
    with pytest.raises(HostFullError, match="does not fit beside those in use"):
        steps.step(1, 4)
    assert steps.held == [1]


async def test_idle_slots_give_up_their_bytes_to_a_step(
    steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    _buffer(steps, monkeypatch, steps.nbytes(4))
    steps.step(1, 2)
    steps.step(4)  # as large as the buffer; one free slot is not enough
    assert steps.in_slots == {4}
    steps.step(2, 1)
    assert steps.in_slots == {1, 2}


async def test_an_adapter_that_got_no_memory_has_no_slot(
    steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    _buffer(steps, monkeypatch, steps.nbytes(4))
    with pytest.raises(PoolFullError):
        steps.step(1, 4)
    assert steps.in_slots == {1}
    steps.step(4)
    assert steps.in_slots == {4}


async def test_whatever_fails_while_a_slot_is_filled_leaves_it_to_nobody(
    steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    # An id with an empty slot would be taken for served: its requests would get the bare base.
    def lost(*_: Any) -> None:
        raise RuntimeError("device lost")

    with monkeypatch.context() as broken:
        broken.setattr(steps.models._weights.pool, "assign", lost)
        with pytest.raises(RuntimeError, match="device lost"):
            steps.step(1)
    assert steps.in_slots == set()
    steps.step(1)
    assert steps.in_slots == {1}


async def test_a_step_beside_pinned_adapters_says_that_they_are_in_the_way(steps: Steps) -> None:
    steps.announce(1, 2)
    for number in (1, 2):
        steps.manager.pin_adapter(number)
    with pytest.raises(RuntimeError, match="pin fewer adapters"):
        steps.step(3)
    assert steps.in_slots == {1, 2}


async def test_adapters_that_vllm_makes_up_for_warming_up_are_all_alike(
    manager: "PooledWorkerManager",
) -> None:
    from vllm.lora.request import LoRARequest

    with manager.dummy_lora_cache():
        for number in (101, 102, 103):
            assert manager.add_dummy_lora(LoRARequest(f"dummy{number}", number, "/none"), rank=8)
    sizes = {manager.bytes_of(number) for number in (101, 102, 103)}
    assert len(sizes) == 1


async def _claimed(steps: Steps, *numbers: int) -> list[int | None]:
    loop, answers = asyncio.get_running_loop(), []
    for number in numbers:
        assert steps.manager.prefetch(steps._requests[number])
        answer = loop.create_future()
        steps.manager.claim(
            number, lambda taken, to=answer: loop.call_soon_threadsafe(to.set_result, taken)
        )
        answers.append(await asyncio.wait_for(answer, 10))
    return answers


async def test_a_claimed_adapter_waits_for_the_step_that_needs_it(
    steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = [steps.nbytes(3), steps.nbytes(1)]
    assert await _claimed(steps, 3, 1) == expected
    assert steps.held == []

    def never(_: object) -> None:
        raise AssertionError("read in a step")

    monkeypatch.setattr(steps.manager, "_prepared", never)
    steps.step(3)
    assert steps.held == [3]
    assert steps.in_slots == {3}
    steps.manager.remove_adapter(1)
    assert steps.manager._prefetcher.kept_bytes == 0


async def test_what_does_not_fit_or_can_not_be_read_is_not_promised_to_a_step(
    steps: Steps, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm.lora.request import LoRARequest

    small, large = steps.nbytes(1), steps.nbytes(2)
    _bound(steps, monkeypatch, small + large - 1)
    assert await _claimed(steps, 1, 2) == [small, None]
    steps.announce(1)
    steps.announce(2)  # between two steps, where somebody may leave for it
    assert steps.held == [2]
    steps._requests[9] = LoRARequest("a9", 9, str(world.base / "nowhere"))
    assert await _claimed(steps, 9) == [None]
    with pytest.raises(FileNotFoundError, match="got no adapter_model"):
        steps.announce(9)
    steps.manager.remove_adapter(2)
    assert await _claimed(steps, 1) == [small]
