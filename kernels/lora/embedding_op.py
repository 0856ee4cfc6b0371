"""The op `lorebase::lora_embedding`: an embedding's batched LoRA by the GPU's kernels.

    y[t]  +=  B A[:, id of t]        for the slot of token t, in place

What compiled and captured graphs hold, as `op.py`'s for linear layers. The CPU has it only to
interpret the kernels; without graphs `embedding.LoraEmbedding` serves there.
"""

from typing import Any

import torch

from .metadata import StepPlan
from .op import INTERPRETED, bound_of, library, nothing
from .pool import AdapterPool, PoolLayer

SCHEMA = (
    "lora_embedding(Tensor(a!) y, Tensor ids, Tensor weights, Tensor a_offsets, Tensor b_offsets, "
    "Tensor ranks, Tensor slice_starts, Tensor host_counts, Tensor tiles, Tensor wide_tiles, "
    "Tensor order, int vocab, int tile_tokens, int wide_tile_tokens, int max_rank) -> ()"
)
library.define(SCHEMA, tags=(torch.Tag.pt2_compliant_tag,))


class LoraEmbeddingOp:
    """An embedding of a pool bound to a step plan; its layer has the vocabulary for features."""

    def __init__(self, pool: AdapterPool, layer: PoolLayer, plan: StepPlan) -> None:
        """Binds; nothing is copied, later changes of pool and plan are seen.

        Raises:
            ValueError: Pool and plan don't belong together, the pool takes any rank or points, or
                the layer has several slices.
        """
        if pool.points or len(layer.slice_sizes) != 1:
            raise ValueError(
                f"got points={pool.points}, {len(layer.slice_sizes)} slices; expected a buffer and "
                "one slice"
            )
        self._plan = plan
        self._tables = (
            pool.buffer,
            layer.a_offsets,
            layer.b_offsets,
            layer.ranks,
            layer.slice_starts,
            plan.host_counts,
            plan.tiles,
            plan.wide_tiles,
            plan.order,
            layer.in_features,
            plan.tile_tokens,
            plan.wide_tile_tokens,
            bound_of(pool, plan),
        )

    def __call__(self, y_TN: torch.Tensor, ids_T: torch.Tensor) -> None:
        """Adds every token's own delta to y in place.

        Args:
            y_TN: [T, N], any row stride, unit column stride, the pool's dtype. T is the plan's
                number of tokens or more.
            ids_T: int32 or int64 token ids [T], each below the layer's features.

        Raises:
            ValueError: Fewer rows than the plan has; not looked at while torch compiles.
        """
        if not torch.compiler.is_compiling() and len(y_TN) < self._plan.tokens:
            raise ValueError(f"got {len(y_TN)} rows; expected at least {self._plan.tokens}")
        lora_embedding(y_TN, ids_T, *self._tables)


def _gpu(
    y: torch.Tensor,
    ids: torch.Tensor,
    weights: torch.Tensor,
    a_offsets: torch.Tensor,
    b_offsets: torch.Tensor,
    ranks: torch.Tensor,
    slice_starts: torch.Tensor,
    host_counts: torch.Tensor,
    tiles: torch.Tensor,
    wide_tiles: torch.Tensor,
    order: torch.Tensor,
    vocab: int,
    tile_tokens: int,
    wide_tile_tokens: int,
    max_rank: int,
) -> None:
    if not int(host_counts[0]):  # as the linear layers' op
        return
    from .gpu import embedding
    from .gpu.call import Call
    from .gpu.config import DECODE_TOKENS

    wide = wide_tile_tokens > 0 and len(y) > DECODE_TOKENS
    call = Call(
        y_TN=y,
        x_TK=y,
        weights=weights,
        a_offsets=a_offsets,
        b_offsets=b_offsets,
        ranks=ranks,
        slice_starts=slice_starts,
        tiles=wide_tiles if wide else tiles,
        order=order,
        slice_sizes=(y.shape[1],),
        tile_tokens=wide_tile_tokens if wide else tile_tokens,
        max_rank=max_rank,
    )
    embedding.run(call, ids, vocab)


if INTERPRETED:
    library.impl("lora_embedding", _gpu, "CPU")
library.impl("lora_embedding", _gpu, "CUDA")
torch.library.register_fake("lorebase::lora_embedding", nothing, lib=library)
lora_embedding: Any = torch.ops.lorebase.lora_embedding
"""The op itself; SCHEMA names its arguments."""
