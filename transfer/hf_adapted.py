"""Bases under adapters of any PEFT type, ready to run prompts through.

What changes weights is merged into a copy of the base; what stands before the prompt (virtual
tokens, a learned cache) is put there; what can't be merged runs beside the weights, as PEFT does.
Legend of shape suffixes: B rows, T tokens, H hidden, V vocabulary.
"""

import copy
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

from lorebase.serving.engine.protocol import VersionRef
from lorebase.serving.errors import InvalidArgumentError

from .convert.kinds import REFUSE, UNMERGED, VIRTUAL_CACHE, VIRTUAL_TOKENS, kind_of


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptedModel:
    """A model to run prompts through."""

    model: Any
    """Transformers model (or a PeftModel that runs beside it)."""
    virtual_TH: torch.Tensor | None = None
    """Embeddings before every prompt."""
    prefix: Callable[[int], Any] | None = None
    """Makes a fresh cache of learned keys and values for so many rows."""

    @property
    def generation_config(self) -> Any:
        """Of the transformers model."""
        return self.model.generation_config

    def __call__(self, **arguments: Any) -> Any:
        """Runs one step after `prefill`."""
        return self.model(**arguments)

    def prefill(self, prompts: Sequence[Sequence[int]]) -> tuple[torch.Tensor, Any, torch.Tensor]:
        """Runs left-padded prompts.

        Returns:
            The last logits [B, V], the cache, and the mask over everything in it [B, T].
        """
        device = next(self.model.parameters()).device
        ahead = 0 if self.virtual_TH is None else len(self.virtual_TH)
        width = max(map(len, prompts))
        ids_BT = torch.zeros(len(prompts), width, dtype=torch.int64)
        mask_BT = torch.zeros(len(prompts), ahead + width, dtype=torch.int64)
        for row, tokens in enumerate(prompts):
            ids_BT[row, width - len(tokens) :] = torch.tensor(tokens, dtype=torch.int64)
            mask_BT[row, width - len(tokens) :] = 1
        ids_BT, mask_BT = ids_BT.to(device), mask_BT.to(device)
        arguments: dict[str, Any] = {"input_ids": ids_BT}
        if self.virtual_TH is not None:
            arguments = {"inputs_embeds": self._embedded(ids_BT, [len(p) for p in prompts])}
        if self.prefix is not None:
            arguments["past_key_values"] = self.prefix(len(prompts))
            learned = arguments["past_key_values"].get_seq_length()
            mask_BT = torch.cat([mask_BT.new_ones(len(prompts), learned), mask_BT], dim=1)
        fed = ahead + width
        output = self.model(
            **arguments,
            attention_mask=mask_BT,
            position_ids=(mask_BT.cumsum(1) - 1).clamp(min=0)[:, -fed:],
            use_cache=True,
            logits_to_keep=1,
        )
        return output.logits[:, -1].float(), output.past_key_values, mask_BT

    def _embedded(self, ids_BT: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
        """Returns embeddings with the virtual tokens right before each prompt, padding first."""
        assert self.virtual_TH is not None, "the caller looked"
        text_BTH: torch.Tensor = self.model.get_input_embeddings()(ids_BT)
        virtual_TH = self.virtual_TH.to(text_BTH.dtype)
        ahead, width = len(virtual_TH), ids_BT.shape[1]
        embeds_BTH = text_BTH.new_zeros(len(lengths), ahead + width, text_BTH.shape[2])
        for row, length in enumerate(lengths):
            start = width - length
            embeds_BTH[row, start : start + ahead] = virtual_TH
            embeds_BTH[row, start + ahead :] = text_BTH[row, start:]
        return embeds_BTH


def adapted_model(base: Any, version: VersionRef) -> AdaptedModel:
    """Returns a base under an adapter of any PEFT type; the base itself stays as it is.

    Raises:
        InvalidArgumentError: the files are missing, don't fit the base, or are of a type that
            nothing here can run.
    """
    config = _config(version)
    kind = kind_of(config)
    peft_type = str(config.get("peft_type", "")).upper()
    if peft_type in VIRTUAL_TOKENS | VIRTUAL_CACHE:
        # Adds nothing to the base's own modules: no copy needed.
        adapted = _loaded(base, version)
        with torch.inference_mode():
            if peft_type in VIRTUAL_TOKENS:
                virtual_TH = adapted.get_prompt(batch_size=1)[0].clone()
                return AdaptedModel(model=base, virtual_TH=virtual_TH)
        return AdaptedModel(model=base, prefix=adapted.get_prompt)
    if kind.path == REFUSE and not config.get("modules_to_save"):
        raise InvalidArgumentError(f"adapter version {version.id} can't be run: {kind.reason}")
    if peft_type in UNMERGED or config.get("lora_bias"):
        return AdaptedModel(model=_loaded(copy.deepcopy(base), version).eval())
    return AdaptedModel(model=merged_copy(base, version))


def merged_copy(base: Any, version: VersionRef) -> Any:
    """Returns a copy of `base` with an adapter's weights added to it.

    Raises:
        InvalidArgumentError: the files are missing or don't fit the base.
    """
    adapted = _loaded(copy.deepcopy(base), version)
    try:
        return adapted.merge_and_unload(safe_merge=True).eval()
    except (RuntimeError, ValueError, KeyError, NotImplementedError) as error:
        raise _unfit(version, error) from error


def _loaded(base: Any, version: VersionRef) -> PeftModel:
    _config(version)
    try:
        return PeftModel.from_pretrained(base, version.path)
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        raise _unfit(version, error) from error


def _config(version: VersionRef) -> dict[str, Any]:
    path = Path(version.path)
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        if not (path / name).is_file():
            raise InvalidArgumentError(f"adapter version {version.id} has no {name} in {path}")
    config: dict[str, Any] = json.loads((path / "adapter_config.json").read_text(encoding="utf-8"))
    return config


def _unfit(version: VersionRef, error: Exception) -> InvalidArgumentError:
    return InvalidArgumentError(
        f"adapter version {version.id} does not fit base {version.base_id!r}: {error}"
    )
