"""Reads plain PEFT adapters straight into packed memory, in a third of the time of vLLM's way.

vLLM makes a tensor, a renamed module and a converted copy of each of an adapter's hundreds of
matrices, merges those of fused layers, and only then could they be packed. Here the file is read
in one piece, names are looked up (they are the same for every adapter of a base), and each matrix
is copied once, to its place: from the second adapter of the same shapes on, in one native call.
What this takes matters twice: it is most of a first request's wait, and it holds the interpreter
lock that the engine's loop needs too.

Anything out of the ordinary is left to vLLM's own loader, which either serves it or says what is
wrong: tensor parallelism, adapted embeddings or lm_head, saved modules, unknown names.
"""

import json
import math
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from vllm.lora.peft_helper import PEFTHelper
from vllm.lora.utils import parse_fine_tuned_lora_name

from ..lora.cpu.packing import Matrix, PackingList, packing_list
from ..lora.hostmem import host_tensor
from ..lora.layout import PackedAdapter, PoolLayer, pack, views
from ..lora.reference import SliceWeights

WEIGHTS = "adapter_model.safetensors"
_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_MAX_HEADER_BYTES = 16 << 20
_MOST_LISTS = 64
"""Different headers whose packing lists are kept: ranks and target modules in use, times orders."""

Scalings = Mapping[tuple[int, int], float]
"""alpha / r by layer and slice."""


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a tensor of a file belongs."""

    layer: int
    slice: int
    is_a: bool
    peft_module: str
    """Name by which the adapter's configuration may give it its own alpha."""


@dataclass(frozen=True, slots=True)
class _File:
    """A safetensors file in this thread's scratch memory."""

    header: bytes
    """JSON."""
    data: torch.Tensor
    """uint8, what follows it."""


class PlainReader:
    """Reads adapters for one model. Any thread may, and several at a time."""

    def __init__(
        self,
        *,
        layers: Sequence[PoolLayer],
        places: Mapping[str, tuple[int, int]],
        dtype: torch.dtype,
        keeps_16_bits: bool,
        name_mapper: Any,
    ) -> None:
        """Prepares.

        Args:
            layers: The pool's.
            places: Layer and slice of each module, by vLLM's name, that can be read plainly.
            dtype: Of the packed weights, in general.
            keeps_16_bits: Whether an adapter may stay as narrow as it is in its file, where that
                changes no weight.
            name_mapper: vLLM's mapper of names for this model, or None.
        """
        self._layers, self._places, self._dtype = layers, places, dtype
        self._keeps_16_bits = keeps_16_bits
        self._name_mapper = name_mapper
        self._known: dict[str, _Place] = {}  # names of tensors that belong to the model
        self._lists: dict[tuple[bytes, str], tuple[PackingList, Scalings]] = {}

    def read(self, folder: Path, config: PEFTHelper) -> PackedAdapter | None:
        """Returns a packed adapter, or None: vLLM's own loader must have a look.

        Args:
            folder: PEFT directory.
            config: Its configuration, which vLLM has found legal.
        """
        if config.modules_to_save:
            return None
        file = _opened(folder / WEIGHTS)
        if file is None:
            return None
        key = (file.header, repr(config))
        known = self._lists.get(key)  # at once: another thread may clear them
        if known is not None:
            copies, scalings = known
            packed = copies.pack(file.data)
            if packed is not None:
                _scale(packed, self._layers, scalings)
                return packed
        tensors = _tensors(file)
        if tensors is None:
            return None
        return self._read(key, file, tensors, config)

    def _read(
        self,
        key: tuple[bytes, str],
        file: _File,
        tensors: Mapping[str, torch.Tensor],
        config: PEFTHelper,
    ) -> PackedAdapter | None:
        """Packs matrix by matrix, and keeps how for the next adapter of these shapes."""
        found: dict[int, list[dict[bool, torch.Tensor]]] = {}
        scalings: dict[tuple[int, int], float] = {}
        matrices = []
        for name, tensor in tensors.items():
            place = self._place(name)
            if place is None or tensor.dim() != 2:
                return None
            slices = len(self._layers[place.layer].slice_sizes)
            sides = found.setdefault(place.layer, [{} for _ in range(slices)])[place.slice]
            sides[place.is_a] = tensor
            matrices.append(_matrix(file, tensor, place))
            if not place.is_a:
                _, scaling = config.get_rank_and_scaling(place.peft_module)
                scalings[place.layer, place.slice] = scaling
        weights: dict[int, list[SliceWeights]] = {}
        for index, of_layer in found.items():
            if any(len(sides) == 1 for sides in of_layer):
                return None
            weights[index] = [(s[True], s[False]) if s else None for s in of_layer]
        kinds = frozenset(tensor.dtype for tensor in tensors.values())
        try:
            packed = pack(self._layers, weights, dtype=self._stored(kinds, scalings.values()))
        except ValueError:  # shapes of another base
            return None
        if kinds == {packed.data.dtype}:
            copies = packing_list(matrices, packed, len(file.data))
            if copies is not None:
                if len(self._lists) >= _MOST_LISTS:
                    self._lists.clear()
                self._lists[key] = copies, scalings
        _scale(packed, self._layers, scalings)
        return packed

    def _stored(self, kinds: frozenset[torch.dtype], scalings: Iterable[float]) -> torch.dtype:
        """Returns the type in which an adapter's weights are exactly what they are in general.

        A power of two only moves a bfloat16's exponent; float16 has too few of them.
        """
        exact = kinds == {torch.float16} and all(s == 1 for s in scalings)
        if kinds == {torch.bfloat16}:
            exact = all(s > 0 and math.frexp(s)[0] == 0.5 for s in scalings)
        return next(iter(kinds)) if exact and self._keeps_16_bits else self._dtype

    def _place(self, name: str) -> _Place | None:
        known = self._known.get(name)
        if known is None:
            try:
                module, is_a = parse_fine_tuned_lora_name(name, self._name_mapper)
                peft_module, _ = parse_fine_tuned_lora_name(name)
            except ValueError:
                return None
            found = self._places.get(module)
            if found is None or "embedding" in name:
                return None
            known = self._known[name] = _Place(*found, is_a, peft_module)
        return known


