"""Packed adapters: assigned whole, in place or copied, and composed along the rank."""

import gc

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lorebase.kernels.lora import cpu
from lorebase.kernels.lora.layout import PackedAdapter, compose, pack
from lorebase.kernels.lora.metadata import StepPlan
from lorebase.kernels.lora.pool import AdapterPool, PoolFullError
from lorebase.kernels.lora.reference import SliceWeights, lora_reference

LAYERS = ((24, (16, 8)), (40, (24,)))
Ranks = tuple[tuple[int, ...], ...]


def _pool(*, points: bool, slots: int = 3, budget_bytes: int = 1 << 16) -> AdapterPool:
    pool = AdapterPool(
        slots=slots, budget_bytes=0 if points else budget_bytes, dtype=torch.float32, points=points
    )
    for features, slices in LAYERS:
        pool.add_layer(features, slices)
    return pool


def _weights(ranks: Ranks, seed: int) -> dict[int, list[SliceWeights]]:
    rng = torch.Generator().manual_seed(seed)
    return {
        index: [
            (torch.randn(r, features, generator=rng), torch.randn(n, r, generator=rng))
            if r
            else None
            for r, n in zip(of_slices, slices, strict=True)
        ]
        for index, ((features, slices), of_slices) in enumerate(zip(LAYERS, ranks, strict=True))
    }


def _packed(pool: AdapterPool, ranks: Ranks, seed: int) -> PackedAdapter:
    return pack(pool.layers, _weights(ranks, seed), dtype=torch.float32)


def _check(pool: AdapterPool, held: dict[int, dict[int, list[SliceWeights]]]) -> None:
    """Runs every layer over all slots and a base row, against the oracle."""
    token_slots = [*range(pool.slots), -1]
    for layer in pool.layers:
        plan = StepPlan(max_tokens=8, slots=pool.slots)
        plan.fill(token_slots)
        rng = torch.Generator().manual_seed(1)
        x = torch.randn(len(token_slots), layer.in_features, generator=rng)
        y = torch.randn(len(token_slots), sum(layer.slice_sizes), generator=rng)
        expected = lora_reference(
            y,
            x,
            token_slots,
            {slot: weights[layer.index] for slot, weights in held.items()},
            layer.slice_sizes,
        )
        cpu.CpuLinear(pool, layer, plan)(y, x)
        assert torch.allclose(y.double(), expected, atol=1e-4), layer.index
        assert torch.equal(y[-1].double(), expected[-1])


@pytest.mark.parametrize("points", [True, False])
def test_an_assigned_adapter_serves_in_every_layer_that_it_adapts(points: bool) -> None:
    pool = _pool(points=points)
    ranks: dict[int, Ranks] = {0: ((3, 0), (8,)), 2: ((0, 0), (1,))}
    for slot, of_slot in ranks.items():
        pool.assign(slot, _packed(pool, of_slot, seed=slot))
    gc.collect()  # the pool keeps what its tables lead to
    held = {slot: _weights(of_slot, seed=slot) for slot, of_slot in ranks.items()}
    _check(pool, held)
    pool.assign(0, _packed(pool, ((1, 2), (0,)), seed=9))
    _check(pool, {**held, 0: _weights(((1, 2), (0,)), seed=9)})
    pool.unassign(2)
    assert not pool.adapts(pool.layers[1])
    _check(pool, {0: _weights(((1, 2), (0,)), seed=9)})


def test_a_pointing_pool_takes_no_memory_of_its_own() -> None:
    pool = _pool(points=True)
    adapter = _packed(pool, ((4, 4), (4,)), seed=0)
    pool.assign(1, adapter)
    assert pool.used_bytes == 0
    [(a_RK, _), _] = [pair for pair in pool.read(pool.layers[0], 1) if pair is not None]
    assert a_RK.data_ptr() == adapter.data.data_ptr()


def test_a_pool_that_cannot_hold_an_adapter_whole_holds_nothing_of_it() -> None:
    pool = _pool(points=False, budget_bytes=2048)
    pool.assign(0, _packed(pool, ((2, 0), (0,)), seed=0))
    with pytest.raises(PoolFullError, match="evict"):
        pool.assign(1, _packed(pool, ((2, 2), (16,)), seed=1))
    _check(pool, {0: _weights(((2, 0), (0,)), seed=0)})


