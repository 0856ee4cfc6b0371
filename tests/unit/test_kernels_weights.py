"""A model's pool: what it reserves where adapters are copied, and what fits into it."""

import pytest
import torch

from lorebase.kernels.lora.metadata import StepPlan
from lorebase.kernels.vllm.options import KernelOptions
from lorebase.kernels.vllm.weights import ModelWeights

SLOTS, RANK = 3, 8
PER_RANK = 4 * ((32 + 16) + (32 + 48) + (16 + 32))
"""Bytes a rank of the layers below, all in whole units of 64 bytes."""


def _model(**options: object) -> ModelWeights:
    made = ModelWeights(
        slots=SLOTS,
        max_rank=RANK,
        dtype=torch.float32,
        options=KernelOptions(**options),  # type: ignore[arg-type]
    )
    plan = StepPlan(max_tokens=4, slots=SLOTS)
    made.add_layer(32, (16, 48), plan)
    made.add_layer(16, (32,), plan)
    return made


def test_where_adapters_stay_nothing_is_reserved() -> None:
    weights = _model()
    weights.reserve()
    assert weights.pool.capacity_bytes == 0
    weights.check_fits(weights.pack({1: [(torch.ones(64, 16), torch.ones(32, 64))]}))
    assert weights.keeps_16_bits
    assert not weights.uses_op


def test_by_default_any_adapter_fits_every_slot() -> None:
    weights = _model(kernels_on_cpu="triton")
    weights.reserve()
    assert weights.uses_op
    assert not weights.keeps_16_bits
    assert weights.bytes_of_rank(RANK) == RANK * PER_RANK
    assert weights.pool.capacity_bytes == SLOTS * RANK * PER_RANK
    pair = (torch.ones(RANK, 32), torch.ones(16, RANK))
    wide = (torch.ones(RANK, 32), torch.ones(48, RANK))
    last = (torch.ones(RANK, 16), torch.ones(32, RANK))
    adapter = weights.pack({0: [pair, wide], 1: [last]})
    for slot in range(SLOTS):
        assert weights.pool.missing_bytes(adapter) == 0
        weights.pool.assign(slot, adapter)
    assert weights.pool.free_bytes == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_it_does_for_sizes_that_fill_no_whole_units_too(dtype: torch.dtype) -> None:
    weights = ModelWeights(
        slots=2, max_rank=3, dtype=dtype, options=KernelOptions(kernels_on_cpu="triton")
    )
    weights.add_embedding(5025, 7, StepPlan(max_tokens=4, slots=2))
    weights.reserve()
    adapter = weights.pack({0: [(torch.ones(3, 5025), torch.ones(7, 3))]})
    weights.check_fits(adapter)
    for slot in range(2):
        weights.pool.assign(slot, adapter)


def test_an_adapter_above_a_slots_share_of_the_buffer_is_refused() -> None:
    weights = _model(pool_bytes=SLOTS * 1024)
    weights.reserve()
    small, large = (
        weights.pack({1: [(torch.ones(rank, 16), torch.ones(32, rank))]}) for rank in (5, 6)
    )
    weights.check_fits(small)
    assert small.nbytes <= 1024 < large.nbytes
    with pytest.raises(ValueError, match=rf"got an adapter of {large.nbytes} .*at most 1024"):
        weights.check_fits(large)


def test_layers_are_bound_to_the_buffer_that_was_reserved() -> None:
    weights = _model(kernels_on_cpu="triton")
    plan = StepPlan(max_tokens=4, slots=SLOTS)
    layer = weights.add_layer(32, (16,), plan)
    again = weights.over(layer, StepPlan(max_tokens=9, slots=SLOTS))
    weights.reserve()
    pool = weights.pool
    pool.put(pool.layers[layer.index], 1, [(torch.ones(2, 32), torch.ones(16, 2))])
    for one in (layer, again):
        one.plan.fill([1, -1])
        y = torch.zeros(2, 16)
        one.apply(y, torch.ones(2, 32))
        assert y[0].tolist() == [64.0] * 16
        assert not y[1].any()
    assert layer.in_use()
