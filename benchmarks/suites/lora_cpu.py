"""Suite `lora-cpu`: what do adapters cost in vLLM on CPU: stock, ours, and none at all?

64 requests over 1, 8, 32 or 64 adapters, all of rank 8 or of ranks 8, 16 and 64, on a base of 168M
random parameters. Each arm is vLLM in a process of its own; all arms work on the same batch in
turn, round by round, so that a ratio compares neighbours in time. Decoding is timed without its
prompts and begins at the same length for all, prefill without decoding. Where stock vLLM is many
times slower it makes fewer steps; each is like those of the others: a step of prefill has 16
prompts of 64 tokens, whoever computes it. Then the kernel by itself, beside what bounds it.

Correctness gate: every arm's greedy tokens are those of a model with the adapter merged into its
weights, and with our kernels base requests beside full slots get the bare base's.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers.utils.logging import disable_progress_bar

from benchmarks.lora.alone import measure
from benchmarks.lora.arm import Arm, EnginePlan, Kind
from benchmarks.lora.cpu_result import REQUESTS, Sample, summarise
from benchmarks.lora.rounds import rotated
from benchmarks.lora.world import BIG, TINY, BaseShape, make_adapter, make_base, merged, shortfall
from benchmarks.suite import SuiteContext, SuiteResult
from lorebase.serving.engine.settings import read_cpu_flags, resolve_dtype

RANKS = {"r8": (8,), "mixed": (8, 16, 64)}
KINDS: tuple[Kind, ...] = ("none", "stock", "ours")
ROUNDING = {"float32": 0.01, "bfloat16": 0.3}
"""Largest shortfall of a right answer, in standard deviations of the logits."""
DIFFERENT = 0.5
"""Shortfall that shows that an adapter changes answers at all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """How much an arm does in one sample, so that a sample takes a second or more."""

    decode_steps: int
    prefill_requests: int
    """A whole number of the engine's steps, which have `STEP_TOKENS`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """How much is measured."""

    base: BaseShape
    adapters: tuple[int, ...]
    rounds: int
    most_rounds: int
    """With the most adapters, where the figures are that others quote."""
    work: dict[tuple[str, str], Work]
    """By arm and ranks."""
    decode_prompt: int = 4
    prefill_prompt: int = 64
    judged: int = 6
    """Adapters that are compared with merged weights."""

    def rounds_with(self, adapters: int) -> int:
        """Returns how often each arm is timed."""
        return self.most_rounds if adapters == max(self.adapters) else self.rounds


_QUICKLY = Work(decode_steps=2, prefill_requests=16)
FULL = Shape(
    base=BIG,
    adapters=(1, 8, 32, 64),
    rounds=5,
    most_rounds=9,
    work={
        **{(arm, ranks): Work(decode_steps=12, prefill_requests=64)
           for arm in ("ours", "none") for ranks in RANKS},
        ("stock", "r8"): Work(decode_steps=6, prefill_requests=16),
        ("stock", "mixed"): Work(decode_steps=2, prefill_requests=16),
    },
)  # fmt: skip
QUICK = Shape(
    base=TINY,
    adapters=(1, 64),
    rounds=2,
    most_rounds=3,
    work={(arm, ranks): _QUICKLY for arm in KINDS for ranks in RANKS},
    judged=2,
)


async def run(context: SuiteContext) -> SuiteResult:
    """Runs the suite."""
    shape = QUICK if context.quick else FULL
    disable_progress_bar()
    base = context.work_dir / "base"
    parameters = make_base(base, shape.base)
    context.say(f"a base of {parameters / 1e6:.0f}M random parameters")
    samples: list[Sample] = []
    failures: list[str] = []
    facts: dict[str, Any] = {"base_parameters": parameters, "rounds": shape.rounds}
    facts |= {"rounds_with_most": shape.most_rounds}
    alone: list[dict[str, Any]] = []
    for ranks, cycle in RANKS.items():
        adapters = [
            make_adapter(
                context.work_dir / ranks / str(n), shape.base, cycle[n % len(cycle)], seed=n
            )
            for n in range(max(shape.adapters))
        ]
        weights = sum((path / "adapter_model.safetensors").stat().st_size for path in adapters)
        facts[f"adapter_file_gb_{ranks}"] = round(weights / 1e9, 3)
        with ExitStack() as stack:
            arms = await _arms(stack, context, base, adapters, max(cycle))
            found = {arm.kind: await asyncio.to_thread(arm.call, "facts") for arm in arms}
            facts |= {key: found["ours"][key] for key in ("dtype", "threads")}
            failures += _right_arms(found)
            failures += [
                f"{ranks}, {arm.kind}: {failure}"
                for arm in arms
                for failure in await _wrong(arm, base, adapters, shape, facts["dtype"])
            ]
            context.say(f"{ranks}: correctness gate done, {len(failures)} failures")
            if failures:
                break
            for n in shape.adapters:
                samples += await _decode(arms, ranks, n, shape)
                samples += await _prefill(arms, ranks, n, shape)
                context.say(f"{ranks}: {n} adapters done")
        alone += await asyncio.to_thread(
            measure, adapters, shape.base, ranks=ranks, prompt=shape.prefill_prompt, rounds=9
        )
    samples.sort(key=lambda s: (s.workload, s.ranks != "r8", s.adapters))
    return summarise(samples, facts, failures, alone)


async def _arms(
    stack: ExitStack, context: SuiteContext, base: Path, adapters: Sequence[Path], max_rank: int
) -> list[Arm]:
    """Starts an engine for each arm, with all adapters loaded."""
    dtype = resolve_dtype("auto", device="cpu", cpu_flags=read_cpu_flags())
    threads = len(os.sched_getaffinity(0))
    arms = []
    for kind in KINDS:
        plan = EnginePlan(base=str(base), max_rank=0 if kind == "none" else max_rank, dtype=dtype)
        log = context.work_dir / f"{kind}-{max_rank}.log"
        arms.append(stack.enter_context(Arm(kind, plan, threads=threads, log=log)))
    for arm in arms:
        await asyncio.to_thread(arm.ready)
        if arm.kind != "none":
            seconds = await asyncio.to_thread(arm.load, adapters)
            each = seconds / len(adapters)
            context.say(f"{arm.kind}: {len(adapters)} adapters, {each * 1e3:.1f} ms each")
    return arms


def _right_arms(found: dict[Kind, dict[str, Any]]) -> list[str]:
    expected = {"none": None, "stock": "PunicaWrapperCPU", "ours": "PooledPunicaWrapper"}
    return [
        f"the arm {kind} runs {facts['wrapper']}, expected {expected[kind]}"
        for kind, facts in found.items()
        if facts["wrapper"] != expected[kind]
    ]


def _prompts(tokens: int, shape: Shape, *, seed: int) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(3, shape.base.vocab) for _ in range(tokens)] for _ in range(REQUESTS)]


def _assigned(arm: Arm, adapters: int) -> list[int | None]:
    return [None if arm.kind == "none" else n % adapters for n in range(REQUESTS)]


async def _wrong(
    arm: Arm, base: Path, adapters: Sequence[Path], shape: Shape, dtype: str
) -> list[str]:
    """Returns what one arm answers otherwise than merged weights do."""
    prompts = _prompts(6, shape, seed=1)
    assigned = _assigned(arm, len(adapters))
    answers = (
        await asyncio.to_thread(arm.call, "generate", prompts=prompts, adapters=assigned, tokens=3)
    )["answers"]
    bare = merged(base, None)
    failures, effects = [], []
    rows = range(0, REQUESTS, REQUESTS // shape.judged)
    for row in rows:
        path = None if assigned[row] is None else adapters[row]
        model = bare if path is None else await asyncio.to_thread(merged, base, path)
        gap = await asyncio.to_thread(shortfall, model, prompts[row], answers[row])
        if gap > ROUNDING[dtype]:
            failures.append(f"request {row}: its tokens are {gap:.3f} deviations from the best")
        effects.append(shortfall(bare, prompts[row], answers[row]))
    if arm.kind != "none" and max(effects) < DIFFERENT:
        failures.append("no adapter changes any answer: the gate would see nothing")
    if arm.kind == "ours":
        # Base requests between adapters that fill every slot: vLLM's own wrapper fails this.
        part = [None if row in rows else row for row in range(REQUESTS)]
        mixed = await asyncio.to_thread(
            arm.call, "generate", prompts=prompts, adapters=part, tokens=3
        )
        gap = max(shortfall(bare, prompts[row], mixed["answers"][row]) for row in rows)
        if gap > ROUNDING[dtype]:
            failures.append(f"a base request beside full slots is {gap:.3f} deviations off")
    return failures


async def _decode(arms: Sequence[Arm], ranks: str, adapters: int, shape: Shape) -> list[Sample]:
    prompts = _prompts(shape.decode_prompt, shape, seed=2)
    samples = []
    for number in range(shape.rounds_with(adapters)):
        for arm in rotated(arms, number):
            steps = shape.work[arm.kind, ranks].decode_steps
            assigned = _assigned(arm, adapters)
            # Anew each time: arms that make more steps would have longer and longer contexts.
            await asyncio.to_thread(
                arm.call, "begin", prompts=prompts, adapters=assigned, tokens=steps + 2
            )
            times = await asyncio.to_thread(arm.call, "steps", count=steps)
            await asyncio.to_thread(arm.call, "end")
            samples.append(_sample("decode", ranks, adapters, arm, number, times))
    return samples


async def _prefill(arms: Sequence[Arm], ranks: str, adapters: int, shape: Shape) -> list[Sample]:
    samples = []
    for number in range(shape.rounds_with(adapters)):
        for arm in rotated(arms, number):
            # Fewer requests are others each round, so that every adapter has its turn.
            count = shape.work[arm.kind, ranks].prefill_requests
            first = number * count % REQUESTS
            asked = slice(first, first + count)
            prompts = _prompts(shape.prefill_prompt, shape, seed=3 + number)[asked]
            assigned = _assigned(arm, adapters)[asked]
            times = await asyncio.to_thread(arm.call, "prefill", prompts=prompts, adapters=assigned)
            samples.append(_sample("prefill", ranks, adapters, arm, number, times))
    return samples


def _sample(
    workload: str, ranks: str, adapters: int, arm: Arm, number: int, times: dict[str, Any]
) -> Sample:
    return Sample(
        workload=workload,
        ranks=ranks,
        adapters=adapters,
        arm=arm.kind,
        round=number,
        tokens=times["tokens"],
        wall_s=times["wall_s"],
        cpu_s=times["cpu_s"],
    )
