"""Rank, alpha and target modules of a stored LoRA, read from its PEFT configuration."""

import json
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraShape:
    """What a PEFT LoRA configuration says about the shape."""

    rank: int
    """Largest rank of any module."""
    alpha: float
    target_modules: tuple[str, ...]
    """Last names (`q_proj`), sorted; or the one special name `all-linear`."""


def lora_shape(directory: Path) -> LoraShape:
    """Reads adapter_config.json of a directory that passed `check_adapter`."""
    config = json.loads((directory / "adapter_config.json").read_text(encoding="utf-8"))
    rank = max([int(config["r"]), *map(int, (config.get("rank_pattern") or {}).values())])
    wanted = config["target_modules"]
    names = [wanted] if isinstance(wanted, str) else [str(name) for name in wanted]
    return LoraShape(
        rank=rank,
        alpha=float(config.get("lora_alpha") or 2 * rank),
        target_modules=tuple(sorted({name.rpartition(".")[2] for name in names})),
    )
