"""The op `lorebase::lora_linear`: one linear layer's batched LoRA, on the CPU or a GPU.

    y[t, slice s]  +=  B_s (A_s x_t)        for the slot of token t, in place

Registered with torch, so that compiled and captured graphs hold it as one node: they see that y
changes and nothing else. Tensors on a GPU go to the Triton kernels, those on the CPU to the C++
kernel; with TRITON_INTERPRET=1 the CPU interprets the Triton kernels instead, which is slow and
for tests. Needs triton only where its kernels run.
"""

import os
from typing import Any

import torch

from .cpu import tables
from .layout import TYPES
from .metadata import StepPlan
from .pool import AdapterPool, PoolLayer

TABLES = (
    "Tensor weights, Tensor a_offsets, Tensor b_offsets, Tensor ranks, Tensor slice_starts, "
    "Tensor host_counts, Tensor tiles, Tensor wide_tiles, Tensor order, int[] slice_sizes, "
    "int tile_tokens, int wide_tile_tokens, int max_rank"
)
"""What an op takes of a layer and a plan: `tables_of`, and `call_of_step` after y and x."""
SCHEMA = f"lora_linear(Tensor(a!) y, Tensor x, {TABLES}) -> ()"
# Kept: a library that is collected takes its ops with it.
library: Any = torch.library.Library("lorebase", "DEF")  # type: ignore[no-untyped-call]
library.define(SCHEMA, tags=(torch.Tag.pt2_compliant_tag,))


def tables_of(pool: AdapterPool, layer: PoolLayer, plan: StepPlan) -> tuple[Any, ...]:
    """The arguments of an op that stay from step to step, in the order of `TABLES`.

    Raises:
        ValueError: Pool and plan don't belong together, or the pool takes any rank.
    """
    if pool.max_rank is None:
        raise ValueError("got a pool without max_rank; expected one that bounds its ranks")
    if pool.slots != plan.slots or pool.buffer.device != plan.block.device:
        raise ValueError(
            f"got a plan of {plan.slots} slots on {plan.block.device}; expected {pool.slots} "
            f"slots on {pool.buffer.device}"
        )
    return (
        pool.buffer,
        layer.a_offsets,
        layer.b_offsets,
        layer.ranks,
        layer.slice_starts,
        plan.host_counts,
        plan.tiles,
        plan.wide_tiles,
        plan.order,
        layer.slice_sizes,
        plan.tile_tokens,
        plan.wide_tile_tokens,
        pool.max_rank,
    )


class LoraLinear:
    """A layer of a pool bound to a step plan, so that a call only passes x and y.

    The same on every device. Not thread-safe.
    """

    def __init__(self, pool: AdapterPool, layer: PoolLayer, plan: StepPlan) -> None:
        """Binds; nothing is copied, later changes of pool and plan are seen.

        Args:
            pool: Made with a max_rank: which kernels serve is decided by it and by shapes, never
                by the adapters of a step, so that captured graphs stay right.
            layer: One of the pool's.
            plan: Its slots and device must be the pool's.

        Raises:
            ValueError: Pool and plan don't belong together, or the pool takes any rank.
        """
        self._pool, self._layer, self._plan = pool, layer, plan
        self._tables = tables_of(pool, layer, plan)

    def __call__(self, y_TN: torch.Tensor, x_TK: torch.Tensor) -> None:
        """Adds every token's own delta to y in place.

        Args:
            y_TN: [T, N], any row stride, unit column stride, the pool's dtype. T is the plan's
                number of tokens or more; a captured graph's T is what its launches are sized by.
            x_TK: [T, K], likewise.

        Raises:
            ValueError: Shape, stride or dtype differs, or an adapter's dtype from the pool's. While
                torch compiles nothing of the step is looked at: one graph is for any of them.
        """
        if not torch.compiler.is_compiling():
            self._check(x_TK)
        lora_linear(y_TN, x_TK, *self._tables)

    def _check(self, x_TK: torch.Tensor) -> None:
        """Compares with the step; a traced call can't, as it serves the steps to come."""
        if len(x_TK) < self._plan.tokens or x_TK.shape[-1] != self._layer.in_features:
            raise ValueError(
                f"got x {tuple(x_TK.shape)}; expected at least {self._plan.tokens} rows of "
                f"{self._layer.in_features} columns"
            )
        pool = self._pool
        # Only adapters that a pool points at can differ: on a GPU this looks at nothing.
        if pool.points and bool((pool.types != TYPES[pool.dtype]).any()):
            raise ValueError(
                f"got adapters of 16 bits in a pool of {pool.dtype}; the op reads one dtype: "
                "pack them with the pool's"
            )


def _gpu(y: torch.Tensor, x: torch.Tensor, *tables: Any) -> None:
    from .gpu.call import call_of_step

    call = call_of_step(y, x, *tables)
    if call is not None:
        from .gpu import linear

        linear.run(call)


def nothing(*_: Any) -> None:
    """What tracing runs: y changes in place and nothing is returned."""


# Read without importing triton, which the CPU otherwise never needs.
INTERPRETED = os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "on", "yes", "y")
library.impl("lora_linear", _gpu if INTERPRETED else tables.lora_linear, "CPU")
library.impl("lora_linear", _gpu, "CUDA")  # AMD's devices have this key too
torch.library.register_fake("lorebase::lora_linear", nothing, lib=library)
lora_linear: Any = torch.ops.lorebase.lora_linear
"""The op itself; SCHEMA names its arguments, which are those of `LoraLinear`'s parts."""
