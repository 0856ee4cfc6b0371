"""What an adapter adds to the weights of its base, layer by layer, whatever its formula.

PEFT knows how to merge every weight-changing type into its base; the change is the merged weight
minus the base's own, as its files have it. That covers additive, multiplicative and orthogonal
methods alike, and those that change the base at load time (PiSSA). PEFT's own `convert_to_lora`
takes additive ones only and does not say what is lost.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper, TrainableTokensWrapper
from safetensors import safe_open

from lorebase.serving.artifacts import BaseShapes, read_json
from lorebase.serving.errors import InvalidArgumentError

_INDEX = "model.safetensors.index.json"
_MAX_INDEX_BYTES = 64 << 20


class BaseWeights:
    """Weights of a base, read from its files one at a time."""

    def __init__(self, base_dir: Path) -> None:
        self._dir = base_dir
        index = base_dir / _INDEX
        self._shards: dict[str, str] = {}
        if index.is_file():
            self._shards = read_json(index, max_bytes=_MAX_INDEX_BYTES)["weight_map"]

    def read(self, module: str) -> torch.Tensor:
        """Returns a linear layer's weight [O, I] in fp32.

        Raises:
            InvalidArgumentError: the base has no such layer.
        """
        name = f"{module}.weight"
        shard = self._shards.get(name, "model.safetensors")
        with safe_open(self._dir / shard, framework="pt") as file:
            if name not in file.keys():  # noqa: SIM118 - not a mapping
                raise InvalidArgumentError(
                    f"the adapter changes {module!r}, which is no layer of the base in "
                    f"{self._dir.name!r}",
                    reason="TARGET_UNKNOWN",
                )
            tensor: torch.Tensor = file.get_tensor(name)
        return tensor.float()


def weight_changes(
    adapted: PeftModel, base_dir: Path, shapes: BaseShapes
) -> Iterator[tuple[str, torch.Tensor]]:
    """Merges layer after layer and yields what that changed: (module name, delta [O, I]).

    Args:
        adapted: the base in fp32 under one adapter; its layers are merged in place.
        base_dir: files of the base.
        shapes: its linear layers.

    Raises:
        InvalidArgumentError: the adapter changes something else than those.
    """
    weights = BaseWeights(base_dir)
    for name, layer in _tuned_layers(adapted.get_base_model()):
        if name not in shapes.modules:
            raise InvalidArgumentError(
                f"the adapter changes {name!r}, which is no linear layer that engines adapt",
                reason="TARGET_UNKNOWN",
            )
        bias = _bias(layer)
        try:
            layer.merge(safe_merge=True)
        except (NotImplementedError, RuntimeError, ValueError) as error:
            raise InvalidArgumentError(
                f"the adapter can't be added to {name!r}: {error}", reason="NOT_MERGEABLE"
            ) from error
        merged = _bias(layer)
        if bias is not None and merged is not None and not torch.equal(bias, merged):
            raise InvalidArgumentError(
                f"the adapter changes the bias of {name!r}, which no LoRA can",
                reason="BIAS_CHANGED",
            )
        weight: Any = layer.get_base_layer().weight
        yield name, weight.detach().float() - weights.read(name)


def _bias(layer: BaseTunerLayer) -> torch.Tensor | None:
    bias: torch.Tensor | None = getattr(layer.get_base_layer(), "bias", None)
    return None if bias is None else bias.detach().clone()


def _tuned_layers(model: Any) -> Iterator[tuple[str, BaseTunerLayer]]:
    for name, module in model.named_modules():
        if isinstance(module, ModulesToSaveWrapper | TrainableTokensWrapper):
            raise InvalidArgumentError(
                f"the adapter replaces {name!r} as a whole, which no LoRA can",
                reason="MODULE_REPLACED",
            )
        if isinstance(module, BaseTunerLayer) and hasattr(module, "get_base_layer"):
            yield name, module