def _scale(packed: PackedAdapter, layers: Sequence[PoolLayer], scalings: Scalings) -> None:
    """Folds alpha / r into B, as vLLM does."""
    for index, block in packed.blocks.items():
        for slice_, rank in enumerate(block.ranks):
            scaling = scalings.get((index, slice_), 1.0)
            if rank and scaling != 1:
                views(packed.data, layers[index], block, slice_)[1].mul_(scaling)


_kept = threading.local()
_MAX_KEPT_BYTES = 32 << 20


def _scratch(size: int) -> torch.Tensor:
    """Memory of this thread, good until its next call: new pages cost as much as reading."""
    kept: torch.Tensor | None = getattr(_kept, "memory", None)
    if kept is None or len(kept) < size:
        kept = host_tensor(size, torch.uint8)
        if size <= _MAX_KEPT_BYTES:
            _kept.memory = kept
    return kept[:size]


def _opened(path: Path) -> _File | None:
    """Reads a safetensors file in one piece; None where it is not as it should be."""
    try:
        with path.open("rb") as opened:
            size = path.stat().st_size
            length = int.from_bytes(opened.read(8), "little")
            if not 2 <= length <= min(_MAX_HEADER_BYTES, size - 8):
                return None
            header = opened.read(length)
            data = _scratch(size - 8 - length)
            if opened.readinto(data.numpy().data) != len(data):
                return None
        return _File(header, data)
    except OSError:
        return None


def _tensors(file: _File) -> dict[str, torch.Tensor] | None:
    """Returns a file's tensors, in this thread's scratch memory; None where they are no such."""
    try:
        header = json.loads(file.header)
        header.pop("__metadata__", None)
        return {name: _tensor(file.data, entry) for name, entry in header.items()}
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError):
        return None


def _matrix(file: _File, tensor: torch.Tensor, place: _Place) -> Matrix:
    return Matrix(
        offset=tensor.data_ptr() - file.data.data_ptr(),
        shape=(tensor.shape[0], tensor.shape[1]),
        layer=place.layer,
        slice=place.slice,
        is_a=place.is_a,
    )


def _tensor(data: torch.Tensor, entry: dict[str, Any]) -> torch.Tensor:
    start, end = entry["data_offsets"]
    if not 0 <= start <= end <= len(data):
        raise ValueError("beyond the end of the file")
    return data[start:end].view(_DTYPES[entry["dtype"]]).view(entry["shape"])


def places_of(
    modules: Mapping[str, Any], packed_modules: Mapping[str, Sequence[str]]
) -> dict[str, tuple[int, int]]:
    """Returns layer and slice of each module that needs no more than copying.

    Args:
        modules: vLLM's wrapped layers that are in the pool, by name.
        packed_modules: Names of the parts of fused layers, by the layer's name.
    """
    places = {}
    for name, module in modules.items():
        parts = packed_modules.get(name, [name])
        if getattr(module, "n_slices", 0) == len(parts) and module.tp_size == 1:
            for slice_, part in enumerate(parts):
                places[part] = (module.weights.index, slice_)
    return places
