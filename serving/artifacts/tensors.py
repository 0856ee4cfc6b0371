"""Safetensors files read by hand: header with limits, shapes, and a scan for NaN.

The format: 8 bytes little-endian header length, a JSON header {name: {dtype, shape,
data_offsets}}, then the data without gaps. Reading it here keeps torch out of the gateway and
puts every limit before the allocation that it limits.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InvalidArgumentError
from .files import parse_json, refuse_pickle_content

MAX_HEADER_BYTES = 100_000_000
"""The limit of the safetensors library itself; callers pass a smaller one for small files."""
_SCAN_BYTES = 8 << 20
_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
    "I32": 32, "U32": 32, "F32": 32,
    "I64": 64, "U64": 64, "F64": 64,
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip
# Integer view and the mask of exponent bits: all of them set means NaN or infinity.
_EXPONENTS = {
    "F32": ("<u4", 0x7F800000),
    "F16": ("<u2", 0x7C00),
    "BF16": ("<u2", 0x7F80),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """One tensor's place in its file."""

    dtype: str
    """As safetensors names it: `F32`, `BF16`, ..."""
    shape: tuple[int, ...]
    start: int
    """Offset in the file, in bytes."""
    end: int

    @property
    def elements(self) -> int:
        """Number of elements."""
        count = 1
        for size in self.shape:
            count *= size
        return count


def read_header(path: Path, *, max_header_bytes: int = MAX_HEADER_BYTES) -> dict[str, Tensor]:
    """Returns the tensors of a safetensors file by name, checked against the file's size.

    Raises:
        InvalidArgumentError: not a well-formed safetensors file.
    """
    file_bytes = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(9)
        length = int.from_bytes(prefix[:8], "little")
        # The '{' tells a real header from a pickle or zip whose first bytes make a length.
        if len(prefix) < 9 or prefix[8:9] != b"{" or not 2 <= length <= file_bytes - 8:
            refuse_pickle_content(path.name, prefix)
            raise _bad(path, "it does not start with a header")
        if length > max_header_bytes:
            raise _bad(path, f"its header has {length} bytes, expected at most {max_header_bytes}")
        header = parse_json(prefix[8:] + file.read(length - 1), what=f"header of {path.name!r}")
    if not isinstance(header, dict):
        raise _bad(path, "its header is no JSON object")
    header.pop("__metadata__", None)
    tensors = {name: _tensor(path, name, entry, 8 + length) for name, entry in header.items()}
    expected = 8 + length
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].end)):
        if tensor.start != expected:
            raise _bad(path, f"tensor {name!r} overlaps another or leaves a gap")
        expected = tensor.end
    if expected != file_bytes:
        raise _bad(path, f"it has {file_bytes} bytes, its header describes {expected}")
    return tensors


def find_not_finite(path: Path, tensors: Mapping[str, Tensor]) -> str | None:
    """Returns the name of the first tensor with a NaN or an infinity, or None.

    All tensors must be F32, F16 or BF16. Memory stays below a few times 8 MiB.
    """
    with path.open("rb") as file:
        for name, tensor in tensors.items():
            kind, mask = _EXPONENTS[tensor.dtype]
            file.seek(tensor.start)
            left = tensor.end - tensor.start
            while left:
                piece = file.read(min(left, _SCAN_BYTES))
                if not piece:
                    raise _bad(path, f"it ends in the middle of {name!r}")
                left -= len(piece)
                bits = np.frombuffer(piece, dtype=kind) & mask
                if bool((bits == mask).any()):
                    return name
    return None


def _tensor(path: Path, name: str, entry: Any, data_start: int) -> Tensor:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise _bad(path, f"tensor {name[:80]!r} needs exactly dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _BITS:
        raise _bad(path, f"tensor {name[:80]!r} has the unknown dtype {str(dtype)[:20]!r}")
    if not _sizes(shape) or not _sizes(offsets) or len(offsets) != 2:
        raise _bad(path, f"tensor {name[:80]!r} has a malformed shape or data_offsets")
    tensor = Tensor(
        dtype=dtype,
        shape=tuple(shape),
        start=data_start + offsets[0],
        end=data_start + offsets[1],
    )
    if (tensor.end - tensor.start) * 8 != tensor.elements * _BITS[dtype]:
        raise _bad(path, f"tensor {name[:80]!r} has {offsets} as data_offsets, not its size")
    return tensor


def _sizes(value: Any) -> bool:
    # `type`, because bool is an int to isinstance.
    return (
        isinstance(value, list)
        and len(value) <= 8
        and all(type(size) is int and 0 <= size < 1 << 48 for size in value)
    )


def _bad(path: Path, message: str) -> InvalidArgumentError:
    return InvalidArgumentError(
        f"{path.name!r} is no valid safetensors file: {message}", reason="BAD_SAFETENSORS"
    )
