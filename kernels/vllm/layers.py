"""vLLM's LoRA layers with their weights in the pool instead of stacks padded to the largest rank.

Only storage and application of the weights change. Which layer is replaced, how tensor parallelism
slices weights and how the base layer is called stay vLLM's, by inheritance. Adapters come and go
through PooledModelManager, which gives whole ones to the pool: vLLM's `set_lora` and `reset_lora`
are never called for these layers.
"""

from functools import partial
from typing import Any

import torch
from vllm.lora.layers import (
    BaseLayerWithLoRA,
    ColumnParallelLinearWithLoRA,
    LogitsProcessorWithLoRA,
    MergedColumnParallelLinearWithLoRA,
    MergedQKVParallelLinearWithLoRA,
    QKVParallelLinearWithLoRA,
    ReplicatedLinearWithLoRA,
    RowParallelLinearWithLoRA,
    VocabParallelEmbeddingWithLoRA,
)

from ..lora.reference import SliceWeights
from .weights import LayerWeights

Tensors = torch.Tensor | list[torch.Tensor | None]


class _PooledLinear:
    """Mixed in before a vLLM linear layer with LoRA."""

    # Of the vLLM class it is mixed into.
    device: torch.device
    input_size: int
    output_size: int
    output_slices: tuple[int, ...]
    n_slices: int
    tp_size: int
    punica_wrapper: Any

    weights: LayerWeights

    def create_lora_weights(
        self, max_loras: int, lora_config: Any, model_config: Any = None
    ) -> None:
        """Keeps only the shapes: vLLM reads them off `lora_a_stacked` and `lora_b_stacked`."""
        self.lora_config = lora_config
        if self.n_slices == 1:
            self.output_slices = (self.output_size,)
        rank = lora_config.max_lora_rank
        nothing = torch.zeros(1, dtype=lora_config.lora_dtype, device=self.device)
        self.lora_a_stacked = tuple(
            nothing.expand(max_loras, 1, rank, self.input_size) for _ in self.output_slices
        )
        self.lora_b_stacked = tuple(
            nothing.expand(max_loras, 1, size, rank) for size in self.output_slices
        )

    def set_mapping(self, punica_wrapper: Any) -> None:
        """Takes a place in the wrapper's pool."""
        self.punica_wrapper = punica_wrapper
        self.weights = punica_wrapper.add_layer(self.input_size, self.output_slices)

    def slices(self, lora_a: Tensors, lora_b: Tensors) -> list[SliceWeights]:
        """This layer's part of an adapter, per slice and of this tensor-parallel rank."""
        layer: Any = self
        packed = isinstance(lora_b, list)
        if packed and len(lora_b) != self.n_slices:
            lora_a, lora_b = layer.expand_packed_lora(lora_a, lora_b)
        if self.tp_size > 1:
            lora_a, lora_b = layer.slice_lora_a(lora_a), layer.slice_lora_b(lora_b)
        pairs: Any = zip(lora_a, lora_b, strict=True) if packed else [(lora_a, lora_b)]
        return [_pair(a, b) for a, b in pairs]

    def _apply_lora_to_output(self, x: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        # vLLM's transformers backend has a batch dimension in front.
        y_TN = output.view(-1, output.shape[-1])
        self.weights.apply(y_TN, x.reshape(-1, x.shape[-1]))
        return output

    @classmethod
    def can_replace_layer(cls, *, source_layer: Any, lora_config: Any, **kwargs: Any) -> bool:
        """Whether vLLM's class would replace the layer and the pool can hold its adapters."""
        parent: Any = super()
        same_dtype = getattr(source_layer, "params_dtype", None) == lora_config.lora_dtype
        theirs: bool = parent.can_replace_layer(
            source_layer=source_layer, lora_config=lora_config, **kwargs
        )
        return same_dtype and theirs


def _pair(a: torch.Tensor | None, b: torch.Tensor | None) -> SliceWeights:
    return None if a is None or b is None else (a, b)


def _pooled(base: type[BaseLayerWithLoRA]) -> type[BaseLayerWithLoRA]:
    return type(f"Pooled{base.__name__}", (_PooledLinear, base), {"__module__": __name__})


class PooledVocabEmbedding(VocabParallelEmbeddingWithLoRA):
    """The embedding, which costs nothing while no adapter targets it.

    Rare enough that its weights stay in vLLM's stacks, made when the first such adapter comes:
    they are as large as the vocabulary times slots times rank.
    """

    def create_lora_weights(self, *args: Any, **kwargs: Any) -> None:
        """Keeps how to make the stacks."""
        self._reserve = partial(super().create_lora_weights, *args, **kwargs)
        self._reserved = False
        self._used: set[int] = set()
        lora_config = args[1] if len(args) > 1 else kwargs["lora_config"]
        # What vLLM reads the dtype of.
        self.lora_a_stacked = self.lora_b_stacked = torch.zeros(1, dtype=lora_config.lora_dtype)

    def reset_lora(self, index: int) -> None:
        """Zeroes a slot that holds something."""
        if index in self._used:
            super().reset_lora(index)
            self._used.discard(index)

    def set_lora(self, index: int, lora_a: Any, lora_b: Any) -> None:
        """Writes a slot; a B of zeros adapts nothing and is left out."""
        if not lora_b.any():
            self.reset_lora(index)
            return
        if not self._reserved:
            self._reserve()
            self._reserved = True
        super().set_lora(index, lora_a, lora_b)
        self._used.add(index)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Looks tokens up, with their adapters' deltas if any adapter has some."""
        if self._used:
            return super().forward(x)
        base: Any = self.base_layer
        found: torch.Tensor = base.forward(x)
        return found


class PooledLogitsProcessor(LogitsProcessorWithLoRA):
    """The logits with lm_head's adapters from the pool; costs nothing while there are none."""

    weights: LayerWeights

    def create_lora_weights(
        self, max_loras: int, lora_config: Any, model_config: Any = None
    ) -> None:
        """Keeps only the shapes that vLLM reads."""
        self._vocab = self.base_layer.vocab_size
        rank = lora_config.max_lora_rank
        nothing = torch.zeros(1, dtype=lora_config.lora_dtype, device=self.device)
        self.lora_a_stacked = nothing.expand(max_loras, 1, rank, self.hidden_size)
        self.lora_b_stacked = nothing.expand(max_loras, 1, self._vocab, rank)
        mapping = self.sharded_to_full_mapping
        this: Any = self
        this.sharded_to_full_mapping_gpu = (
            None if mapping is None else torch.tensor(mapping, device=self.device)
        )

    def set_mapping(self, punica_wrapper: Any) -> None:
        """Takes a place in the wrapper's pool and becomes the one that applies it."""
        self.weights = punica_wrapper.add_layer(self.hidden_size, (self._vocab,), sampled=True)
        this: Any = self
        this.punica_wrapper = _Logits(self.weights, self._vocab)

    def slices(self, lora_a: Any, lora_b: Any) -> list[SliceWeights]:
        """lm_head's part of an adapter; a smaller vocabulary is padded with zeros."""
        padding = self._vocab - lora_b.shape[0]
        return [(lora_a, torch.nn.functional.pad(lora_b, (0, 0, 0, padding)))]


class _Logits:
    """The one method of a punica wrapper that vLLM's logits layer calls."""

    def __init__(self, weights: LayerWeights, vocab: int) -> None:
        self._weights, self._vocab = weights, vocab

    def add_lora_logits(
        self, y_SN: torch.Tensor, x_SK: torch.Tensor, *_: Any, **__: Any
    ) -> torch.Tensor:
        """Adds each sampled row's delta to its logits in place.

        Raises:
            ValueError: Other rows than the planned ones, so that adapters can't be assigned.
        """
        if not self._weights.in_use():
            return y_SN
        if len(x_SK) != self._weights.plan.tokens:
            raise ValueError(
                f"got {len(x_SK)} rows of logits; expected {self._weights.plan.tokens}, one per "
                "sampled token (adapters of lm_head know no other rows)"
            )
        part_SN = y_SN[:, : self._vocab]
        if part_SN.dtype == x_SK.dtype:
            self._weights.apply(part_SN, x_SK)
        else:  # logits kept in float32
            delta_SN = torch.zeros_like(part_SN, dtype=x_SK.dtype)
            self._weights.apply(delta_SN, x_SK)
            part_SN += delta_SN
        return y_SN


LAYERS: tuple[type[BaseLayerWithLoRA], ...] = (
    PooledVocabEmbedding,
    *map(
        _pooled,
        (
            ColumnParallelLinearWithLoRA,
            MergedColumnParallelLinearWithLoRA,
            QKVParallelLinearWithLoRA,
            MergedQKVParallelLinearWithLoRA,
            RowParallelLinearWithLoRA,
            ReplicatedLinearWithLoRA,
        ),
    ),
)
"""In the order of vLLM's own list, whose first match wins."""
