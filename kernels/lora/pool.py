"""Adapter memory: every adapter at its own rank, nothing padded.

For each (layer, slot, slice) two int64 element offsets, counted from the pool's buffer, and an
int32 rank say where A and B lie (`layout.py`). The tables have fixed addresses, so captured graphs
survive adapters coming and going.

    put      copies one layer's weights into the buffer, which a byte budget bounds
    assign   gives a slot a whole packed adapter. A pool made with `points` copies nothing: on a
             CPU the kernels read any memory, so the slot's offsets simply lead to the adapter's
             own, wherever that is. Other pools copy it into the buffer.

Which adapter is where, and who leaves when memory is short, is the owner's business.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from . import layout
from .extents import Extents
from .extents import PoolFullError as PoolFullError
from .layout import ALIGNMENT_BYTES, TYPES, Block, PackedAdapter, TableRows, block_of, ranks_of
from .layout import PoolLayer as PoolLayer
from .reference import SliceWeights

DTYPES = tuple(TYPES)


@dataclass(frozen=True, slots=True)
class _Resident:
    """Where a slot's weights of one layer lie: in the buffer, or in memory of their own."""

    memory: torch.Tensor
    block: Block


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
        points: bool = False,
    ) -> None:
        """Reserves the buffer (on the CPU pages cost memory only once they are written).

        Args:
            slots: Number of adapter slots.
            budget_bytes: Of the buffer, rounded down to whole blocks of 64 bytes.
            dtype: Of all weights: float32, bfloat16 or float16.
            device: Where the buffer and the tables live.
            max_rank: Largest rank that it takes; None: any. A GPU's launches are chosen by it.
            points: Whether assigned adapters stay where they are; on a CPU only.

        Raises:
            ValueError: Any of these is out of range.
        """
        elsewhere = points and torch.device(device).type != "cpu"
        if slots < 1 or budget_bytes < 0 or dtype not in DTYPES or elsewhere:
            raise ValueError(
                f"got slots={slots}, budget_bytes={budget_bytes}, {dtype}, points={points} on "
                f"{device}; expected 1 slot or more, 0 bytes or more, {DTYPES}, points on the CPU"
            )
        self.slots, self.dtype, self.device = slots, dtype, torch.device(device)
        self.max_rank, self.points = max_rank, points
        self._unit = ALIGNMENT_BYTES // dtype.itemsize
        self._residents: dict[tuple[int, int], _Resident] = {}
        self.reserve(budget_bytes)
        # Of each slot's weights: a packed adapter may have 16 bits where the pool has 32.
        self.types = torch.full((slots,), TYPES[dtype], dtype=torch.int32, device=self.device)
        self.layers: list[PoolLayer] = []
        self._rows: list[TableRows] = []
        self._adapted: list[int] = []  # slots in use, per layer

    def reserve(self, budget_bytes: int) -> None:
        """Gives the pool another buffer. Whoever has bound the old one's address must bind anew.

        Raises:
            ValueError: There are adapters in it.
        """
        if self._residents:
            raise ValueError("got a pool with adapters in it; expected an empty one")
        self._extents = Extents(budget_bytes // ALIGNMENT_BYTES)
        elements = max(1, self._extents.capacity) * self._unit  # never without an address
        self.buffer = torch.empty(elements, dtype=self.dtype, device=self.device)

    @property
    def capacity_bytes(self) -> int:
        """Size of the buffer."""
        return self._extents.capacity * ALIGNMENT_BYTES

    @property
    def free_bytes(self) -> int:
        """Bytes in all holes together."""
        return self._extents.free * ALIGNMENT_BYTES

    @property
    def used_bytes(self) -> int:
        """Bytes that adapters occupy in the buffer."""
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
        self._rows.append(TableRows(layer))
        self._adapted.append(0)
        return layer

    def missing_bytes(self, adapter: PackedAdapter) -> int:
        """How many more bytes must be free before a slot can be assigned an adapter."""
        elements = sum(block.elements for block in adapter.blocks.values())
        return 0 if self.points else max(0, elements * self.dtype.itemsize - self.free_bytes)

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
        self._check_slot(slot)
        ranks = ranks_of(layer, weights)
        self._check_rank(max(ranks))
        if self.points:
            raise ValueError("got weights for a pool that points; expected a packed adapter")
        self.clear(layer, slot)
        if not any(ranks):
            return
        block = self._allocate(block_of(layer, ranks, self.dtype.itemsize))
        layout.write(self.buffer, layer, block, weights)
        self._point(layer, slot, _Resident(self.buffer, block))  # only now may a kernel see it

    def assign(self, slot: int, adapter: PackedAdapter) -> None:
        """Gives a slot a packed adapter, in all layers, in the place of what was there.

        Raises:
            ValueError: No such slot, too large a rank, or a dtype that is neither the pool's nor
                fits into its float32.
            PoolFullError: Not enough free bytes. The slot is empty then: never half an adapter.
        """
        self._check_slot(slot)
        self._check_rank(adapter.max_rank)
        if adapter.data.dtype != self.dtype and self.dtype != torch.float32:
            raise ValueError(f"got an adapter of {adapter.data.dtype}; expected {self.dtype}")
        self.unassign(slot)
        self.types[slot] = TYPES[adapter.data.dtype if self.points else self.dtype]
        try:
            for index, block in adapter.blocks.items():
                resident = _Resident(adapter.data, block)
                if not self.points:
                    resident = self._copied(resident)
                self._point(self.layers[index], slot, resident)
        except BaseException:
            self.unassign(slot)
            raise

    def unassign(self, slot: int) -> None:
        """Empties a slot in all layers, likewise."""
        for layer in self.layers:
            self.clear(layer, slot)

    def clear(self, layer: PoolLayer, slot: int) -> None:
        """Empties a slot of one layer. Fine if it is empty.

        Raises:
            ValueError: No such slot.
        """
        self._check_slot(slot)
        resident = self._residents.pop((layer.index, slot), None)
        if resident is not None:
            self._rows[layer.index].clear(slot)
            self._adapted[layer.index] -= 1
            if resident.memory is self.buffer:
                self._extents.release(resident.block.start // self._unit)

    def adapts(self, layer: PoolLayer) -> bool:
        """Whether any slot adapts the layer: a kernel has nothing to do otherwise."""
        return self._adapted[layer.index] > 0

    def read(self, layer: PoolLayer, slot: int) -> tuple[SliceWeights, ...]:
        """A slot's weights in PEFT's shapes, as views of the buffer: good until the next put."""
        self._check_slot(slot)
        resident = self._residents.get((layer.index, slot))
        if resident is None:
            return (None,) * len(layer.slice_sizes)
        block = resident.block
        found = (
            layout.views(resident.memory, layer, block, index) if rank else None
            for index, rank in enumerate(block.ranks)
        )
        return tuple(None if pair is None else (pair[0], pair[1].t()) for pair in found)

    def defragment(self) -> int:
        """Slides all adapters together so that the free bytes are one hole.

        Returns:
            The number of bytes moved: what the call cost in memory traffic, times two.
        """
        at = {
            resident.block.start: key
            for key, resident in self._residents.items()
            if resident.memory is self.buffer
        }
        moved = 0
        for old, new, size in self._extents.compact():
            source = self.buffer[old * self._unit : (old + size) * self._unit]
            # The ranges may overlap, where copying tensors onto each other is undefined.
            self.buffer[new * self._unit : (new + size) * self._unit] = source.clone()
            index, slot = at[old * self._unit]
            block = replace(self._residents[index, slot].block, start=new * self._unit)
            self._point(self.layers[index], slot, _Resident(self.buffer, block))
            moved += size * ALIGNMENT_BYTES
        return moved

    def _check_slot(self, slot: int) -> None:
        if not 0 <= slot < self.slots:
            raise ValueError(f"got slot {slot}; expected 0 to {self.slots - 1}")

    def _check_rank(self, rank: int) -> None:
        if self.max_rank is not None and rank > self.max_rank:
            raise ValueError(f"got rank {rank}; expected at most {self.max_rank}")

    def _allocate(self, block: Block) -> Block:
        """Returns the block at a place in the buffer."""
        units = block.elements // self._unit
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
        return replace(block, start=start * self._unit)

    def _copied(self, resident: _Resident) -> _Resident:
        """Copies one layer's weights into the buffer."""
        block = self._allocate(resident.block)
        source = resident.memory[resident.block.start :][: block.elements]
        self.buffer[block.start :][: block.elements].copy_(source, non_blocking=True)
        return _Resident(self.buffer, block)

    def _point(self, layer: PoolLayer, slot: int, resident: _Resident) -> None:
        """Writes a slot's row of a layer's tables."""
        key = (layer.index, slot)
        if key not in self._residents:
            self._adapted[layer.index] += 1
        self._residents[key] = resident
        block = resident.block
        start = block.start
        if resident.memory is not self.buffer:
            # Counted from the buffer like all others, though it lies outside of it.
            away = resident.memory.data_ptr() - self.buffer.data_ptr()
            start += away // resident.memory.dtype.itemsize
        self._rows[layer.index].write(
            slot,
            [start + a for a in block.a_offsets],
            [start + b for b in block.b_offsets],
            block.ranks,
        )
