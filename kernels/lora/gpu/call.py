"""One call of a layer's kernels: everything that they take, and its contract."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd

import torch

from ..metadata import tiles_bound
from .config import DECODE_TOKENS

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MIN_BLOCK = 16
"""The fewest rows that a matrix instruction takes; also what h's rows are aligned to."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Call:
    """Everything of one call. Launches depend on its shapes only; the rest is read on the device.

    So a captured graph serves every step of its shape, whatever adapters come and go.
    """

    y_TN: torch.Tensor
    """[T, N], any row stride, unit column stride, the dtype of `weights`; changed in place."""
    x_TK: torch.Tensor
    """[T, K], likewise."""
    weights: torch.Tensor
    """The pool's buffer."""
    a_offsets: torch.Tensor
    """The layer's int64 [slots, slices]."""
    b_offsets: torch.Tensor
    """Likewise."""
    ranks: torch.Tensor
    """int32 [slots, slices]."""
    slice_starts: torch.Tensor
    """int32 [slices + 1]."""
    tiles: torch.Tensor
    """The plan's int32 [.., 3], length 0 beyond the step's tiles."""
    order: torch.Tensor
    """The plan's int32 [..]."""
    slice_sizes: Sequence[int]
    """N_s of each slice."""
    tile_tokens: int
    """The plan's."""
    max_rank: int
    """No rank of a slot in use is larger."""

    @property
    def tiles_bound(self) -> int:
        """Most tiles that as many tokens can make."""
        return tiles_bound(len(self.x_TK), len(self.ranks), self.tile_tokens)

    @property
    def block_m(self) -> int:
        """Tokens of a program."""
        return max(MIN_BLOCK, 1 << (self.tile_tokens - 1).bit_length())

    @property
    def align_n(self) -> int:
        """What divides every slice's columns: 16, which makes wide loads of B and y, or 1."""
        return 16 if gcd(16, *self.slice_sizes) == 16 else 1

    def check(self) -> None:
        """Refuses what the kernels would misread.

        Raises:
            ValueError: Shape, stride, dtype or device differs.
        """
        for name, tensor, columns in (
            ("y", self.y_TN, sum(self.slice_sizes)),
            ("x", self.x_TK, None),
        ):
            if (
                tensor.dim() != 2
                or tensor.shape[1] != (columns or tensor.shape[1])
                or len(tensor) != len(self.x_TK)
                or tensor.stride(1) != 1
                or tensor.dtype != self.weights.dtype
                or tensor.device != self.weights.device
            ):
                raise ValueError(
                    f"got {name} {tuple(tensor.shape)}, strides {tensor.stride()}, {tensor.dtype} "
                    f"on {tensor.device}; expected {len(self.x_TK)} rows of "
                    f"{columns or 'any number of'} columns of unit stride, {self.weights.dtype} on "
                    f"{self.weights.device}"
                )
        if self.weights.dtype not in DTYPES or self.tile_tokens < 1 or self.max_rank < 1:
            raise ValueError(
                f"got {self.weights.dtype}, tile_tokens={self.tile_tokens}, "
                f"max_rank={self.max_rank}; expected one of {DTYPES}, both at least 1"
            )
        slices = len(self.slice_sizes)
        if self.ranks.shape[1:] != (slices,) or len(self.slice_starts) != slices + 1:
            raise ValueError(
                f"got tables {tuple(self.ranks.shape)}, {len(self.slice_starts)} slice starts; "
                f"expected (slots, {slices}) and {slices + 1}"
            )
        if self.tiles_bound > len(self.tiles) or len(self.x_TK) > len(self.order):
            raise ValueError(
                f"got {len(self.x_TK)} tokens for a plan of {len(self.order)} tokens, "
                f"{len(self.tiles)} tiles; expected a plan made for as many"
            )


def call_of_step(
    y: torch.Tensor,
    x: torch.Tensor,
    weights: torch.Tensor,
    a_offsets: torch.Tensor,
    b_offsets: torch.Tensor,
    ranks: torch.Tensor,
    slice_starts: torch.Tensor,
    host_counts: torch.Tensor,
    tiles: torch.Tensor,
    wide_tiles: torch.Tensor,
    order: torch.Tensor,
    slice_sizes: Sequence[int],
    tile_tokens: int,
    wide_tile_tokens: int,
    max_rank: int,
) -> Call | None:
    """The call that an op's arguments make, over the tiles that its rows ask for.

    None for a step without any adapter: an engine captures graphs for those apart, and they hold
    no launch at all.
    """
    if not int(host_counts[0]):
        return None
    wide = wide_tile_tokens > 0 and len(x) > DECODE_TOKENS
    return Call(
        y_TN=y,
        x_TK=x,
        weights=weights,
        a_offsets=a_offsets,
        b_offsets=b_offsets,
        ranks=ranks,
        slice_starts=slice_starts,
        tiles=wide_tiles if wide else tiles,
        order=order,
        slice_sizes=slice_sizes,
        tile_tokens=wide_tile_tokens if wide else tile_tokens,
        max_rank=max_rank,
    )
