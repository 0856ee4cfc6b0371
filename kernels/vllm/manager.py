"""vLLM's worker manager over the pool: bytes move before a step needs them, and only once.

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
from collections.abc import Callable, Container
from pathlib import Path
from typing import Any

import torch
from vllm.config import VllmConfig
from vllm.lora.lora_model import LoRAModel
from vllm.lora.peft_helper import PEFTHelper
from vllm.lora.request import LoRARequest
from vllm.lora.utils import get_adapter_absolute_path
from vllm.lora.worker_manager import LRUCacheWorkerLoRAManager
from vllm.utils.gpu_sync_debug import gpu_sync_allowed

from ..lora.prefetch import Prefetcher
from .coverage import not_covered
from .model_manager import PooledModelManager
from .options import KernelOptions, options_of, served_config
from .plugin import warn_off
from .reader import WEIGHTS
from .registered import packed_of
from .replaced import our_classes


class PooledWorkerManager(LRUCacheWorkerLoRAManager):
    """Loads adapters ahead of their first step; a step only touches what it uses."""

    def __init__(self, *args: Any, options: KernelOptions) -> None:
        super().__init__(*args)
        self._options = options
        self._prefetcher: Prefetcher[int, LoRAModel] = Prefetcher(
            threads=options.prefetch_threads,
            most_bytes=options.prefetch_bytes,
            size_of=lambda adapter: packed_of(adapter).nbytes,
        )
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
            identity, lambda: self._announced(lora_request)
        )

    def is_loading(self, adapter_id: int) -> bool:
        """Whether an announced adapter is still being read, so that adding it would wait."""
        return self._prefetcher.loading(adapter_id)

    def claim(self, adapter_id: int, then: Callable[[int | None], None]) -> None:
        """Has an announced adapter wait for the step that first needs it. On any thread, at once.

        Nobody then has to tell the engine between two steps to add it. There must be room for it in
        the host's budget: a step that finds none ends the engine.

        Args:
            adapter_id: Of the announced adapter.
            then: Told the bytes that it takes once it is there, on any thread; None where only
                `add_adapter` can bring it, or say what is wrong with it.
        """

        def kept(adapter: LoRAModel | None) -> None:
            fits = self._manager.has_room(self._prefetcher.kept_bytes)
            then(None if adapter is None or not fits else packed_of(adapter).nbytes)

        self._prefetcher.keep(adapter_id, kept)

    def bytes_of(self, adapter_id: int) -> int:
        """Host memory that an added adapter takes."""
        return packed_of(self._manager._registered_adapters[adapter_id]).nbytes

    def add_adapter(self, lora_request: LoRARequest) -> bool:
        """Brings an adapter into host memory; returns whether it is there.

        Slots are for steps to give (`_apply_adapters`): an adapter that is only announced takes
        none away from those at work.
        """
        return self._bring(lora_request, ())

    def _bring(self, lora_request: LoRARequest, protected: Container[int]) -> bool:
        manager, identity = self._manager, lora_request.lora_int_id
        if manager.is_registered(identity) and not lora_request.load_inplace:
            manager._registered_adapters.touch(identity)
            return True
        began = time.perf_counter()
        with gpu_sync_allowed():
            # First, so that one that can't be loaded makes nobody leave.
            adapter = self._prefetcher.take(identity, lambda: self._prepared(lora_request))
            manager.remove_adapter(identity)
            added = manager.add_adapter(adapter, protected)
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
        step = {request.lora_int_id: request for request in lora_requests}
        if len(step) > manager.lora_slots:
            raise RuntimeError(
                f"got {len(step)} adapters in a step; expected at most {manager.lora_slots}, one a "
                "slot"
            )
        registered, active = manager._registered_adapters, manager._active_adapters
        for identity in step:
            registered.touch(identity)
            active.touch(identity)
        for identity, request in step.items():
            if identity in active and not request.load_inplace:
                continue
            self._bring(request, step)
            began = time.perf_counter()
            with gpu_sync_allowed():
                manager.activate_adapter(identity, step)
            rank = packed_of(registered[identity]).max_rank
            self.stalls.append((identity, rank, 0.0, time.perf_counter() - began))

    def _announced(self, lora_request: LoRARequest) -> LoRAModel:
        # Nobody has checked the files yet, and vLLM would also read pickles.
        folder = Path(get_adapter_absolute_path(lora_request.lora_path))
        if not (folder / WEIGHTS).is_file():
            raise FileNotFoundError(f"got no {WEIGHTS} in {folder}")
        return self._prepared(lora_request)

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
        reason = not_covered(vllm_config, uses_op=options.uses_op(device))
        if reason is None:
            vllm_config.additional_config = served_config(vllm_config.additional_config, options)
            return PooledWorkerManager(
                vllm_config, device, embedding_modules, lora_model_cls, options=options
            )
        warn_off(reason)
    return LRUCacheWorkerLoRAManager(vllm_config, device, embedding_modules, lora_model_cls)
