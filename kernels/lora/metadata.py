"""The step plan: which tokens belong to which adapter, worked out once a step in numpy.

Every layer of a forward pass runs over the same tokens, so grouping them is done once and shared
by all layers. All arrays live in one int32 block at a fixed address and are filled in place: a
captured CUDA graph or a C call that holds their addresses sees each new step. On an accelerator
a step costs one copy from pinned memory.

    counts        [4]            number of tiles, of tokens with an adapter, of groups; 0
    tiles         [max_tiles, 3] (slot, first index into order, length <= tile_tokens)
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


class StepPlan:
    """Tokens of one step grouped by adapter slot, at fixed addresses. Not thread-safe."""

    def __init__(
        self,
        *,
        max_tokens: int,
        slots: int,
        tile_tokens: int = 16,
        device: torch.device | str = "cpu",
    ) -> None:
        """Allocates everything a step can need.

        Args:
            max_tokens: Most tokens of a step.
            slots: Number of adapter slots; slot numbers are 0 .. slots - 1.
            tile_tokens: Most tokens of a tile, the unit of work of a kernel.
            device: Where the tensors live.

        Raises:
            ValueError: A bound is below 1.
        """
        for name, value in (
            ("max_tokens", max_tokens),
            ("slots", slots),
            ("tile_tokens", tile_tokens),
        ):
            if value < 1:
                raise ValueError(f"got {name}={value}; expected at least 1")
        self.max_tokens, self.slots, self.tile_tokens = max_tokens, slots, tile_tokens
        self.max_tiles = self.tiles_bound(max_tokens)
        sizes = (COUNTS, self.max_tiles * 3, max_tokens, slots, slots + 1)
        self.block = torch.zeros(sum(sizes), dtype=torch.int32, device=device)
        on_host = self.block.device.type == "cpu"
        # On the CPU numpy writes into the tensors' own memory; elsewhere into a pinned twin.
        self._staged = (
            self.block if on_host else torch.zeros_like(self.block, device="cpu", pin_memory=True)
        )
        self._copied = None if on_host else torch.Event(self.block.device)
        parts = torch.split_with_sizes(self.block, list(sizes))
        self.counts, tiles, self.order, self.group_slots, self.group_starts = parts
        self.tiles = tiles.view(self.max_tiles, 3)
        host: list[Int32Array] = np.split(self._staged.numpy(), np.cumsum(sizes)[:-1])
        self._counts, flat_tiles, self._order, self._group_slots, self._group_starts = host
        self._tiles: Int32Array = flat_tiles.reshape(self.max_tiles, 3)
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
        return min(tokens, tokens // self.tile_tokens + min(self.slots, tokens))

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
        tiles_of_group = -(-lengths // self.tile_tokens)
        tiles, tiles_before = int(tiles_of_group.sum()), int(self._counts[0])
        group = np.repeat(np.arange(groups), tiles_of_group)
        nth = np.arange(tiles) - np.repeat(
            np.cumsum(tiles_of_group) - tiles_of_group, tiles_of_group
        )
        self._tiles[:tiles, 0] = ordered[starts][group]
        self._tiles[:tiles, 1] = starts[group] + nth * self.tile_tokens
        self._tiles[:tiles, 2] = np.minimum(
            lengths[group] - nth * self.tile_tokens, self.tile_tokens
        )
        self._tiles[tiles:tiles_before] = 0
        self._counts[:3] = tiles, adapted, groups
