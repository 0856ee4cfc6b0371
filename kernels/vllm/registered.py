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

    def has_room(self, nbytes: int) -> bool:
        """Whether so many bytes more fit into the budget."""
        return self._budget_bytes is None or self.used_bytes + nbytes <= self._budget_bytes

    def victims(
        self, needed: int, *, active: Container[int], protected: Container[int] = ()
    ) -> list[int]:
        """Returns which adapters must leave for another one: in general those unused for longest.

        Args:
            needed: Bytes of the new adapter.
            active: Adapters in slots, which go last: the next step may want them again.
            protected: Adapters that may not leave, beside pinned ones.

        Raises:
            HostFullError: Not even all that may leave would do.
        """
        places = len(self) + 1 - int(self.capacity)
        excess = 0 if self._budget_bytes is None else self.used_bytes + needed - self._budget_bytes
        if excess <= 0 and places <= 0:
            return []
        free = [one for one in self.order if one not in protected and one not in self.pinned_items]
        found: list[int] = []
        for identity in sorted(free, key=lambda one: one in active):  # stable
            if excess <= 0 and len(found) >= places:
                return found
            found.append(identity)
            excess -= self._bytes[identity]
        if excess > 0 or len(found) < places:
            raise HostFullError(
                f"an adapter of {needed} bytes does not fit beside those in use: of "
                f"{self._budget_bytes} bytes for adapters in host memory {self.used_bytes} are "
                f"taken, and {len(self)} of {int(self.capacity)} places; raise the budget, or use "
                "a smaller rank"
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
