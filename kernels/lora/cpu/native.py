"""Loads the C++ kernel with ctypes and mirrors the structures of grouped.h."""

import ctypes
from enum import IntEnum
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

from ..layout import TYPES

LIBRARY = "_grouped"
DTYPES = TYPES
"""LbDtype of each type."""


class Isa(IntEnum):
    """Instruction sets that the library has code for."""

    PORTABLE = 0
    AVX2 = 1
    AVX512 = 2


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
def library() -> ctypes.CDLL | None:
    """The loaded kernel, or None: not built, or built for another machine."""
    path = built_at()
    if path is None:
        return None
    try:
        loaded = ctypes.CDLL(str(path))
    except OSError:
        return None
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
    return loaded


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
