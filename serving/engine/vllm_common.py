"""What both vLLM backends share: engine arguments, conversions and the mapping of errors."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

import torch
import vllm
from vllm import SamplingParams
from vllm.config.lora import MaxLoRARanks
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.exceptions import VLLMClientError
from vllm.lora.request import LoRARequest
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.platforms import current_platform
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.exceptions import EngineDeadError as VllmEngineDeadError
from vllm.v1.engine.exceptions import EngineGenerateError

from lorebase.kernels.vllm import plugin
from lorebase.kernels.vllm.coverage import model_not_covered
from lorebase.kernels.vllm.options import KernelOptions

from ..artifacts import BaseShapes, base_shapes
from ..errors import EngineDeadError, InvalidArgumentError, LorebaseError, UnavailableError
from . import vllm_scheduler
from .budget import ITEMSIZE, adapter_slots, device_pool_bytes
from .loaded import LoadedAdapter
from .protocol import Chunk, FinishReason, Sampling
from .settings import ConcreteDtype, EngineSettings, read_cpu_flags, resolve_dtype

_DEFAULT_CPU_KV_BYTES = 256 << 20
_DEFAULT_CPU_BLOCK = 32
_FINISH: dict[str, FinishReason] = {"stop": "stop", "length": "length", "repetition": "stop"}


def engine_args(settings: EngineSettings) -> AsyncEngineArgs:
    """Translates settings to vLLM's arguments, for this machine's device."""
    cpu = current_platform.is_cpu()
    optional: dict[str, Any] = {}
    if cpu or settings.kv_cache_bytes is not None:
        optional["kv_cache_memory_bytes"] = settings.kv_cache_bytes or _DEFAULT_CPU_KV_BYTES
    if cpu or settings.block_size is not None:
        optional["block_size"] = settings.block_size or _DEFAULT_CPU_BLOCK
    if settings.scheduler == "preempting":
        optional["scheduler_cls"] = vllm_scheduler.scheduler_path(
            vllm.__version__, asynchronous=not cpu
        )
    arguments = AsyncEngineArgs(
        model=settings.model_path,
        served_model_name=settings.base_id,
        dtype=engine_dtype(settings),
        seed=settings.seed,
        max_model_len=settings.max_model_len,
        max_num_seqs=settings.max_num_seqs,
        max_num_batched_tokens=max(settings.max_batched_tokens, settings.max_num_seqs),
        scheduling_policy="priority",
        stream_interval=settings.stream_interval,
        enable_prefix_caching=True,
        enforce_eager=cpu,
        enable_lora=True,
        max_lora_rank=_vllm_rank(settings.max_lora_rank),
        worker_extension_cls=f"{__package__}.vllm_worker.WorkerExtension",
        # Sampling comes from the request alone, not from the base's generation_config.json.
        generation_config="vllm",
        disable_log_stats=True,
        enable_log_requests=False,
        trust_remote_code=False,
        **optional,
    )
    shapes, itemsize = base_shapes(Path(settings.model_path)), ITEMSIZE[engine_dtype(settings)]
    arguments.max_loras = slots = _slots(settings, arguments, shapes, itemsize)
    arguments.additional_config = KernelOptions(
        kernels=wanted_kernels(settings),
        host_bytes=settings.adapter_host_bytes,
        pool_bytes=None if cpu else device_pool_bytes(settings, shapes, itemsize, slots),
    ).additional_config()
    # The registry holds at most so many and so many bytes, so that vLLM never evicts one by
    # itself and reads its files again in the middle of a step, where an error kills it.
    arguments.max_cpu_loras = max(arguments.max_loras, settings.max_cpu_loras)
    return arguments


def _slots(
    settings: EngineSettings, arguments: AsyncEngineArgs, shapes: BaseShapes, itemsize: int
) -> int:
    """Different adapters in a step: what fits into bytes, unless our kernels need none for slots.

    Whether those will serve is asked of the model itself: vLLM's own pad every slot.
    """
    # vLLM calls plugins once a process: too early if a stock engine was here before.
    ours = wanted_kernels(settings) == "lorebase" and plugin.register()
    return adapter_slots(
        settings,
        shapes,
        itemsize,
        free_slots=ours
        and current_platform.is_cpu()
        and model_not_covered(arguments.create_model_config()) is None,
    )


def wanted_kernels(settings: EngineSettings) -> str:
    """Returns whose LoRA code an engine on this machine's device asks for."""
    if settings.lora_kernels != "auto":
        return settings.lora_kernels
    return "lorebase" if current_platform.is_cpu() else "stock"


