"""What one engine wants of the plugin: its own configuration first, the environment second."""

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

VARIABLE = "LOREBASE_LORA_KERNELS"
CONFIG_KEY = "lorebase"
"""Key of our part of vLLM's `additional_config`."""
SERVED_KEY = "lorebase_served"
"""Key of what we leave there for vLLM's hash; nobody reads it."""
CHOICES = ("lorebase", "stock")
ON_CPU = ("c++", "triton")


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelOptions:
    """Choices of one engine."""

    kernels: str = "stock"
    """`lorebase` or `stock`: whose LoRA layers, wrapper and adapter managers serve."""
    host_bytes: int | None = None
    """Most memory for packed adapters, in slots or not; the least recently used one without a
    slot goes first. None: bounded by vLLM's `max_cpu_loras` alone."""
    pool_bytes: int | None = None
    """Size of the buffer that adapters are copied into when they get a slot. None: room
    for any adapter in every slot; the CPU's own kernels have none, and read them where they are."""
    kernels_on_cpu: str = "c++"
    """`c++`, or `triton`: the GPU's kernels, interpreted with TRITON_INTERPRET=1; for tests."""
    prefetch_threads: int = 2
    """Threads that read and pack adapters ahead of their first step."""
    prefetch_bytes: int = 1 << 30
    """Most memory for adapters that were read ahead and that nobody has added or claimed yet,
    beside `host_bytes`; those that waited longest are dropped, and read again when wanted."""

    def __post_init__(self) -> None:
        """Raises ValueError for a value that is out of range."""
        for name, value, allowed in (
            ("kernels", self.kernels, CHOICES),
            ("kernels_on_cpu", self.kernels_on_cpu, ON_CPU),
        ):
            if value not in allowed:
                raise ValueError(f"got {name}={value!r}; expected one of {', '.join(allowed)}")
        for name, number in (("host_bytes", self.host_bytes), ("pool_bytes", self.pool_bytes)):
            if number is not None and number < 1:
                raise ValueError(f"got {name}={number}; expected at least 1, or None")
        for name in ("prefetch_threads", "prefetch_bytes"):
            if getattr(self, name) < 1:
                raise ValueError(f"got {name}={getattr(self, name)}; expected at least 1")

    def uses_op(self, device: torch.device | str) -> bool:
        """Whether layers on a device call the op, which compiled and captured graphs can hold."""
        return torch.device(device).type != "cpu" or self.kernels_on_cpu == "triton"

    def additional_config(self) -> dict[str, Any]:
        """What to pass to vLLM as `additional_config`, so that `options_of` finds these again."""
        return {CONFIG_KEY: asdict(self)}


_FROM_ENVIRONMENT: dict[str, tuple[str, Callable[[str], Any]]] = {
    VARIABLE: ("kernels", str),
    "LOREBASE_LORA_HOST_BYTES": ("host_bytes", int),
    "LOREBASE_LORA_POOL_BYTES": ("pool_bytes", int),
}


def options_of(
    additional_config: object, environment: Mapping[str, str] | None = None
) -> KernelOptions:
    """Reads an engine's options.

    Args:
        additional_config: vLLM's; other keys than ours are nobody's business here.
        environment: For what the configuration leaves open; by default this process's.

    Raises:
        ValueError: A value is out of range, or a key of ours is unknown.
    """
    environment = os.environ if environment is None else environment
    values = {
        field: convert(environment[name])
        for name, (field, convert) in _FROM_ENVIRONMENT.items()
        if name in environment
    }
    own = additional_config.get(CONFIG_KEY) if isinstance(additional_config, Mapping) else None
    try:
        return KernelOptions(**{**values, **(own or {})})
    except TypeError as error:
        raise ValueError(f"additional_config[{CONFIG_KEY!r}] is {own!r}: {error}") from error


def served_config(additional_config: object, options: KernelOptions) -> Any:
    """What an engine's `additional_config` becomes when ours serve it.

    vLLM keeps compiled models by a hash of its configuration. Ours hold sizes of the pool and of
    tiles, and vLLM's own look for what our layers have not: neither may be found for the other,
    for other options or for other kernels.
    """
    if not isinstance(additional_config, Mapping):
        return additional_config
    return {**additional_config, SERVED_KEY: {**asdict(options), "sources": _sources()}}


@cache
def _sources() -> str:
    """Digest of all kernels and of what puts them into vLLM."""
    found = hashlib.sha256()
    root = Path(__file__).resolve().parents[1]
    for path in sorted(root.rglob("*.py")) + sorted(root.rglob("configs/*.json")):
        found.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return found.hexdigest()[:16]
