"""LoRA of an embedding: looking a token up is a product with a one-hot row, so A needs no product.

    y[t]  +=  B A[:, id of t]        for the slot of token t, in place

Adapters of embeddings are rare, and this gathers r values of A a token: torch is fast enough.
"""

import torch

from .metadata import StepPlan
from .pool import AdapterPool, PoolLayer


class LoraEmbedding:
    """An embedding of a pool bound to a step plan; its layer has the vocabulary for features.

    On the CPU only: which adapters a step has is decided in Python, where no captured graph looks.
    """

    def __init__(self, pool: AdapterPool, layer: PoolLayer, plan: StepPlan) -> None:
        """Binds; nothing is copied, later changes of pool and plan are seen.

        Raises:
            ValueError: Not on the CPU, or the layer has several slices.
        """
        if pool.device.type != "cpu" or len(layer.slice_sizes) != 1:
            raise ValueError(
                f"got {pool.device}, {len(layer.slice_sizes)} slices; expected the CPU and one"
            )
        self._pool, self._layer, self._plan = pool, layer, plan

    def __call__(self, y_TN: torch.Tensor, ids_T: torch.Tensor) -> None:
        """Adds every token's own delta to y in place.

        Args:
            y_TN: [plan.tokens or more, N], of the base.
            ids_T: Token ids, each below the layer's features.
        """
        if not self._plan.num_tiles or not self._pool.adapts(self._layer):
            return
        for slot, rows in self._plan.groups():
            [pair] = self._pool.read(self._layer, slot)
            if pair is not None:
                a_RV, b_NR = pair
                rows_G = torch.from_numpy(rows).long()
                h_GR = a_RV.index_select(1, ids_T[rows_G]).t().float()
                y_GN = y_TN[rows_G].float() + h_GR @ b_NR.float().t()
                y_TN[rows_G] = y_GN.to(y_TN.dtype)
