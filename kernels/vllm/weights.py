"""The weights of all LoRA layers of one model: layers bound to one pool and one step plan."""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch

from ..lora.cpu import CpuLinear
from ..lora.embedding import LoraEmbedding
from ..lora.layout import PackedAdapter, pack
from ..lora.metadata import StepPlan
from ..lora.pool import AdapterPool, PoolLayer
from ..lora.reference import SliceWeights
from .options import KernelOptions


class Linear(Protocol):
    """A layer bound to pool and plan."""

    def __call__(self, y_TN: torch.Tensor, x_TK: torch.Tensor, /) -> None:
        """Adds each token's delta to y in place."""
        ...


Bind = Callable[[AdapterPool, PoolLayer, StepPlan], Linear]


class LayerWeights:
    """One layer's part of the pool."""

    def __init__(self, pool: AdapterPool, layer: PoolLayer, plan: StepPlan, bind: Bind) -> None:
        self.index = layer.index
        self.columns = sum(layer.slice_sizes)
        self.plan = plan
        self._pool, self._layer, self._bind = pool, layer, bind
        self._linear = bind(pool, layer, plan)

    def over(self, plan: StepPlan) -> "LayerWeights":
        """The same weights over the rows of another plan."""
        return LayerWeights(self._pool, self._layer, plan, self._bind)

    def in_use(self) -> bool:
        """Whether any slot adapts this layer."""
        return self._pool.adapts(self._layer)

    def apply(self, y_TN: torch.Tensor, x_TK: torch.Tensor) -> None:
        """Adds each token's delta to y in place; x are token ids [T] where y is an embedding."""
        self._linear(y_TN, x_TK)


class ModelWeights:
    """The pool of one model.

    On the CPU adapters are served from wherever they were packed: giving one a slot writes a few
    table rows, whatever its rank. A budget makes it copy them into a buffer of that size instead,
    as memory of a device needs.
    """

    def __init__(
        self, *, slots: int, max_rank: int, dtype: torch.dtype, options: KernelOptions
    ) -> None:
        self.dtype = dtype
        self._interpreted = options.kernels_on_cpu == "triton"
        # The C++ kernel reads 16 bits under float32; the op and a buffer have one type for all.
        plain = self._interpreted or options.pool_bytes
        self.keeps_16_bits = dtype == torch.float32 and not plain
        self.pool = AdapterPool(
            slots=slots,
            budget_bytes=options.pool_bytes or 0,
            dtype=dtype,
            max_rank=max_rank,
            points=not options.pool_bytes,
        )

    def add_layer(
        self, in_features: int, slice_sizes: Sequence[int], plan: StepPlan
    ) -> LayerWeights:
        """Registers a layer."""
        layer = self.pool.add_layer(in_features, slice_sizes)
        return LayerWeights(self.pool, layer, plan, self._linear)

    def add_embedding(self, vocab: int, features: int, plan: StepPlan) -> LayerWeights:
        """Registers an embedding."""
        layer = self.pool.add_layer(vocab, (features,))
        return LayerWeights(self.pool, layer, plan, LoraEmbedding)

    def pack(self, weights: Mapping[int, Sequence[SliceWeights]]) -> PackedAdapter:
        """Packs an adapter, given by layer index. Any thread may."""
        return pack(self.pool.layers, weights, dtype=self.dtype)

    @property
    def _linear(self) -> Bind:
        if not self._interpreted:
            return CpuLinear
        from ..lora.op import LoraLinear

        return LoraLinear
