"""vLLM's adapter managers over the pool: bytes move before a step needs them, and only once.

                      vLLM's own                              here
a step, all in slots  copies its LRU once per adapter,        O(adapters in the batch)
                      O(batch x registered)
a slot for a known    copies padded stacks, layer by layer    table rows (CPU), or one copy
adapter                                                       at true rank
an unknown adapter    parsed in the engine's loop             parsed and packed by a thread
                                                              since it was announced
what is kept          `max_cpu_loras` adapters                as many bytes as one says
"""

import time
from collections import deque
from pathlib import Path
from typing import Any

import torch
from vllm.config import VllmConfig
from vllm.lora.layers import BaseLayerWithLoRA
from vllm.lora.lora_model import LoRAModel
from vllm.lora.model_manager import LRUCacheLoRAModelManager
from vllm.lora.peft_helper import PEFTHelper
from vllm.lora.request import LoRARequest
from vllm.lora.utils import get_adapter_absolute_path
from vllm.lora.worker_manager import LRUCacheWorkerLoRAManager
from vllm.utils.gpu_sync_debug import gpu_sync_allowed

from ..lora.layout import PackedAdapter
from ..lora.pool import PoolFullError
from ..lora.prefetch import Prefetcher
from .options import KernelOptions, options_of
from .plugin import warn_off
from .reader import WEIGHTS, PlainReader, places_of
from .registered import Registered, is_packed, pack_into, packed_of
from .replaced import not_covered, our_classes
from .wrapper import PooledPunicaWrapper


