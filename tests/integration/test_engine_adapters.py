"""Adapters in a real engine: bad ones refused, good ones never confused, none in another's way."""

import asyncio
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio
from safetensors.torch import load_file, save_file

from lorebase.serving.engine import (
    BACKGROUND_PRIORITY,
    Completion,
    Sampling,
    complete,
    complete_many,
)
from lorebase.serving.errors import InvalidArgumentError, ResourceExhaustedError
from tests.integration.engine_world import (
    PROMPTS,
    World,
    kept_environment,
    make_world,
    request,
    running,
    settings,
    tokens_of,
    until,
)
from tests.integration.tiny_models import (
    claim_rank,
    make_tiny_adapter,
    make_tiny_base,
    spoil_shapes,
)

if TYPE_CHECKING:
    from lorebase.serving.engine.vllm_engine import VllmEngine

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.filterwarnings("ignore"),  # vLLM and what it imports warn of each other
]

LONG = Sampling(max_tokens=200, ignore_eos=True)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with kept_environment():
        yield make_world(tmp_path_factory.mktemp("world"), "llama")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(world: World) -> "AsyncIterator[VllmEngine]":
    async with running(settings(world)) as started:
        yield started


async def test_a_version_of_another_base_is_refused(engine: "VllmEngine", world: World) -> None:
    version = world.version(0, base_id="qwen3")
    with pytest.raises(InvalidArgumentError, match="made for base 'qwen3'"):
        await complete(engine, request(version=version))
    with pytest.raises(InvalidArgumentError, match="made for base 'qwen3'"):
        await engine.ensure_adapter(version)


def _missing(path: Path, world: World) -> None:
    shutil.rmtree(path)


def _no_weights(path: Path, world: World) -> None:
    (path / "adapter_model.safetensors").unlink()


def _rank_above_limit(path: Path, world: World) -> None:
    make_tiny_adapter(path, world.base, rank=32)


def _rank_lie(path: Path, world: World) -> None:
    claim_rank(path, 8)


def _wrong_shapes(path: Path, world: World) -> None:
    spoil_shapes(path)


def _not_finite(path: Path, world: World) -> None:
    file = path / "adapter_model.safetensors"
    save_file({name: t * float("nan") for name, t in load_file(file).items()}, file)


def _not_json(path: Path, world: World) -> None:
    (path / "adapter_config.json").write_text("{")


def _other_base(path: Path, world: World) -> None:
    other = make_tiny_base(path.parent / "wide", seed=3)
    make_tiny_adapter(path, other, rank=4, target_modules=("lm_head",))


@pytest.mark.parametrize(
    "spoil",
    [
        _missing, _no_weights, _rank_above_limit, _rank_lie, _wrong_shapes, _not_finite, _not_json,
        _other_base,
    ],
)  # fmt: skip
async def test_a_bad_adapter_is_refused_by_name_and_never_kills_the_engine(
    engine: "VllmEngine", world: World, tmp_path: Path, spoil: Any
) -> None:
    path = tmp_path / "adapter"
    shutil.copytree(world.adapters[0], path)
    before = await tokens_of(engine, PROMPTS[0], None)
    spoil(path, world)
    version = world.version(0, id="v-bad", digest="sha256:bad", path=str(path))
    with pytest.raises(InvalidArgumentError):
        await engine.ensure_adapter(version)
    with pytest.raises(InvalidArgumentError):
        await complete(engine, request(version=version))
    await engine.check_health()
    assert await tokens_of(engine, PROMPTS[0], None) == before