def engine_dtype(settings: EngineSettings) -> ConcreteDtype:
    """Returns the dtype of weights and activations on this machine's device."""
    return resolve_dtype(
        settings.dtype,
        device="cpu" if current_platform.is_cpu() else "cuda",
        cpu_flags=read_cpu_flags(),
    )


def _vllm_rank(rank: int) -> MaxLoRARanks:
    """Rounds up to a rank that vLLM offers."""
    offered: tuple[MaxLoRARanks, ...] = get_args(MaxLoRARanks)
    for candidate in offered:
        if rank <= candidate:
            return candidate
    raise InvalidArgumentError(f"engine.max_lora_rank is {rank}, expected at most {offered[-1]}")


def lora_request(adapter: LoadedAdapter) -> LoRARequest:
    """Returns vLLM's name for a loaded adapter."""
    return LoRARequest(
        lora_name=adapter.name, lora_int_id=adapter.int_id, lora_path=adapter.version.path
    )


def sampling_params(sampling: Sampling, choice_ids: list[int], *, stream: bool) -> SamplingParams:
    """Translates checked decoding parameters.

    Args:
        sampling: parameters that passed `check_sampling`.
        choice_ids: token ids of `sampling.choices`.
        stream: whether chunks are wanted as they come, or one at the end.
    """
    kind = RequestOutputKind.DELTA if stream else RequestOutputKind.FINAL_ONLY
    if choice_ids:
        # The scores are of the raw logits, so they depend neither on the mask nor on the
        # temperature; `choice_logprobs` normalises them.
        return SamplingParams(
            max_tokens=1,
            temperature=sampling.temperature,
            seed=sampling.seed,
            allowed_token_ids=choice_ids,
            logprob_token_ids=choice_ids,
            output_kind=kind,
        )
    return SamplingParams(
        max_tokens=sampling.max_tokens,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        seed=sampling.seed,
        stop=list(sampling.stop),
        ignore_eos=sampling.ignore_eos,
        output_kind=kind,
    )


def to_chunk(
    output: RequestOutput, *, base_id: str, version_id: str, choice_ids: list[int]
) -> Chunk:
    """Translates one output of a request.

    Raises:
        UnavailableError: the engine gave the request up.
    """
    completion = output.outputs[0]
    return Chunk(
        text=completion.text,
        token_ids=tuple(completion.token_ids),
        finish_reason=_finish_reason(completion),
        prompt_tokens=len(output.prompt_token_ids or ()),
        cached_tokens=output.num_cached_tokens or 0,
        base_id=base_id,
        version_id=version_id,
        choice_logprobs=_choice_logprobs(completion, choice_ids),
    )


def _finish_reason(completion: CompletionOutput) -> FinishReason | None:
    if completion.finish_reason is None:
        return None
    reason = _FINISH.get(completion.finish_reason)
    if reason is None:
        raise UnavailableError(
            f"the engine ended the request with {completion.finish_reason!r}; retry"
        )
    return reason


def _choice_logprobs(completion: CompletionOutput, choice_ids: list[int]) -> tuple[float, ...]:
    """Returns log p(choice | one of the choices), in the order of `choice_ids`."""
    if not choice_ids or not completion.logprobs:
        return ()
    row = completion.logprobs[0]
    scores = [row[token].logprob for token in choice_ids]
    top = max(scores)
    total = top + math.log(sum(math.exp(score - top) for score in scores))
    return tuple(score - total for score in scores)


def map_error(error: BaseException) -> BaseException:
    """Returns the error of our tree for one from vLLM, or the error itself."""
    if isinstance(error, LorebaseError):
        return error
    if isinstance(error, VllmEngineDeadError):
        return EngineDeadError(f"the engine process died: {error}; retry on another replica")
    if isinstance(error, EngineGenerateError) and error.__cause__ is not None:
        return map_error(error.__cause__)
    if isinstance(error, VLLMClientError | ValueError | TypeError):
        return InvalidArgumentError(f"the engine refused the request: {error}")
    return error


@contextmanager
def kept_torch_threads() -> Iterator[None]:
    """Undoes what vLLM's CPU worker does to this process: it disables torch.set_num_threads."""
    original = torch.set_num_threads
    try:
        yield
    finally:
        torch.set_num_threads = original
