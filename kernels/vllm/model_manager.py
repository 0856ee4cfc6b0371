"""vLLM's adapter manager over the pool: what is in host memory, and what has a slot of a step."""

from collections.abc import Container
from pathlib import Path
from typing import Any

from vllm.lora.layers import BaseLayerWithLoRA
from vllm.lora.lora_model import LoRAModel
from vllm.lora.model_manager import LRUCacheLoRAModelManager
from vllm.lora.peft_helper import PEFTHelper

from ..lora.layout import PackedAdapter
from .coverage import refuse_stacked
from .options import KernelOptions
from .reader import PlainReader, places_of
from .registered import Registered, is_packed, pack_into, packed_of
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
        # Layers that only vLLM's own classes cover.
        self._stacked = {n: m for n, m in self.modules.items() if n not in self._pooled}
        if self._weights.uses_op:
            refuse_stacked(self._stacked)
        self._weights.reserve()

    def prepare(self, adapter: LoRAModel) -> None:
        """Merges and packs a parsed adapter. Touches nothing else, so any thread may.

        Raises:
            ValueError: A rank is larger than the engine's, or the whole than a slot's share.
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
            ValueError: A rank is larger than the engine's, or the whole than a slot's share.
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
        self._weights.check_fits(packed)
        pack_into(adapter, packed)

    def has_room(self, nbytes: int) -> bool:
        """Whether so many bytes fit into the host's budget beside all adapters there."""
        registered = self._registered_adapters
        assert isinstance(registered, Registered)
        return registered.has_room(nbytes)

    def is_registered(self, adapter_id: int) -> bool:
        """Whether an adapter is in host memory."""
        return adapter_id in self._registered_adapters

    def add_adapter(self, lora: LoRAModel, protected: Container[int] = ()) -> bool:
        """Registers an adapter, making room for it; returns whether it is new.

        Args:
            lora: The adapter; packed, unless it is one of vLLM's own for warming up.
            protected: Ids that may not leave for it: those of the step that needs it.

        Raises:
            HostFullError: Not even all others leaving would do; none has left then.
        """
        registered = self._registered_adapters
        assert isinstance(registered, Registered)
        if lora.id in registered:
            registered.touch(lora.id)
            return False
        if not is_packed(lora):
            # vLLM keeps its own of these and makes the next ones of it.
            lora = lora.clone(lora.id)
            self.prepare(lora)
        needed = packed_of(lora).nbytes
        for victim in registered.victims(needed, active=self._active_adapters, protected=protected):
            self.remove_adapter(victim)
        registered[lora.id] = lora
        return True

    def activate_adapter(self, lora_id: int, protected: Container[int] = ()) -> bool:
        """Gives a registered adapter a slot; if need be those idle for longest lose theirs.

        Args:
            lora_id: Whose.
            protected: Ids that keep their slots: those of the step that needs it.

        Raises:
            PoolFullError: The pool's buffer can't hold it beside the protected ones.
            RuntimeError: Every slot is protected or pinned.
        """
        active, pool = self._active_adapters, self._weights.pool
        if lora_id in active:
            active.touch(lora_id)
            return False
        adapter = self._registered_adapters[lora_id]
        packed = packed_of(adapter)
        if len(active) >= self.lora_slots and not self._vacate(protected):
            raise RuntimeError(
                f"got no slot for adapter {lora_id}: each of the {self.lora_slots} is pinned or of "
                "the same step; pin fewer adapters, or raise max_loras"
            )
        while pool.missing_bytes(packed) and self._vacate(protected):
            pass
        slot = self.lora_index_to_id.index(None)
        try:
            pool.assign(slot, packed)
            for name, module in self._stacked.items():
                _write_stacked(module, slot, self._get_lora_layer_weights(adapter, name))
        except BaseException:
            self._empty(slot)
            raise
        # Only now: an active adapter whose slot is empty would answer like the bare base.
        self.lora_index_to_id[slot] = lora_id
        active[lora_id] = None
        return True

    def _vacate(self, protected: Container[int]) -> bool:
        """Takes its slot from the adapter that was idle for longest; returns whether one had to."""
        active = self._active_adapters
        for identity in active.order:
            if identity not in protected and identity not in active.pinned_items:
                self.deactivate_adapter(identity)
                return True
        return False

    def _deactivate_adapter(self, lora_id: int) -> None:
        if lora_id not in self.lora_index_to_id:
            return
        slot = self.lora_index_to_id.index(lora_id)
        super()._deactivate_adapter(lora_id)
        self._empty(slot)

    def _empty(self, slot: int) -> None:
        self._weights.pool.unassign(slot)
        for module in self._stacked.values():
            module.reset_lora(slot)


def _write_stacked(module: BaseLayerWithLoRA, slot: int, weights: Any) -> None:
    if weights:
        module.set_lora(slot, weights.lora_a, weights.lora_b)
    else:
        module.reset_lora(slot)
