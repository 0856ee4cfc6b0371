"""Our punica wrapper: plans each step once, in numpy, and hands layers their part of the pool."""

import logging
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
import torch
from vllm.lora.layers import LoRAMapping
from vllm.lora.punica_wrapper.punica_base import PunicaWrapperBase

from ..lora.cpu.native import described
from ..lora.metadata import DECODE_TILE, PREFILL_TILE, StepPlan
from .edges import Logits
from .options import KernelOptions
from .weights import LayerWeights, ModelWeights

_logger = logging.getLogger("vllm.lorebase")


def _refused(name: str) -> Callable[..., NoReturn]:
    def method(self: "PooledPunicaWrapper", *_: Any, **__: Any) -> NoReturn:
        raise RuntimeError(
            f"got a call of {name}; expected layers that lorebase's kernels replaced, or stacked "
            "weights given to add_lora_linear. Set engine.lora_kernels to stock for this model"
        )

    return method


class PooledPunicaWrapper(PunicaWrapperBase):
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
            device=device,
        )
        which = "Triton" if self.weights.uses_op else described()
        _logger.info("lorebase's LoRA kernels serve: %s", which)
        # As vLLM rounds up: a captured graph may have a few rows more than the largest step.
        rows = -(-max(max_num_batched_tokens, max_batches) // 8) * 8
        self._tokens, self._samples, self._prompts = (
            StepPlan(
                max_tokens=rows,
                slots=config.max_loras,
                tile_tokens=DECODE_TILE,
                wide_tile_tokens=PREFILL_TILE if self.weights.uses_op else 0,
                device=device,
            )
            for _ in range(3)
        )
        self._token_slots: npt.NDArray[np.int64] = np.empty(0, np.int64)

    def add_layer(self, in_features: int, slice_sizes: Sequence[int]) -> LayerWeights:
        """Registers a linear layer in the pool: K, and the output features of each slice."""
        return self.weights.add_layer(in_features, slice_sizes, self._tokens)

    def add_embedding(self, vocab: int, features: int) -> LayerWeights:
        """Registers an embedding in the pool."""
        return self.weights.add_embedding(vocab, features, self._tokens)

    def add_logits(self, features: int, vocab: int) -> Logits:
        """Registers lm_head in the pool; it runs over other rows than the step's tokens."""
        samples = self.weights.add_layer(features, (vocab,), self._samples)
        prompts = self.weights.over(samples, self._prompts)
        return Logits(samples, prompts, lambda: self._token_slots)

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
        self._token_slots = tokens
        # What inherited code looks up, of layers outside the pool.
        if self._token_lora_indices.device.type == "cpu":
            self._token_lora_indices[: len(tokens)] = torch.from_numpy(tokens)
            self._sampler_indices[: len(samples)] = torch.from_numpy(samples)
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

    # Whatever would reach these serves stacks that nobody fills.
    add_shrink = _refused("add_shrink")
    add_expand = _refused("add_expand")
    add_lora_embedding = _refused("add_lora_embedding")
    add_lora_logits = _refused("add_lora_logits")
    apply_lora_full_linear = _refused("apply_lora_full_linear")
    add_lora_fused_moe = _refused("add_lora_fused_moe")
    add_lora_w13 = _refused("add_lora_w13")
    add_lora_w2 = _refused("add_lora_w2")


def _slots(identities: Sequence[int], slot_of: dict[int, int]) -> npt.NDArray[np.int64]:
    """Slot per row of vLLM's adapter ids, 0 being none."""
    distinct, which = np.unique(np.asarray(identities, dtype=np.int64), return_inverse=True)
    slots = [slot_of[int(one)] if one > 0 else -1 for one in distinct]
    found: npt.NDArray[np.int64] = np.asarray(slots, dtype=np.int64)[which.reshape(-1)]
    return found


def _add_stacked(
    y_TN: torch.Tensor,
    x_TK: torch.Tensor,
    a_LRK: torch.Tensor,
    b_LNR: torch.Tensor,
    plan: StepPlan,
    scale: float,
) -> None:
    for slot, rows in plan.groups():
        rows_G = torch.from_numpy(rows).long()
        h_GR = x_TK[rows_G] @ a_LRK[slot].t()
        y_TN.index_add_(0, rows_G, (h_GR @ b_LNR[slot].t()).to(y_TN.dtype), alpha=scale)
