"""The op `lorebase::lora_embedding`: an embedding's batched LoRA by the GPU's kernels.

    y[t]  +=  B A[:, id of t]        for the slot of token t, in place

What compiled and captured graphs hold, as `op.py`'s for linear layers. The CPU has it only to
interpret the kernels; without graphs `embedding.LoraEmbedding` serves there.
"""

from typing import Any

import torch

from .metadata import StepPlan
from .op import INTERPRETED, TABLES, library, nothing, tables_of
from .pool import AdapterPool, PoolLayer

SCHEMA = f"lora_embedding(Tensor(a!) y, Tensor ids, int vocab, {TABLES}) -> ()"
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
        self._plan, self._vocab = plan, layer.in_features
        self._tables = tables_of(pool, layer, plan)

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
        lora_embedding(y_TN, ids_T, self._vocab, *self._tables)


def _gpu(y: torch.Tensor, ids: torch.Tensor, vocab: int, *tables: Any) -> None:
    from .gpu.call import call_of_step

    call = call_of_step(y, y, *tables)  # of x only the number of rows counts
    if call is not None:
        from .gpu import embedding

        embedding.run(call, ids, vocab)


if INTERPRETED:
    library.impl("lora_embedding", _gpu, "CPU")
library.impl("lora_embedding", _gpu, "CUDA")
torch.library.register_fake("lorebase::lora_embedding", nothing, lib=library)
lora_embedding: Any = torch.ops.lorebase.lora_embedding
"""The op itself; SCHEMA names its arguments."""
