"""vLLM's LoRA layers with their weights in the pool instead of stacks padded to the largest rank.

Only storage and application of the weights change. Which layer is replaced, how tensor parallelism
slices weights and how the base layer is called stay vLLM's, by inheritance. Adapters come and go
through PooledModelManager, which gives whole ones to the pool: vLLM's `set_lora` and `reset_lora`
are never called for these layers.
"""

from typing import Any

import torch
from vllm.lora.layers import (
    BaseLayerWithLoRA,
    ColumnParallelLinearWithLoRA,
    MergedColumnParallelLinearWithLoRA,
    MergedQKVParallelLinearWithLoRA,
    QKVParallelLinearWithLoRA,
    ReplicatedLinearWithLoRA,
    RowParallelLinearWithLoRA,
)

from ..lora.reference import SliceWeights
from .edges import PooledVocabEmbedding
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
