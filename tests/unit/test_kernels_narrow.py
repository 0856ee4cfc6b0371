"""Adapters of 16 bits under float32: half the bytes, not one bit of difference."""

import warnings

import pytest
import torch

from lorebase.kernels.lora import cpu
from lorebase.kernels.lora.cpu import linear
from lorebase.kernels.lora.layout import PackedAdapter, pack
from lorebase.kernels.lora.metadata import StepPlan
from lorebase.kernels.lora.op import LoraLinear
from lorebase.kernels.lora.pool import AdapterPool
from lorebase.kernels.lora.reference import SliceWeights, lora_reference
from tests.unit.test_kernels_cpu import WAYS

FEATURES, SLICES = 75, (41, 24)
RANKS = ((8, 3), (1, 64), (16, 0))
NARROW = (torch.bfloat16, torch.float16)


def _weights(slot: int, dtype: torch.dtype) -> list[SliceWeights]:
    rng = torch.Generator().manual_seed(slot)
    return [
        (
            torch.randn(r, FEATURES, generator=rng).to(dtype),
            torch.randn(n, r, generator=rng).to(dtype),
        )
        if r
        else None
        for r, n in zip(RANKS[slot], SLICES, strict=True)
    ]


def _pool(*, points: bool, dtype: torch.dtype = torch.float32) -> AdapterPool:
    pool = AdapterPool(
        slots=len(RANKS), budget_bytes=0 if points else 1 << 16, dtype=dtype, points=points
    )
    pool.add_layer(FEATURES, SLICES)
    return pool


def _packed(pool: AdapterPool, slot: int, dtype: torch.dtype) -> PackedAdapter:
    """Weights that bfloat16 can hold in any case, kept as `dtype`."""
    pairs = [
        None if pair is None else (pair[0].to(dtype), pair[1].to(dtype))
        for pair in _weights(slot, torch.bfloat16)
    ]
    return pack(pool.layers, {0: pairs}, dtype=dtype)


def _apply(pool: AdapterPool, isa: cpu.Isa | None, tokens: list[int]) -> torch.Tensor:
    rng = torch.Generator().manual_seed(9)
    x = torch.randn(len(tokens), FEATURES, generator=rng)
    y = torch.randn(len(tokens), sum(SLICES), generator=rng)
    plan = StepPlan(max_tokens=64, slots=len(RANKS), tile_tokens=linear.TILE_TOKENS)
    plan.fill(tokens)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        cpu.CpuLinear(pool, pool.layers[0], plan, isa=isa)(y, x)
    return y


@pytest.mark.parametrize("isa", WAYS, ids=lambda isa: "torch" if isa is None else isa.name)
@pytest.mark.parametrize("points", [True, False])
def test_16_bit_adapters_give_bit_for_bit_what_they_give_at_32_bits(
    monkeypatch: pytest.MonkeyPatch, isa: cpu.Isa | None, points: bool
) -> None:
    if isa is None:
        monkeypatch.setattr(linear, "library", lambda: None)
        monkeypatch.setattr(linear, "best_isa", lambda: None)
    # Enough tokens of one adapter that its B is copied for them, and single ones.
    tokens = [*([0] * 19), -1, 1, 2, *([1] * 5), 0, 2]
    wide, narrow = _pool(points=points), _pool(points=points)
    for slot, dtype in enumerate((torch.bfloat16, torch.float16, torch.float32)):
        wide.assign(slot, _packed(wide, slot, torch.float32))
        narrow.assign(slot, _packed(narrow, slot, dtype))
    got = _apply(narrow, isa, tokens)
    assert torch.equal(got, _apply(wide, isa, tokens))
    rng = torch.Generator().manual_seed(9)
    x = torch.randn(len(tokens), FEATURES, generator=rng)
    y = torch.randn(len(tokens), sum(SLICES), generator=rng)
    weights = {slot: _weights(slot, torch.bfloat16) for slot in range(len(RANKS))}
    assert torch.allclose(
        got.double(), lora_reference(y, x, tokens, weights, SLICES), atol=2e-4, rtol=1e-4
    )


def test_it_takes_half_the_bytes() -> None:
    pool = _pool(points=True)
    assert 2 * _packed(pool, 0, torch.bfloat16).nbytes == _packed(pool, 0, torch.float32).nbytes


@pytest.mark.parametrize("narrow", NARROW)
def test_a_pool_of_16_bits_refuses_what_it_would_have_to_round(narrow: torch.dtype) -> None:
    pool = _pool(points=True, dtype=narrow)
    for other in {torch.float32, *NARROW} - {narrow}:
        with pytest.raises(ValueError, match="got an adapter of"):
            pool.assign(0, _packed(pool, 0, other))


def test_the_op_refuses_a_pool_of_two_dtypes_instead_of_misreading_it() -> None:
    pool = AdapterPool(
        slots=len(RANKS), budget_bytes=0, dtype=torch.float32, points=True, max_rank=64
    )
    layer = pool.add_layer(FEATURES, SLICES)
    plan = StepPlan(max_tokens=64, slots=len(RANKS), tile_tokens=linear.TILE_TOKENS)
    apply = LoraLinear(pool, layer, plan)
    plan.fill([0])
    x, y = torch.ones(1, FEATURES), torch.zeros(1, sum(SLICES))
    pool.assign(0, _packed(pool, 0, torch.float32))
    apply(y, x)
    assert y.any()
    pool.assign(0, _packed(pool, 0, torch.bfloat16))
    with pytest.raises(ValueError, match="got adapters of 16 bits"):
        apply(y, x)
