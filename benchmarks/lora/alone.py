"""Our kernel without vLLM around it, beside what the machine can do at most. Needs no vLLM.

A step is what a forward pass of the base asks of LoRA: every adapted layer once, in order, so that
no adapter is in a cache when its turn comes. Decoding is held against reading as many bytes,
prefill against torch's own matrix product.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from lorebase.kernels.lora.cpu.linear import CpuLinear
from lorebase.kernels.lora.layout import PackedAdapter, pack
from lorebase.kernels.lora.metadata import StepPlan
from lorebase.kernels.lora.pool import AdapterPool, PoolLayer

from ..load.statistics import spread
from .arm import STEP_TOKENS
from .world import BaseShape

FUSED = (
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("self_attn.o_proj",),
    ("mlp.gate_proj", "mlp.up_proj"),
    ("mlp.down_proj",),
)
"""Modules that vLLM computes at once, in the order of a forward pass."""
READ_BYTES = 1 << 30
PERCENTS = (20, 50, 80, 100)


class Alone:
    """Adapters in a pool, and the calls of a forward pass over them."""

    def __init__(self, adapters: Sequence[Path], shape: BaseShape, *, max_tokens: int) -> None:
        """Reads adapters; their weights keep their type, the step computes in float32."""
        outputs = shape.linear()
        names = [
            [f"model.layers.{number}.{name}" for name in group]
            for number in range(shape.layers)
            for group in FUSED
        ]
        self._pool = AdapterPool(
            slots=len(adapters), budget_bytes=0, dtype=torch.float32, points=True
        )
        self._layers = [
            self._pool.add_layer(outputs[of[0]][1], [outputs[name][0] for name in of])
            for of in names
        ]
        self._plan = StepPlan(max_tokens=max_tokens, slots=len(adapters))
        self._packed = [_packed(path, self._layers, names) for path in adapters]
        for slot, adapter in enumerate(self._packed):
            self._pool.assign(slot, adapter)
        self._calls = [CpuLinear(self._pool, layer, self._plan) for layer in self._layers]
        rng = torch.Generator().manual_seed(0)
        self._x = {
            layer.in_features: torch.randn(max_tokens, layer.in_features, generator=rng)
            for layer in self._layers
        }
        self._y = [
            torch.zeros(max_tokens, sum(of.slice_sizes)) for of in self._layers[: len(FUSED)]
        ]

    def plan(self, token_slots: Sequence[int]) -> tuple[int, int]:
        """Plans a step; returns the bytes of its adapters and its floating-point operations."""
        self._plan.fill(token_slots)
        read = sum(self._packed[slot].nbytes for slot in set(token_slots))
        return read, sum(2 * self._packed[slot].data.numel() for slot in token_slots)

    def step(self) -> list[torch.Tensor]:
        """Runs every layer's kernel once; returns what it added to, [T, N] for each of `FUSED`."""
        tokens = self._plan.tokens
        outputs = [y[:tokens] for y in self._y]
        for layer, call in zip(self._layers, self._calls, strict=True):
            call(outputs[layer.index % len(FUSED)], self._x[layer.in_features][:tokens])
        return outputs


def measure(
    adapters: Sequence[Path], shape: BaseShape, *, ranks: str, prompt: int, rounds: int
) -> list[dict[str, Any]]:
    """Times steps of the kernel and, in between, what bounds them.

    Args:
        adapters: PEFT directories; decoding has one token of each.
        shape: of their base.
        ranks: what the rows call them.
        prompt: tokens of a prompt; a step of prefill has as many as go into an engine's.
        rounds: of each.

    Returns:
        A row each for decoding and prefill.
    """
    together = max(1, STEP_TOKENS // prompt)
    alone = Alone(adapters, shape, max_tokens=max(len(adapters), together * prompt))
    decode = list(range(len(adapters)))
    prefill = [slot % len(adapters) for slot in range(together) for _ in range(prompt)]
    memory = torch.ones(READ_BYTES // 4)
    rows_TK, weight_KN = torch.randn(STEP_TOKENS, shape.hidden), torch.randn(shape.hidden, 4096)
    found: dict[str, list[float]] = {"decode": [], "prefill": [], "sum": [], "mv": [], "mm": []}
    matrix, vector = memory.view(-1, 4096), torch.ones(4096)
    for _ in range(rounds + 1):
        read, _ = alone.plan(decode)
        found["decode"].append(_seconds(alone.step, 3))
        found["sum"].append(_seconds(memory.sum))
        found["mv"].append(_seconds(lambda: matrix @ vector))
        _, operations = alone.plan(prefill)
        found["prefill"].append(_seconds(alone.step))
        found["mm"].append(_seconds(lambda: rows_TK @ weight_KN, 3))
    found = {name: seconds[1:] for name, seconds in found.items()}  # the first finds cold caches
    reading = min((found["sum"], found["mv"]), key=min)
    product = 2 * rows_TK.numel() * weight_KN.shape[1]
    return [
        {
            **{"kind": "kernel alone", "workload": "decode", "ranks": ranks},
            **{"adapters_in_a_step": len(decode), "gigabytes": round(read / 1e9, 3)},
            "ms_per_step": spread([1e3 * s for s in found["decode"]], PERCENTS),
            "gb_per_s": spread([read / 1e9 / s for s in found["decode"]], PERCENTS),
            "machine_reads_gb_per_s": spread([memory.nbytes / 1e9 / s for s in reading], PERCENTS),
        },
        {
            **{"kind": "kernel alone", "workload": "prefill", "ranks": ranks},
            **{"adapters_in_a_step": len(set(prefill)), "tokens": len(prefill)},
            "ms_per_step": spread([1e3 * s for s in found["prefill"]], PERCENTS),
            "gflop_per_s": spread([operations / 1e9 / s for s in found["prefill"]], PERCENTS),
            "torch_multiplies_gflop_per_s": spread(
                [product / 1e9 / s for s in found["mm"]], PERCENTS
            ),
        },
    ]


def _packed(
    folder: Path, layers: Sequence[PoolLayer], names: Sequence[Sequence[str]]
) -> PackedAdapter:
    tensors = load_file(folder / "adapter_model.safetensors")

    def pair(module: str) -> tuple[torch.Tensor, torch.Tensor]:
        prefix = f"base_model.model.{module}"
        return tensors[f"{prefix}.lora_A.weight"], tensors[f"{prefix}.lora_B.weight"]

    weights = {number: [pair(module) for module in of] for number, of in enumerate(names)}
    return pack(layers, weights, dtype=next(iter(tensors.values())).dtype)


def _seconds(work: Callable[[], Any], times: int = 1) -> float:
    began = time.perf_counter()
    for _ in range(times):
        work()
    return (time.perf_counter() - began) / times
