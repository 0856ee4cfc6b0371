"""What has to happen in every worker process before the model is built, and calls to it after.

Named as `worker_extension_cls`, vLLM's public hook: vLLM imports this module there, which is when
the repairs are made, and gives the worker the methods of `WorkerExtension`.
"""

import logging
from collections import deque
from typing import Any

from vllm.lora.request import LoRARequest

from . import side_channel, vllm_cpu_seeds, vllm_isolation, vllm_orphans

logger = logging.getLogger(__name__)

Stall = tuple[int, int, float, float]
"""The fields of `loaded.AdapterStall`."""


class WorkerExtension:
    """Methods that vLLM's worker gets; called by name, with arguments that cross processes."""

    model_runner: Any

    def prefetch_adapter(self, name: str, int_id: int, path: str) -> None:
        """Begins to load an adapter on another thread, where our LoRA kernels serve.

        A hint: vLLM's own manager loads when it is told to add it.
        """
        prefetch = getattr(self.model_runner.lora_manager, "prefetch", None)
        if prefetch is not None:
            prefetch(LoRARequest(name, int_id, path))

    def open_side_channel(self, address: str) -> bool:
        """Takes orders there from now on, where our LoRA kernels serve; returns whether.

        They are `prefetch`, as `prefetch_adapter`, and `claim`: have a prefetched adapter wait for
        the step that needs it. Answered is how many bytes it takes; None: `add_adapter` it.
        """
        manager = self.model_runner.lora_manager
        if not hasattr(manager, "claim"):
            return False

        def answer(order: str, names: list[Any], reply: side_channel.Reply) -> None:
            _, int_id, _ = names
            if order == "claim":
                manager.claim(int_id, reply)
            else:
                self.prefetch_adapter(*names)
                reply(None)

        try:
            side_channel.serve(address, answer)
        except OSError:
            logger.exception("the side channel at %s can't be reached", address)
            return False
        return True

    def add_adapter(self, name: str, int_id: int, path: str) -> int | None:
        """Adds an adapter, unless it is still being read: no step shall wait for that.

        Returns:
            None: ask again. Otherwise it is there, and takes so many bytes; 0: nobody counted.
        """
        manager = self.model_runner.lora_manager
        is_loading = getattr(manager, "is_loading", None)
        if is_loading is not None and is_loading(int_id):
            return None
        manager.add_adapter(LoRARequest(name, int_id, path))
        bytes_of = getattr(manager, "bytes_of", None)
        return 0 if bytes_of is None else int(bytes_of(int_id))

    def adapter_stalls(self) -> list[Stall]:
        """Returns and forgets how long steps stood still for adapters, oldest first."""
        stalls: deque[Stall] | None = getattr(self.model_runner.lora_manager, "stalls", None)
        found: list[Stall] = list(stalls or ())
        if stalls is not None:
            stalls.clear()
        return found


vllm_orphans.watch_parent()
vllm_isolation.install()
vllm_cpu_seeds.install()
