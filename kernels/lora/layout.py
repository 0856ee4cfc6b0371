"""How an adapter's weights lie in memory, and one adapter packed that way.

For each layer and slice, in blocks that start on 64 bytes,

    A  [r, K] row-major    reads along K while shrinking
    B  [r, N] row-major    PEFT's B transposed: reads along N while expanding, at every rank

at the adapter's own rank r; rank 0 means that the slice is not adapted and takes nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .hostmem import host_tensor
from .reference import SliceWeights

ALIGNMENT_BYTES = 64
TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
"""Types of weights, by the numbers that kernels know them by."""
NARROWEST = 2
"""Bytes. A packed adapter's blocks are aligned as if its weights were so narrow, so that they lie
alike in a buffer of a wider type."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PoolLayer:
    """One linear layer's tables in a pool; what a kernel needs beside x, y and the plan."""

    index: int
    """Number of the layer in its pool."""
    in_features: int
    """K."""
    slice_sizes: tuple[int, ...]
    """N_s of each slice (3 for fused q, k, v; 2 for gate and up; else 1)."""
    slice_starts: torch.Tensor
    """int32 [slices + 1]: first column of each slice in y; the last entry is N."""
    a_offsets: torch.Tensor
    """int64 [slots, slices]: element offset of A [r, K] in the pool's buffer."""
    b_offsets: torch.Tensor
    """int64 [slots, slices]: element offset of B [r, N_s]."""
    ranks: torch.Tensor
    """int32 [slots, slices]: true rank; 0: not adapted."""


class TableRows:
    """Writes a layer's tables row by row: through numpy on the CPU, 20 times faster than torch."""

    def __init__(self, layer: PoolLayer) -> None:
        tables = (layer.a_offsets, layer.b_offsets, layer.ranks)
        self._on_device = layer.ranks.device.type != "cpu"
        self._rows: Sequence[Any] = tables if self._on_device else [t.numpy() for t in tables]

    def write(self, slot: int, *values: Sequence[int]) -> None:
        """Sets A's offsets, B's offsets and ranks of a slot, one of each per slice."""
        for row, of_slices in zip(self._rows, values, strict=True):
            row[slot] = torch.tensor(of_slices) if self._on_device else of_slices

    def clear(self, slot: int) -> None:
        """Makes a slot adapt nothing."""
        self._rows[-1][slot] = 0


@dataclass(frozen=True, slots=True)
class Block:
    """One layer's weights inside a flat tensor."""

    start: int
    """First element."""
    elements: int
    """Its length, in whole 64-byte units."""
    a_offsets: tuple[int, ...]
    """Of each slice's A, from `start`."""
    b_offsets: tuple[int, ...]
    ranks: tuple[int, ...]


