"""Launching the kernels: contract check, table lookup, grid, launch. No synchronisation."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from math import gcd
from typing import Any

import torch

from .config import Expand, Fused, Shrink, arch_of, for_odd_columns, table
from .expand import lora_expand
from .fused import lora_fused
from .parts import INTERPRETED
from .shrink import lora_shrink

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MIN_BLOCK = 16
"""The fewest rows that a matrix instruction takes; also what h's rows are aligned to."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Call:
    """Everything of one call. Launches depend on its shapes only; the rest is read on the device.

    So a captured graph serves every step of its shape, whatever adapters come and go.
    """

    y_TN: torch.Tensor
    """[T, N], any row stride, unit column stride, the dtype of `weights`; changed in place."""
    x_TK: torch.Tensor
    """[T, K], likewise."""
    weights: torch.Tensor
    """The pool's buffer."""
    a_offsets: torch.Tensor
    """The layer's int64 [slots, slices]."""
    b_offsets: torch.Tensor
    """Likewise."""
    ranks: torch.Tensor
    """int32 [slots, slices]."""
    slice_starts: torch.Tensor
    """int32 [slices + 1]."""
    tiles: torch.Tensor
    """The plan's int32 [.., 3], length 0 beyond the step's tiles."""
    order: torch.Tensor
    """The plan's int32 [..]."""
    slice_sizes: Sequence[int]
    """N_s of each slice."""
    tile_tokens: int
    """The plan's."""
    max_rank: int
    """No rank of a slot in use is larger."""

    @property
    def tiles_bound(self) -> int:
        """Most tiles that as many tokens can make (`StepPlan.tiles_bound`)."""
        tokens = len(self.x_TK)
        return min(tokens, tokens // self.tile_tokens + min(len(self.ranks), tokens))

    @property
    def block_m(self) -> int:
        """Tokens of a program."""
        return max(MIN_BLOCK, 1 << (self.tile_tokens - 1).bit_length())

    @property
    def align_n(self) -> int:
        """What divides every slice's columns: 16, which makes wide loads of B and y, or 1."""
        return 16 if gcd(16, *self.slice_sizes) == 16 else 1

    def check(self) -> None:
        """Refuses what the kernels would misread.

        Raises:
            ValueError: Shape, stride, dtype or device differs.
        """
        for name, tensor, columns in (
            ("y", self.y_TN, sum(self.slice_sizes)),
            ("x", self.x_TK, None),
        ):
            if (
                tensor.dim() != 2
                or tensor.shape[1] != (columns or tensor.shape[1])
                or len(tensor) != len(self.x_TK)
                or tensor.stride(1) != 1
                or tensor.dtype != self.weights.dtype
                or tensor.device != self.weights.device
            ):
                raise ValueError(
                    f"got {name} {tuple(tensor.shape)}, strides {tensor.stride()}, {tensor.dtype} "
                    f"on {tensor.device}; expected {len(self.x_TK)} rows of "
                    f"{columns or 'any number of'} columns of unit stride, {self.weights.dtype} on "
                    f"{self.weights.device}"
                )
        if self.weights.dtype not in DTYPES or self.tile_tokens < 1 or self.max_rank < 1:
            raise ValueError(
                f"got {self.weights.dtype}, tile_tokens={self.tile_tokens}, "
                f"max_rank={self.max_rank}; expected one of {DTYPES}, both at least 1"
            )
        slices = len(self.slice_sizes)
        if self.ranks.shape[1:] != (slices,) or len(self.slice_starts) != slices + 1:
            raise ValueError(
                f"got tables {tuple(self.ranks.shape)}, {len(self.slice_starts)} slice starts; "
                f"expected (slots, {slices}) and {slices + 1}"
            )
        if self.tiles_bound > len(self.tiles) or len(self.x_TK) > len(self.order):
            raise ValueError(
                f"got {len(self.x_TK)} tokens for a plan of {len(self.order)} tokens, "
                f"{len(self.tiles)} tiles; expected a plan made for as many"
            )


def run(call: Call, kernels: Fused | tuple[Shrink, Expand] | None = None) -> None:
    """Adds every token's own delta to y in place.

    Args:
        call: What to work on.
        kernels: Overrides the table, for tuning and tests.

    Raises:
        ValueError: The call breaks the contract, or no row of the table admits it.
    """
    call.check()
    if not len(call.x_TK):
        return
    if call.x_TK.device.type != "cuda" and not INTERPRETED.value:
        raise ValueError(
            f"got tensors on {call.x_TK.device}; expected a GPU, or TRITON_INTERPRET=1 set before "
            "triton is imported"
        )
    if kernels is None:
        kernels = lookup(call)
    other = call.x_TK.is_cuda and call.x_TK.device.index != torch.cuda.current_device()
    with torch.cuda.device(call.x_TK.device) if other else nullcontext():
        if isinstance(kernels, Fused):
            _launch_fused(call, kernels)
        else:
            _launch_split(call, *kernels)


def lookup(call: Call) -> Fused | tuple[Shrink, Expand]:
    """What the checked-in table of the device says about a call of this shape.

    Raises:
        ValueError: No row admits it.
    """
    row = table(arch_of(call.x_TK.device)).find(
        itemsize=call.weights.dtype.itemsize,
        tile_tokens=call.tile_tokens,
        tokens=len(call.x_TK),
        rank=call.max_rank,
    )
    return row.kernels if call.align_n > 1 else for_odd_columns(row.kernels)


def _on(kernel: Any, grid: tuple[int, int, int]) -> Any:
    """A kernel ready to be launched; its launch options are no parameters a type checker knows."""
    return kernel[grid]


def _launch_fused(call: Call, config: Fused) -> None:
    if call.max_rank > config.block_r:
        raise ValueError(f"got max_rank={call.max_rank} for {config}; expected at most block_r")
    columns = config.block_n * config.steps_n
    grid = (
        call.tiles_bound,
        -(-max(call.slice_sizes) // columns),
        len(call.slice_sizes),
    )
    _on(lora_fused, grid)(
        call.x_TK,
        call.weights,
        call.a_offsets,
        call.b_offsets,
        call.ranks,
        call.tiles,
        call.order,
        call.slice_starts,
        call.y_TN,
        call.x_TK.shape[1],
        call.x_TK.stride(0),
        call.y_TN.stride(0),
        BLOCK_M=call.block_m,
        BLOCK_R=config.block_r,
        BLOCK_K=config.block_k,
        BLOCK_N=config.block_n,
        STEPS_N=config.steps_n,
        ALIGN_N=call.align_n,
        num_warps=config.warps,
        num_stages=config.stages,
    )


def _launch_split(call: Call, shrink: Shrink, expand: Expand) -> None:
    tokens, slices = len(call.x_TK), len(call.slice_sizes)
    h_ranks = -(-call.max_rank // MIN_BLOCK) * MIN_BLOCK
    # Only what expand will read is ever written: no memset. Under capture it is the graph's own.
    h = torch.empty(
        (shrink.split_k, slices, tokens, h_ranks), dtype=torch.float32, device=call.x_TK.device
    )
    _on(lora_shrink, (call.tiles_bound, shrink.split_k, slices))(
        call.x_TK,
        call.weights,
        call.a_offsets,
        call.ranks,
        call.tiles,
        call.order,
        h,
        call.x_TK.shape[1],
        call.x_TK.stride(0),
        tokens,
        h_ranks,
        BLOCK_M=call.block_m,
        BLOCK_R=shrink.block_r,
        BLOCK_K=shrink.block_k,
        SPLIT_K=shrink.split_k,
        num_warps=shrink.warps,
        num_stages=shrink.stages,
    )
    widest = -(-max(call.slice_sizes) // expand.block_n)
    _on(lora_expand, (call.tiles_bound, widest, slices))(
        h,
        call.weights,
        call.b_offsets,
        call.ranks,
        call.tiles,
        call.order,
        call.slice_starts,
        call.y_TN,
        call.y_TN.stride(0),
        tokens,
        h_ranks,
        BLOCK_M=call.block_m,
        BLOCK_R=expand.block_r,
        BLOCK_N=expand.block_n,
        SPLIT_K=shrink.split_k,
        ALIGN_N=call.align_n,
        num_warps=expand.warps,
        num_stages=expand.stages,
    )
