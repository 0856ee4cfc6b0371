"""Another architecture, and a KV cache too small for what is asked of it."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from lorebase.serving.engine import BACKGROUND_PRIORITY, Sampling, complete, complete_many
from lorebase.serving.errors import EngineDeadError
from tests.integration.engine_world import (
    PROMPTS,
    Oracle,
    World,
    kept_environment,
    make_world,
    request,
    running,
    settings,
    tokens_of,
    until,
)

if TYPE_CHECKING:
    from lorebase.serving.engine.vllm_engine import VllmEngine

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.filterwarnings("ignore"),  # vLLM and what it imports warn of each other
]

LONG = Sampling(max_tokens=220, ignore_eos=True)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with kept_environment():
        yield make_world(tmp_path_factory.mktemp("world"), "qwen3", adapters=2)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(world: World) -> "AsyncIterator[VllmEngine]":
    # 1 MiB is 1,024 tokens of this base: four long requests and a bit.
    small = settings(
        world, kv_cache_bytes=1 << 20, max_num_seqs=8, background_cap=7, background_cap_busy=7
    )
    async with running(small) as started:
        yield started


async def test_qwen3_greedy_tokens_equal_transformers_and_peft(
    engine: "VllmEngine", world: World
) -> None:
    oracle = Oracle(world)
    for adapter in (None, 0, 1):
        version = None if adapter is None else world.version(adapter)
        ours = [await tokens_of(engine, prompt, version) for prompt in PROMPTS]
        assert ours == oracle.greedy(PROMPTS, adapter)


async def test_the_foreground_takes_kv_blocks_from_the_background_which_ends_right(
    engine: "VllmEngine",
) -> None:
    """With vLLM's own policy the long foreground prompt waits until background requests end."""
    prompts = [f"{n} background" for n in range(7)]
    solo = [await tokens_of(engine, prompt, None, LONG) for prompt in prompts]
    foreground = "foreground " * 14
    expected = await tokens_of(engine, foreground, None)
    done: list[int] = []

    async def background(number: int) -> tuple[int, ...]:
        answer = await complete(engine, request(prompts[number], None, LONG, BACKGROUND_PRIORITY))
        done.append(number)
        return answer.token_ids

    tasks = [asyncio.create_task(background(n)) for n in range(7)]
    scheduler = engine._driver._engine.engine_core.engine_core.scheduler  # type: ignore[attr-defined]
    pool = scheduler.kv_cache_manager.block_pool
    await until(lambda: pool.get_num_free_blocks() <= 3)
    assert await tokens_of(engine, foreground, None) == expected
    assert done == []
    assert list(await asyncio.gather(*tasks)) == solo


async def test_two_engines_in_one_process_answer_at_the_same_time_as_each_does_alone(
    engine: "VllmEngine", world: World, tmp_path_factory: pytest.TempPathFactory
) -> None:
    other_world = make_world(tmp_path_factory.mktemp("other"), "llama", adapters=1)
    async with running(settings(other_world)) as other:
        sides = ((engine, world.version(0)), (other, other_world.version(0)))
        batches = [
            (side, [request(p, v) for p in PROMPTS * 3 for v in (None, version)])
            for side, version in sides
        ]
        alone = [await complete_many(*batch) for batch in batches]
        together = await asyncio.gather(*(complete_many(*batch) for batch in batches))
    assert together == alone
    assert together[0] != together[1]
    assert await complete_many(*batches[0]) == alone[0]


async def test_an_engine_whose_step_fails_is_dead_for_all_and_says_so(
    engine: "VllmEngine", world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(settings(world, base_id="doomed")) as doomed:
        before = await tokens_of(engine, PROMPTS[0], None)
        assert await tokens_of(doomed, PROMPTS[0], None) == before

        def broken() -> None:
            raise RuntimeError("out of luck")

        running_call = asyncio.create_task(complete(doomed, request(sampling=LONG)))
        await until(lambda: doomed.unfinished_requests() == 1)
        monkeypatch.setattr(doomed._driver._engine, "step", broken)  # type: ignore[attr-defined]
        with pytest.raises(EngineDeadError):
            await running_call
        with pytest.raises(EngineDeadError, match="out of luck"):
            await doomed.check_health()
        with pytest.raises(EngineDeadError):
            await complete(doomed, request())
        with pytest.raises(EngineDeadError):
            await doomed.ensure_adapter(world.version(0, base_id="doomed"))
        # The other engine in this process does not notice.
        assert await tokens_of(engine, PROMPTS[0], None) == before
