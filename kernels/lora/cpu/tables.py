"""The C++ kernel over bare tables, as the op passes them: no pool, layer or plan object."""

import ctypes
from collections.abc import Sequence

import torch

from .fallback import lora_linear_in_torch, warn_of_torch
from .native import DTYPES, LayerTables, StepTables, best_isa, check, library


def lora_linear(
    y_TN: torch.Tensor,
    x_TK: torch.Tensor,
    weights: torch.Tensor,
    a_offsets: torch.Tensor,
    b_offsets: torch.Tensor,
    ranks: torch.Tensor,
    slice_starts: torch.Tensor,
    counts: torch.Tensor,
    tiles: torch.Tensor,
    wide_tiles: torch.Tensor,
    order: torch.Tensor,
    slice_sizes: Sequence[int],
    tile_tokens: int,
    wide_tile_tokens: int,
    max_rank: int,
) -> None:
    """Adds every token's own delta to y in place; the op's schema, of which a CPU needs less.

    Raises:
        ValueError: Row counts, columns, strides or dtypes differ.
        MemoryError: No memory for a few KiB of scratch per thread.
    """
    _check(y_TN, x_TK, weights.dtype, sum(slice_sizes))
    if not int(counts[0]):
        return
    loaded = library()
    if loaded is None:
        warn_of_torch()
        lora_linear_in_torch(
            y_TN, x_TK, weights, a_offsets, b_offsets, ranks, slice_starts, counts, tiles, order
        )
        return
    layer = LayerTables(
        weights.data_ptr(),
        a_offsets.data_ptr(),
        b_offsets.data_ptr(),
        ranks.data_ptr(),
        slice_starts.data_ptr(),
        x_TK.shape[1],
        len(slice_starts) - 1,
        DTYPES[weights.dtype],
    )
    step = StepTables(counts.data_ptr(), tiles.data_ptr(), order.data_ptr())
    isa = best_isa()
    assert isa is not None  # there is a library
    code = loaded.lb_linear(
        ctypes.byref(layer),
        ctypes.byref(step),
        x_TK.data_ptr(),
        x_TK.stride(0),
        y_TN.data_ptr(),
        y_TN.stride(0),
        torch.get_num_threads(),
        int(isa),
    )
    check(code)


def _check(y_TN: torch.Tensor, x_TK: torch.Tensor, dtype: torch.dtype, columns: int) -> None:
    for name, tensor, expected in (("y", y_TN, columns), ("x", x_TK, x_TK.shape[-1])):
        if (
            tensor.dim() != 2
            or tensor.shape != (len(x_TK), expected)
            or tensor.stride(1) != 1
            or tensor.dtype != dtype
        ):
            raise ValueError(
                f"got {name} {tuple(tensor.shape)}, strides {tensor.stride()}, {tensor.dtype}; "
                f"expected {len(x_TK)} rows of {expected} columns of unit stride, {dtype}"
            )
