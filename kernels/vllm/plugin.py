"""The entry point that vLLM calls in every process (group `vllm.general_plugins`).

Does nothing unless the environment says `LOREBASE_LORA_KERNELS=lorebase`. What it replaces, each
by a public or module-level name, nothing by a fork:

    the platform's punica wrapper           -> wrapper.make_wrapper
    the list of LoRA layer classes          -> ours in front (layers.LAYERS)
    the logits processor's LoRA layer       -> layers.PooledLogitsProcessor
    the worker's adapter manager            -> manager.PooledWorkerManager

Anything unexpected (another vLLM, another device) leaves all of vLLM as it is, with one warning.
"""

import logging
import os

VARIABLE = "LOREBASE_LORA_KERNELS"
SUPPORTED = "0.32."

_logger = logging.getLogger("vllm.lorebase")


def register() -> None:
    """Installs the kernels if the environment asks for them; safe to call again."""
    wanted = os.environ.get(VARIABLE, "stock")
    if wanted == "stock":
        return
    reason = _why_not(wanted)
    if reason is not None:
        _logger.warning("lorebase's LoRA kernels are off, vLLM's own serve: %s", reason)
        return
    _install()


def _why_not(wanted: str) -> str | None:
    if wanted != "lorebase":
        return f"{VARIABLE} is {wanted!r}, expected 'stock' or 'lorebase'"
    import vllm
    from vllm.platforms import current_platform

    if not vllm.__version__.startswith(SUPPORTED):
        return f"vLLM is {vllm.__version__}, they were made for {SUPPORTED}x"
    if not current_platform.is_cpu():
        return f"they run on the CPU so far, and the platform is {current_platform.device_name}"
    return None


def _install() -> None:
    from typing import Any

    from vllm.lora import utils
    from vllm.platforms import current_platform
    from vllm.v1.worker import lora_model_runner_mixin as mixin

    from . import layers, manager, wrapper

    if utils._all_lora_classes[: len(layers.LAYERS)] == layers.LAYERS:
        return
    path = f"{wrapper.__name__}.{wrapper.make_wrapper.__name__}"
    platform: Any = type(current_platform)
    platform.get_punica_wrapper = classmethod(lambda cls: path)
    utils._all_lora_classes = layers.LAYERS + utils._all_lora_classes
    names: Any = utils
    names.LogitsProcessorWithLoRA = layers.PooledLogitsProcessor
    worker: Any = mixin
    worker.LRUCacheWorkerLoRAManager = manager.PooledWorkerManager
    _logger.info("lorebase's LoRA kernels serve in this process")
