"""A model's first and last layer, the embedding and the logits, with their adapters in the pool."""

from collections.abc import Callable
from typing import Any

import numpy.typing as npt
import torch
from vllm.lora.layers import LogitsProcessorWithLoRA, VocabParallelEmbeddingWithLoRA

from ..lora.reference import SliceWeights
from .weights import LayerWeights


class PooledVocabEmbedding(VocabParallelEmbeddingWithLoRA):
    """The embedding with its adapters in the pool.

    vLLM's own has stacks as large as the vocabulary times slots times rank, in no budget.
    """

    weights: LayerWeights

    def create_lora_weights(self, max_loras: int, lora_config: Any, *_: Any, **__: Any) -> None:
        """Keeps only what vLLM reads a dtype of."""
        self.lora_a_stacked = self.lora_b_stacked = torch.zeros(1, dtype=lora_config.lora_dtype)

    def set_mapping(self, punica_wrapper: Any) -> None:
        """Takes a place in the wrapper's pool."""
        self.punica_wrapper = punica_wrapper
        base: Any = self.base_layer
        self._vocab = base.org_vocab_size
        self.weights = punica_wrapper.add_embedding(self._vocab, base.embedding_dim)

    def slices(self, lora_a: Any, lora_b: Any) -> list[SliceWeights]:
        """The embedding's part of an adapter; a smaller vocabulary is padded with zeros."""
        padding = self._vocab - lora_a.shape[1]
        return [(torch.nn.functional.pad(lora_a, (0, padding)), lora_b)]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Looks tokens up, with their adapters' deltas."""
        base: Any = self.base_layer
        found: torch.Tensor = base.forward(x)
        self.weights.apply(found.view(-1, found.shape[-1]), x.reshape(-1))
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
        logits: Logits = punica_wrapper.add_logits(self.hidden_size, self._vocab)
        self.weights = logits.samples
        this: Any = self
        this.punica_wrapper = logits

    def slices(self, lora_a: Any, lora_b: Any) -> list[SliceWeights]:
        """lm_head's part of an adapter; a smaller vocabulary is padded with zeros."""
        padding = self._vocab - lora_b.shape[0]
        return [(lora_a, torch.nn.functional.pad(lora_b, (0, 0, 0, padding)))]


class Logits:
    """The one method of a punica wrapper that vLLM's logits layer calls.

    vLLM calls it for two kinds of rows: those that are sampled, gathered from the hidden states
    of the step's tokens, and for each request that wants log probabilities of its prompt a slice
    of the hidden states themselves. Where a slice begins says which tokens its rows are.
    """

    def __init__(
        self,
        samples: LayerWeights,
        prompts: LayerWeights,
        token_slots: Callable[[], npt.NDArray[Any]],
    ) -> None:
        """Binds.

        Args:
            samples: lm_head's weights over the sampled rows.
            prompts: The same over rows of a plan that is filled here, call by call.
            token_slots: Slot of each of the step's tokens.
        """
        self.samples, self._prompts, self._token_slots = samples, prompts, token_slots

    def add_lora_logits(
        self, y_SN: torch.Tensor, x_SK: torch.Tensor, *_: Any, **__: Any
    ) -> torch.Tensor:
        """Adds each row's delta to its logits in place.

        Raises:
            ValueError: Rows that are neither kind, so that adapters can't be assigned.
        """
        if not self.samples.in_use():
            return y_SN
        weights = self._of(x_SK)
        part_SN = y_SN[:, : weights.columns]
        if part_SN.dtype == x_SK.dtype:
            weights.apply(part_SN, x_SK)
        else:  # logits kept in float32
            delta_SN = torch.zeros_like(part_SN, dtype=x_SK.dtype)
            weights.apply(delta_SN, x_SK)
            part_SN += delta_SN
        return y_SN

    def _of(self, x_SK: torch.Tensor) -> LayerWeights:
        gathered = x_SK.untyped_storage().nbytes() == x_SK.nbytes
        if gathered and len(x_SK) == self.samples.plan.tokens:
            return self.samples
        slots = self._token_slots()
        first, rest = divmod(int(x_SK.storage_offset()), x_SK.shape[1])
        rows = slots[first : first + len(x_SK)]
        if rest or len(rows) != len(x_SK) or (gathered and len(rows) != len(slots)):
            raise ValueError(
                f"got {len(x_SK)} rows of logits; expected {self.samples.plan.tokens}, one per "
                f"sampled token, or a slice of the hidden states of the step's {len(slots)} tokens"
            )
        self._prompts.plan.fill(rows)
        return self._prompts
