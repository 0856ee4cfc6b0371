"""Configuration of one engine, and what follows from it, without importing vLLM or torch."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..errors import InvalidArgumentError

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
ConcreteDtype = Literal["float32", "bfloat16", "float16"]
Backend = Literal["async", "inprocess"]
SchedulerName = Literal["preempting", "priority"]
LoraKernels = Literal["auto", "lorebase", "stock"]
Device = Literal["cpu", "cuda"]

_DTYPES = ("auto", "float32", "bfloat16", "float16")
_BACKENDS = ("async", "inprocess")
_SCHEDULERS = ("preempting", "priority")
_LORA_KERNELS = ("auto", "lorebase", "stock")
_BF16_CPU_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
"""x86 names, and `bf16` as ARM spells it in /proc/cpuinfo."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """How one engine replica runs its base."""

    base_id: str
    """Id of the base; every answer carries it, and adapters for other bases are refused."""
    model_path: str
    """Directory with config.json, safetensors weights and the tokenizer."""
    backend: Backend = "async"
    """`async`: vLLM's AsyncLLM with its engine core in a process of its own, for serving.
    `inprocess`: the synchronous engine on a thread; a third of the memory, for tests."""
    scheduler: SchedulerName = "preempting"
    """`preempting` takes slots, adapter slots and KV blocks away from background requests when
    the foreground waits; `priority` is vLLM's own, which only reorders the queue."""
    lora_kernels: LoraKernels = "auto"
    """Whose LoRA code serves. `lorebase`: ours (lorebase.kernels), at each adapter's true rank;
    what it does not cover (other vLLM versions, mixtures of experts) falls back to vLLM's with
    one warning. `stock`: vLLM's own, except that base requests never get another tenant's weights
    (see vllm_isolation). `auto`: ours on the CPU, and vLLM's on a GPU, where ours were compiled
    and interpreted but have not run inside vLLM yet."""
    dtype: Dtype = "auto"
    """See `resolve_dtype`."""
    max_model_len: int = 2048
    """Longest prompt plus answer, in tokens."""
    max_num_seqs: int = 32
    """Requests that may run in one step."""
    max_batched_tokens: int = 2048
    """Tokens computed in one step; longer prompts are prefilled in chunks of this size."""
    max_loras: int | None = None
    """Different adapters that may run in one step. None: as many as `adapter_slot_bytes` holds,
    at most one for each request of a step."""
    adapter_slot_bytes: int = 1 << 30
    """Memory for the adapters of a step, beside `adapter_host_bytes`. Every slot is counted at
    `max_lora_rank`, so that any adapters fit together. Our kernels on CPU need none of it."""
    max_cpu_loras: int = 4096
    """Most adapter versions kept loaded, whatever their size."""
    adapter_host_bytes: int = 2 << 30
    """Memory for the adapter versions kept loaded, each at its own rank; the least recently used
    idle ones go first. Using one of them again costs no reading."""
    max_lora_rank: int = 64
    """Largest adapter rank; larger ones are refused. vLLM's own kernels pad every slot to it."""
    kv_cache_bytes: int | None = None
    """Size of the KV cache. None: 256 MiB on CPU; on GPU what vLLM's profiling finds free."""
    block_size: int | None = None
    """Tokens per KV block, the unit of prefix caching. None: 32 on CPU (vLLM's 128 there would
    make prefixes below 128 tokens uncacheable), vLLM's default on GPU."""
    background_cap: int = 8
    """Background requests inside the engine while no foreground request is; fewer than
    `max_num_seqs`, so that a foreground request always finds a slot."""
    background_cap_busy: int = 2
    """The same while foreground requests are in flight. 0 lets the background starve."""
    background_queue: int = 4096
    """Background requests that may wait outside the engine; more are refused."""
    stream_interval: int = 1
    """Tokens per streamed chunk, after the first; 8 cuts the gateway's work to a third."""
    adapter_wait_s: float = 10.0
    """How long a request waits for a version to become idle when all that fit are in use."""
    adapter_load_timeout_s: float = 60.0
    """How long loading one adapter version may take."""
    cpu_threads: int = 1
    """Compute threads on CPU. One, because two engines, gateways and a trainer share a few
    cores by default, and small models don't gain from more (see `cpu_environment`)."""
    seed: int = 0
    """Seed of sampling for requests that bring none."""

    def __post_init__(self) -> None:
        """Raises InvalidArgumentError if a value is out of range or two contradict."""
        _one_of("backend", self.backend, _BACKENDS)
        _one_of("scheduler", self.scheduler, _SCHEDULERS)
        _one_of("lora_kernels", self.lora_kernels, _LORA_KERNELS)
        _one_of("dtype", self.dtype, _DTYPES)
        for name in ("base_id", "model_path"):
            if not getattr(self, name):
                raise InvalidArgumentError(f"engine.{name} is empty; name one")
        for name in (
            "max_num_seqs", "max_batched_tokens", "max_lora_rank", "stream_interval",
            "background_queue", "cpu_threads", "adapter_slot_bytes", "adapter_host_bytes",
        ):  # fmt: skip
            _at_least(name, getattr(self, name), 1)
        _at_least("max_model_len", self.max_model_len, 2)
        _at_least("background_cap_busy", self.background_cap_busy, 0)
        if self.max_loras is not None:
            _at_least("max_loras", self.max_loras, 1)
        _at_least("max_cpu_loras", self.max_cpu_loras, self.max_loras or 1)
        if self.kv_cache_bytes is not None:
            _at_least("kv_cache_bytes", self.kv_cache_bytes, 1 << 20)
        if self.block_size is not None and (self.block_size < 8 or self.block_size % 8):
            raise InvalidArgumentError(
                f"engine.block_size is {self.block_size}, expected a positive multiple of 8"
            )
        if not 1 <= self.background_cap <= max(1, self.max_num_seqs - 1):
            raise InvalidArgumentError(
                f"engine.background_cap is {self.background_cap}, expected 1 to max_num_seqs - 1 "
                f"({self.max_num_seqs - 1}), so that the foreground always finds a slot"
            )
        if self.background_cap_busy > self.background_cap:
            raise InvalidArgumentError(
                f"engine.background_cap_busy is {self.background_cap_busy}, expected at most "
                f"background_cap ({self.background_cap})"
            )
        for name in ("adapter_wait_s", "adapter_load_timeout_s"):
            if not 0 < getattr(self, name) < 3600:
                raise InvalidArgumentError(
                    f"engine.{name} is {getattr(self, name)}, expected seconds in (0, 3600)"
                )


