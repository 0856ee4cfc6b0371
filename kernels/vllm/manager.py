"""vLLM's adapter managers with O(1) work for an adapter that is in its slot already.

vLLM copies its whole LRU of registered adapters once per adapter in every step: 15 ms with 64
adapters in the batch and 1,000 registered.
"""

from typing import Any

import torch
from vllm.config import VllmConfig
from vllm.lora.lora_model import LoRAModel
from vllm.lora.model_manager import LRUCacheLoRAModelManager
from vllm.lora.request import LoRARequest
from vllm.lora.worker_manager import LRUCacheWorkerLoRAManager

from ..lora.pool import PoolFullError
from .options import KernelOptions, options_of
from .plugin import warn_off
from .replaced import not_covered, our_classes


def make_worker_manager(
    vllm_config: VllmConfig,
    device: torch.device,
    embedding_modules: dict[str, str],
    lora_model_cls: type[LoRAModel] = LoRAModel,
) -> LRUCacheWorkerLoRAManager:
    """What vLLM calls in the place of its manager class: the one that the engine wants."""
    options = options_of(vllm_config.additional_config)
    if options.kernels == "stock":
        return LRUCacheWorkerLoRAManager(vllm_config, device, embedding_modules, lora_model_cls)
    return PooledWorkerManager(
        vllm_config, device, embedding_modules, lora_model_cls, options=options
    )


class PooledModelManager(LRUCacheLoRAModelManager):
    """Frees the pool's memory with the slot, and never leaves half an adapter active."""

    def activate_adapter(self, lora_id: int) -> bool:
        """Writes an adapter into a free slot.

        Raises:
            PoolFullError: The pool's budget can't hold it. It is not active then.
        """
        try:
            return super().activate_adapter(lora_id)
        except PoolFullError:
            self.deactivate_adapter(lora_id)
            raise

    def _deactivate_adapter(self, lora_id: int) -> None:
        slot = self.lora_index_to_id.index(lora_id) if lora_id in self.lora_index_to_id else None
        super()._deactivate_adapter(lora_id)
        if slot is not None:
            for module in self.modules.values():
                module.reset_lora(slot)


class PooledWorkerManager(LRUCacheWorkerLoRAManager):
    """Adds adapters as vLLM does, but only touches the LRU for those that are active."""

    def __init__(self, *args: Any, options: KernelOptions) -> None:
        super().__init__(*args)
        self._options = options

    def create_lora_manager(self, model: torch.nn.Module, vllm_config: VllmConfig) -> Any:
        """Wraps the model with our layers, or with vLLM's if ours don't cover it."""
        reason = not_covered(self.lora_config, model)
        if reason is not None:
            warn_off(reason)
            return super().create_lora_manager(model, vllm_config)
        self._manager_cls = PooledModelManager
        with our_classes(self._options):
            return super().create_lora_manager(model, vllm_config)

    def add_adapter(self, lora_request: LoRARequest) -> bool:
        """Makes an adapter ready for the coming step; returns whether it is."""
        manager = self._adapter_manager
        identity = lora_request.lora_int_id
        if (
            identity in manager._active_adapters
            and identity in manager._registered_adapters
            and not lora_request.load_inplace
        ):
            manager._registered_adapters.touch(identity)
            manager._active_adapters.touch(identity)
            return True
        return super().add_adapter(lora_request)
