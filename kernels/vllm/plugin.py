"""The entry point that vLLM calls in every process (group `vllm.general_plugins`).

Does nothing unless the environment says `LOREBASE_LORA_KERNELS=lorebase`. Then it replaces one
name, `LRUCacheWorkerLoRAManager` in vLLM's model runner, by a function that makes each engine the
adapter manager which that engine's own options ask for (`options.py`). What else is ours comes
with the manager, while it wraps the model (`replaced.py`): nothing is a fork, and engines with
and without our kernels can live in one process.

Anything unexpected (another vLLM, another kind of device) leaves all of vLLM as it is, with one
warning.
"""

import logging
import os
from typing import Any

from .options import VARIABLE

SUPPORTED = "0.32."

_logger = logging.getLogger("vllm.lorebase")
_warned: set[str] = set()


def register() -> bool:
    """Installs the kernels if the environment asks for them; safe to call again.

    Returns:
        Whether engines of this process can have our kernels.
    """
    wanted = os.environ.get(VARIABLE, "stock")
    if wanted == "stock":
        return False
    reason = _why_not(wanted)
    if reason is not None:
        warn_off(reason)
        return False
    _install()
    return True


def warn_off(reason: str) -> None:
    """Says once a process and reason that vLLM's own LoRA serves, and why."""
    if reason not in _warned:
        _warned.add(reason)
        _logger.warning("lorebase's LoRA kernels are off, vLLM's own serve: %s", reason)


def _why_not(wanted: str) -> str | None:
    if wanted != "lorebase":
        return f"{VARIABLE} is {wanted!r}, expected 'stock' or 'lorebase'"
    import vllm
    from vllm.platforms import current_platform

    if not vllm.__version__.startswith(SUPPORTED):
        return f"vLLM is {vllm.__version__}, they were made for {SUPPORTED}x"
    if current_platform.is_cpu():
        return None
    if not current_platform.is_cuda_alike():
        return f"they run on CPUs and GPUs, and the platform is {current_platform.device_name}"
    return _why_no_gpu()


def _why_no_gpu() -> str | None:
    """Why the GPU's kernels can't serve; asks nothing that would start CUDA in this process."""
    import torch
    from vllm.platforms import current_platform

    try:
        import triton  # noqa: F401 (only whether it is there)

        from ..lora.gpu.config import nearest_sm
    except ImportError as error:
        return f"they need triton on a GPU: {error}"
    capability = None if torch.version.hip else current_platform.get_device_capability()
    if capability is not None:
        try:
            nearest_sm(capability.to_int())
        except ValueError as error:
            return str(error)
    return None


def _install() -> None:
    from vllm.v1.worker import lora_model_runner_mixin

    from .manager import make_worker_manager

    mixin: Any = lora_model_runner_mixin
    mixin.LRUCacheWorkerLoRAManager = make_worker_manager
