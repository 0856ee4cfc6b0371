"""How many adapters an engine can have, from bytes. Pure."""

from collections.abc import Mapping
from pathlib import Path

from ..artifacts import BaseShapes
from ..artifacts.adapter import WEIGHTS_NAME
from ..artifacts.tensors import read_header
from ..errors import InvalidArgumentError
from .settings import ConcreteDtype, EngineSettings

ITEMSIZE: Mapping[ConcreteDtype, int] = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Bytes of one weight."""
_ALIGNMENT = 32
"""Weights to which each matrix may be rounded up: 64 bytes of them at 16 bits, whatever their width
(kernels/lora/layout.py)."""


def slot_bytes(shapes: BaseShapes, rank: int, itemsize: int) -> int:
    """Bytes of an adapter of all linear layers at one rank."""
    return rank * itemsize * sum(outputs + inputs for outputs, inputs in shapes.modules.values())


def adapter_slots(
    settings: EngineSettings, shapes: BaseShapes, itemsize: int, *, free_slots: bool
) -> int:
    """Returns how many different adapters may run in one step.

    Args:
        settings: of the engine.
        shapes: of its base.
        itemsize: bytes of one weight of an adapter in memory.
        free_slots: whether a slot takes no memory beside the adapter in it: our kernels on CPU
            read adapters where they are. Then there is one for every request of a step.

    Raises:
        InvalidArgumentError: the budget can't hold one slot, or not `max_loras` of them.
    """
    wanted = settings.max_loras or settings.max_num_seqs
    if free_slots:
        return wanted
    each = slot_bytes(shapes, settings.max_lora_rank, itemsize)
    fits = settings.adapter_slot_bytes // max(1, each)
    if fits < (settings.max_loras or 1):
        raise InvalidArgumentError(
            f"engine.adapter_slot_bytes is {settings.adapter_slot_bytes}, which holds {fits} slots "
            f"of {each} bytes (this base at engine.max_lora_rank = {settings.max_lora_rank}); "
            f"expected at least {each * (settings.max_loras or 1)}, or fewer engine.max_loras, or "
            "a smaller engine.max_lora_rank"
        )
    return min(wanted, fits)


def device_pool_bytes(
    settings: EngineSettings, shapes: BaseShapes, itemsize: int, slots: int
) -> int:
    """Returns the size of a device's buffer that holds any admitted adapter in every slot.

    Adapters of the embedding and of lm_head are refused when they are uploaded, so there need be
    no room for them, which for a large vocabulary would be a tenth of the whole.
    """
    rounding = 2 * len(shapes.modules) * _ALIGNMENT * itemsize
    return slots * (slot_bytes(shapes, settings.max_lora_rank, itemsize) + rounding)


def adapter_bytes(path: Path, itemsize: int) -> int:
    """Returns how much memory an adapter takes in an engine, at most.

    Args:
        path: PEFT directory.
        itemsize: bytes of one weight in memory, whatever it is in the file.

    Raises:
        OSError: the weights can't be read.
        InvalidArgumentError: they are no safetensors file.
    """
    tensors = read_header(path / WEIGHTS_NAME)
    return sum((tensor.elements + _ALIGNMENT) * itemsize for tensor in tensors.values())
