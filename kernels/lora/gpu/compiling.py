"""Compiling one kernel configuration for an architecture that need not be there."""

import contextlib
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .config import Expand, Fused, Row, Shrink, for_odd_columns, table

TYPES = {2: ("bf16", "fp16"), 4: ("fp32",)}
ALIGNMENTS = (16, 1)
"""What divides every slice's columns: 16 in real models, 1 in any other."""
_NARROW = re.compile(
    r"\bld\.global\.(?:\w+::?\w+\.)*(?:v\d\.)?[bus](?:8|16)\b"  # PTX
    r"|\bglobal_load_(?:[us]?byte|[us]?short|u8|i8|u16|i16)\w*"  # AMD
)


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Variant:
    """One kernel as it is compiled for one architecture."""

    arch: str
    kernel: str
    """Name of the function in <name>.py, without `lora_`."""
    dtype: str
    warps: int
    stages: int
    blocks: tuple[tuple[str, int], ...]
    """Values of its constexpr parameters."""

    @property
    def loads_wide(self) -> bool:
        """Whether its memory is aligned so that no thread need load less than 4 bytes."""
        return self.kernel != "lookup" and dict(self.blocks).get("ALIGN_N", 16) > 1

    @property
    def key(self) -> str:
        """What the record files it under."""
        blocks = " ".join(f"{name}={value}" for name, value in self.blocks)
        return f"{self.kernel} {self.dtype} {blocks} warps={self.warps} stages={self.stages}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """What the compiler says that a compiled kernel takes."""

    registers: int
    """Of a thread; on AMD vector registers."""
    spills: int
    """Bytes (NVIDIA: stored and loaded) or registers (AMD) that didn't fit."""
    stack: int
    """Bytes of a thread."""
    shared: int
    """Bytes of a program."""
    narrow_loads: int
    """Loads of weights, x or y narrower than 4 bytes a thread, in the code: alignment was lost."""


def variants(arch: str, rows: Sequence[Row] | None = None) -> list[Variant]:
    """Every kernel that the rows of an architecture's table launch, once.

    Odd columns are compiled in one type of each size: all else is alike.
    """
    chosen = table(arch).rows if rows is None else rows
    return sorted(
        {
            Variant(
                arch=arch,
                kernel=kernel,
                dtype=dtype,
                warps=config.warps,
                stages=config.stages,
                blocks=tuple(blocks.items()),
            )
            for row in chosen
            for align_n in ALIGNMENTS
            for dtype in TYPES[row.itemsize][: None if align_n > 1 else 1]
            for kernel, config, blocks in launches(row, align_n)
        }
    )


def launches(row: Row, align_n: int) -> list[tuple[str, Fused | Shrink | Expand, dict[str, int]]]:
    """Name, configuration and constexpr parameters of each kernel that a row launches."""
    kernels = row.kernels if align_n > 1 else for_odd_columns(row.kernels)
    if isinstance(kernels, Fused):
        one = kernels
        blocks = {"BLOCK_M": row.tile_tokens, "BLOCK_R": one.block_r, "BLOCK_K": one.block_k}
        blocks |= {"BLOCK_N": one.block_n, "STEPS_N": one.steps_n, "ALIGN_N": align_n}
        return [("fused", one, blocks)]
    shrink, expand = kernels
    first = {"BLOCK_M": row.tile_tokens, "BLOCK_R": shrink.block_r, "BLOCK_K": shrink.block_k}
    second = {"BLOCK_M": row.tile_tokens, "BLOCK_R": expand.block_r, "BLOCK_N": expand.block_n}
    parts = {"SPLIT_K": shrink.split_k}
    rows = {"BLOCK_M": row.tile_tokens, "BLOCK_R": expand.block_r}
    return [
        ("shrink", shrink, {**first, **parts}),
        ("lookup", expand, {**rows, **parts}),
        ("expand", expand, {**second, **parts, "ALIGN_N": align_n}),
    ]


def compile_variant(variant: Variant) -> Resources:
    """Compiles one variant in this process.

    Raises:
        RuntimeError: The interpreter is on, or the compiler's report isn't understood.
    """
    import triton
    from triton import knobs
    from triton.compiler import ASTSource

    from . import expand, fused, lookup, parts, shrink

    if parts.INTERPRETED.value:
        raise RuntimeError("got TRITON_INTERPRET=1; expected it unset where kernels are compiled")
    kernel = {
        "shrink": shrink.lora_shrink,
        "lookup": lookup.lora_lookup,
        "expand": expand.lora_expand,
        "fused": fused.lora_fused,
    }[variant.kernel]
    constants = dict(variant.blocks)
    types = {name: _type_of(name, variant.dtype) for name in kernel.arg_names}
    signature = {n: "constexpr" if n in constants else types[n] for n in kernel.arg_names}
    # What the JIT finds out at a launch: pointers and strides align, but y's where columns are odd.
    unaligned = {"h_tokens"} if variant.loads_wide else {"h_tokens", "y_stride"}
    aligned = {
        (index,): [["tt.divisibility", 16]]
        for index, name in enumerate(kernel.arg_names)
        if name not in constants and name not in unaligned
    }
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned)
    knobs.nvidia.dump_ptxas_log = True
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        compiled = triton.compile(
            source,
            target=_target(variant.arch),
            options={"num_warps": variant.warps, "num_stages": variant.stages},
        )
    nvidia = variant.arch.startswith("sm_")
    code = compiled.asm["ptx" if nvidia else "amdgcn"]
    report = printed.getvalue() if nvidia else code
    return _resources(variant, report, code, compiled.metadata.shared)


def _type_of(name: str, dtype: str) -> str:
    if name in ("x_ptr", "y_ptr", "pool_ptr"):
        return f"*{dtype}"
    if name == "h_ptr":
        return "*fp32"
    if name in ("a_offsets_ptr", "b_offsets_ptr"):
        return "*i64"
    return "*i32" if name.endswith("_ptr") else "i32"


def _target(arch: str) -> Any:
    from triton.backends.compiler import GPUTarget

    if arch.startswith("sm_"):
        return GPUTarget("cuda", int(arch[3:]), 32)
    return GPUTarget("hip", arch, 64)


def _resources(variant: Variant, report: str, code: str, shared: int) -> Resources:
    """Reads ptxas's report, or the metadata in an AMD assembly."""
    narrow = len(_NARROW.findall(code))

    def numbers(pattern: str) -> list[int]:
        found = re.search(pattern, report)
        if found is None:
            raise RuntimeError(f"got no {pattern!r} in the compiler's report of {variant.key}")
        return [int(group) for group in found.groups()]

    if variant.arch.startswith("sm_"):
        stack, stored, loaded = numbers(
            r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads"
        )
        [registers] = numbers(r"Used (\d+) registers")
        return Resources(
            registers=registers,
            spills=stored + loaded,
            stack=stack,
            shared=shared,
            narrow_loads=narrow,
        )
    [registers], [vector], [scalar], [stack] = (
        numbers(rf"\.{name}:\s+(\d+)")
        for name in (
            "vgpr_count",
            "vgpr_spill_count",
            "sgpr_spill_count",
            "private_segment_fixed_size",
        )
    )
    return Resources(
        registers=registers,
        spills=vector + scalar,
        stack=stack,
        shared=shared,
        narrow_loads=narrow,
    )
