"""What has to happen in every worker process before the model is built, and calls to it after.

Named as `worker_extension_cls`, vLLM's public hook: vLLM imports this module there, which is when
the repairs are made, and gives the worker the methods of `WorkerExtension`.
"""

from pathlib import Path
from typing import Any

from vllm.lora.request import LoRARequest

from . import vllm_cpu_seeds, vllm_isolation, vllm_orphans


class WorkerExtension:
    """Methods that vLLM's worker gets; called by name, with arguments that cross processes."""

    model_runner: Any

    def prefetch_adapter(self, name: str, int_id: int, path: str) -> bool:
        """Begins to load an adapter on another thread, where our LoRA kernels serve.

        Returns:
            Whether it is on its way; vLLM's own manager loads when it is told to use it.
        """
        prefetch = getattr(self.model_runner.lora_manager, "prefetch", None)
        # The files are still being checked meanwhile, and vLLM would also read pickles.
        if prefetch is None or not (Path(path) / "adapter_model.safetensors").is_file():
            return False
        return bool(prefetch(LoRARequest(name, int_id, path)))

    def adapter_stalls(self) -> list[tuple[int, int, float, float]]:
        """Returns and forgets the fields of `adapters.AdapterStall`, oldest first."""
        stalls = getattr(self.model_runner.lora_manager, "stalls", None)
        found = list(stalls or ())
        if stalls is not None:
            stalls.clear()
        return found


vllm_orphans.watch_parent()
vllm_isolation.install()
vllm_cpu_seeds.install()
