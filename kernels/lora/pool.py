"""Adapter memory: one flat buffer, every adapter at its own rank, nothing padded.

For each (layer, slot, slice) two int64 element offsets and an int32 rank say where in the buffer

    A  [r, K] row-major    reads along K while shrinking
    B  [r, N] row-major    PEFT's B transposed: reads along N while expanding, at every rank

lie. The layout is the same on CPU and GPU. Rank 0 means that the slot doesn't adapt the slice.
The offset tables have fixed addresses, so captured graphs survive adapters coming and going.
Blocks start on 64 bytes. Which adapter is in which slot, and who has to leave when memory is
short, is the owner's business (in vLLM its LRU's), not the pool's.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from .extents import Extents
from .reference import SliceWeights

ALIGNMENT_BYTES = 64
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class PoolFullError(RuntimeError):
    """The byte budget can't hold another adapter now.

    Attributes:
        needed_bytes: Size of the adapter's weights for the layer.
        free_bytes: Bytes free in all holes together.
        largest_hole_bytes: The biggest single hole.
    """

    def __init__(self, needed_bytes: int, free_bytes: int, largest_hole_bytes: int) -> None:
        super().__init__(
            f"adapter pool is full: needed {needed_bytes} bytes, free {free_bytes}, largest hole "
            f"{largest_hole_bytes}; evict an adapter or give the pool a larger budget"
        )
        self.needed_bytes = needed_bytes
        self.free_bytes = free_bytes
        self.largest_hole_bytes = largest_hole_bytes


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PoolLayer:
    """One linear layer's tables in the pool; what a kernel needs beside x, y and the plan."""

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


@dataclass(frozen=True, slots=True)
class _Resident:
    """Where a slot's weights of one layer lie: one extent, and A and B inside it per slice."""

    start: int
    a_offsets: tuple[int, ...]  # relative to start
    b_offsets: tuple[int, ...]
    ranks: tuple[int, ...]