async def test_a_load_that_fails_inside_vllm_leaves_nothing_behind(
    engine: "VllmEngine", world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "adapter"
    shutil.copytree(world.adapters[0], path)
    spoil_shapes(path)
    monkeypatch.setattr("lorebase.serving.engine.vllm_engine.check_adapter", lambda *_: None)
    wide = tmp_path / "wide"
    shutil.copytree(world.adapters[0], wide)
    file = wide / "adapter_model.safetensors"
    save_file({n: t.repeat(2, 2).contiguous() for n, t in load_file(file).items()}, file)
    before = await tokens_of(engine, PROMPTS[0], world.version(1))
    with pytest.raises(InvalidArgumentError, match="can't load adapter version 'v-wide'"):
        await engine.ensure_adapter(world.version(0, id="v-wide", path=str(wide), digest="w"))
    assert await tokens_of(engine, PROMPTS[0], world.version(1)) == before


async def test_new_weights_in_the_same_directory_under_a_new_version_are_never_confused(
    engine: "VllmEngine", world: World, tmp_path: Path
) -> None:
    path = tmp_path / "adapter"
    shutil.copytree(world.adapters[0], path)
    first = world.version(0, id="v-1", digest="sha256:1", path=str(path))
    assert await tokens_of(engine, PROMPTS[0], first) == await tokens_of(
        engine, PROMPTS[0], world.version(0)
    )
    shutil.rmtree(path)
    shutil.copytree(world.adapters[1], path)
    second = world.version(1, id="v-2", digest="sha256:2", path=str(path))
    assert await tokens_of(engine, PROMPTS[0], second) == await tokens_of(
        engine, PROMPTS[0], world.version(1)
    )
    assert await tokens_of(engine, PROMPTS[0], first) == await tokens_of(
        engine, PROMPTS[0], world.version(0)
    )


async def test_one_version_id_never_changes_content(engine: "VllmEngine", world: World) -> None:
    await engine.ensure_adapter(world.version(0))
    with pytest.raises(InvalidArgumentError, match="versions are immutable"):
        await engine.ensure_adapter(world.version(0, digest="sha256:other"))


async def test_a_dropped_version_comes_back_and_answers_the_same(
    engine: "VllmEngine", world: World
) -> None:
    before = await tokens_of(engine, PROMPTS[0], world.version(0))
    assert await engine.drop_adapter(world.version(0).id) is True
    assert await engine.drop_adapter(world.version(0).id) is False
    assert await tokens_of(engine, PROMPTS[0], world.version(0)) == before


async def test_a_drop_waits_for_the_request_in_flight(engine: "VllmEngine", world: World) -> None:
    whole = await tokens_of(engine, PROMPTS[0], world.version(0), LONG)
    chunks = engine.generate(request(version=world.version(0), sampling=LONG))
    got = list((await anext(chunks)).token_ids)
    dropping = asyncio.create_task(engine.drop_adapter(world.version(0).id))
    async for chunk in chunks:
        assert not dropping.done()
        got += chunk.token_ids
    assert await dropping is True
    assert tuple(got) == whole


async def test_more_versions_than_places_take_turns_and_answer_right(
    engine: "VllmEngine", world: World
) -> None:
    versions = [world.version(n) for n in range(6)]
    first = [await tokens_of(engine, PROMPTS[0], v) for v in versions]
    assert (await engine.stats()).loaded_versions == 4
    together = await complete_many(engine, [request(version=v) for v in versions * 2])
    assert [c.token_ids for c in together] == first * 2


async def test_the_foreground_does_not_wait_for_background_that_holds_every_slot(
    engine: "VllmEngine", world: World
) -> None:
    """VLLM's own priority policy fails this: the third adapter waits for the first two."""
    long = Sampling(max_tokens=150, ignore_eos=True)
    solo = [await tokens_of(engine, PROMPTS[0], world.version(n), long) for n in (0, 1)]
    expected = await tokens_of(engine, PROMPTS[0], world.version(2))
    done: list[int] = []

    async def background(number: int) -> Completion:
        answer = await complete(
            engine,
            request(PROMPTS[0], world.version(number % 2), long, BACKGROUND_PRIORITY),
        )
        done.append(number)
        return answer

    tasks = [asyncio.create_task(background(n)) for n in range(10)]
    await until(lambda: engine.unfinished_requests() == 4)
    for _ in range(2):
        assert await tokens_of(engine, PROMPTS[0], world.version(2)) == expected
    assert done == []
    assert engine.unfinished_requests() <= 4
    answers = await asyncio.gather(*tasks)
    # Preempted and resumed, but right.
    assert [a.token_ids for a in answers] == [solo[n % 2] for n in range(10)]


async def test_background_inside_the_engine_never_exceeds_its_cap(engine: "VllmEngine") -> None:
    batch = [
        request(sampling=Sampling(max_tokens=20, ignore_eos=True), priority=BACKGROUND_PRIORITY)
        for _ in range(30)
    ]
    task = asyncio.create_task(complete_many(engine, batch))
    most = 0
    while not task.done():
        most = max(most, engine.unfinished_requests())
        await asyncio.sleep(0.001)
    assert most == 4
    assert all(c.error is None for c in task.result())


async def test_versions_in_use_are_not_evicted_and_a_newcomer_is_told_to_retry(
    world: World, engine: "VllmEngine", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine._adapters, "_wait_s", 0.05)
    chunks = [engine.generate(request(version=world.version(n), sampling=LONG)) for n in range(4)]
    try:
        await asyncio.gather(*(anext(c) for c in chunks))
        with pytest.raises(ResourceExhaustedError, match="max_cpu_loras"):
            await engine.ensure_adapter(world.version(4))
    finally:
        await asyncio.gather(*(c.aclose() for c in chunks))
    await until(lambda: engine.unfinished_requests() == 0)
    await engine.ensure_adapter(world.version(4))
