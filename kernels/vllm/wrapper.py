"""Our punica wrapper: plans each step once, in numpy, and hands layers their part of the pool."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from vllm.lora.layers import LoRAMapping
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

from ..lora.cpu.linear import TILE_TOKENS
from ..lora.metadata import StepPlan
from .options import KernelOptions
from .weights import LayerWeights, ModelWeights


class PooledPunicaWrapper(PunicaWrapperCPU):
    """Plans steps for layers in the pool; serves stacked weights of other layers row-safely.

    vLLM's own wrapper indexes slot -1 for rows without adapter, and so gives them the last
    slot's weights. Here such rows are in no group: nothing is ever written to them.
    """

    def __init__(
        self,
        max_num_batched_tokens: int,
        max_batches: int,
        device: torch.device | str,
        *,
        options: KernelOptions,
        **kwargs: Any,
    ) -> None:
        super().__init__(max_num_batched_tokens, max_batches, device, **kwargs)
        config = kwargs["lora_config"]
        self.weights = ModelWeights(
            slots=config.max_loras,
            max_rank=config.max_lora_rank,
            dtype=config.lora_dtype,
            options=options,
        )
        rows = max(max_num_batched_tokens, max_batches)
        self._tokens, self._samples = (
            StepPlan(max_tokens=rows, slots=config.max_loras, tile_tokens=TILE_TOKENS)
            for _ in range(2)
        )

    def add_layer(
        self, in_features: int, slice_sizes: Sequence[int], *, sampled: bool = False
    ) -> LayerWeights:
        """Registers a layer in the pool.

        Args:
            in_features: K.
            slice_sizes: Output features of each slice.
            sampled: Whether it runs over sampled rows (the logits) and not over all tokens.
        """
        plan = self._samples if sampled else self._tokens
        return self.weights.add_layer(in_features, slice_sizes, plan)

    def update_metadata(
        self,
        mapping: LoRAMapping,
        lora_index_to_id: list[int | None],
        max_loras: int,
        vocab_size: int,
        **kwargs: Any,
    ) -> None:
        """Plans the coming step. Called when the mapping or the slots changed."""
        slot_of = {identity: slot for slot, identity in enumerate(lora_index_to_id) if identity}
        tokens = _slots(mapping.index_mapping, slot_of)
        samples = _slots(mapping.prompt_mapping, slot_of)
        self._tokens.fill(tokens)
        self._samples.fill(samples)
        # What inherited code and vLLM's embedding layer look up.
        self._token_lora_indices[: len(tokens)] = torch.from_numpy(tokens)
        self._sampler_indices[: len(samples)] = torch.from_numpy(samples)
        self._embeddings_indices[: len(tokens)] = torch.from_numpy(
            np.maximum(tokens, 0) * vocab_size
        )
        self.indices_len[:] = (len(tokens), len(samples), len(samples), len(tokens))
        self.no_lora = self._tokens.num_groups == 0
        self.is_prefill = False

    def add_lora_linear(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_a_stacked: tuple[torch.Tensor, ...],
        lora_b_stacked: tuple[torch.Tensor, ...],
        scale: float,
        output_slices: tuple[int, ...],
        *,
        buffer: tuple[torch.Tensor, ...] | None = None,
        **kwargs: Any,
    ) -> None:
        """Serves layers outside the pool: stacked A [slots, 1, R, K] and B [slots, 1, N, R]."""
        y_TN, x_TK = y.view(-1, y.shape[-1]), x.view(-1, x.shape[-1])
        column = 0
        for a_LRK, b_LNR, size in zip(lora_a_stacked, lora_b_stacked, output_slices, strict=True):
            _add_stacked(
                y_TN[:, column : column + size], x_TK, a_LRK[:, 0], b_LNR[:, 0], self._tokens, scale
            )
            column += size

    def add_lora_embedding(
        self, y: torch.Tensor, x: torch.Tensor, lora_b_stacked: torch.Tensor, *_: Any, **__: Any
    ) -> None:
        """Does y [T, N] += x [T, R] B^T, x being rows of the adapters' own embeddings."""
        _add_stacked(y, x, None, lora_b_stacked[:, 0], self._tokens, 1.0)

    def add_lora_logits(self, y: torch.Tensor, x: torch.Tensor, *_: Any, **__: Any) -> None:
        """Is done by PooledLogitsProcessor itself.

        Raises:
            RuntimeError: Always: vLLM's own logits layer is not replaced as it should be.
        """
        raise RuntimeError("got vLLM's LogitsProcessorWithLoRA; expected PooledLogitsProcessor")


def _slots(identities: Sequence[int], slot_of: dict[int, int]) -> npt.NDArray[np.int64]:
    """Slot per row of vLLM's adapter ids, 0 being none."""
    distinct, which = np.unique(np.asarray(identities, dtype=np.int64), return_inverse=True)
    slots = [slot_of[int(one)] if one > 0 else -1 for one in distinct]
    found: npt.NDArray[np.int64] = np.asarray(slots, dtype=np.int64)[which.reshape(-1)]
    return found


def _add_stacked(
    y_TN: torch.Tensor,
    x_TK: torch.Tensor,
    a_LRK: torch.Tensor | None,
    b_LNR: torch.Tensor,
    plan: StepPlan,
    scale: float,
) -> None:
    for slot, rows in plan.groups():
        rows_G = torch.from_numpy(rows).long()
        h_GR = x_TK[rows_G] if a_LRK is None else x_TK[rows_G] @ a_LRK[slot].t()
        y_TN.index_add_(0, rows_G, (h_GR @ b_LNR[slot].t()).to(y_TN.dtype), alpha=scale)
