"""The in-process engine on real vLLM: right answers, tenants apart, errors contained."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import psutil
import pytest
import pytest_asyncio

from lorebase.serving.engine import (
    BACKGROUND_PRIORITY,
    Sampling,
    complete,
    complete_many,
)
from lorebase.serving.errors import InvalidArgumentError
from tests.integration.engine_world import (
    GREEDY,
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

LONG = Sampling(max_tokens=200, ignore_eos=True)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with kept_environment():
        yield make_world(tmp_path_factory.mktemp("world"), "llama")


@pytest.fixture(scope="module")
def oracle(world: World) -> Oracle:
    return Oracle(world)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(world: World) -> "AsyncIterator[VllmEngine]":
    async with running(settings(world)) as started:
        yield started


@pytest.mark.parametrize("adapter", [None, 0, 1, 3])
async def test_greedy_tokens_equal_transformers_and_peft(
    engine: "VllmEngine", world: World, oracle: Oracle, adapter: int | None
) -> None:
    version = None if adapter is None else world.version(adapter)
    ours = [await tokens_of(engine, prompt, version) for prompt in PROMPTS]
    assert ours == oracle.greedy(PROMPTS, adapter)


async def test_adapters_differ_from_the_base_and_from_each_other(
    engine: "VllmEngine", world: World
) -> None:
    versions = [None, *(world.version(n) for n in range(len(world.adapters)))]
    answers = [await tokens_of(engine, PROMPTS[0], version) for version in versions]
    assert len(set(answers)) == len(versions)


async def test_a_mixed_batch_with_more_adapters_than_slots_equals_solo_runs(
    engine: "VllmEngine", world: World
) -> None:
    versions = [None, *(world.version(n) for n in range(4))]
    pairs = [(prompt, version) for prompt in PROMPTS for version in versions]
    solo = [await tokens_of(engine, *pair) for pair in pairs]
    mixed = await complete_many(engine, [request(*pair) for pair in pairs])
    assert [c.token_ids for c in mixed] == solo


async def test_a_base_request_beside_full_slots_gets_no_adapters_weights(
    engine: "VllmEngine", world: World
) -> None:
    alone = await tokens_of(engine, PROMPTS[0], None, LONG)
    for pair in ((0, 1), (1, 0), (2, 3)):
        beside = [request(PROMPTS[1], world.version(n), LONG) for n in pair]
        together = await complete_many(
            engine, [request(PROMPTS[0], None, LONG), *beside, request(PROMPTS[0], None, LONG)]
        )
        assert together[0].token_ids == alone
        assert together[-1].token_ids == alone


async def test_the_isolation_check_refuses_vllms_own_wrapper_and_passes_the_repaired_one(
    engine: "VllmEngine",
) -> None:
    from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

    from lorebase.serving.engine.vllm_isolation import IsolatedPunicaWrapper, check_isolation

    check_isolation(IsolatedPunicaWrapper)
    with pytest.raises(RuntimeError, match="does not keep base requests and adapters apart"):
        check_isolation(PunicaWrapperCPU)


async def test_streamed_chunks_make_up_the_answer_and_name_base_and_version(
    engine: "VllmEngine", world: World
) -> None:
    version = world.version(0)
    whole = await complete(engine, request(version=version))
    chunks = [chunk async for chunk in engine.generate(request(version=version))]
    assert len(chunks) > 1
    assert "".join(c.text for c in chunks) == whole.text
    assert sum((c.token_ids for c in chunks), ()) == whole.token_ids
    assert [c.finish_reason for c in chunks] == [None] * (len(chunks) - 1) + ["length"]
    assert {(c.base_id, c.version_id) for c in chunks} == {("llama", version.id)}
    assert whole.prompt_tokens == chunks[0].prompt_tokens > 0


async def test_a_repeated_prompt_comes_from_the_prefix_cache(engine: "VllmEngine") -> None:
    long_prompt = "Input: the moon " * 8
    first = [c async for c in engine.generate(request(long_prompt))]
    again = [c async for c in engine.generate(request(long_prompt))]
    assert first[-1].cached_tokens == 0
    assert again[-1].cached_tokens >= 32
    assert [c.token_ids for c in first] == [c.token_ids for c in again]


async def test_a_stop_string_ends_the_answer_and_is_not_part_of_it(engine: "VllmEngine") -> None:
    whole = await complete(engine, request(sampling=LONG))
    stop = whole.text[20:23]
    short = await complete(
        engine, request(sampling=Sampling(max_tokens=200, ignore_eos=True, stop=(stop,)))
    )
    assert short.finish_reason == "stop"
    assert short.text == whole.text[: whole.text.index(stop)]


async def test_equal_seeds_give_equal_samples_and_others_do_not(engine: "VllmEngine") -> None:
    def sampled(seed: int) -> Sampling:
        return Sampling(max_tokens=24, temperature=1.0, seed=seed, ignore_eos=True)

    alone = await tokens_of(engine, PROMPTS[0], None, sampled(7))
    batch = await complete_many(engine, [request(sampling=sampled(seed)) for seed in (7, 8, 7, 9)])
    assert batch[0].token_ids == batch[2].token_ids == alone
    assert len({c.token_ids for c in batch}) == 3


@pytest.mark.parametrize("adapter", [None, 1])
@pytest.mark.parametrize("temperature", [0.0, 2.0])
async def test_choices_are_scored_as_transformers_does_at_any_temperature(
    engine: "VllmEngine", world: World, oracle: Oracle, adapter: int | None, temperature: float
) -> None:
    choices = (" yes", " no", " the")
    version = None if adapter is None else world.version(adapter)
    sampling = Sampling(choices=choices, temperature=temperature)
    answers = await complete_many(
        # Neighbours without choices must not disturb the scores.
        engine, [request(PROMPTS[0], version, sampling), request(PROMPTS[0], version)]
    )  # fmt: skip
    scored = answers[0]
    assert scored.error is None
    assert scored.choice_logprobs == pytest.approx(
        oracle.choice_logprobs(PROMPTS[0], choices, adapter), abs=1e-4
    )
    assert scored.text in choices
    assert len(scored.token_ids) == 1
    if temperature == 0:
        assert scored.text == choices[scored.choice_logprobs.index(max(scored.choice_logprobs))]


async def test_closing_the_generator_aborts_the_request(engine: "VllmEngine") -> None:
    chunks = engine.generate(request(sampling=LONG))
    async with aclosing(chunks):
        await anext(chunks)
        assert engine.unfinished_requests() == 1
        assert (await engine.stats()).running_foreground == 1
    await until(lambda: engine.unfinished_requests() == 0)
    assert (await engine.stats()).running_foreground == 0


@pytest.mark.parametrize("delay_s", [0.0, 0.001, 0.03])
async def test_cancelling_the_caller_aborts_the_request(
    engine: "VllmEngine", world: World, delay_s: float
) -> None:
    calls = [
        asyncio.create_task(complete(engine, request(version=world.version(n % 3), sampling=LONG)))
        for n in range(5)
    ]
    await asyncio.sleep(delay_s)
    for call in calls:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)
    await until(lambda: engine.unfinished_requests() == 0)
    stats = await engine.stats()
    assert (stats.running_foreground, stats.waiting_foreground) == (0, 0)


async def test_cancelling_a_background_batch_aborts_all_of_it(engine: "VllmEngine") -> None:
    batch = [request(sampling=LONG, priority=BACKGROUND_PRIORITY) for _ in range(12)]
    task = asyncio.create_task(complete_many(engine, batch))
    await until(lambda: engine.unfinished_requests() > 0)
    assert (await engine.stats()).running_background == 12
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await until(lambda: engine.unfinished_requests() == 0)
    assert (await engine.stats()).running_background == 0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"prompt": ""}, "prompt is empty"),
        ({"prompt": "x" * 256}, "256 tokens, expected at most 255"),
        ({"sampling": Sampling(max_tokens=0)}, "max_tokens"),
        ({"sampling": Sampling(temperature=-1)}, "temperature"),
        ({"sampling": Sampling(choices=(" yes", "no way"))}, "'no way' is 6 tokens"),
    ],
)
async def test_bad_requests_are_refused_and_the_engine_goes_on(
    engine: "VllmEngine", changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(InvalidArgumentError, match=words):
        await complete(engine, request(**changes))
    assert engine.unfinished_requests() == 0
    assert len(await tokens_of(engine, PROMPTS[0], None)) == GREEDY.max_tokens


async def test_the_longest_prompt_still_gets_its_token(engine: "VllmEngine") -> None:
    answer = await complete(engine, request("x" * 255))
    assert (answer.prompt_tokens, len(answer.token_ids), answer.finish_reason) == (255, 1, "length")


async def test_stats_report_memory_and_an_idle_engine_uses_no_cpu(engine: "VllmEngine") -> None:
    stats = await engine.stats()
    assert stats.base_id == "llama"
    assert 200 << 20 < stats.rss_bytes < 4 << 30
    process = psutil.Process()
    before = sum(process.cpu_times()[:2])
    await asyncio.sleep(1.0)
    assert sum(process.cpu_times()[:2]) - before < 0.15
