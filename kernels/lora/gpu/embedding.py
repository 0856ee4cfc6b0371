"""Launching an embedding's kernels: lookup, then expand. No synchronisation."""

import torch

from .call import Call
from .config import Fused
from .linear import launch_expand, lookup, on_device, on_grid, ready, room_for_h
from .lookup import lora_lookup


def run(call: Call, ids_T: torch.Tensor, vocab: int) -> None:
    """Adds every token's own delta to an embedding's output in place.

    Args:
        call: What to work on; of its x only the number of rows counts.
        ids_T: int32 or int64 [T], each below vocab.
        vocab: Columns of A.

    Raises:
        ValueError: As `run`, or ids that are not one for each row of y.
    """
    if ids_T.shape != (len(call.y_TN),) or ids_T.stride() != (1,) or ids_T.is_floating_point():
        raise ValueError(
            f"got ids {tuple(ids_T.shape)}, {ids_T.dtype}; expected {len(call.y_TN)} integers"
        )
    if not ready(call):
        return
    kernels = lookup(call, split=True)
    assert not isinstance(kernels, Fused)
    shrink, expand = kernels
    with on_device(call):
        h = room_for_h(call, shrink.split_k)
        on_grid(lora_lookup, (call.tiles_bound, 1, 1))(
            ids_T,
            call.weights,
            call.a_offsets,
            call.ranks,
            call.tiles,
            call.order,
            h,
            vocab,
            len(call.x_TK),
            h.shape[-1],
            BLOCK_M=call.block_m,
            BLOCK_R=expand.block_r,
            SPLIT_K=shrink.split_k,
            num_warps=expand.warps,
            num_stages=expand.stages,
        )
        launch_expand(call, h, expand)
