"""The weights of all LoRA layers of one model: layers bound to one pool and one step plan."""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch

from ..lora.cpu import CpuLinear
from ..lora.embedding import LoraEmbedding
from ..lora.layout import NARROWEST, PackedAdapter, block_of, pack
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
    """One layer's part of the pool; bound by `ModelWeights.reserve`, which must come first."""

    _linear: Linear

    def __init__(self, pool: AdapterPool, layer: PoolLayer, plan: StepPlan, bind: Bind) -> None:
        self.index = layer.index
        self.columns = sum(layer.slice_sizes)
        self.plan = plan
        self._pool, self._layer, self._bind = pool, layer, bind

    def bind(self) -> None:
        """Takes the addresses of the pool's buffer and of the plan, which stay."""
        self._linear = self._bind(self._pool, self._layer, self.plan)

    def in_use(self) -> bool:
        """Whether any slot adapts this layer."""
        return self._pool.adapts(self._layer)

    def apply(self, y_TN: torch.Tensor, x_TK: torch.Tensor) -> None:
        """Adds each token's delta to y in place; x are token ids [T] where y is an embedding."""
        self._linear(y_TN, x_TK)


class ModelWeights:
    """The pool of one model.

    On the CPU adapters are served from wherever they were packed: giving one a slot writes a few
    table rows, whatever its rank. A device's kernels read its own memory only: there adapters are
    copied into a buffer, as a budget makes the CPU do, too.
    """

    def __init__(
        self,
        *,
        slots: int,
        max_rank: int,
        dtype: torch.dtype,
        options: KernelOptions,
        device: torch.device | str = "cpu",
    ) -> None:
        """Takes layers from now on, and weights once `reserve` was called.

        Args:
            slots: Adapters in a step, at most.
            max_rank: Largest rank that an adapter may have.
            dtype: Of weights, x and y.
            options: The engine's.
            device: Where the model is.
        """
        self.dtype = dtype
        self.uses_op = options.uses_op(device)
        self._copies = self.uses_op or options.pool_bytes is not None
        self._pool_bytes = options.pool_bytes
        # The C++ kernel reads 16 bits under float32; the op and a buffer have one type for all.
        self.keeps_16_bits = dtype == torch.float32 and not self._copies
        self.pool = AdapterPool(
            slots=slots,
            budget_bytes=0,
            dtype=dtype,
            device=device,
            max_rank=max_rank,
            points=not self._copies,
        )
        self._max_rank = max_rank
        self._layers: list[LayerWeights] = []

    def add_layer(
        self, in_features: int, slice_sizes: Sequence[int], plan: StepPlan
    ) -> LayerWeights:
        """Registers a layer."""
        return self._kept(self.pool.add_layer(in_features, slice_sizes), plan, self._bind_linear)

    def add_embedding(self, vocab: int, features: int, plan: StepPlan) -> LayerWeights:
        """Registers an embedding."""
        return self._kept(self.pool.add_layer(vocab, (features,)), plan, self._bind_embedding)

    def over(self, weights: LayerWeights, plan: StepPlan) -> LayerWeights:
        """A layer's weights over the rows of another plan."""
        return self._kept(self.pool.layers[weights.index], plan, self._bind_linear)

    def reserve(self) -> None:
        """Reserves the buffer, if there is to be one, and binds all layers to it.

        By default every slot has room for any adapter, as vLLM's own stacks have.
        """
        if self._copies:
            most = self.pool.slots * self.bytes_of_rank(self._max_rank)
            self.pool.reserve(most if self._pool_bytes is None else self._pool_bytes)
        for layer in self._layers:
            layer.bind()

    def bytes_of_rank(self, rank: int) -> int:
        """What an adapter of that rank in all layers takes of the buffer."""
        layers = self.pool.layers
        blocks = (block_of(one, [rank] * len(one.slice_sizes), NARROWEST) for one in layers)
        return sum(block.elements for block in blocks) * self.dtype.itemsize

    def check_fits(self, adapter: PackedAdapter) -> None:
        """Refuses an adapter that takes more of the buffer than a slot's share.

        Whichever adapters meet in a step then fit beside each other: a step that can't have what
        was scheduled for it ends the engine.

        Raises:
            ValueError: It is larger.
        """
        share = self.pool.capacity_bytes // self.pool.slots
        if self._copies and adapter.nbytes > share:
            raise ValueError(
                f"got an adapter of {adapter.nbytes} bytes; expected at most {share}, its share of "
                f"a buffer of {self.pool.capacity_bytes} bytes for {self.pool.slots} slots. Use a "
                "smaller rank, raise pool_bytes, or lower max_loras"
            )

    def pack(self, weights: Mapping[int, Sequence[SliceWeights]]) -> PackedAdapter:
        """Packs an adapter, given by layer index. Any thread may."""
        return pack(self.pool.layers, weights, dtype=self.dtype)

    def _kept(self, layer: PoolLayer, plan: StepPlan, bind: Bind) -> LayerWeights:
        self._layers.append(LayerWeights(self.pool, layer, plan, bind))
        return self._layers[-1]

    @property
    def _bind_embedding(self) -> Bind:
        if not self.uses_op:
            return LoraEmbedding
        from ..lora.embedding_op import LoraEmbeddingOp

        return LoraEmbeddingOp

    @property
    def _bind_linear(self) -> Bind:
        if not self.uses_op:
            return CpuLinear
        from ..lora.op import LoraLinear

        return LoraLinear
