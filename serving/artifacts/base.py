"""What the serving plane knows of a base's files: module shapes and a revision. No torch."""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from ..errors import InvalidArgumentError
from .files import read_json
from .tensors import Tensor, read_header

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_SHARD = re.compile(r"[A-Za-z0-9._-]+\.safetensors\Z")
_LAYER_WEIGHT = re.compile(r"(?P<module>.*\blayers\.(?P<layer>\d+)\..+)\.weight\Z")
_MAX_JSON_BYTES = 64 << 20
_REVISION_PATTERNS = (
    "*.safetensors",
    _INDEX,
    "config.json",
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.model",
    "chat_template*",
)
"""Weights, tokenizer and what steers them; model cards and loss curves may change freely."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseShapes:
    """The linear layers of a base that an adapter may target."""

    modules: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """(out features, in features) by module name, such as `model.layers.0.self_attn.q_proj`."""
    architecture: str = ""
    """Hugging Face class name, such as `LlamaForCausalLM`."""
    dtype: str = ""
    """Of the stored weights, as config.json names it; empty if it does not."""
    layers: int = 0


def base_shapes(base_dir: Path) -> BaseShapes:
    """Reads the shapes of a base in Hugging Face format (llama, qwen3 and their like).

    Only config.json and the headers of the safetensors files are read; a sharded base needs
    its index.

    Raises:
        InvalidArgumentError: files are missing or do not fit together.
    """
    config = _object(base_dir / "config.json")
    modules: dict[str, tuple[int, int]] = {}
    seen: set[int] = set()
    for name, tensor in _tensors(base_dir).items():
        match = _LAYER_WEIGHT.match(name)
        if match is None:
            continue
        seen.add(int(match["layer"]))
        # Norms have one dimension; everything with two is linear in these architectures.
        if len(tensor.shape) == 2:
            modules[match["module"]] = (tensor.shape[0], tensor.shape[1])
    layers = config.get("num_hidden_layers")
    if not modules or seen != set(range(len(seen))) or layers not in (None, len(seen)):
        raise InvalidArgumentError(
            f"base {base_dir.name!r}: config.json says {layers} layers, the weights have "
            f"{len(seen)}; expected a complete Hugging Face checkpoint",
            reason="BAD_BASE",
        )
    architectures = config.get("architectures") or [""]
    dtype = config.get("dtype") or config.get("torch_dtype") or ""
    return BaseShapes(
        modules=modules, architecture=str(architectures[0]), dtype=str(dtype), layers=len(seen)
    )


def base_revision(base_dir: Path) -> str:
    """Returns `sha256:<hex>` over the weight, tokenizer and config files of a base.

    Raises:
        InvalidArgumentError: no weights there.
    """
    total = hashlib.sha256(b"lorebase-base-1\n")
    weights = 0
    for path in sorted(base_dir.iterdir() if base_dir.is_dir() else ()):
        if not path.is_file() or not any(fnmatchcase(path.name, p) for p in _REVISION_PATTERNS):
            continue
        weights += path.suffix == ".safetensors"
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        total.update(f"{path.name}\0{content}\n".encode())
    if not weights:
        raise _no_weights(base_dir)
    return f"sha256:{total.hexdigest()}"


def _tensors(base_dir: Path) -> dict[str, Tensor]:
    if (base_dir / _SINGLE).is_file():
        return read_header(base_dir / _SINGLE)
    if not (base_dir / _INDEX).is_file():
        raise _no_weights(base_dir)
    weight_map = _object(base_dir / _INDEX).get("weight_map")
    if not isinstance(weight_map, dict):
        raise InvalidArgumentError(f"{_INDEX!r} has no weight_map", reason="BAD_BASE")
    found: dict[str, Tensor] = {}
    for shard in sorted({str(shard) for shard in weight_map.values()}):
        if not _SHARD.match(shard) or not (base_dir / shard).is_file():
            raise InvalidArgumentError(
                f"{_INDEX!r} names the shard {shard[:80]!r}, which is not in {base_dir.name!r}",
                reason="BAD_BASE",
            )
        found |= read_header(base_dir / shard)
    missing = sorted(set(weight_map) - set(found))
    if missing:
        raise InvalidArgumentError(
            f"{_INDEX!r} names the tensor {missing[0]!r}, which no shard holds", reason="BAD_BASE"
        )
    return found


def _object(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise InvalidArgumentError(
            f"base {path.parent.name!r} has no {path.name}: expected a Hugging Face checkpoint",
            reason="BAD_BASE",
        )
    value = read_json(path, max_bytes=_MAX_JSON_BYTES)
    if not isinstance(value, dict):
        raise InvalidArgumentError(f"{path.name!r} is no JSON object", reason="BAD_BASE")
    return value


def _no_weights(base_dir: Path) -> InvalidArgumentError:
    return InvalidArgumentError(
        f"base {base_dir.name!r} has neither {_SINGLE} nor {_INDEX}: expected a Hugging Face "
        "checkpoint in safetensors",
        reason="BAD_BASE",
    )
