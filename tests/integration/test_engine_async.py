"""The serving engine on real AsyncLLM: same answers, processes that come, die and go."""

import asyncio
import dataclasses
import json
import logging
import queue
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from logging.handlers import QueueHandler
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import psutil
import pytest
import pytest_asyncio

from lorebase.serving.engine import (
    BACKGROUND_PRIORITY,
    Sampling,
    complete,
    complete_many,
)
from lorebase.serving.errors import EngineDeadError, InvalidArgumentError
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
    pytest.mark.timeout(300),  # two processes import vLLM
]

LONG = Sampling(max_tokens=200, ignore_eos=True)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with kept_environment():
        yield make_world(tmp_path_factory.mktemp("world"), "llama", adapters=3)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(world: World) -> "AsyncIterator[VllmEngine]":
    complaints = queue.SimpleQueue[logging.LogRecord]()
    listener = QueueHandler(complaints)
    listener.setLevel(logging.ERROR)
    async with running(settings(world, backend="async", stream_interval=4)) as started:
        yield started
        logging.getLogger("vllm").addHandler(listener)
    logging.getLogger("vllm").removeHandler(listener)
    assert not _engine_cores()
    assert complaints.empty(), complaints.get_nowait()


def _engine_cores() -> list[psutil.Process]:
    return [p for p in psutil.Process().children(recursive=True) if "EngineCore" in p.name()]


async def test_greedy_tokens_equal_transformers_and_peft_in_a_mixed_batch(
    engine: "VllmEngine", world: World
) -> None:
    oracle = Oracle(world)
    for adapter in (None, 0, 1):
        expected = oracle.greedy(PROMPTS, adapter)
        version = None if adapter is None else world.version(adapter)
        answers = await complete_many(engine, [request(prompt, version) for prompt in PROMPTS])
        assert [a.token_ids for a in answers] == expected


async def test_a_base_request_beside_full_slots_gets_no_adapters_weights(
    engine: "VllmEngine", world: World
) -> None:
    alone = await tokens_of(engine, PROMPTS[0], None, LONG)
    together = await complete_many(
        engine,
        [request(PROMPTS[0], None, LONG)]
        + [request(PROMPTS[1], world.version(n), LONG) for n in (0, 1)],
    )
    assert together[0].token_ids == alone


async def test_foreground_streams_in_intervals_and_background_answers_at_once(
    engine: "VllmEngine",
) -> None:
    streamed = [c async for c in engine.generate(request(sampling=LONG))]
    # A reader that lags gets several intervals in one chunk.
    assert {len(c.token_ids) % 4 for c in streamed[1:-1]} == {0}
    assert len(streamed[0].token_ids) == 1
    assert 10 < len(streamed) <= 52
    whole = [c async for c in engine.generate(request(sampling=LONG, priority=BACKGROUND_PRIORITY))]
    assert len(whole) == 1
    assert whole[0].token_ids == sum((c.token_ids for c in streamed), ())


async def test_cancelling_aborts_in_the_engine_core(engine: "VllmEngine", world: World) -> None:
    calls = [
        asyncio.create_task(complete(engine, request(version=world.version(n % 2), sampling=LONG)))
        for n in range(6)
    ]
    await until(lambda: engine.unfinished_requests() == 6)
    for call in calls:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)
    await until(lambda: engine.unfinished_requests() == 0)
    assert (await engine.stats()).running_foreground == 0


