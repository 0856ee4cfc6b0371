"""The step plan: which tokens belong to which adapter, worked out once a step in numpy.

Every layer of a forward pass runs over the same tokens, so grouping them is done once and shared
by all layers. All arrays live in one int32 block at a fixed address and are filled in place: a
captured CUDA graph or a C call that holds their addresses sees each new step. On an accelerator
a step costs one copy from pinned memory.

    counts        [4]            number of tiles, of adapted tokens, of groups, of wide tiles
    tiles         [max_tiles, 3] (slot, first index into order, length <= tile_tokens)
    wide_tiles    [.., 3]        the same tokens in longer tiles, for kernels of long prompts
    order         [max_tokens]   token rows sorted by slot, stable; rows without adapter left out
    group_slots   [slots]        slot of each group, ascending
    group_starts  [slots + 1]    group g owns order[group_starts[g] : group_starts[g + 1]]

Only the first `counts` entries mean something; tiles after them have length 0.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

Int32Array = npt.NDArray[np.int32]
COUNTS = 4
DECODE_TILE, PREFILL_TILE = 16, 64
"""Tokens of tiles and of wide tiles that kernels are made for. 16: small enough that a decode
step's groups are one tile each, large enough that a block of B is used 16 times per load."""


class StepPlan:
    """Tokens of one step grouped by adapter slot, at fixed addresses. Not thread-safe."""

    def __init__(
        self,
        *,
        max_tokens: int,
        slots: int,
        tile_tokens: int = 16,
        wide_tile_tokens: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        """Allocates everything a step can need.

        Args:
            max_tokens: Most tokens of a step.
            slots: Number of adapter slots; slot numbers are 0 .. slots - 1.
            tile_tokens: Most tokens of a tile, the unit of work of a kernel.
            wide_tile_tokens: Most tokens of a wide tile; 0: there are none.
            device: Where the tensors live.

        Raises:
            ValueError: A bound is below 1.
        """
        for name, value, least in (
            ("max_tokens", max_tokens, 1),
            ("slots", slots, 1),
            ("tile_tokens", tile_tokens, 1),
            ("wide_tile_tokens", wide_tile_tokens, 0),
        ):
            if value < least:
                raise ValueError(f"got {name}={value}; expected at least {least}")
        self.max_tokens, self.slots = max_tokens, slots
        self.tile_tokens, self.wide_tile_tokens = tile_tokens, wide_tile_tokens
        self.max_tiles = self.tiles_bound(max_tokens)
        wide = tiles_bound(max_tokens, slots, wide_tile_tokens) if wide_tile_tokens else 0
        sizes = (COUNTS, self.max_tiles * 3, wide * 3, max_tokens, slots, slots + 1)
        self.block = torch.zeros(sum(sizes), dtype=torch.int32, device=device)
        on_host = self.block.device.type == "cpu"
        # On the CPU numpy writes into the tensors' own memory; elsewhere into a pinned twin.
        self._staged = (
            self.block if on_host else torch.zeros_like(self.block, device="cpu", pin_memory=True)
        )
        self._copied = None if on_host else torch.Event(self.block.device)
        parts = torch.split_with_sizes(self.block, list(sizes))
        self.counts, tiles, wide_tiles, self.order, self.group_slots, self.group_starts = parts
        self.tiles, self.wide_tiles = tiles.view(-1, 3), wide_tiles.view(-1, 3)
        self.host_counts = self._staged[:COUNTS]  # read without waiting for a device
        host: list[Int32Array] = np.split(self._staged.numpy(), np.cumsum(sizes)[:-1])
        self._counts, flat, flat_wide, self._order, self._group_slots, self._group_starts = host
        self._tiles: Int32Array = flat.reshape(-1, 3)
        self._wide_tiles: Int32Array = flat_wide.reshape(-1, 3)
        self.tokens = 0  # rows of the step, with and without adapter

    @property
    def num_tiles(self) -> int:
        """Tiles of this step, as the host knows them (no device synchronisation)."""
        return int(self._counts[0])

    @property
    def num_groups(self) -> int:
        """Distinct adapters of this step."""
        return int(self._counts[2])

    def tiles_bound(self, tokens: int) -> int:
        """Most tiles that `tokens` tokens can make: what a captured grid is sized by."""
        return tiles_bound(tokens, self.slots, self.tile_tokens)

    def groups(self) -> list[tuple[int, Int32Array]]:
        """Slot and token rows of each group. The rows are a view: good until the next fill."""
        starts = self._group_starts
        return [
            (int(self._group_slots[g]), self._order[starts[g] : starts[g + 1]])
            for g in range(self.num_groups)
        ]

    def fill(self, token_slots: Sequence[int] | npt.NDArray[np.integer]) -> None:
        """Plans a step. An invalid call leaves the plan of the step before untouched.

        Args:
            token_slots: Slot of each token, -1 for none; may be empty.

        Raises:
            ValueError: Too many tokens, or a slot out of range.
        """
        slots = np.asarray(token_slots, dtype=np.int64).reshape(-1)
        if len(slots) > self.max_tokens:
            raise ValueError(f"got {len(slots)} tokens; expected at most {self.max_tokens}")
        if len(slots) and (int(slots.min()) < -1 or int(slots.max()) >= self.slots):
            raise ValueError(
                f"got slots {int(slots.min())}..{int(slots.max())}; expected -1 (no adapter) to "
                f"{self.slots - 1}"
            )
        if self._copied is not None:
            self._copied.synchronize()  # the last step's copy still reads the staging memory
        self._write(slots)
        self.tokens = len(slots)
        if self._copied is not None:
            self.block.copy_(self._staged, non_blocking=True)
            self._copied.record()

    def _write(self, slots: npt.NDArray[np.int64]) -> None:
        order = np.argsort(slots, kind="stable")
        ordered = slots[order]
        first_adapted = int(np.searchsorted(ordered, 0))
        order, ordered = order[first_adapted:], ordered[first_adapted:]
        starts = np.flatnonzero(np.diff(ordered, prepend=-1))
        groups, adapted = len(starts), len(order)
        self._order[:adapted] = order
        self._group_slots[:groups] = ordered[starts]
        self._group_starts[:groups] = starts
        self._group_starts[groups] = adapted

        lengths = np.diff(starts, append=adapted)
        cut = (starts, lengths, ordered[starts])
        tiles = _cut(self._tiles, int(self._counts[0]), *cut, self.tile_tokens)
        wide = 0
        if self.wide_tile_tokens:
            wide = _cut(self._wide_tiles, int(self._counts[3]), *cut, self.wide_tile_tokens)
        self._counts[:] = tiles, adapted, groups, wide


def tiles_bound(tokens: int, slots: int, tile_tokens: int) -> int:
    """Most tiles of `tile_tokens` that tokens of at most so many slots can make.

    The worst batch has one token of each slot but one, and of that one all others.
    """
    groups = min(slots, tokens)
    return groups + (tokens - groups) // tile_tokens


def _cut(
    tiles: Int32Array,
    before: int,
    starts: npt.NDArray[np.int64],
    lengths: npt.NDArray[np.int64],
    slots: npt.NDArray[np.int64],
    tile_tokens: int,
) -> int:
    """Cuts groups into tiles, empties what the `before` tiles of the last step leave behind."""
    tiles_of_group = -(-lengths // tile_tokens)
    count = int(tiles_of_group.sum())
    group = np.repeat(np.arange(len(starts)), tiles_of_group)
    nth = np.arange(count) - np.repeat(np.cumsum(tiles_of_group) - tiles_of_group, tiles_of_group)
    tiles[:count, 0] = slots[group]
    tiles[:count, 1] = starts[group] + nth * tile_tokens
    tiles[:count, 2] = np.minimum(lengths[group] - nth * tile_tokens, tile_tokens)
    tiles[count:before] = 0
    return count
