"""vLLM's LoRA wrapper and layer classes, replaced by ours while one model is being wrapped.

    vllm.lora.model_manager.get_punica_wrapper    -> wrapper.PooledPunicaWrapper
    vllm.lora.utils._all_lora_classes             -> ours in front (layers.LAYERS)
    vllm.lora.utils.LogitsProcessorWithLoRA       -> edges.PooledLogitsProcessor

vLLM looks these up only while it builds an adapter manager, so they are put back right after it.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from vllm.lora import model_manager, utils

from .edges import PooledLogitsProcessor
from .layers import LAYERS
from .options import KernelOptions
from .wrapper import PooledPunicaWrapper

_wrapping = threading.Lock()


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
