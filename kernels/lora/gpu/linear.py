"""Launching a linear layer's kernels: table lookup, grid, launch. No synchronisation."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from .call import MIN_BLOCK
from .call import Call as Call
from .config import Expand, Fused, Shrink, arch_of, for_odd_columns, table
from .expand import lora_expand
from .fused import lora_fused
from .parts import INTERPRETED
from .shrink import lora_shrink


def run(call: Call, kernels: Fused | tuple[Shrink, Expand] | None = None) -> None:
    """Adds every token's own delta to y in place.

    Args:
        call: What to work on.
        kernels: Overrides the table, for tuning and tests.

    Raises:
        ValueError: The call breaks the contract, or no row of the table admits it.
    """
    if not ready(call):
        return
    if kernels is None:
        kernels = lookup(call)
    with on_device(call):
        if isinstance(kernels, Fused):
            _launch_fused(call, kernels)
        else:
            _launch_split(call, *kernels)


def ready(call: Call) -> bool:
    """Whether there is anything to do; refuses what can't be done."""
    call.check()
    if not len(call.x_TK):
        return False
    if call.x_TK.device.type != "cuda" and not INTERPRETED.value:
        raise ValueError(
            f"got tensors on {call.x_TK.device}; expected a GPU, or TRITON_INTERPRET=1 set before "
            "triton is imported"
        )
    return True


def on_device(call: Call) -> AbstractContextManager[Any]:
    """Makes the tensors' device the current one, where it is another."""
    device = call.x_TK.device
    other = device.type == "cuda" and device.index != torch.cuda.current_device()
    return torch.cuda.device(device) if other else nullcontext()


def lookup(call: Call, *, split: bool = False) -> Fused | tuple[Shrink, Expand]:
    """What the checked-in table of the device says about a call of this shape.

    Args:
        call: Which.
        split: Whether fused kernels won't do.

    Raises:
        ValueError: No row admits it.
    """
    row = table(arch_of(call.x_TK.device)).find(
        itemsize=call.weights.dtype.itemsize,
        tile_tokens=call.tile_tokens,
        tokens=len(call.x_TK),
        rank=call.max_rank,
        split=split,
    )
    return row.kernels if call.align_n > 1 else for_odd_columns(row.kernels)


def on_grid(kernel: Any, grid: tuple[int, int, int]) -> Any:
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
    on_grid(lora_fused, grid)(
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
    h = room_for_h(call, shrink.split_k)
    on_grid(lora_shrink, (call.tiles_bound, shrink.split_k, len(call.slice_sizes)))(
        call.x_TK,
        call.weights,
        call.a_offsets,
        call.ranks,
        call.tiles,
        call.order,
        h,
        call.x_TK.shape[1],
        call.x_TK.stride(0),
        len(call.x_TK),
        h.shape[-1],
        BLOCK_M=call.block_m,
        BLOCK_R=shrink.block_r,
        BLOCK_K=shrink.block_k,
        SPLIT_K=shrink.split_k,
        num_warps=shrink.warps,
        num_stages=shrink.stages,
    )
    launch_expand(call, h, expand)


def room_for_h(call: Call, parts: int) -> torch.Tensor:
    """Room for h. Only what expand will read is ever written: no memset.

    Under capture it is the graph's own.
    """
    h_ranks = -(-call.max_rank // MIN_BLOCK) * MIN_BLOCK
    shape = (parts, len(call.slice_sizes), len(call.x_TK), h_ranks)
    return torch.empty(shape, dtype=torch.float32, device=call.x_TK.device)


def launch_expand(call: Call, h: torch.Tensor, expand: Expand) -> None:
    """Adds B h to y, once h is there."""
    widest = -(-max(call.slice_sizes) // expand.block_n)
    on_grid(lora_expand, (call.tiles_bound, widest, len(call.slice_sizes)))(
        h,
        call.weights,
        call.b_offsets,
        call.ranks,
        call.tiles,
        call.order,
        call.slice_starts,
        call.y_TN,
        call.y_TN.stride(0),
        len(call.x_TK),
        h.shape[-1],
        BLOCK_M=call.block_m,
        BLOCK_R=expand.block_r,
        BLOCK_N=expand.block_n,
        SPLIT_K=len(h),
        ALIGN_N=call.align_n,
        num_warps=expand.warps,
        num_stages=expand.stages,
    )
