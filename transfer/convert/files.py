"""Reading what PEFT saved, and the base that it is for."""

import hashlib
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from lorebase.serving.artifacts import list_files, read_json
from lorebase.serving.errors import InvalidArgumentError

from .kinds import Kind, kind_of

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
_MAX_CONFIG_BYTES = 1 << 20


def read_kind(source_dir: Path) -> Kind:
    """Classifies the adapter in a PEFT directory.

    Raises:
        InvalidArgumentError: no such directory, or a file that is not allowed in it.
    """
    files = list_files(source_dir)
    for name in (CONFIG, WEIGHTS):
        if name not in files:
            raise InvalidArgumentError(
                f"no {name} in {source_dir}: expected what PEFT's save_pretrained writes",
                reason="FILE_MISSING",
            )
    config = read_json(files[CONFIG], max_bytes=_MAX_CONFIG_BYTES)
    if not isinstance(config, dict):
        raise InvalidArgumentError(f"{CONFIG} is no JSON object", reason="BAD_ADAPTER_CONFIG")
    if config.get("megatron_config"):
        # PEFT would import a module that the file names.
        raise InvalidArgumentError(f"{CONFIG} sets megatron_config, which is not read")
    return kind_of(config)


def load_fp32(base_dir: Path) -> tuple[Any, Any]:
    """Loads a base in fp32: 16 bits would round away small changes.

    Returns:
        Model in evaluation mode, and tokenizer.

    Raises:
        InvalidArgumentError: no base there.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(base_dir, local_files_only=True)
        model: Any = AutoModelForCausalLM.from_pretrained(
            base_dir, dtype=torch.float32, local_files_only=True
        )
    except (OSError, ValueError) as error:
        raise InvalidArgumentError(
            f"can't load a base from {base_dir}: {error}", reason="BASE_INVALID"
        ) from error
    return model.requires_grad_(False).eval(), tokenizer


def load_peft(model: Any, source_dir: Path) -> PeftModel:
    """Puts an adapter onto a base, in place.

    Raises:
        InvalidArgumentError: it does not fit this base.
    """
    try:
        return PeftModel.from_pretrained(model, str(source_dir)).eval()
    except (RuntimeError, ValueError, KeyError, TypeError, ImportError) as error:
        raise InvalidArgumentError(
            f"the adapter in {source_dir.name!r} does not fit this base: {error}",
            reason="ADAPTER_UNFIT",
        ) from error


def source_sha256(source_dir: Path) -> str:
    """Returns a digest of an adapter's configuration and weights."""
    total = hashlib.sha256()
    for name in (CONFIG, WEIGHTS):
        with (source_dir / name).open("rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()