async def test_a_bad_adapter_never_kills_the_engine(
    engine: "VllmEngine", world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = world.version(0, id="v-missing", path=str(world.base / "nowhere"))
    with pytest.raises(InvalidArgumentError):
        await complete(engine, request(version=missing))
    # Even if our own check had let it through.
    monkeypatch.setattr("lorebase.serving.engine.vllm_engine.check_adapter", lambda *_: None)
    with pytest.raises(InvalidArgumentError, match="can't load adapter version 'v-missing'"):
        await complete(engine, request(version=missing))
    await engine.check_health()
    assert len(await tokens_of(engine, PROMPTS[0], world.version(0))) == 16


async def test_a_new_adapter_waits_for_no_step_but_the_one_that_needs_it(
    engine: "VllmEngine", world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = await tokens_of(engine, PROMPTS[0], world.version(2))

    async def never(method: str, *_: object) -> None:
        raise AssertionError(f"{method} was ordered between two steps")

    with monkeypatch.context() as patch:
        patch.setattr(engine._driver, "call_worker", never)
        assert await tokens_of(engine, PROMPTS[0], world.version(2, id="claimed")) == known
        assert await engine.drop_adapter("claimed")
    # Claimed, and dropped before any step wanted it.
    await engine.ensure_adapter(world.version(2, id="unused"))
    assert await engine.drop_adapter("unused")
    assert await tokens_of(engine, PROMPTS[0], world.version(2, id="unused")) == known


async def test_without_the_side_channel_adapters_are_added_between_steps(
    engine: "VllmEngine", world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def gone(*_: object) -> None:
        raise ConnectionError("the worker left the side channel")

    known = await tokens_of(engine, PROMPTS[0], world.version(2))
    driver, ordered = engine._driver, []
    call_worker = driver.call_worker

    async def recorded(method: str, *arguments: object) -> object:
        ordered.append(method)
        return await call_worker(method, *arguments)

    monkeypatch.setattr(driver, "call_worker", recorded)
    monkeypatch.setattr(driver._side, "ask", gone)  # type: ignore[attr-defined]
    assert await tokens_of(engine, PROMPTS[0], world.version(2, id="added")) == known
    assert ordered[0] == "prefetch_adapter"
    assert ordered[-1] == "add_adapter"


@pytest.mark.parametrize("failure", [None, Exception("Call to collective_rpc method failed")])
async def test_an_engine_that_gets_no_side_channel_serves_without(
    failure: Exception | None, caplog: pytest.LogCaptureFixture
) -> None:
    from lorebase.serving.engine.vllm_async import AsyncDriver

    asked = []

    class Core:
        async def collective_rpc(self, method: str, args: tuple[str, ...]) -> list[bool]:
            asked.append((method, Path(args[0])))
            if failure is not None:
                raise failure
            return [False]  # vLLM's own LoRA serves

    driver = AsyncDriver(Core())  # type: ignore[arg-type]
    await driver.open_side_channel()
    [(method, address)] = asked
    assert method == "open_side_channel"
    assert not address.parent.exists()
    assert ("no side channel" in caplog.text) == (failure is not None)
    assert await driver.claim("name", 1, "path") is None


@pytest.mark.parametrize("unfinished", [0, 1])
async def test_who_passes_answers_on_ends_before_an_idle_core_and_after_a_busy_one(
    unfinished: int,
) -> None:
    from lorebase.serving.engine.vllm_async import AsyncDriver

    ended = []

    class Core:
        def __init__(self) -> None:
            self.output_handler = asyncio.create_task(asyncio.sleep(60))
            context = SimpleNamespace(destroy=lambda linger: None)
            self.engine_core = SimpleNamespace(resources=SimpleNamespace(ctx=context))

        def get_num_unfinished_requests(self) -> int:
            return unfinished

        def shutdown(self) -> None:
            ended.append(self.output_handler.cancelling() > 0 or self.output_handler.done())

    core = Core()
    await AsyncDriver(core).shutdown()  # type: ignore[arg-type]
    assert ended == [unfinished == 0]
    core.output_handler.cancel()


ORPHAN = """
import asyncio, json, os, signal, sys, psutil
from lorebase.serving.engine import EngineSettings, create_engine

async def main():
    await create_engine(EngineSettings(**json.loads(sys.argv[1])))
    print([p.pid for p in psutil.Process().children() if "EngineCore" in p.name()], flush=True)
    os.kill(os.getpid(), signal.SIGKILL)

if __name__ == "__main__":
    asyncio.run(main())
"""


async def test_an_engine_core_does_not_outlive_a_killed_parent(
    world: World, tmp_path: Path
) -> None:
    script = tmp_path / "orphan.py"
    script.write_text(ORPHAN)
    chosen = dataclasses.asdict(settings(world, backend="async"))
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(script), json.dumps(chosen), stdout=asyncio.subprocess.PIPE
    )
    output, _ = await process.communicate()
    assert process.returncode == -signal.SIGKILL
    (core,) = json.loads(output.splitlines()[-1])
    await until(lambda: not psutil.pid_exists(core))


async def test_a_killed_engine_core_fails_requests_with_engine_dead(world: World) -> None:
    async with running(settings(world, backend="async")) as engine:
        await tokens_of(engine, PROMPTS[0], None)
        calls = [asyncio.create_task(complete(engine, request(sampling=LONG))) for _ in range(3)]
        await until(lambda: engine.unfinished_requests() == 3)
        await asyncio.sleep(0.05)
        mine = _engine_cores()[-1]
        mine.kill()
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert any(isinstance(r, EngineDeadError) for r in results)
        assert all(not isinstance(r, Exception) or isinstance(r, EngineDeadError) for r in results)
        with pytest.raises(EngineDeadError):
            await engine.check_health()
        with pytest.raises(EngineDeadError):
            await complete(engine, request())
        with pytest.raises(EngineDeadError):
            await engine.ensure_adapter(world.version(0))
        with pytest.raises(EngineDeadError):
            await complete_many(engine, [request(), request()])
