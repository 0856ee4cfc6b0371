"""The weights of all LoRA layers of one model: a pool sized once every layer is known."""

from collections.abc import Sequence

import torch

from ..lora.cpu import CpuLinear
from ..lora.metadata import StepPlan
from ..lora.pool import AdapterPool
from ..lora.reference import SliceWeights


class LayerWeights:
    """One layer's part of the pool. Before the first adapter comes there is no pool yet."""

    def __init__(
        self,
        model: "ModelWeights",
        in_features: int,
        slice_sizes: Sequence[int],
        plan: StepPlan,
    ) -> None:
        self.in_features, self.slice_sizes, self.plan = in_features, tuple(slice_sizes), plan
        self._model = model
        self._linear: CpuLinear | None = None

    def bind(self, pool: AdapterPool) -> None:
        """Takes a place in the pool's tables."""
        self._layer = pool.add_layer(self.in_features, self.slice_sizes)
        self._linear = CpuLinear(pool, self._layer, self.plan)

    def put(self, slot: int, weights: Sequence[SliceWeights]) -> None:
        """Writes an adapter into a slot. Slices whose B is all zero adapt nothing: left out."""
        kept = [pair if pair is not None and bool(pair[1].any()) else None for pair in weights]
        if self._linear is None and not any(pair is not None for pair in kept):
            return
        self._model.pool().put(self._layer, slot, kept)

    def clear(self, slot: int) -> None:
        """Empties a slot."""
        if self._linear is not None:
            self._model.pool().clear(self._layer, slot)

    def in_use(self) -> bool:
        """Whether any slot adapts this layer."""
        return self._linear is not None and self._model.pool().adapts(self._layer)

    def apply(self, y_TN: torch.Tensor, x_TK: torch.Tensor) -> None:
        """Adds each token's delta to y in place."""
        if self._linear is not None:
            self._linear(y_TN, x_TK)


class ModelWeights:
    """Collects the layers while vLLM wraps the model, and makes their pool when it is needed."""

    def __init__(
        self, *, slots: int, max_rank: int, dtype: torch.dtype, budget_bytes: int | None
    ) -> None:
        self.slots, self.max_rank, self.dtype = slots, max_rank, dtype
        self._budget_bytes = budget_bytes
        self._layers: list[LayerWeights] = []
        self._pool: AdapterPool | None = None

    def add_layer(
        self, in_features: int, slice_sizes: Sequence[int], plan: StepPlan
    ) -> LayerWeights:
        """Registers a layer.

        Raises:
            RuntimeError: An adapter is loaded already, so the pool's size is fixed.
        """
        if self._pool is not None:
            raise RuntimeError("got a layer after the first adapter; expected all layers before")
        layer = LayerWeights(self, in_features, slice_sizes, plan)
        self._layers.append(layer)
        return layer

    def pool(self) -> AdapterPool:
        """The pool; made on first use, when vLLM has wrapped every layer."""
        if self._pool is None:
            self._pool = AdapterPool(
                slots=self.slots, budget_bytes=self._budget(), dtype=self.dtype
            )
            for layer in self._layers:
                layer.bind(self._pool)
        return self._pool

    def _budget(self) -> int:
        """Bytes for every slot at the largest rank, which always suffice, or what is configured.

        On the CPU that is address space: memory is taken only for the ranks that really come.
        """
        if self._budget_bytes is not None:
            return self._budget_bytes
        alignment = 128  # at most: rounding A and B up to blocks of 64 bytes each
        return self.slots * sum(
            self.max_rank * (layer.in_features + size) * self.dtype.itemsize + alignment
            for layer in self._layers
            for size in layer.slice_sizes
        )
