"""Adapters as an engine knows them: plain data."""

from dataclasses import dataclass

from .protocol import VersionRef


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedAdapter:
    """A version under the names by which the engine knows it."""

    version: VersionRef
    int_id: int
    """Unique for the life of this registry: a version that was dropped and comes back gets
    another one."""

    @property
    def name(self) -> str:
        """Unique as `int_id` is: vLLM treats adapters of equal names as equal."""
        return f"{self.version.id}#{self.int_id}"


@dataclass(frozen=True, slots=True)
class AdapterStall:
    """A time in which the engine's loop did nothing but bring an adapter in."""

    int_id: int
    rank: int
    """The adapter's largest."""
    load_s: float
    """Into host memory: what reading ahead had left to do. 0 when it was there."""
    slot_s: float
    """Into a slot, for a step. 0 when it was announced only."""
