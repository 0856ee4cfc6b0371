"""One linear layer's batched LoRA on the CPU: y[t, slice s] += B_s (A_s x_t), in place."""

import ctypes

import torch

from ..metadata import DECODE_TILE, StepPlan
from ..pool import AdapterPool, PoolLayer
from .fallback import lora_linear_in_torch, warn_of_torch
from .native import DTYPES, Isa, LayerTables, StepTables, best_isa, check, library

TILE_TOKENS = DECODE_TILE


class CpuLinear:
    """A layer of a pool bound to a step plan, so that a call only passes x and y. Not thread-safe.

    A token's result does not depend on the other tokens of the step. Rows without an adapter are
    neither read nor written.
    """

    def __init__(
        self, pool: AdapterPool, layer: PoolLayer, plan: StepPlan, *, isa: Isa | None = None
    ) -> None:
        """Binds; nothing is copied, later changes of pool and plan are seen.

        Args:
            pool: On the CPU.
            layer: One of the pool's.
            plan: Its slots must be the pool's.
            isa: Instruction set to use, for tests; by default the machine's widest.

        Raises:
            ValueError: Pool and plan don't belong together, or the machine lacks `isa`.
        """
        if pool.device.type != "cpu" or plan.block.device.type != "cpu":
            raise ValueError(f"got {pool.device} and {plan.block.device}; expected both on the CPU")
        if pool.slots != plan.slots:
            raise ValueError(f"got {plan.slots} slots in the plan; expected {pool.slots}")
        best = best_isa()
        if best is None:
            warn_of_torch()
        elif isa is not None and isa > best:
            raise ValueError(f"got {isa.name}; this machine has {best.name}")
        self._pool, self._layer, self._plan = pool, layer, plan
        self._library = library()
        self._isa = int(best if isa is None and best is not None else isa or Isa.PORTABLE)
        self._columns = sum(layer.slice_sizes)
        self._tables = (
            *(pool.buffer, layer.a_offsets, layer.b_offsets, layer.ranks, layer.slice_starts),
            *(plan.counts, plan.tiles, plan.order, pool.types),
        )
        self._layer_tables = ctypes.byref(
            LayerTables(
                pool.buffer.data_ptr(),
                layer.a_offsets.data_ptr(),
                layer.b_offsets.data_ptr(),
                layer.ranks.data_ptr(),
                layer.slice_starts.data_ptr(),
                layer.in_features,
                len(layer.slice_sizes),
                DTYPES[pool.dtype],
                pool.types.data_ptr(),
            )
        )
        self._step_tables = ctypes.byref(
            StepTables(plan.counts.data_ptr(), plan.tiles.data_ptr(), plan.order.data_ptr())
        )

    def __call__(self, y_TN: torch.Tensor, x_TK: torch.Tensor) -> None:
        """Adds every token's own delta to y in place.

        Args:
            y_TN: [plan.tokens or more, N], any row stride, unit column stride, the pool's dtype.
            x_TK: [plan.tokens or more, K], likewise.

        Raises:
            ValueError: Shape, stride or dtype differs.
            MemoryError: No memory for a few KiB of scratch per thread.
        """
        if not self._plan.num_tiles or not self._pool.adapts(self._layer):
            return
        self._check(y_TN, x_TK)
        if self._library is None:
            lora_linear_in_torch(y_TN, x_TK, *self._tables)
            return
        code = self._library.lb_linear(
            self._layer_tables,
            self._step_tables,
            x_TK.data_ptr(),
            x_TK.stride(0),
            y_TN.data_ptr(),
            y_TN.stride(0),
            torch.get_num_threads(),
            self._isa,
        )
        check(code)

    def _check(self, y_TN: torch.Tensor, x_TK: torch.Tensor) -> None:
        tokens = self._plan.tokens
        for name, tensor, columns in (
            ("y", y_TN, self._columns),
            ("x", x_TK, self._layer.in_features),
        ):
            if (
                tensor.dim() != 2
                or tensor.shape[0] < tokens
                or tensor.shape[1] != columns
                or tensor.stride(1) != 1
                or tensor.dtype != self._pool.dtype
            ):
                raise ValueError(
                    f"got {name} {tuple(tensor.shape)}, strides {tensor.stride()}, {tensor.dtype}; "
                    f"expected at least {tokens} rows, {columns} columns of unit stride, "
                    f"{self._pool.dtype}"
                )
