"""The adapters in host memory: vLLM's LRU, which here knows how many bytes they are."""

from collections.abc import Container
from typing import Any

from vllm.lora.lora_model import LoRAModel
from vllm.lora.model_manager import AdapterLRUCache

from ..lora.layout import PackedAdapter

_PACKED = "lorebase_packed"


class HostFullError(RuntimeError):
    """The host's budget can't hold another adapter now."""


def pack_into(adapter: LoRAModel, packed: PackedAdapter) -> None:
    """Gives vLLM's adapter its weights for the pool; its `loras` keep only the others."""
    setattr(adapter, _PACKED, packed)


def is_packed(adapter: LoRAModel) -> bool:
    """Whether `pack_into` was called."""
    return hasattr(adapter, _PACKED)


def packed_of(adapter: LoRAModel) -> PackedAdapter:
    """What `pack_into` was given."""
    packed: PackedAdapter = getattr(adapter, _PACKED)
    return packed


class Registered(AdapterLRUCache[LoRAModel]):
    """Packed adapters by id, the least recently used first, within a byte budget."""

    def __init__(self, *args: Any, budget_bytes: int | None) -> None:
        super().__init__(*args)
        self._budget_bytes = budget_bytes
        self._bytes: dict[int, int] = {}
        self.used_bytes = 0

    def victims(self, needed: int, active: Container[int]) -> list[int]:
        """Returns which adapters must leave for one of `needed` bytes, oldest first.

        Args:
            needed: bytes of a new adapter.
            active: adapters that may not leave; nor may pinned ones.

        Raises:
            HostFullError: Not even all others leaving would do.
        """
        if self._budget_bytes is None:
            return []
        excess, found = self.used_bytes + needed - self._budget_bytes, []
        for identity in self.order:
            if excess <= 0:
                break
            if identity not in active and identity not in self.pinned_items:
                found.append(identity)
                excess -= self._bytes[identity]
        if excess > 0:
            raise HostFullError(
                f"an adapter of {needed} bytes does not fit into the {self._budget_bytes} bytes "
                f"for adapters in host memory, {self.used_bytes} of which are in use; raise the "
                "budget, or use a smaller rank"
            )
        return found

    def __setitem__(self, key: int, value: LoRAModel) -> None:
        assert key not in self._bytes, "removed first"
        self._bytes[key] = packed_of(value).nbytes
        self.used_bytes += self._bytes[key]
        super().__setitem__(key, value)

    def _on_remove(self, key: int, value: LoRAModel | None) -> None:
        self.used_bytes -= self._bytes.pop(key)
        super()._on_remove(key, value)
