"""Reads adapter_config.json: only what is understood may change what an adapter does.

Settings that this code doesn't know must be unset. A setting that is silently ignored would
serve other answers than the tenant trained.
"""

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InvalidArgumentError
from .files import read_json

CONFIG_NAME = "adapter_config.json"
_MAX_BYTES = 1 << 20
_MAX_PATTERNS = 256
_MAX_TARGETS = 1024
# Names and the dot only: pattern keys are regular expressions to PEFT and to engines, and an
# untrusted expression may take for ever.
_LITERAL = re.compile(r"[A-Za-z0-9_.]{1,256}\Z")
_USED = frozenset(
    {"peft_type", "r", "lora_alpha", "target_modules", "rank_pattern", "alpha_pattern"}
    | {"use_rslora", "layers_to_transform", "bias", "init_lora_weights"}
)
_TRAINING_ONLY = frozenset(
    {"task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision"}
    | {"inference_mode", "lora_dropout", "megatron_core", "qalora_group_size", "runtime_config"}
    | {"loftq_config", "eva_config", "corda_config", "lora_ga_config", "layers_pattern"}
)
_KEEPS_BASE = frozenset({"gaussian", "eva", "orthogonal", "mica", "lora_ga"})
_HINTS = {
    "use_dora": "make a plain LoRA of it with `lorebase adapter convert`",
    "modules_to_save": "whole modules can't be swapped per request; train without them",
    "lora_bias": "train without biases",
    "fan_in_fan_out": "transposed weights (Conv1D) have no place in these bases",
    "layer_replication": "it changes the base's depth",
    "exclude_modules": "list in target_modules exactly what is adapted",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraConfig:
    """The part of a PEFT LoRA configuration that matters for serving."""

    rank: int
    alpha: float
    target_modules: tuple[str, ...]
    """Module names or suffixes, sorted."""
    rank_pattern: tuple[tuple[re.Pattern[str], int], ...] = ()
    """Ranks of single modules, in the order of the file."""
    layers: frozenset[int] | None = None
    """Layer indices that are adapted; None means all."""

    def rank_of(self, module: str) -> int:
        """Returns a module's rank by PEFT's rule: the first pattern that is a suffix wins."""
        for pattern, rank in self.rank_pattern:
            if pattern.match(module):
                return rank
        return self.rank

    def targets(self, module: str) -> bool:
        """Returns whether PEFT adapts this module."""
        if not any(module == t or module.endswith("." + t) for t in self.target_modules):
            return False
        if self.layers is None:
            return True
        layer = re.search(r"\blayers\.(\d+)\.", module)
        return layer is not None and int(layer[1]) in self.layers


def read_config(path: Path, *, max_rank: int, allowed_peft_types: tuple[str, ...]) -> LoraConfig:
    """Reads and checks adapter_config.json.

    Raises:
        InvalidArgumentError: not JSON, another PEFT type, a rank above the limit or a setting
            that is not served. The message names the setting.
    """
    config = read_json(path, max_bytes=_MAX_BYTES)
    if not isinstance(config, dict):
        raise _bad("is no JSON object")
    peft_type = config.get("peft_type")
    if peft_type not in allowed_peft_types:
        raise InvalidArgumentError(
            f"PEFT type {_short(peft_type)}: accepted are {', '.join(allowed_peft_types)}; "
            "make a plain LoRA of it with `lorebase adapter convert`",
            reason="PEFT_TYPE_UNSUPPORTED",
        )
    _refuse_unserved(config)
    rank = _rank(config.get("r"), "r", max_rank)
    alpha = _alpha(config.get("lora_alpha"), "lora_alpha")
    rank_pattern = tuple(
        (re.compile(rf"(.*\.)?({key})$"), _rank(value, f"rank_pattern[{key!r}]", max_rank))
        for key, value in _pattern(config, "rank_pattern").items()
    )
    for key, value in _pattern(config, "alpha_pattern").items():
        _alpha(value, f"alpha_pattern[{key!r}]")
    return LoraConfig(
        rank=rank,
        alpha=alpha,
        target_modules=_target_modules(config.get("target_modules")),
        rank_pattern=rank_pattern,
        layers=_layers(config.get("layers_to_transform")),
    )


def _refuse_unserved(config: dict[str, Any]) -> None:
    if config.get("bias", "none") != "none":
        raise _unserved("bias", config["bias"], "train without biases")
    init = config.get("init_lora_weights", True)
    if isinstance(init, str) and init.lower() not in _KEEPS_BASE:
        raise _unserved(
            "init_lora_weights",
            init,
            "it changes the base's own weights; make a plain LoRA of it with `lorebase adapter "
            "convert`",
        )
    if not isinstance(config.get("use_rslora", False), bool):
        raise _bad(f"has use_rslora={_short(config['use_rslora'])}: expected true or false")
    for name, value in config.items():
        if name in _USED or name in _TRAINING_ONLY or not value:
            continue
        raise _unserved(name, value, _HINTS.get(name, "unset it"))


def _rank(value: Any, name: str, max_rank: int) -> int:
    if type(value) is not int or value < 1:
        raise _bad(f"has {name}={_short(value)}: expected a whole number from 1 to {max_rank}")
    if value > max_rank:
        raise InvalidArgumentError(
            f"{CONFIG_NAME} has {name}={value}: the largest rank served is {max_rank}; train with "
            "a smaller one",
            reason="RANK_TOO_LARGE",
        )
    return value


def _alpha(value: Any, name: str) -> float:
    if type(value) not in (int, float) or not 0 < value < 1e6 or not math.isfinite(value):
        raise _bad(f"has {name}={_short(value)}: expected a positive number")
    return float(value)


def _pattern(config: dict[str, Any], name: str) -> dict[str, Any]:
    pattern = config.get(name) or {}
    if not isinstance(pattern, dict) or len(pattern) > _MAX_PATTERNS:
        raise _bad(f"has a {name} that is no object of at most {_MAX_PATTERNS} entries")
    for key in pattern:
        if not _LITERAL.match(key):
            raise _bad(
                f"has {key[:80]!r} in {name}: expected plain module names of letters, digits, "
                "'_' and '.'"
            )
    return pattern


def _target_modules(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not value or len(value) > _MAX_TARGETS:
        raise _bad(
            "needs target_modules as a list of module names (PEFT writes one); regular "
            f"expressions are not accepted; got {_short(value)}"
        )
    for target in value:
        if not isinstance(target, str) or not _LITERAL.match(target):
            raise _bad(f"has {_short(target)} in target_modules: expected a module name")
    return tuple(sorted(set(value)))


def _layers(value: Any) -> frozenset[int] | None:
    if value is None:
        return None
    layers = value if isinstance(value, list) else [value]
    if not layers or any(type(layer) is not int or layer < 0 for layer in layers):
        raise _bad(f"has layers_to_transform={_short(value)}: expected layer numbers")
    return frozenset(layers)


def _short(value: Any) -> str:
    """One bounded line: what users sent never floods a log."""
    return repr(value)[:80]


def _unserved(name: str, value: Any, hint: str) -> InvalidArgumentError:
    return InvalidArgumentError(
        f"{CONFIG_NAME} sets {name[:60]!r} to {_short(value)}, which is not served: {hint}",
        reason="SETTING_UNSUPPORTED",
    )


def _bad(message: str) -> InvalidArgumentError:
    return InvalidArgumentError(f"{CONFIG_NAME} {message}", reason="BAD_ADAPTER_CONFIG")
