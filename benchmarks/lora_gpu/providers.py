"""Who computes: our kernels, and vLLM's and SGLang's own where their packages are installed.

Each provider is made for a world and then runs all its modules once when called; memory that it
needs only for weights kept in another form it makes beforehand. Baselines get their best case: as
many slots as there are adapters, and the exact number of active ones.
"""

import dataclasses
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from lorebase.kernels.lora.op import LoraLinear

from .world import DTYPE, Module, World

Run = Callable[[], None]


def ours(world: World) -> Run:
    """Our kernels behind the op, as an engine calls them."""
    bound = [(LoraLinear(world.pool, module.layer, world.plan), module) for module in world.modules]

    def run() -> None:
        for apply, module in bound:
            apply(module.y_TN, module.x_TK)

    return run


def _stacked(world: World, module: Module, index: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A [slots, R, K] and B [slots, N, R] of one slice, padded with zeros to the largest rank."""
    rank, slots = world.cell.max_rank, world.cell.adapters
    a_SRK = torch.zeros(slots, rank, module.linear.features, dtype=DTYPE, device=world.pool.device)
    b_SNR = torch.zeros(
        slots, module.linear.slices[index], rank, dtype=DTYPE, device=world.pool.device
    )
    for slot in range(slots):
        pair = world.weights(module, slot)[index]
        assert pair is not None
        a_SRK[slot, : len(pair[0])] = pair[0]
        b_SNR[slot, :, : len(pair[0])] = pair[1]
    return a_SRK, b_SNR


VLLM_CONFIGS = "VLLM_TUNED_CONFIG_FOLDER"
"""Names the folder in which vLLM itself looks for configurations that somebody tuned."""


def vllm_configs(folder: str | None, gpu: str) -> str:
    """What vLLM's kernels are launched with: `tuned` ones of a folder, or their `default`.

    Args:
        folder: value of VLLM_CONFIGS.
        gpu: the device's name.
    """
    prefix = gpu.replace(" ", "_").replace("-", "_")
    kinds = {"shrink": f"{prefix}_SHRINK.json", "expand": f"{prefix}_EXPAND_TRUE.json"}
    tuned = {kind for kind, name in kinds.items() if folder and (Path(folder) / name).exists()}
    if tuned == kinds.keys():
        return "tuned"
    return f"default, but tuned {tuned.pop()}" if tuned else "default"


def vllm(world: World) -> Run:
    """The punica kernels of vLLM as its GPU wrapper calls them: shrink, then expand.

    It takes tuned configurations from where VLLM_CONFIGS says, and its default ones otherwise.

    Raises:
        ImportError: vLLM is not installed, or without its GPU kernels.
    """
    ops: Any = importlib.import_module("vllm.lora.ops.triton_ops")
    meta = ops.LoRAKernelMeta.make(world.cell.adapters, world.cell.tokens, device=world.pool.device)
    meta.prepare_tensors(
        torch.tensor(world.cell.slots(), dtype=torch.int32, device=world.pool.device)
    )
    arguments = meta.meta_args(world.cell.tokens, True)
    prepared = []
    for module in world.modules:
        pairs = [_stacked(world, module, index) for index in range(len(module.linear.slices))]
        a_stacked = tuple(a.unsqueeze(1) for a, _ in pairs)
        b_stacked = tuple(b.unsqueeze(1) for _, b in pairs)
        h = torch.empty(
            (len(pairs), world.cell.tokens, world.cell.max_rank),
            dtype=torch.float32,
            device=world.pool.device,
        )
        prepared.append((module, a_stacked, b_stacked, h))

    def run() -> None:
        for module, a_stacked, b_stacked, h in prepared:
            ops.lora_shrink(module.x_TK, a_stacked, h, *arguments, 1.0)
            ops.lora_expand(h, b_stacked, module.y_TN, *arguments, offset_start=0, add_inputs=True)

    return run


def sglang(world: World) -> Run:
    """SGLang's Triton backend, with tokens sorted by adapter as it does when decoding.

    Raises:
        ImportError: SGLang is not installed, or has its kernels at an unknown place.
        TypeError: Its batch description has fields that this adapter does not know.
    """
    shrink, qkv, gate_up, expand = map(
        _sglang_function, ("sgemm_lora_a", "qkv_lora_b", "gate_up_lora_b", "sgemm_lora_b")
    )
    info = _sglang_batch(world)
    prepared = [(module, *_sglang_weights(world, module)) for module in world.modules]

    def run() -> None:
        for module, a_SRK, b_SNR, starts in prepared:
            sizes, y_TN = module.linear.slices, module.y_TN
            h = shrink(module.x_TK, a_SRK, info, len(sizes))
            if len(sizes) == 3:
                qkv(h, b_SNR, info, starts, max(sizes), base_output=y_TN)
            elif len(sizes) == 2:
                gate_up(h, b_SNR, info, sizes[0], base_output=y_TN)
            else:
                expand(h, b_SNR, info, base_output=y_TN)

    return run


def _sglang_function(name: str) -> Any:
    """A launcher of its kernels, from where releases have had them."""
    for module in (f"sglang.kernels.ops.lora.dense.{name}", "sglang.srt.lora.triton_ops"):
        try:
            return getattr(importlib.import_module(module), f"{name}_fwd")
        except ModuleNotFoundError as missing:
            if not module.startswith(str(missing.name)):
                raise
    raise ImportError(f"got no {name}_fwd in SGLang; expected it in one of two known modules")


def _sglang_batch(world: World) -> Any:
    """Its description of a batch; fields differ between releases, so they are filled by name."""
    utils: Any = importlib.import_module("sglang.srt.lora.utils")
    device = world.pool.device
    slots = torch.tensor(world.cell.slots(), device=device)
    lengths = torch.bincount(slots, minlength=world.cell.adapters)

    def ints(values: Any) -> torch.Tensor:
        return torch.as_tensor(values, device=device).to(torch.int32)

    known: dict[str, Any] = {
        "use_cuda_graph": True,
        "bs": world.cell.adapters,
        "num_segments": world.cell.adapters,
        "seg_lens": ints(lengths),
        "seg_indptr": ints(torch.nn.functional.pad(lengths.cumsum(0), (1, 0))),
        "max_len": int(lengths.max()),
        "weight_indices": ints(range(world.cell.adapters)),
        "lora_ranks": ints([world.cell.rank_of(slot) for slot in range(world.cell.adapters)]),
        "scalings": torch.ones(world.cell.adapters, device=device),
        "permutation": ints(torch.argsort(slots, stable=True)),
    }
    fields = dataclasses.fields(utils.LoRABatchInfo)
    required = {
        one.name
        for one in fields
        if one.default is dataclasses.MISSING and one.default_factory is dataclasses.MISSING
    }
    if required - known.keys():
        raise TypeError(f"got LoRABatchInfo with {required - known.keys()}; expected {set(known)}")
    names = {one.name for one in fields}
    return utils.LoRABatchInfo(**{k: v for k, v in known.items() if k in names})


def _sglang_weights(
    world: World, module: Module
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A [slots, slices * R, K] with slices packed at true rank, B [slots, N, R], slice starts."""
    rank, slots, sizes = world.cell.max_rank, world.cell.adapters, module.linear.slices
    device = world.pool.device
    a_SRK = torch.zeros(
        slots, rank * len(sizes), module.linear.features, dtype=DTYPE, device=device
    )
    b_SNR = torch.zeros(slots, sum(sizes), rank, dtype=DTYPE, device=device)
    starts = [sum(sizes[:index]) for index in range(len(sizes) + 1)]
    for slot in range(slots):
        own = world.cell.rank_of(slot)
        for index, pair in enumerate(world.weights(module, slot)):
            assert pair is not None
            a_SRK[slot, index * own : (index + 1) * own] = pair[0]
            b_SNR[slot, starts[index] : starts[index + 1], :own] = pair[1]
    return a_SRK, b_SNR, torch.tensor(starts, dtype=torch.int32, device=device)


PROVIDERS: dict[str, Callable[[World], Run]] = {"ours": ours, "vllm": vllm, "sglang": sglang}
