"""Tiny bases, adapters and archives, made without torch: exact bytes, good and bad."""

import io
import json
import struct
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lorebase.serving.artifacts import BaseShapes

Tensors = dict[str, tuple[str, list[int], bytes]]
"""Name -> (dtype, shape, data)."""

BASE = BaseShapes(
    modules={
        f"model.layers.{layer}.{module}": shape
        for layer in range(2)
        for module, shape in {
            "self_attn.q_proj": (8, 6),
            "self_attn.v_proj": (4, 6),
            "mlp.down_proj": (6, 10),
        }.items()
    },
    architecture="LlamaForCausalLM",
    layers=2,
)


def floats(count: int, value: float = 0.5) -> bytes:
    return struct.pack(f"<{count}f", *[value] * count)


def safetensors(tensors: Tensors, *, header_bytes: int | None = None) -> bytes:
    """A safetensors file; with `header_bytes` the header is padded to that length."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, (dtype, shape, content) in tensors.items():
        header[name] = {
            "dtype": dtype,
            "shape": shape,
            "data_offsets": [len(data), len(data) + len(content)],
        }
        data += content
    return raw_safetensors(header, data, header_bytes=header_bytes)


def raw_safetensors(header: Any, data: bytes, *, header_bytes: int | None = None) -> bytes:
    text = json.dumps(header).encode()
    wanted = len(text) + (-len(text) % 8) if header_bytes is None else header_bytes
    assert len(text) <= wanted
    text = text.ljust(wanted)
    return len(text).to_bytes(8, "little") + text + data


def config(**changes: Any) -> dict[str, Any]:
    """adapter_config.json as PEFT 0.21 writes it."""
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "peft_version": "0.21.2",
        "base_model_name_or_path": "somewhere",
        "revision": None,
        "inference_mode": True,
        "r": 2,
        "lora_alpha": 4,
        "lora_dropout": 0.05,
        "target_modules": ["v_proj", "q_proj"],
        "exclude_modules": None,
        "fan_in_fan_out": False,
        "bias": "none",
        "use_rslora": False,
        "modules_to_save": None,
        "init_lora_weights": True,
        "layers_to_transform": None,
        "layers_pattern": None,
        "rank_pattern": {},
        "alpha_pattern": {},
        "megatron_core": "megatron.core",
        "loftq_config": {},
        "use_dora": False,
        "qalora_group_size": 16,
        "lora_bias": False,
        **changes,
    }


def weights(
    *, rank: int = 2, targets: tuple[str, ...] = ("q_proj", "v_proj"), layers: int = 2
) -> Tensors:
    """LoRA pairs for all layers of BASE, in float32."""
    tensors: Tensors = {}
    for module, (outputs, inputs) in BASE.modules.items():
        layer = int(module.split(".")[2])
        if module.rsplit(".", 1)[-1] not in targets or layer >= layers:
            continue
        for side, shape in (("A", [rank, inputs]), ("B", [outputs, rank])):
            content = floats(shape[0] * shape[1])
            tensors[tensor_name(module, side)] = ("F32", shape, content)
    return tensors


def tensor_name(module: str, side: str) -> str:
    return f"base_model.model.{module}.lora_{side}.weight"


def adapter_files(
    settings: Mapping[str, Any] | None = None, tensors: Tensors | None = None
) -> dict[str, bytes]:
    return {
        "adapter_config.json": json.dumps(config() if settings is None else settings).encode(),
        "adapter_model.safetensors": safetensors(weights() if tensors is None else tensors),
        "README.md": b"# An adapter\n",
    }


def tar_of(files: Mapping[str, bytes]) -> bytes:
    return tar_entries([(member(name, len(content)), content) for name, content in files.items()])


def member(name: str, size: int = 0, **fields: Any) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size = size
    for field, value in fields.items():
        setattr(info, field, value)
    return info


def tar_entries(
    entries: list[tuple[tarfile.TarInfo, bytes]], *, kind: int = tarfile.PAX_FORMAT
) -> bytes:
    """An archive of exactly these headers and contents, however bad they are."""
    archive = io.BytesIO()
    for info, content in entries:
        archive.write(info.tobuf(kind))
        archive.write(content + bytes(-len(content) % 512))
    archive.write(bytes(1024))
    return archive.getvalue()


def write_files(folder: Path, files: Mapping[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def everything_in(root: Path) -> list[str]:
    """All files and folders of a store that hold or could hold content."""
    kept = {"objects", "staging", ".lock"}
    return sorted(
        path.relative_to(root).as_posix() for path in root.rglob("*") if path.name not in kept
    )
