"""The CPU's grouped LoRA kernel: C++ behind a plain C ABI, with torch where it wasn't built."""

from .linear import CpuLinear
from .native import Isa, best_isa, is_built

__all__ = ["CpuLinear", "Isa", "best_isa", "is_built"]
