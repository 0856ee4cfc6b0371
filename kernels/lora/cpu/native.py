"""Loads the C++ kernel with ctypes and mirrors the structures of grouped.h."""

import ctypes
from enum import IntEnum
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

from ..layout import TYPES

LIBRARY = "_grouped"
ABI = 3
"""LB_ABI of the grouped.h that this module mirrors."""
DTYPES = TYPES
"""LbDtype of each type."""


class Isa(IntEnum):
    """Instruction sets that the library has code for."""

    PORTABLE = 0
    AVX2 = 1
    AVX512 = 2
    AVX512_BF16 = 3


class LayerTables(ctypes.Structure):
    """LbLayer: one layer's tables. Holds addresses: keep the tensors alive."""

    _fields_ = (
        ("pool", ctypes.c_void_p),
        ("a_offsets", ctypes.c_void_p),
        ("b_offsets", ctypes.c_void_p),
        ("ranks", ctypes.c_void_p),
        ("slice_starts", ctypes.c_void_p),
        ("in_features", ctypes.c_int64),
        ("slices", ctypes.c_int32),
        ("dtype", ctypes.c_int32),
        ("types", ctypes.c_void_p),  # null where it is left out
    )


class StepTables(ctypes.Structure):
    """LbStep: one step's plan. Holds addresses: keep the plan alive."""

    _fields_ = (
        ("counts", ctypes.c_void_p),
        ("tiles", ctypes.c_void_p),
        ("order", ctypes.c_void_p),
    )


def built_at() -> Path | None:
    """Where the build left the library; None where it could not compile."""
    here = Path(__file__).parent
    for suffix in EXTENSION_SUFFIXES:
        path = here / (LIBRARY + suffix)
        if path.exists():
            return path
    return None


@cache
def _found() -> ctypes.CDLL | str:
    """The loaded kernel, or what is wrong with it."""
    path = built_at()
    if path is None:
        return "is not built"
    try:
        loaded = ctypes.CDLL(str(path))
    except OSError as error:
        return f"can't be loaded ({error})"
    version = getattr(loaded, "lb_abi_version", None)
    abi = 0 if version is None else version()
    if abi != ABI:  # structures and arguments may differ: it would misread memory
        return f"was built from other sources (its ABI is {abi}, these need {ABI}): build it again"
    loaded.lb_linear.argtypes = (
        ctypes.POINTER(LayerTables),
        ctypes.POINTER(StepTables),
        ctypes.c_void_p,
        ctypes.c_int64,
        ctypes.c_void_p,
        ctypes.c_int64,
        ctypes.c_int,
        ctypes.c_int,
    )
    loaded.lb_linear.restype = ctypes.c_int
    loaded.lb_pack.argtypes = (
        *(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p),
        *(ctypes.c_int64, ctypes.c_int),
    )
    loaded.lb_pack.restype = ctypes.c_int64
    return loaded


def library() -> ctypes.CDLL | None:
    """The loaded kernel, or None; `why_missing` says why."""
    found = _found()
    return None if isinstance(found, str) else found


def why_missing() -> str | None:
    """What is wrong with the kernel; None: nothing."""
    found = _found()
    return found if isinstance(found, str) else None


def check(code: int) -> None:
    """Raises what a code that `lb_linear` returned stands for.

    Raises:
        ValueError: An instruction set that machine or build lacks was asked for.
        MemoryError: No memory for scratch.
    """
    if code == -1:
        raise ValueError(
            f"got an instruction set beyond {best_isa()!r}, the widest of this machine and build"
        )
    if code:
        raise MemoryError(f"the LoRA kernel got no scratch memory (code {code})")


def is_built() -> bool:
    """Whether the C++ kernel serves; otherwise torch does, slower."""
    return library() is not None


def best_isa() -> Isa | None:
    """The widest instruction set of machine and build; None without the library."""
    loaded = library()
    return None if loaded is None else Isa(loaded.lb_best_isa())


def shares_threads() -> bool:
    """Whether the kernel found torch's OpenMP runtime and so can use its threads."""
    loaded = library()
    return loaded is not None and bool(loaded.lb_shares_threads())


def described() -> str:
    """What serves on this CPU, for logs."""
    isa = best_isa()
    if isa is None:
        return f"torch (the C++ kernel {why_missing()})"
    return f"C++ for {isa.name}, on {'all threads of torch' if shares_threads() else 'one thread'}"
