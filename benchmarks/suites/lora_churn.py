"""Suite `lora-churn`: what do thousands of registered adapters cost on one engine?

The engine as it serves (AsyncLLM, our kernels), a base of 168M random parameters, adapters of rank
8, 16 and 64. The same skewed load, spread over 5, 100, 1,000 or 2,000 adapters: saturated, for
throughput, and at its own moments, for the time to the first token. Adapters far outnumber slots
and bytes, so they come and go all the time. The engine tells how long its loop stood still for
each. Beside that, the bookkeeping of a step, ours and vLLM's own, in processes of their own.

Saturated twice over: cold, when most requests of a round name an adapter that nobody used yet, and
warm, after twice as many draws from the same distribution as there are adapters were loaded in
their order, which leaves in memory what a load that has gone on for long leaves there.

Correctness gate: before and after, adapters out of the 2,000 answer as merged weights do; no
request fails.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

from transformers.utils.logging import disable_progress_bar

from benchmarks.load.statistics import spread
from benchmarks.lora.arm import Arm, EnginePlan
from benchmarks.lora.churn import BASE_ID, FILES, Client, Registered, rank_of, trace
from benchmarks.lora.churn_result import Churn, Saturated, Stall, summarise
from benchmarks.lora.rounds import rotated
from benchmarks.lora.world import BIG, TINY, BaseShape, make_base, merged, shortfall
from benchmarks.suite import SuiteContext, SuiteResult
from examples.tinyworld.demo.settings import WORLD
from lorebase.serving.engine import EngineSettings, create_engine

if TYPE_CHECKING:
    from lorebase.serving.engine.vllm_engine import VllmEngine

ROUNDING = {"float32": 0.01, "bfloat16": 0.3}
"""Largest shortfall of a right answer, in standard deviations of the logits."""
TAKES_ARGUMENTS = True
SHARE_OF_CAPACITY = 0.6
"""Rate of the played traces, of the rate that the fewest adapters reach when saturated."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """How much is measured."""

    base: BaseShape
    counts: tuple[int, ...]
    cold_rounds: int
    rounds: int
    played_rounds: int
    requests: int
    prompt: int
    answer: int
    concurrency: int
    host_bytes: int
    threads: int = max(1, len(os.sched_getaffinity(0)) // 2)
    """Of the engine's matrix products; what loads adapters and the clients run beside them."""
    bookkeeping: tuple[tuple[int, int], ...] = ((64, 64), (64, 1000))
    """(in the batch, registered)."""
    judged: int = 5


FULL = Shape(
    base=BIG,
    counts=(5, 100, 1000, 2000),
    cold_rounds=5,
    rounds=5,
    played_rounds=3,
    requests=96,
    prompt=48,
    answer=16,
    concurrency=32,
    host_bytes=3 << 30,
)
QUICK = Shape(
    base=TINY,
    counts=(5, 2000),
    cold_rounds=1,
    rounds=2,
    played_rounds=1,
    requests=48,
    prompt=8,
    answer=4,
    concurrency=16,
    host_bytes=16 << 20,
    bookkeeping=((64, 1000),),
    judged=3,
)


def shape_of(arguments: Sequence[str], *, quick: bool) -> Shape:
    """Returns how much is measured, with other rounds where arguments say so."""
    shape = QUICK if quick else FULL
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run lora-churn")
    for name in ("rounds", "played_rounds", "cold_rounds", "threads"):
        flag = "--" + name.replace("_", "-")
        parser.add_argument(flag, type=int, default=getattr(shape, name))
    return replace(shape, **vars(parser.parse_args(list(arguments))))


async def run(context: SuiteContext) -> SuiteResult:
    """Runs the suite."""
    shape = shape_of(context.arguments, quick=context.quick)
    disable_progress_bar()
    base = context.work_dir / "base"
    parameters = make_base(base, shape.base)
    for name in ("tokenizer.json", "tokenizer_config.json"):  # needed, but prompts are ids
        shutil.copy(WORLD / "bases" / "old" / name, base / name)
    adapters = Registered(context.work_dir / "adapters", shape.base)
    done = Churn(facts={"base_parameters": parameters, "rounds": shape.rounds})
    await _bookkeeping(context, shape, done)
    settings = EngineSettings(
        base_id=BASE_ID,
        model_path=str(base),
        max_model_len=256,
        max_num_seqs=shape.concurrency,
        max_batched_tokens=1024,
        adapter_host_bytes=shape.host_bytes,
        kv_cache_bytes=1 << 30,
        background_cap=1,
        background_cap_busy=1,
        stream_interval=8,
        cpu_threads=shape.threads,
    )
    engine = cast("VllmEngine", await create_engine(settings))
    try:
        context.say("the engine is up")
        await _measure(context, shape, engine, adapters, base, done)
    finally:
        await engine.shutdown()
    return summarise(done)