def block_of(layer: PoolLayer, ranks: Sequence[int], itemsize: int, start: int = 0) -> Block:
    """Lays one layer's weights out from `start`, which must be on a unit of 64 bytes."""
    unit = ALIGNMENT_BYTES // itemsize
    a_offsets, b_offsets, elements = [], [], 0
    for size, rank in zip(layer.slice_sizes, ranks, strict=True):
        a_offsets.append(elements)
        elements += -(-rank * layer.in_features // unit) * unit
        b_offsets.append(elements)
        elements += -(-rank * size // unit) * unit
    return Block(start, elements, tuple(a_offsets), tuple(b_offsets), tuple(ranks))


def views(
    memory: torch.Tensor, layer: PoolLayer, block: Block, index: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """A [r, K] and B transposed [r, N_s] of one slice, as they lie in memory."""
    rank, size = block.ranks[index], layer.slice_sizes[index]
    a, b = block.start + block.a_offsets[index], block.start + block.b_offsets[index]
    return (
        memory[a : a + rank * layer.in_features].view(rank, layer.in_features),
        memory[b : b + rank * size].view(rank, size),
    )


def write(
    memory: torch.Tensor, layer: PoolLayer, block: Block, weights: Sequence[SliceWeights]
) -> None:
    """Copies one layer's weights to their places; padding stays as it is."""
    for index, pair in enumerate(weights):
        if pair is not None:
            a_RK, bt_RN = views(memory, layer, block, index)
            a_RK.copy_(pair[0])
            bt_RN.copy_(pair[1].t())


def ranks_of(layer: PoolLayer, weights: Sequence[SliceWeights]) -> tuple[int, ...]:
    """Returns each slice's rank, 0 for None.

    Raises:
        ValueError: Shapes don't fit the layer.
    """
    if len(weights) != len(layer.slice_sizes):
        raise ValueError(f"got {len(weights)} slices; expected {len(layer.slice_sizes)}")
    ranks = []
    for size, pair in zip(layer.slice_sizes, weights, strict=True):
        if pair is None:
            ranks.append(0)
            continue
        a_RK, b_NR = pair
        rank = a_RK.shape[0]
        if a_RK.shape != (rank, layer.in_features) or b_NR.shape != (size, rank) or not rank:
            raise ValueError(
                f"got A {tuple(a_RK.shape)}, B {tuple(b_NR.shape)}; expected "
                f"(r, {layer.in_features}) and ({size}, r) with r >= 1"
            )
        ranks.append(rank)
    return tuple(ranks)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PackedAdapter:
    """All of one adapter's weights at true rank in one piece of host memory."""

    data: torch.Tensor
    """Flat, starting on 64 bytes."""
    blocks: dict[int, Block]
    """By layer index; layers that the adapter leaves alone are not there."""

    @property
    def nbytes(self) -> int:
        """Memory that it takes."""
        return self.data.nbytes

    @property
    def max_rank(self) -> int:
        """Its largest rank."""
        return max((max(block.ranks) for block in self.blocks.values()), default=0)

    def read(self, layer: PoolLayer) -> tuple[SliceWeights, ...]:
        """One layer's weights in PEFT's shapes, as views."""
        block = self.blocks.get(layer.index)
        if block is None:
            return (None,) * len(layer.slice_sizes)
        found = (
            views(self.data, layer, block, index) if rank else None
            for index, rank in enumerate(block.ranks)
        )
        return tuple(None if pair is None else (pair[0], pair[1].t()) for pair in found)


def pack(
    layers: Sequence[PoolLayer],
    weights: Mapping[int, Sequence[SliceWeights]],
    *,
    dtype: torch.dtype,
) -> PackedAdapter:
    """Packs one adapter. Reads nothing but shapes of the layers, so any thread may.

    Args:
        layers: A pool's.
        weights: By layer index, one entry per slice. A slice whose B is all zero adapts nothing
            and is left out.
        dtype: The pool's, or 16 bits for a pool of float32.

    Raises:
        ValueError: Shapes don't fit their layers.
    """
    kept: dict[int, list[SliceWeights]] = {}
    blocks: dict[int, Block] = {}
    elements = 0
    for index, of_layer in weights.items():
        pairs = [pair if pair is not None and _adapts(pair[1]) else None for pair in of_layer]
        ranks = ranks_of(layers[index], pairs)
        if any(ranks):
            kept[index] = pairs
            blocks[index] = block_of(layers[index], ranks, NARROWEST, elements)
            elements += blocks[index].elements
    data = host_tensor(elements, dtype)
    for index, pairs in kept.items():
        write(data, layers[index], blocks[index], pairs)
    return PackedAdapter(data=data, blocks=blocks)


def _adapts(b_NR: torch.Tensor) -> bool:
    """Whether anything is not zero; mostly the first element tells."""
    return b_NR.numel() > 0 and (bool(b_NR[0, 0]) or bool(b_NR.any()))


def compose(
    layers: Sequence[PoolLayer], parts: Sequence[tuple[PackedAdapter, float]]
) -> PackedAdapter:
    """Makes one adapter that does what several do together: the weighted sum of their deltas.

    sum_i w_i B_i A_i is one product of A's and B's stacked along the rank, so a kernel needs to
    know nothing of it and the composition takes the sum of the ranks.

    Args:
        layers: Those that the parts were packed for.
        parts: Adapters and their weights, at least one; equal dtypes.

    Raises:
        ValueError: No part, or dtypes differ.
    """
    dtypes = {part.data.dtype for part, _ in parts}
    if len(dtypes) != 1:
        raise ValueError(f"got dtypes {sorted(map(str, dtypes))}; expected parts of one dtype")
    weights: dict[int, list[SliceWeights]] = {}
    for layer in layers:
        of_parts = [(part.read(layer), weight) for part, weight in parts]
        stacked: list[SliceWeights] = []
        for index in range(len(layer.slice_sizes)):
            pairs = [(read[index], weight) for read, weight in of_parts]
            present = [(pair, weight) for pair, weight in pairs if pair is not None]
            stacked.append(
                (
                    torch.cat([a_RK for (a_RK, _), _ in present]),
                    torch.cat([b_NR * weight for (_, b_NR), weight in present], dim=1),
                )
                if present
                else None
            )
        weights[layer.index] = stacked
    return pack(layers, weights, dtype=dtypes.pop())
