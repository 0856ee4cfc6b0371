"""What one engine wants of the plugin: its own configuration first, the environment second."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

VARIABLE = "LOREBASE_LORA_KERNELS"
POOL_VARIABLE = "LOREBASE_LORA_POOL_BYTES"
CONFIG_KEY = "lorebase"
"""Key of our part of vLLM's `additional_config`."""
CHOICES = ("lorebase", "stock")


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelOptions:
    """Choices of one engine."""

    kernels: str = "stock"
    """`lorebase` or `stock`: whose LoRA layers, wrapper and adapter managers serve."""
    pool_bytes: int | None = None
    """Device memory for the adapters that are in slots; None: every slot at the largest rank."""

    def __post_init__(self) -> None:
        """Raises ValueError for a value that is out of range."""
        if self.kernels not in CHOICES:
            raise ValueError(f"got kernels={self.kernels!r}; expected one of {', '.join(CHOICES)}")
        if self.pool_bytes is not None and self.pool_bytes < 0:
            raise ValueError(f"got pool_bytes={self.pool_bytes}; expected 0 or more, or None")

    def additional_config(self) -> dict[str, Any]:
        """What to pass to vLLM as `additional_config`, so that `options_of` finds these again."""
        return {CONFIG_KEY: {"kernels": self.kernels, "pool_bytes": self.pool_bytes}}


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
    values: dict[str, Any] = {}
    if VARIABLE in environment:
        values["kernels"] = environment[VARIABLE]
    if POOL_VARIABLE in environment:
        values["pool_bytes"] = int(environment[POOL_VARIABLE])
    own = additional_config.get(CONFIG_KEY) if isinstance(additional_config, Mapping) else None
    try:
        return KernelOptions(**{**values, **(own or {})})
    except TypeError as error:
        raise ValueError(f"additional_config[{CONFIG_KEY!r}] is {own!r}: {error}") from error
