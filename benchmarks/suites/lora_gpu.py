"""Suite `lora-gpu`: how near to the memory's speed do the GPU kernels come, and who else does?

The four linear layers of Llama 3 8B, for several model layers in one CUDA graph, as an engine
replays it. All weights, inputs and outputs lie apart and the L2 cache is made cold before each
replay, so every byte counts once. Beside our kernels run vLLM's and SGLang's own, if their
packages are installed, round by round in changing order; their padded stacks are made of the same
weights. vLLM's take the configurations that VLLM_TUNED_CONFIG_FOLDER names, if it does; the result
says which they were. The roofline is the time in which a copy moves the bytes that nobody can
avoid: the weights of the batch's distinct adapters at their own ranks, x once and y twice.

Correctness gate: before a provider is timed in a cell, all its outputs are compared with float32.

Needs torch, triton and numpy only, not this project's other dependencies:

    PYTHONPATH=.typing python -m benchmarks.run lora-gpu

Without a GPU it says so and ends with exit code 2.
"""

from __future__ import annotations

import importlib.metadata
import os
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from benchmarks.lora_gpu.providers import PROVIDERS, VLLM_CONFIGS, vllm_configs
from benchmarks.lora_gpu.result import Measured, summarise
from benchmarks.lora_gpu.shapes import LLAMA_8B, Cell, cells, operations, unique_bytes
from benchmarks.lora_gpu.timing import Device, interleaved
from benchmarks.lora_gpu.world import make_world
from benchmarks.suite import SuiteContext, SuiteResult


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """How much is measured."""

    cells: tuple[Cell, ...]
    layers: int
    """Model layers in one graph: enough that launches overlap as in a model."""
    rounds: int


FULL = Shape(cells=tuple(cells(adapters=(1, 8, 64))), layers=4, rounds=50)
QUICK = Shape(cells=tuple(cells(tokens=(1, 64), adapters=(1, 8))), layers=1, rounds=5)


async def run(context: SuiteContext) -> SuiteResult:
    """Runs the suite.

    Raises:
        RuntimeError: There is no GPU.
    """
    device = Device()
    shape = QUICK if context.quick else FULL
    bandwidth = device.copy_bandwidth()
    context.say(f"{device.name}: copies {bandwidth / 1e12:.2f} TB/s")
    baselines, failures, measured = _baselines(device.name), list[str](), list[Measured]()
    for cell in shape.cells:
        one, wrong = _measure(cell, shape, device, baselines)
        failures += wrong
        if one is not None:
            measured.append(one)
        context.say(cell.name)
    return summarise(
        measured,
        bandwidth=bandwidth,
        device=device.name,
        baselines=baselines,
        facts={"layers_in_graph": shape.layers, "rounds": shape.rounds},
        failures=failures,
    )


def _baselines(gpu: str) -> dict[str, str]:
    """Version of each baseline's package and vLLM's configurations, or that it is missing."""
    found = {}
    for name in PROVIDERS:
        if name != "ours":
            try:
                found[name] = importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:
                found[name] = "not installed"
    if found.get("vllm", "not installed") != "not installed":
        found["vllm"] += f", {vllm_configs(os.environ.get(VLLM_CONFIGS), gpu)} configurations"
    return found


def _measure(
    cell: Cell, shape: Shape, device: Device, baselines: dict[str, str]
) -> tuple[Measured | None, list[str]]:
    """Gates and times all providers in one cell; notes in `baselines` why one fell out."""
    world = make_world(cell, LLAMA_8B, shape.layers, "cuda")
    timed: dict[str, Callable[[], float]] = {}
    failures = []
    for name, make in PROVIDERS.items():
        if baselines.get(name) == "not installed":
            continue
        try:
            provider: Any = make(world)
            wrong = world.wrong(provider)
            if wrong is None:
                timed[name] = partial(device.seconds, device.capture(provider))
        except Exception as error:
            if name == "ours":
                raise
            # Another release than this adapter was written for: it is left out, and says why.
            wrong = f"{type(error).__name__}: {error}"
        if wrong is not None and name == "ours":
            failures.append(f"{cell.name}: ours {wrong}")
        elif wrong is not None:
            baselines[name] += f"; {cell.name}: {wrong}"
    if "ours" not in timed:
        return None, failures
    samples = interleaved(timed, rounds=shape.rounds, rng=random.Random(0))
    one = Measured(
        cell=cell,
        unique_bytes=unique_bytes(cell, LLAMA_8B, shape.layers),
        operations=operations(cell, LLAMA_8B, shape.layers),
        seconds=samples,
    )
    del world, timed
    torch.cuda.empty_cache()
    return one, failures
