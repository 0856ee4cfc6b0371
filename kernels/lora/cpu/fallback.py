"""The kernel's formula in torch, over the same bare tables: what serves without the library."""

import ctypes
import warnings
from collections.abc import Iterator
from functools import cache
from itertools import groupby, pairwise
from operator import itemgetter

import torch

from ..layout import TYPES
from .native import why_missing

_BY_NUMBER = {number: dtype for dtype, number in TYPES.items()}


@cache
def warn_of_torch() -> None:
    """Says once a process that torch serves, why, and what to do."""
    warnings.warn(
        f"lorebase's C++ LoRA kernel {why_missing() or 'is not built'}; torch serves instead, "
        "several times slower. Install a C++ compiler and run the package's installation again "
        "(`make setup`, or `pip install -e .`)",
        RuntimeWarning,
        stacklevel=4,
    )


def lora_linear_in_torch(
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
    types: torch.Tensor | None = None,
) -> None:
    """Adds every token's own delta to y in place: a pair of products per adapter and slice.

    Args:
        y_TN: [tokens, N].
        x_TK: [tokens, K].
        weights: The pool's buffer, from which offsets are counted; they may lead out of it.
        a_offsets: The layer's int64 [slots, slices].
        b_offsets: Likewise.
        ranks: int32 [slots, slices].
        slice_starts: int32 [slices + 1].
        counts: The plan's int32 [4].
        tiles: The plan's int32 [.., 3].
        order: The plan's int32 [..].
        types: The pool's int32 [slots], numbers of `TYPES`; None: all are of the buffer's type.
    """
    spans = list(pairwise(slice_starts.tolist()))
    for slot, first, end in _groups(tiles[: int(counts[0])]):
        rows_G = order[first:end].long()
        x_GK = x_TK.index_select(0, rows_G).float()
        dtype = weights.dtype if types is None else _BY_NUMBER[int(types[slot])]
        for index, (begin, stop) in enumerate(spans):
            rank = int(ranks[slot, index])
            if rank:
                a, b = int(a_offsets[slot, index]), int(b_offsets[slot, index])
                a_RK = _at(weights, a, (rank, x_TK.shape[1]), dtype).float()
                b_RN = _at(weights, b, (rank, stop - begin), dtype).float()
                part_TN = y_TN[:, begin:stop]
                delta_GN = x_GK @ a_RK.t() @ b_RN
                part_TN[rows_G] = (part_TN[rows_G].float() + delta_GN).to(y_TN.dtype)


def _groups(tiles: torch.Tensor) -> Iterator[tuple[int, int, int]]:
    """Slot, and first and last index into order, of each run of one slot's tiles."""
    for slot, of_slot in groupby(tiles.tolist(), key=itemgetter(0)):
        run = list(of_slot)
        _, last, length = run[-1]
        yield slot, run[0][1], last + length


def _at(
    weights: torch.Tensor, offset: int, shape: tuple[int, int], dtype: torch.dtype
) -> torch.Tensor:
    """A matrix that begins `offset` of its elements after the buffer does, in it or not."""
    address = weights.data_ptr() + offset * dtype.itemsize
    memory = (ctypes.c_byte * (shape[0] * shape[1] * dtype.itemsize)).from_address(address)
    return torch.frombuffer(memory, dtype=dtype).view(shape)
