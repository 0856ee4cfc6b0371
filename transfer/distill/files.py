"""What training writes: the PEFT directory and resume points, whole or not at all."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save_file

from lorebase.serving.errors import InvalidArgumentError

RESUME_FILE = "resume.safetensors"


def save_adapter(adapted: Any, directory: Path, *, dtype: torch.dtype) -> None:
    """Writes adapter_config.json and adapter_model.safetensors, byte for byte reproducible.

    PEFT's own `save_pretrained` adds a model card, looks the base up on a hub and writes sets in
    random order; an artifact that is named after its content needs none of that.

    Args:
        adapted: PeftModel with one adapter named `default`.
        directory: created if it does not exist; other files in it stay.
        dtype: of the saved weights.
    """
    state = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    tensors = {
        name: tensor.detach().to(device="cpu", dtype=dtype).contiguous()
        for name, tensor in sorted(state.items())
    }
    config = adapted.peft_config["default"].to_dict()
    config["inference_mode"] = True
    directory.mkdir(parents=True, exist_ok=True)
    text = json.dumps(config, indent=2, sort_keys=True, default=sorted) + "\n"
    with _replacing(directory / "adapter_model.safetensors") as path:
        save_file(tensors, path, metadata={"format": "pt"})
    with _replacing(directory / "adapter_config.json") as path:
        path.write_text(text)


def load_weights(adapted: Any, directory: Path) -> str:
    """Puts a saved adapter's weights into a PeftModel of the same shape; returns their digest.

    Raises:
        InvalidArgumentError: no such file, or weights of another shape.
    """
    path = directory / "adapter_model.safetensors"
    try:
        content = path.read_bytes()
        found: Any = set_peft_model_state_dict(adapted, load(content))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise InvalidArgumentError(
            f"can't start from the adapter in {directory}: {error}"
        ) from error
    strangers = [*found.unexpected_keys, *(key for key in found.missing_keys if "lora_" in key)]
    if strangers:
        raise InvalidArgumentError(
            f"can't start from the adapter in {directory}: {len(strangers)} tensors are in one of "
            "the two only; expected an adapter of the same shape"
        )
    return hashlib.sha256(content).hexdigest()


class ResumePoint:
    """The state of an interrupted run, in the run's output directory."""

    def __init__(self, directory: Path, *, identity: Any) -> None:
        """Names the file; `identity` is everything that decides the run, as plain data."""
        self._path = directory / RESUME_FILE
        self._identity = hashlib.sha256(repr(identity).encode()).hexdigest()

    def load(self, adapted: Any, optimizer: torch.optim.Optimizer) -> int:
        """Restores weights and optimizer; returns the step to go on with, 0 if there is none.

        A file of another run, or one that can't be read, is ignored.
        """
        try:
            with safe_open(self._path, framework="pt") as file:
                facts = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError):
            return 0
        if facts.get("identity") != self._identity:
            return 0
        state: dict[int, dict[str, torch.Tensor]] = {}
        weights = {}
        for name, tensor in tensors.items():
            kind, _, rest = name.partition(":")
            if kind == "weights":
                weights[rest] = tensor
            else:
                number, _, key = rest.partition(":")
                state.setdefault(int(number), {})[key] = tensor
        set_peft_model_state_dict(adapted, weights)
        optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
        return int(facts["step"])

    def save(self, adapted: Any, optimizer: torch.optim.Optimizer, step: int) -> None:
        """Writes the state after `step` finished steps."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        weights = get_peft_model_state_dict(adapted, save_embedding_layers=False)
        tensors = {f"weights:{name}": tensor for name, tensor in weights.items()}
        for number, values in optimizer.state_dict()["state"].items():
            for key, value in values.items():
                tensors[f"optimizer:{number}:{key}"] = value
        facts = {"identity": self._identity, "step": str(step)}
        with _replacing(self._path) as path:
            save_file({k: v.detach().contiguous() for k, v in tensors.items()}, path, facts)

    def clear(self) -> None:
        """Removes the file: the run has ended."""
        self._path.unlink(missing_ok=True)


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """Yields a path beside `path` that takes its place when the block ends well."""
    staging = Path(tempfile.mkdtemp(prefix=".writing-", dir=path.parent))
    try:
        temporary = staging / path.name
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.replace(path)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