def test_an_adapter_that_does_not_fit_the_pool_is_refused() -> None:
    pool = AdapterPool(slots=1, budget_bytes=1 << 12, dtype=torch.float32, max_rank=2)
    layer = pool.add_layer(8, (4,))
    wide = pack([layer], {0: [(torch.ones(3, 8), torch.ones(4, 3))]}, dtype=torch.float32)
    with pytest.raises(ValueError, match="got rank 3; expected at most 2"):
        pool.assign(0, wide)
    with pytest.raises(ValueError, match="points on the CPU"):
        AdapterPool(slots=1, budget_bytes=0, dtype=torch.float32, device="meta", points=True)


def test_slices_whose_b_is_zero_take_nothing() -> None:
    pool = _pool(points=True)
    weights = _weights(((2, 2), (2,)), seed=0)
    for index, slice_ in ((0, 1), (1, 0)):
        pair = weights[index][slice_]
        assert pair is not None
        pair[1].zero_()
    adapter = pack(pool.layers, weights, dtype=torch.float32)
    assert adapter.nbytes == (64 + 32) * 4  # in blocks of 32
    assert list(adapter.blocks) == [0]
    assert adapter.max_rank == 2


@settings(max_examples=40, deadline=None)
@given(
    steps=st.lists(
        st.tuples(st.integers(0, 2), st.tuples(st.integers(0, 9), st.integers(0, 9)),
                  st.integers(0, 9)),
        max_size=12,
    ),
    points=st.booleans(),
)  # fmt: skip
def test_whatever_was_assigned_before_slots_serve_what_they_hold_now(
    steps: list[tuple[int, tuple[int, int], int]], points: bool
) -> None:
    # Small enough that adapters of many shapes leave holes and the pool has to close them.
    pool = _pool(points=points, budget_bytes=6 << 10)
    held: dict[int, dict[int, list[SliceWeights]]] = {}
    for number, (slot, first, second) in enumerate(steps):
        ranks: Ranks = (first, (second,))
        held.pop(slot, None)
        try:
            pool.assign(slot, _packed(pool, ranks, seed=number))
        except PoolFullError:
            assert not points
        else:
            held[slot] = _weights(ranks, seed=number)
    _check(pool, held)


def test_a_composition_does_what_its_parts_do_together() -> None:
    pool = _pool(points=True, slots=1)
    ranks: list[Ranks] = [((3, 0), (2,)), ((1, 4), (0,)), ((0, 0), (0,))]
    parts = [_packed(pool, of_part, seed=number) for number, of_part in enumerate(ranks)]
    together = compose(pool.layers, [(parts[0], 0.5), (parts[1], -2.0), (parts[2], 1.0)])
    assert together.blocks[0].ranks == (4, 4)
    assert together.blocks[1].ranks == (2,)
    pool.assign(0, together)
    for layer in pool.layers:
        rng = torch.Generator().manual_seed(5)
        x = torch.randn(2, layer.in_features, generator=rng)
        expected = torch.zeros(2, sum(layer.slice_sizes), dtype=torch.float64)
        for number, weight in ((0, 0.5), (1, -2.0)):
            delta = lora_reference(
                torch.zeros_like(expected),
                x,
                [0, 0],
                {0: _weights(ranks[number], seed=number)[layer.index]},
                layer.slice_sizes,
            )
            expected += weight * delta
        y = torch.zeros(2, sum(layer.slice_sizes))
        plan = StepPlan(max_tokens=2, slots=1)
        plan.fill([0, 0])
        cpu.CpuLinear(pool, layer, plan)(y, x)
        assert torch.allclose(y.double(), expected, atol=1e-4)


def test_parts_of_different_dtypes_or_none_at_all_are_refused() -> None:
    pool = _pool(points=True)
    other = pack(pool.layers, {}, dtype=torch.float16)
    with pytest.raises(ValueError, match="one dtype"):
        compose(pool.layers, [(other, 1.0), (_packed(pool, ((1, 0), (0,)), 0), 1.0)])
    with pytest.raises(ValueError, match="one dtype"):
        compose(pool.layers, [])
