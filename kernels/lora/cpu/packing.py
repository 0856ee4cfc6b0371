"""Packs an adapter in one native call, by a list of copies that adapters of the same shapes share.

`layout.pack` makes a dozen small tensors of each matrix, all under the interpreter's lock, which
the engine's loop needs as well. Adapters of one base differ in little but their weights: how their
files are ordered and where each matrix belongs is worked out once.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..hostmem import host_tensor
from ..layout import Block, PackedAdapter
from .native import library


@dataclass(frozen=True, slots=True, kw_only=True)
class Matrix:
    """One matrix of a file and its place."""

    offset: int
    """First byte in the file's data."""
    shape: tuple[int, int]
    """A [r, K] or B [N, r]."""
    layer: int
    slice: int
    is_a: bool


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PackingList:
    """Where each matrix of a file goes. Any thread may use it."""

    dtype: torch.dtype
    """Of the file and of the packed adapter."""
    size: int
    """Bytes of the file's data."""
    blocks: dict[int, Block]
    """Of the packed adapter."""
    copies: torch.Tensor
    """int64 [matrices, 5], each row an LbCopy."""

    def pack(self, data: torch.Tensor) -> PackedAdapter | None:
        """Packs an adapter's file.

        Args:
            data: uint8 [size]: what follows the file's header.

        Returns:
            The adapter, or None where the list does not hold: data of another size, a slice whose B
            is all zero and should be left out, or no library.
        """
        native = library()
        if native is None or len(data) != self.size:
            return None
        elements = sum(block.elements for block in self.blocks.values())
        packed = host_tensor(elements, self.dtype)
        addresses = (data.data_ptr(), packed.data_ptr(), self.copies.data_ptr())
        if native.lb_pack(*addresses, len(self.copies), self.dtype.itemsize):
            return None
        return PackedAdapter(data=packed, blocks=self.blocks)


def packing_list(
    matrices: Sequence[Matrix], packed: PackedAdapter, size: int
) -> PackingList | None:
    """Returns the list by which an adapter could have been packed; None if by none.

    Args:
        matrices: All of the file.
        packed: What `layout.pack` made of them; its dtype must be the file's.
        size: Bytes of the file's data.
    """
    rows = []
    for matrix in matrices:
        block = packed.blocks.get(matrix.layer)
        if block is None or not block.ranks[matrix.slice]:
            return None  # left out, which is for the weights to say and not for the shapes
        offsets = block.a_offsets if matrix.is_a else block.b_offsets
        target = block.start + offsets[matrix.slice]
        rows.append((matrix.offset, target, *matrix.shape, int(not matrix.is_a)))
    adapted = sum(bool(rank) for block in packed.blocks.values() for rank in block.ranks)
    if len(rows) != 2 * adapted:
        return None
    return PackingList(
        dtype=packed.data.dtype,
        size=size,
        blocks=packed.blocks,
        copies=torch.from_numpy(np.array(rows, np.int64).reshape(-1, 5)),
    )
