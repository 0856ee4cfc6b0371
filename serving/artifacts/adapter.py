"""Checks an untrusted adapter before anything is kept: files, configuration, weights.

Everything that could stop or confuse an engine is found here, where it is the uploader's
error; vLLM dies on a bad adapter at generate time.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..errors import InvalidArgumentError
from .base import BaseShapes
from .files import check_names, list_files, refuse_pickle_content
from .peft_config import CONFIG_NAME, LoraConfig, read_config
from .tensors import Tensor, find_not_finite, read_header

WEIGHTS_NAME = "adapter_model.safetensors"
_OPTIONAL = ("README.md",)
_NAME = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight\Z")
_DTYPES = ("F32", "F16", "BF16")
_MAX_HEADER_BYTES = 16 << 20
"""About 100,000 tensors."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterLimits:
    """What an uploaded adapter may be."""

    max_rank: int = 64
    """Largest rank of any module; engines reserve memory for it."""
    max_bytes: int = 1 << 30
    """All files together."""
    allowed_peft_types: tuple[str, ...] = ("LORA",)


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterManifest:
    """What a checked adapter is."""

    peft_type: str
    rank: int
    """Largest rank of any module."""
    alpha: float
    target_modules: tuple[str, ...]
    parameters: int
    """Elements of all tensors."""


def check_adapter(path: Path, base: BaseShapes, limits: AdapterLimits) -> AdapterManifest:
    """Checks a PEFT LoRA directory against the base that it is for.

    Args:
        path: Directory with adapter_config.json and adapter_model.safetensors.
        base: Shapes of the base (`base_shapes`).
        limits: What is accepted.

    Raises:
        InvalidArgumentError: anything that is not exactly a servable adapter; the message names
            the file, setting or tensor, what was expected and what to do.
    """
    files = list_files(path)
    check_names(files, required=(CONFIG_NAME, WEIGHTS_NAME), optional=_OPTIONAL)
    size = sum(file.stat().st_size for file in files.values())
    if size > limits.max_bytes:
        raise InvalidArgumentError(
            f"adapter of {size} bytes: expected at most {limits.max_bytes}; use a smaller rank or "
            "16-bit weights",
            reason="ADAPTER_TOO_LARGE",
        )
    for name, file in files.items():
        if name != WEIGHTS_NAME:
            with file.open("rb") as opened:
                refuse_pickle_content(name, opened.read(8))
    config = read_config(
        files[CONFIG_NAME],
        max_rank=limits.max_rank,
        allowed_peft_types=limits.allowed_peft_types,
    )
    _check_targets(base, config)
    tensors = read_header(files[WEIGHTS_NAME], max_header_bytes=_MAX_HEADER_BYTES)
    pairs = _pairs(tensors)
    _check_modules(set(pairs), base, config)
    for module, sides in pairs.items():
        _check_pair(module, sides, base.modules[module], config.rank_of(module))
    broken = find_not_finite(files[WEIGHTS_NAME], tensors)
    if broken is not None:
        raise InvalidArgumentError(
            f"tensor {broken!r} holds NaN or infinity: the training diverged; train again with a "
            "smaller learning rate",
            reason="WEIGHTS_NOT_FINITE",
        )
    return AdapterManifest(
        peft_type="LORA",
        rank=max(config.rank_of(module) for module in pairs),
        alpha=config.alpha,
        target_modules=config.target_modules,
        parameters=sum(tensor.elements for tensor in tensors.values()),
    )


def _pairs(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Returns {module: {"A": tensor, "B": tensor}}, both sides present."""
    pairs: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        match = _NAME.match(name)
        if match is None:
            raise InvalidArgumentError(
                f"unknown tensor {name[:120]!r}: expected only names such as "
                "'base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight'",
                reason="TENSOR_UNKNOWN",
            )
        pairs.setdefault(match["module"], {})[match["side"]] = tensor
    for module, sides in pairs.items():
        for side in "AB":
            if side not in sides:
                raise InvalidArgumentError(
                    f"module {module[:120]!r} has no lora_{side}: expected lora_A and lora_B",
                    reason="TENSOR_MISSING",
                )
    return pairs


def _check_targets(base: BaseShapes, config: LoraConfig) -> None:
    known = sorted({module.rsplit(".", 1)[-1] for module in base.modules})
    for target in config.target_modules:
        if not any(m == target or m.endswith("." + target) for m in base.modules):
            raise InvalidArgumentError(
                f"target module {target!r} is no linear layer of this base: it has "
                f"{', '.join(known)} in each of {base.layers} layers",
                reason="TARGET_UNKNOWN",
            )


def _check_modules(found: set[str], base: BaseShapes, config: LoraConfig) -> None:
    expected = {module for module in base.modules if config.targets(module)}
    extra = sorted(found - expected)
    if extra:
        raise InvalidArgumentError(
            f"weights for {extra[0][:120]!r}, which is not among the target modules "
            f"({', '.join(config.target_modules)}) of this base; is the adapter for another base?",
            reason="TENSOR_UNKNOWN",
        )
    missing = sorted(expected - found)
    if missing or not expected:
        raise InvalidArgumentError(
            f"no weights for {missing[0] if missing else 'any target module'!r}: expected a pair "
            "for each target module of each layer; was the adapter saved completely?",
            reason="TENSOR_MISSING",
        )


def _check_pair(
    module: str, sides: Mapping[str, Tensor], shape: tuple[int, int], rank: int
) -> None:
    outputs, inputs = shape
    for side, expected in (("A", (rank, inputs)), ("B", (outputs, rank))):
        tensor = sides[side]
        if tensor.shape != expected:
            raise InvalidArgumentError(
                f"lora_{side} of {module!r} has shape {list(tensor.shape)}, expected "
                f"{list(expected)} for rank {rank} on this base; is the adapter for another base?",
                reason="SHAPE_MISMATCH",
            )
        if tensor.dtype not in _DTYPES:
            raise InvalidArgumentError(
                f"lora_{side} of {module!r} has dtype {tensor.dtype}: expected one of "
                f"{', '.join(_DTYPES)}",
                reason="DTYPE_UNSUPPORTED",
            )