class AdapterPool:
    """Rank-exact memory of all layers' adapters under one byte budget. Not thread-safe."""

    def __init__(
        self,
        *,
        slots: int,
        budget_bytes: int,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
        max_rank: int | None = None,
    ) -> None:
        """Reserves the buffer (on the CPU pages cost memory only once they are written).

        Args:
            slots: Number of adapter slots.
            budget_bytes: Size of the buffer, rounded down to whole blocks of 64 bytes.
            dtype: Of all weights: float32, bfloat16 or float16.
            device: Where the buffer and the tables live.
            max_rank: Largest rank that `put` takes; None: any. A GPU's launches are chosen by it.

        Raises:
            ValueError: No slots, a negative budget or a dtype that no kernel takes.
        """
        if slots < 1 or budget_bytes < 0 or dtype not in DTYPES:
            raise ValueError(
                f"got slots={slots}, budget_bytes={budget_bytes}, dtype={dtype}; expected at least "
                f"1 slot, 0 bytes, one of {', '.join(map(str, DTYPES))}"
            )
        self.slots, self.dtype, self.device = slots, dtype, torch.device(device)
        self.max_rank = max_rank
        self._unit = ALIGNMENT_BYTES // dtype.itemsize
        self._extents = Extents(budget_bytes // ALIGNMENT_BYTES)
        self.buffer = torch.empty(
            self._extents.capacity * self._unit, dtype=dtype, device=self.device
        )
        self.layers: list[PoolLayer] = []
        self._residents: dict[tuple[int, int], _Resident] = {}
        self._adapted: list[int] = []  # slots in use, per layer

    @property
    def free_bytes(self) -> int:
        """Bytes in all holes together."""
        return self._extents.free * ALIGNMENT_BYTES

    @property
    def used_bytes(self) -> int:
        """Bytes that adapters occupy, alignment included."""
        return (self._extents.capacity - self._extents.free) * ALIGNMENT_BYTES

    def add_layer(self, in_features: int, slice_sizes: Sequence[int]) -> PoolLayer:
        """Makes room in the tables for one more linear layer.

        Raises:
            ValueError: A size is below 1, or there is no slice.
        """
        if in_features < 1 or not slice_sizes or min(slice_sizes) < 1:
            raise ValueError(
                f"got in_features={in_features}, slices={tuple(slice_sizes)}; expected all >= 1"
            )
        starts = [sum(slice_sizes[:i]) for i in range(len(slice_sizes) + 1)]
        shape = (self.slots, len(slice_sizes))
        layer = PoolLayer(
            index=len(self.layers),
            in_features=in_features,
            slice_sizes=tuple(slice_sizes),
            slice_starts=torch.tensor(starts, dtype=torch.int32, device=self.device),
            a_offsets=torch.zeros(shape, dtype=torch.int64, device=self.device),
            b_offsets=torch.zeros(shape, dtype=torch.int64, device=self.device),
            ranks=torch.zeros(shape, dtype=torch.int32, device=self.device),
        )
        self.layers.append(layer)
        self._adapted.append(0)
        return layer

    def block_bytes(self, layer: PoolLayer, ranks: Sequence[int]) -> int:
        """Bytes that an adapter with these ranks per slice takes in `layer`."""
        return self._layout(layer, ranks)[2] * ALIGNMENT_BYTES

    def put(self, layer: PoolLayer, slot: int, weights: Sequence[SliceWeights]) -> None:
        """Writes an adapter's weights for one layer into a slot, replacing what was there.

        Defragments if the free bytes suffice but no single hole does.

        Args:
            layer: One of this pool's layers.
            slot: Where.
            weights: One entry per slice: A [r, K] and B [N_s, r] with any r >= 1, or None.

        Raises:
            ValueError: Slot or shapes don't fit the layer.
            PoolFullError: Not enough free bytes. The slot is empty then: never half an adapter.
        """
        ranks = self._checked_ranks(layer, slot, weights)
        self.clear(layer, slot)
        if not any(ranks):
            return
        a_offsets, b_offsets, units = self._layout(layer, ranks)
        start = self._extents.allocate(units)
        if start is None and self._extents.free >= units:
            self.defragment()
            start = self._extents.allocate(units)
        if start is None:
            raise PoolFullError(
                units * ALIGNMENT_BYTES,
                self.free_bytes,
                self._extents.largest_hole * ALIGNMENT_BYTES,
            )
        resident = _Resident(start * self._unit, a_offsets, b_offsets, ranks)
        self._residents[layer.index, slot] = resident
        self._adapted[layer.index] += 1
        for index, pair in enumerate(weights):
            if pair is not None:
                a_RK, bt_RN = self._views(layer, resident, index)
                a_RK.copy_(pair[0])
                bt_RN.copy_(pair[1].t())
        self._point(layer, slot, resident)  # only now may a kernel see the slot

    def clear(self, layer: PoolLayer, slot: int) -> None:
        """Empties a slot of one layer. Fine if it is empty.

        Raises:
            ValueError: No such slot.
        """
        self._check_slot(slot)
        resident = self._residents.pop((layer.index, slot), None)
        if resident is not None:
            layer.ranks[slot] = 0
            self._adapted[layer.index] -= 1
            self._extents.release(resident.start // self._unit)

    def adapts(self, layer: PoolLayer) -> bool:
        """Whether any slot adapts the layer: a kernel has nothing to do otherwise."""
        return self._adapted[layer.index] > 0

    def read(self, layer: PoolLayer, slot: int) -> tuple[SliceWeights, ...]:
        """A slot's weights in PEFT's shapes, as views of the buffer: good until the next put."""
        self._check_slot(slot)
        resident = self._residents.get((layer.index, slot))
        if resident is None:
            return (None,) * len(layer.slice_sizes)
        views = (
            self._views(layer, resident, index) if rank else None
            for index, rank in enumerate(resident.ranks)
        )
        return tuple(None if pair is None else (pair[0], pair[1].t()) for pair in views)

    def defragment(self) -> int:
        """Slides all adapters together so that the free bytes are one hole.

        Returns:
            The number of bytes moved: what the call cost in memory traffic, times two.
        """
        at = {resident.start: key for key, resident in self._residents.items()}
        moved = 0
        for old, new, size in self._extents.compact():
            source = self.buffer[old * self._unit : (old + size) * self._unit]
            # The ranges may overlap, where copying tensors onto each other is undefined.
            self.buffer[new * self._unit : (new + size) * self._unit] = source.clone()
            key = at[old * self._unit]
            was = self._residents[key]
            resident = _Resident(new * self._unit, was.a_offsets, was.b_offsets, was.ranks)
            self._residents[key] = resident
            self._point(self.layers[key[0]], key[1], resident)
            moved += size * ALIGNMENT_BYTES
        return moved

    def _check_slot(self, slot: int) -> None:
        if not 0 <= slot < self.slots:
            raise ValueError(f"got slot {slot}; expected 0 to {self.slots - 1}")

    def _checked_ranks(
        self, layer: PoolLayer, slot: int, weights: Sequence[SliceWeights]
    ) -> tuple[int, ...]:
        self._check_slot(slot)
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
            if self.max_rank is not None and rank > self.max_rank:
                raise ValueError(f"got rank {rank}; expected at most {self.max_rank}")
            ranks.append(rank)
        return tuple(ranks)

    def _layout(
        self, layer: PoolLayer, ranks: Sequence[int]
    ) -> tuple[tuple[int, ...], tuple[int, ...], int]:
        """Element offsets of each A and B inside the adapter's extent, and its size in units."""
        a_offsets, b_offsets, units = [], [], 0
        for size, rank in zip(layer.slice_sizes, ranks, strict=True):
            a_offsets.append(units * self._unit)
            units += -(-rank * layer.in_features // self._unit)
            b_offsets.append(units * self._unit)
            units += -(-rank * size // self._unit)
        return tuple(a_offsets), tuple(b_offsets), units

    def _views(
        self, layer: PoolLayer, resident: _Resident, index: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """A [r, K] and B [r, N_s] of one slice as they lie in the buffer."""
        rank, size = resident.ranks[index], layer.slice_sizes[index]
        a = resident.start + resident.a_offsets[index]
        b = resident.start + resident.b_offsets[index]
        return (
            self.buffer[a : a + rank * layer.in_features].view(rank, layer.in_features),
            self.buffer[b : b + rank * size].view(rank, size),
        )

    def _point(self, layer: PoolLayer, slot: int, resident: _Resident) -> None:
        start = resident.start
        layer.a_offsets[slot] = torch.tensor([start + a for a in resident.a_offsets])
        layer.b_offsets[slot] = torch.tensor([start + b for b in resident.b_offsets])
        layer.ranks[slot] = torch.tensor(resident.ranks, dtype=torch.int32)
