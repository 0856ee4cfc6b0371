"""How many adapters fit: slots at the largest rank, adapters at their own."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from lorebase.kernels.lora.layout import pack
from lorebase.kernels.lora.pool import AdapterPool
from lorebase.serving.artifacts import BaseShapes
from lorebase.serving.engine.budget import (
    adapter_bytes,
    adapter_slots,
    device_pool_bytes,
    slot_bytes,
)
from lorebase.serving.engine.settings import EngineSettings
from lorebase.serving.errors import InvalidArgumentError

SHAPES = BaseShapes(modules={"q": (30, 10), "down": (10, 50)})  # 100 a rank


def make(**changes: Any) -> EngineSettings:
    values = {"base_id": "old", "model_path": "bases/old", "max_num_seqs": 32, "max_lora_rank": 8}
    return EngineSettings(**{**values, **changes})


def test_a_slot_is_counted_at_the_largest_rank() -> None:
    assert slot_bytes(SHAPES, 8, 4) == 3200


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"adapter_slot_bytes": 3200}, 1),
        ({"adapter_slot_bytes": 6399}, 1),
        ({"adapter_slot_bytes": 1 << 20}, 32),  # more than requests in a step are no use
        ({"adapter_slot_bytes": 16_000, "max_loras": 4}, 4),
    ],
)
def test_slots_follow_from_the_byte_budget(changes: dict[str, Any], expected: int) -> None:
    assert adapter_slots(make(**changes), SHAPES, 4, free_slots=False) == expected


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"adapter_slot_bytes": 3199}, "holds 0 slots of 3200 bytes.*expected at least 3200"),
        (
            {"adapter_slot_bytes": 9600, "max_loras": 4},
            "holds 3 slots of 3200 bytes.*expected at least 12800",
        ),
    ],
)
def test_a_budget_that_is_too_small_says_what_would_do(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidArgumentError, match=words):
        adapter_slots(make(**changes), SHAPES, 4, free_slots=False)


def test_where_slots_are_free_there_is_one_for_every_request() -> None:
    tight = make(adapter_slot_bytes=1)
    assert adapter_slots(tight, SHAPES, 4, free_slots=True) == 32
    assert adapter_slots(make(max_loras=3), SHAPES, 4, free_slots=True) == 3


def test_an_adapter_is_counted_in_the_engines_dtype_at_its_own_rank(tmp_path: Path) -> None:
    tensors = {"a": np.zeros((2, 10), np.float16), "b": np.zeros((30, 2), np.float16)}
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    assert adapter_bytes(tmp_path, 4) == (20 + 60 + 2 * 32) * 4
    with pytest.raises(OSError, match="missing"):
        adapter_bytes(tmp_path / "missing", 4)


@settings(max_examples=60, deadline=None)
@given(
    shapes=st.lists(
        st.tuples(st.integers(1, 70), st.integers(1, 70), st.integers(1, 17)),
        min_size=1,
        max_size=4,
    ),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
)
def test_an_adapter_never_takes_more_than_was_counted(
    shapes: list[tuple[int, int, int]], dtype: torch.dtype, tmp_path_factory: Any
) -> None:
    # As the kernels pack it: each matrix is rounded up, and by more than a matrix where it is tiny.
    pool = AdapterPool(slots=1, budget_bytes=0, dtype=dtype, points=True)
    tensors, weights = {}, {}
    for index, (inputs, outputs, rank) in enumerate(shapes):
        pool.add_layer(inputs, (outputs,))
        a, b = torch.ones(rank, inputs), torch.ones(outputs, rank)
        weights[index] = [(a, b)]
        tensors |= {f"{index}.a": a.numpy(), f"{index}.b": b.numpy()}
    folder = tmp_path_factory.mktemp("adapter")
    save_file(tensors, folder / "adapter_model.safetensors")
    packed = pack(pool.layers, weights, dtype=dtype)
    assert packed.nbytes <= adapter_bytes(folder, dtype.itemsize)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_devices_buffer_holds_the_largest_adapter_in_every_slot(dtype: torch.dtype) -> None:
    rank, slots = 7, 3
    budget = device_pool_bytes(make(max_lora_rank=rank), SHAPES, dtype.itemsize, slots)
    pool = AdapterPool(slots=slots, budget_bytes=budget, dtype=dtype, max_rank=rank)
    layers = [pool.add_layer(inputs, (outputs,)) for outputs, inputs in SHAPES.modules.values()]
    adapter = pack(
        layers,
        {
            layer.index: [
                (torch.ones(rank, layer.in_features), torch.ones(layer.slice_sizes[0], rank))
            ]
            for layer in layers
        },
        dtype=dtype,
    )
    for slot in range(slots):
        pool.assign(slot, adapter)
    assert pool.free_bytes < slots * slot_bytes(SHAPES, rank, dtype.itemsize)
