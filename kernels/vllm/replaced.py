"""vLLM's LoRA wrapper and layer classes, replaced by ours while one model is being wrapped.

    vllm.lora.model_manager.get_punica_wrapper    -> wrapper.PooledPunicaWrapper
    vllm.lora.utils._all_lora_classes             -> ours in front (layers.LAYERS)
    vllm.lora.utils.LogitsProcessorWithLoRA       -> layers.PooledLogitsProcessor

vLLM looks these up only while it builds an adapter manager, so they are put back right after it.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from vllm.config import VllmConfig
from vllm.lora import model_manager, utils

from ..lora.pool import DTYPES
from .layers import LAYERS, PooledLogitsProcessor
from .options import KernelOptions
from .wrapper import PooledPunicaWrapper

_wrapping = threading.Lock()


def not_covered(vllm_config: VllmConfig) -> str | None:
    """Why vLLM's own path must serve an engine; None if ours can."""
    lora, model = vllm_config.lora_config, vllm_config.model_config
    assert lora is not None
    if lora.fully_sharded_loras:
        return "fully sharded LoRA splits A across devices, which the pool does not"
    if lora.lora_dtype not in DTYPES:
        return f"adapters are {lora.lora_dtype}"
    if model.is_moe:
        return "the base is a mixture of experts"
    if model.runner_type == "pooling" or model.is_multimodal_model:
        return "the base is not a text generator alone"
    return None


@contextmanager
def our_classes(options: KernelOptions) -> Iterator[None]:
    """Makes vLLM build wrapper and layers from our classes inside the context."""

    def wrapper(*args: Any, **kwargs: Any) -> PooledPunicaWrapper:
        return PooledPunicaWrapper(*args, options=options, **kwargs)

    replacements: list[tuple[Any, str, Any]] = [
        (model_manager, "get_punica_wrapper", wrapper),
        (utils, "_all_lora_classes", LAYERS + utils._all_lora_classes),
        (utils, "LogitsProcessorWithLoRA", PooledLogitsProcessor),
    ]
    with _wrapping:
        theirs = [getattr(module, name) for module, name, _ in replacements]
        try:
            for module, name, ours in replacements:
                setattr(module, name, ours)
            yield
        finally:
            for (module, name, _), original in zip(replacements, theirs, strict=True):
                setattr(module, name, original)
