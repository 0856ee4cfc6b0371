"""What has to happen in every worker process before the model is built.

Named as `worker_extension_cls`, vLLM's public hook, so vLLM imports this module there; importing
it is all that it takes.
"""

from . import vllm_cpu_seeds, vllm_isolation, vllm_orphans


class WorkerExtension:
    """Adds nothing to the worker class; its module has done its work when it is found."""


vllm_orphans.watch_parent()
vllm_isolation.install()
vllm_cpu_seeds.install()
