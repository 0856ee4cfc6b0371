"""The C++ kernel over bare tables, as the op passes them: no pool, layer or plan object."""

import ctypes
from collections.abc import Sequence
from itertools import pairwise

import torch

from .native import DTYPES, LayerTables, StepTables, best_isa, library


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
    order: torch.Tensor,
    slice_sizes: Sequence[int],
    tile_tokens: int,
    max_rank: int,
) -> None:
    """Adds every token's own delta to y in place; the op's schema, of which a CPU needs less.

    Raises:
        ValueError: Row counts, columns, strides or dtypes differ.
        MemoryError: No memory for a few KiB of scratch per thread.
    """
    for name, tensor, expected in (("y", y_TN, sum(slice_sizes)), ("x", x_TK, x_TK.shape[-1])):
        if (
            tensor.dim() != 2
            or tensor.shape != (len(x_TK), expected)
            or tensor.stride(1) != 1
            or tensor.dtype != weights.dtype
        ):
            raise ValueError(
                f"got {name} {tuple(tensor.shape)}, strides {tensor.stride()}, {tensor.dtype}; "
                f"expected {len(x_TK)} rows of {expected} columns of unit stride, {weights.dtype}"
            )
    if not int(counts[0]):
        return
    loaded = library()
    if loaded is None:
        _in_torch(
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
    failed = loaded.lb_linear(
        ctypes.byref(layer),
        ctypes.byref(step),
        x_TK.data_ptr(),
        x_TK.stride(0),
        y_TN.data_ptr(),
        y_TN.stride(0),
        torch.get_num_threads(),
        int(isa),
    )
    if failed:
        raise MemoryError(f"the LoRA kernel got no scratch memory (code {failed})")


def _in_torch(
    y_TN: torch.Tensor,
    x_TK: torch.Tensor,
    weights: torch.Tensor,
    a_offsets: torch.Tensor,
    b_offsets: torch.Tensor,
    ranks: torch.Tensor,
    slice_starts: torch.Tensor,
    counts: torch.Tensor,
    tiles: torch.Tensor,
    order: torch.Tensor,
) -> None:
    """The path without the library: a pair of products per tile and slice."""
    starts, features = slice_starts.tolist(), x_TK.shape[1]
    for slot, first, length in tiles[: int(counts[0])].tolist():
        rows_G = order[first : first + length].long()
        x_GK = x_TK.index_select(0, rows_G).float()
        for index, (begin, end) in enumerate(pairwise(starts)):
            rank = int(ranks[slot, index])
            if rank:
                a, b = int(a_offsets[slot, index]), int(b_offsets[slot, index])
                a_RK = _at(weights, a, rank, features).float()
                b_RN = _at(weights, b, rank, end - begin).float()
                part_TN = y_TN[:, begin:end]
                delta_GN = x_GK @ a_RK.t() @ b_RN
                part_TN[rows_G] = (part_TN[rows_G].float() + delta_GN).to(y_TN.dtype)


def _at(weights: torch.Tensor, offset: int, rows: int, columns: int) -> torch.Tensor:
    """A matrix that begins `offset` elements after the buffer does, inside of it or not."""
    address = weights.data_ptr() + offset * weights.itemsize
    memory = (ctypes.c_byte * (rows * columns * weights.itemsize)).from_address(address)
    return torch.frombuffer(memory, dtype=weights.dtype).view(rows, columns)