async def _measure(
    context: SuiteContext,
    shape: Shape,
    engine: VllmEngine,
    adapters: Registered,
    base: Path,
    done: Churn,
) -> None:
    from lorebase.serving.engine.vllm_common import engine_dtype

    dtype = engine_dtype(engine.settings)
    done.facts |= {"dtype": dtype, "threads": shape.threads, "adapter_files": FILES}
    client = Client(
        engine, adapters, vocab=shape.base.vocab, prompt=shape.prompt, answer=shape.answer
    )
    judged = _judged(shape)
    done.failures += await _wrong(client, adapters, base, shape, judged, ROUNDING[dtype])
    context.say(f"correctness gate done, {len(done.failures)} failures")
    if done.failures:
        return
    await engine.adapter_stalls()
    for number in range(shape.cold_rounds):
        for count in rotated((min(shape.counts), max(shape.counts)), number):
            await _saturate(shape, client, count, number, done, warm=False)
        await _collect(engine, done, asked=True)
    context.say(f"{shape.cold_rounds} cold rounds done")
    rate = 0.0
    for number in range(shape.rounds):
        for count in rotated(shape.counts, number):
            await _warm_up(client, count, number)
            run = await _saturate(shape, client, count, shape.cold_rounds + number, done, warm=True)
            if count == min(shape.counts):
                rate = max(rate, shape.requests / run.seconds)
        await _collect(engine, done, asked=False)
        context.say(f"saturated round {number + 1} of {shape.rounds} done")
    for number in range(shape.played_rounds):
        for count in shape.counts:
            arrivals = trace(
                shape.requests, count, rate=SHARE_OF_CAPACITY * rate, seed=1000 + number
            )
            done.played += await client.play(arrivals, count)
        await _collect(engine, done, asked=False)
        context.say(f"played round {number + 1} of {shape.played_rounds} done")
    failed = [one for one in done.played if one.error]
    done.failures += [f"{len(failed)} requests failed: {failed[0].error}"] if failed else []
    done.failures += await _wrong(client, adapters, base, shape, judged, ROUNDING[dtype])
    stats = await engine.stats()
    done.facts |= {
        "adapters_in_host_memory": stats.loaded_versions,
        "adapter_host_bytes": shape.host_bytes,
        "engine_rss_bytes": stats.rss_bytes,
        "played_requests_per_s": round(SHARE_OF_CAPACITY * rate, 2),
    }


async def _warm_up(client: Client, count: int, number: int) -> None:
    """Loads adapters in the order of a long trace, without asking them anything."""
    arrivals = trace(2 * count, count, rate=1.0, seed=5000 + number)
    await client.load([one.adapter for one in arrivals], count)


async def _saturate(
    shape: Shape, client: Client, count: int, number: int, done: Churn, *, warm: bool
) -> Saturated:
    arrivals = trace(shape.requests, count, rate=1.0, seed=number)
    served, seconds = await client.saturate(arrivals, count, concurrency=shape.concurrency)
    failed = [one for one in served if one.error]
    if failed:
        done.failures.append(f"{len(failed)} requests failed: {failed[0].error}")
    run = Saturated(
        registered=count,
        round=number,
        warm=warm,
        tokens=sum(one.tokens for one in served),
        seconds=seconds,
        first_touches=sum(one.first for one in served),
    )
    done.saturated.append(run)
    return run


async def _collect(engine: VllmEngine, done: Churn, *, asked: bool) -> None:
    """Sorts what the engine says of its standing still: first touches, and slots given again."""
    loads: dict[int, tuple[int, float]] = {}
    for stall in await engine.adapter_stalls():
        if not stall.slot_s:
            loads[stall.int_id] = (stall.rank, stall.load_s)
        elif stall.int_id in loads:
            rank, load_s = loads.pop(stall.int_id)
            done.stalls.append(Stall(rank=rank, asked=asked, load_s=load_s, slot_s=stall.slot_s))
        else:
            done.revisits_s.append(stall.slot_s)


def _judged(shape: Shape) -> list[int]:
    """Adapters out of the most registered ones, of every rank."""
    most = max(shape.counts)
    widest = max(n for n in range(most) if rank_of(n) == 64)
    return [*range(0, most, most // shape.judged), widest]


async def _wrong(
    client: Client,
    adapters: Registered,
    base: Path,
    shape: Shape,
    judged: Sequence[int],
    rounding: float,
) -> list[str]:
    """Returns what answers otherwise than merged weights do; all are asked at once."""
    rng = random.Random(4)
    prompts = [[rng.randrange(3, shape.base.vocab) for _ in range(6)] for _ in judged]
    most = max(shape.counts)
    answers = await asyncio.gather(
        *(
            client.tokens(prompt, adapters.version(most, adapter))
            for prompt, adapter in zip(prompts, judged, strict=True)
        )
    )
    failures = []
    for adapter, prompt, answer in zip(judged, prompts, answers, strict=True):
        model = await asyncio.to_thread(merged, base, adapters.path(adapter))
        gap = await asyncio.to_thread(shortfall, model, prompt, answer)
        if gap > rounding:
            failures.append(
                f"adapter {adapter} of {most} (rank {rank_of(adapter)}): its tokens are {gap:.3f} "
                "deviations from the best of merged weights"
            )
    return failures


async def _bookkeeping(context: SuiteContext, shape: Shape, done: Churn) -> None:
    """Times the work of a step that concerns adapters, without the model."""
    base = context.work_dir / "tiny"
    make_base(base, TINY)
    most = max(registered for _, registered in shape.bookkeeping)
    for kind in ("stock", "ours"):
        plan = EnginePlan(base=str(base), max_rank=8, slots=64, registered=most)
        log = context.work_dir / f"bookkeeping-{kind}.log"
        with Arm("ours" if kind == "ours" else "stock", plan, threads=1, log=log) as arm:
            await asyncio.to_thread(arm.ready)
            for in_batch, registered in shape.bookkeeping:
                found = await asyncio.to_thread(
                    arm.call, "bookkeeping", in_batch=in_batch, registered=registered, calls=100
                )
                done.bookkeeping.append(
                    {
                        "arm": kind,
                        "in_batch": in_batch,
                        "registered": registered,
                        "steady_ms": spread([1e3 * s for s in found["steady_s"]]),
                        "changed_ms": spread([1e3 * s for s in found["changed_s"]]),
                    }
                )
        context.say(f"bookkeeping of {kind} done")