class PooledModelManager(LRUCacheLoRAModelManager):
    """Holds packed adapters within a byte budget and gives them slots of the pool."""

    def __init__(self, *args: Any, options: KernelOptions, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        [wrapper] = self.punica_wrapper_mapping.values()
        assert isinstance(wrapper, PooledPunicaWrapper)
        self._weights = wrapper.weights
        self._registered_adapters = Registered(
            self.capacity, self.deactivate_adapter, budget_bytes=options.host_bytes
        )
        self._pooled = {n: m for n, m in self.modules.items() if hasattr(m, "slices")}
        mapper = getattr(self.model, "hf_to_vllm_mapper", None)
        self._reader = PlainReader(
            layers=self._weights.pool.layers,
            places=places_of(self._pooled, self.packed_modules),
            dtype=self._weights.dtype,
            keeps_16_bits=self._weights.keeps_16_bits,
            name_mapper=None if mapper is None else mapper.get_rename_mapper(),
        )
        # The embedding, and layers that only vLLM's own classes cover.
        self._stacked = {n: m for n, m in self.modules.items() if n not in self._pooled}

    def prepare(self, adapter: LoRAModel) -> None:
        """Merges and packs a parsed adapter. Touches nothing else, so any thread may.

        Raises:
            ValueError: A rank is larger than the engine's.
        """
        self._validate_moe_lora_format(adapter)
        self._create_merged_loras_inplace(adapter)
        weights = {}
        for name, module in self._pooled.items():
            found: Any = self._get_lora_layer_weights(adapter, name)
            if found:
                layer: Any = module
                weights[layer.weights.index] = layer.slices(found.lora_a, found.lora_b)
        self._accept(adapter, self._weights.pack(weights))
        adapter.loras = {n: one for n, one in adapter.loras.items() if n in self._stacked}

    def read(self, folder: Path, config: PEFTHelper, adapter_id: int) -> LoRAModel | None:
        """Reads and packs a plain adapter; None: `prepare` what vLLM's loader makes of it.

        Raises:
            ValueError: A rank is larger than the engine's.
        """
        packed = self._reader.read(folder, config)
        if packed is None:
            return None
        adapter = LoRAModel(adapter_id, config.r, {})
        self._accept(adapter, packed)
        return adapter

    def _accept(self, adapter: LoRAModel, packed: PackedAdapter) -> None:
        most = self.lora_config.max_lora_rank
        if packed.max_rank > most:
            raise ValueError(f"got an adapter of rank {packed.max_rank}; expected at most {most}")
        pack_into(adapter, packed)

    def is_registered(self, adapter_id: int) -> bool:
        """Whether an adapter is in host memory."""
        return adapter_id in self._registered_adapters

    def _add_adapter(self, lora: LoRAModel) -> None:
        if not is_packed(lora):
            self.prepare(lora)
        registered = self._registered_adapters
        assert isinstance(registered, Registered)
        for victim in registered.victims(packed_of(lora).nbytes, self._active_adapters):
            self.remove_adapter(victim)
        registered[lora.id] = lora

    def activate_adapter(self, lora_id: int) -> bool:
        """Gives a registered adapter a slot, if need be the least recently used one.

        Raises:
            PoolFullError: The pool's buffer can't hold it. It has no slot then.
        """
        active = self._active_adapters
        if lora_id in active:
            active.touch(lora_id)
            return False
        if len(active) >= self.lora_slots:
            active.remove_oldest()
        slot = self.lora_index_to_id.index(None)
        adapter = self._registered_adapters[lora_id]
        active[lora_id] = None
        self.lora_index_to_id[slot] = lora_id
        try:
            self._weights.pool.assign(slot, packed_of(adapter))
        except PoolFullError:
            self.deactivate_adapter(lora_id)
            raise
        for name, module in self._stacked.items():
            _write_stacked(module, slot, self._get_lora_layer_weights(adapter, name))
        return True

    def _deactivate_adapter(self, lora_id: int) -> None:
        if lora_id not in self.lora_index_to_id:
            return
        slot = self.lora_index_to_id.index(lora_id)
        super()._deactivate_adapter(lora_id)
        self._weights.pool.unassign(slot)
        for module in self._stacked.values():
            module.reset_lora(slot)


def _write_stacked(module: BaseLayerWithLoRA, slot: int, weights: Any) -> None:
    if weights:
        module.set_lora(slot, weights.lora_a, weights.lora_b)
    else:
        module.reset_lora(slot)


class PooledWorkerManager(LRUCacheWorkerLoRAManager):
    """Loads adapters ahead of their first step; a step only touches what it uses."""

    def __init__(self, *args: Any, options: KernelOptions) -> None:
        super().__init__(*args)
        self._options = options
        self._prefetcher: Prefetcher[int, LoRAModel] = Prefetcher(threads=options.prefetch_threads)
        # (id, rank, seconds into host memory, seconds into a slot) of each adapter brought in:
        # for so long nothing else happened in the engine's loop.
        self.stalls: deque[tuple[int, int, float, float]] = deque(maxlen=4096)

    def create_lora_manager(self, model: torch.nn.Module, vllm_config: VllmConfig) -> Any:
        """Wraps the model with our layers."""

        def manager(*args: Any, **kwargs: Any) -> PooledModelManager:
            return PooledModelManager(*args, options=self._options, **kwargs)

        self._manager_cls: Any = manager
        with our_classes(self._options):
            return super().create_lora_manager(model, vllm_config)

    def prefetch(self, lora_request: LoRARequest) -> bool:
        """Begins to load an adapter that a request will soon need. Returns at once.

        Returns:
            Whether it is there or on its way. What goes wrong is raised by `add_adapter`.
        """
        identity = lora_request.lora_int_id
        return self._manager.is_registered(identity) or self._prefetcher.start(
            identity, lambda: self._prepared(lora_request)
        )

    def is_loading(self, adapter_id: int) -> bool:
        """Whether an announced adapter is still being read, so that adding it would wait."""
        return self._prefetcher.loading(adapter_id)

    def bytes_of(self, adapter_id: int) -> int:
        """Host memory that an added adapter takes."""
        return packed_of(self._manager._registered_adapters[adapter_id]).nbytes

    def add_adapter(self, lora_request: LoRARequest) -> bool:
        """Brings an adapter into host memory; returns whether it is there.

        Slots are for steps to give (`_apply_adapters`): an adapter that is only announced takes
        none away from those at work.
        """
        manager, identity = self._manager, lora_request.lora_int_id
        if manager.is_registered(identity) and not lora_request.load_inplace:
            manager._registered_adapters.touch(identity)
            return True
        began = time.perf_counter()
        with gpu_sync_allowed():
            # First, so that one that can't be loaded makes nobody leave.
            adapter = self._prefetcher.take(identity, lambda: self._prepared(lora_request))
            manager.remove_adapter(identity)
            if len(manager) + 1 > manager.capacity:
                manager.remove_oldest_adapter()
            added = manager.add_adapter(adapter)
        loaded_s = time.perf_counter() - began
        self.stalls.append((identity, packed_of(adapter).max_rank, loaded_s, 0.0))
        return added

    def remove_adapter(self, adapter_id: int) -> bool:
        """Forgets an adapter."""
        self._prefetcher.drop(adapter_id)
        return super().remove_adapter(adapter_id)

    def list_adapters(self) -> set[int]:
        """Ids of the adapters in host memory."""
        return set(self._manager._registered_adapters)

    @property
    def _manager(self) -> PooledModelManager:
        manager = self._adapter_manager
        assert isinstance(manager, PooledModelManager)
        return manager

    def _apply_adapters(self, lora_requests: set[LoRARequest]) -> None:
        manager = self._manager
        if len(lora_requests) > manager.lora_slots:
            raise RuntimeError(
                f"got {len(lora_requests)} adapters in a step; expected at most "
                f"{manager.lora_slots}, one a slot"
            )
        registered, active = manager._registered_adapters, manager._active_adapters
        missing = []
        for request in lora_requests:
            identity = request.lora_int_id
            if identity in active and not request.load_inplace:
                registered.touch(identity)
                active.touch(identity)
            else:
                missing.append(request)
        # Only after all that have slots were touched: the least recently used slot is free then.
        for request in missing:
            self.add_adapter(request)
            began, identity = time.perf_counter(), request.lora_int_id
            with gpu_sync_allowed():
                manager.activate_adapter(identity)
            rank = packed_of(registered[identity]).max_rank
            self.stalls.append((identity, rank, 0.0, time.perf_counter() - began))

    def _prepared(self, lora_request: LoRARequest) -> LoRAModel:
        folder = get_adapter_absolute_path(lora_request.lora_path)
        if (Path(folder) / WEIGHTS).is_file():
            config = PEFTHelper.from_local_dir(folder, self.max_position_embeddings)
            config.validate_legal(self.lora_config)
            plain = self._manager.read(Path(folder), config, lora_request.lora_int_id)
            if plain is not None:
                return plain
        adapter = super()._load_adapter(lora_request)
        self._manager.prepare(adapter)
        return adapter


def make_worker_manager(
    vllm_config: VllmConfig,
    device: torch.device,
    embedding_modules: dict[str, str],
    lora_model_cls: type[LoRAModel] = LoRAModel,
) -> LRUCacheWorkerLoRAManager:
    """What vLLM calls in the place of its manager class: the one that the engine wants."""
    options = options_of(vllm_config.additional_config)
    if options.kernels == "lorebase":
        reason = not_covered(vllm_config)
        if reason is None:
            return PooledWorkerManager(
                vllm_config, device, embedding_modules, lora_model_cls, options=options
            )
        warn_off(reason)
    return LRUCacheWorkerLoRAManager(vllm_config, device, embedding_modules, lora_model_cls)