def resolve_dtype(requested: Dtype, *, device: Device, cpu_flags: frozenset[str]) -> ConcreteDtype:
    """Chooses the dtype of weights and activations.

    Args:
        requested: `auto` or a concrete dtype, which is returned as it is.
        device: where the model runs.
        cpu_flags: features of this CPU, see `read_cpu_flags`.

    Returns:
        For `auto`: bfloat16 where the hardware multiplies it, float32 elsewhere. A CPU with
        AVX2 only emulates bfloat16 at about 1/50 of its float32 speed.
    """
    if requested != "auto":
        return requested
    if device == "cuda" or cpu_flags & _BF16_CPU_FLAGS:
        return "bfloat16"
    return "float32"


def read_cpu_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """Returns the feature flags of the first CPU, empty where they can't be read."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return frozenset()
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return frozenset(value.split())
    return frozenset()


def cpu_environment(settings: EngineSettings) -> dict[str, str]:
    """Returns the environment an engine process should be started with on a CPU machine.

    Set it before torch or vLLM are imported (for Ray: in `runtime_env`), because OpenMP reads
    its part once. `nobind` keeps vLLM from pinning every engine to the same cores, and the
    passive wait policy keeps OpenMP threads from spinning between parallel regions while other
    processes need the core.

    Measured on a crowded 4 core AVX2 machine, base of 1.3M parameters in float32, 8 requests:
    1,070 tokens per CPU second with one thread, 670 with two, 200 with two and the active policy,
    which also burns 0.9 of a core while nothing runs (passive: 0.01).
    """
    threads = str(settings.cpu_threads)
    return {
        **vllm_environment(),
        **kernels_environment(settings),
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "OMP_WAIT_POLICY": "PASSIVE",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    }


def vllm_environment() -> dict[str, str]:
    """Returns the environment that vLLM needs on any device.

    Why each: logging set up by vLLM breaks Ray Serve's log handler, after which healthy
    replicas are killed; nothing may be looked up on a model hub or reported; without V1
    multiprocessing the CPU worker runs inside the engine core, which saves a process of 600 MiB.
    """
    return {
        "VLLM_CONFIGURE_LOGGING": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    }


def kernels_environment(settings: EngineSettings) -> dict[str, str]:
    """Returns what tells vLLM's processes to load our LoRA kernels.

    It only makes them available: which engine uses them goes with its own configuration, so that
    engines with and without can share a process. An operator's `LOREBASE_LORA_KERNELS=stock`
    keeps them out of all.
    """
    return {"LOREBASE_LORA_KERNELS": "lorebase"} if settings.lora_kernels != "stock" else {}


def apply_environment(values: dict[str, str]) -> None:
    """Sets what is not set yet, so that an operator's own environment wins."""
    for name, value in values.items():
        os.environ.setdefault(name, value)


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise InvalidArgumentError(
            f"engine.{name} is {value!r}, expected one of {', '.join(allowed)}"
        )


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise InvalidArgumentError(f"engine.{name} is {value}, expected at least {least}")
