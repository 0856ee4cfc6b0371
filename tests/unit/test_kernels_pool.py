"""Adapter memory: what goes in comes out, at true size, whatever was evicted before."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lorebase.kernels.lora.extents import Extents
from lorebase.kernels.lora.layout import block_of, pack
from lorebase.kernels.lora.pool import AdapterPool, PoolFullError, PoolLayer
from lorebase.kernels.lora.reference import SliceWeights, lora_reference

K, SLICES = 6, (5, 3)


def _weights(ranks: tuple[int, ...], seed: int = 0) -> list[SliceWeights]:
    rng = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(r, K, generator=rng), torch.randn(n, r, generator=rng)) if r else None
        for r, n in zip(ranks, SLICES, strict=True)
    ]


def _pool(budget_bytes: int = 1 << 16, slots: int = 4) -> AdapterPool:
    return AdapterPool(slots=slots, budget_bytes=budget_bytes, dtype=torch.float32)


def _bytes(layer: PoolLayer, ranks: tuple[int, ...]) -> int:
    """What an adapter of these ranks takes in a layer of a pool of float32."""
    return block_of(layer, ranks, 4).elements * 4


def _same(got: tuple[SliceWeights, ...], expected: list[SliceWeights]) -> bool:
    return len(got) == len(expected) and all(
        (g is None and e is None)
        or (g is not None and e is not None and g[0].equal(e[0]) and g[1].equal(e[1]))
        for g, e in zip(got, expected, strict=True)
    )


def test_weights_come_back_in_the_shapes_they_were_put_in() -> None:
    pool = _pool()
    layer = pool.add_layer(K, SLICES)
    pool.put(layer, 2, _weights((3, 0)))
    assert _same(pool.read(layer, 2), _weights((3, 0)))
    assert _same(pool.read(layer, 1), [None, None])
    assert layer.ranks.tolist() == [[0, 0], [0, 0], [3, 0], [0, 0]]


def test_tables_point_at_row_major_a_and_transposed_b() -> None:
    pool = _pool()
    layer = pool.add_layer(K, SLICES)
    pool.put(layer, 0, _weights((1, 2)))
    pool.put(layer, 3, _weights((3, 1), seed=7))
    for slot, ranks, seed in ((0, (1, 2), 0), (3, (3, 1), 7)):
        for s, pair in enumerate(_weights(ranks, seed)):
            assert pair is not None
            a, b = int(layer.a_offsets[slot, s]), int(layer.b_offsets[slot, s])
            r = int(layer.ranks[slot, s])
            assert pool.buffer[a : a + r * K].view(r, K).equal(pair[0])
            assert pool.buffer[b : b + r * SLICES[s]].view(r, SLICES[s]).equal(pair[1].t())
            assert pool.buffer[a:].data_ptr() % 64 == 0
            assert pool.buffer[b:].data_ptr() % 64 == 0
    assert layer.slice_starts.tolist() == [0, 5, 8]


def test_memory_is_taken_at_true_rank() -> None:
    pool = _pool()
    layer = pool.add_layer(1024, (1024,))
    assert _bytes(layer, (8,)) == 8 * (1024 + 1024) * 4
    assert _bytes(layer, (1,)) == 1 * (1024 + 1024) * 4
    pool.put(layer, 0, [(torch.zeros(2, 1024), torch.zeros(1024, 2))])
    assert pool.used_bytes == 2 * 2048 * 4
    pool.clear(layer, 0)
    pool.clear(layer, 0)
    assert pool.used_bytes == 0
    assert pool.free_bytes == 1 << 16


def test_a_full_pool_says_what_is_missing_and_holds_no_half_adapter() -> None:
    pool = _pool(budget_bytes=1024)
    layer = pool.add_layer(K, SLICES)
    pool.put(layer, 0, _weights((2, 2)))
    pool.put(layer, 1, _weights((1, 1)))
    with pytest.raises(
        PoolFullError, match=r"needed 2176 bytes, free 768, largest hole 768; evict"
    ) as caught:
        pool.put(layer, 1, _weights((30, 20)))
    assert caught.value.needed_bytes == _bytes(layer, (30, 20)) == 2176
    assert caught.value.free_bytes == pool.free_bytes >= caught.value.largest_hole_bytes
    assert _same(pool.read(layer, 1), [None, None])
    assert not layer.ranks[1].any()
    assert _same(pool.read(layer, 0), _weights((2, 2)))


def test_a_pool_says_how_many_bytes_an_adapter_lacks() -> None:
    pool = _pool(budget_bytes=2048)
    layer = pool.add_layer(K, SLICES)
    pool.put(layer, 0, _weights((2, 2)))
    small, big = (pack([layer], {0: _weights(r)}, dtype=torch.float32) for r in ((1, 1), (30, 20)))
    assert pool.missing_bytes(small) == 0
    assert pool.missing_bytes(big) == big.nbytes - pool.free_bytes > 0
    pool.clear(layer, 0)
    assert pool.missing_bytes(big) == max(0, big.nbytes - 2048)
    pointing = AdapterPool(slots=1, budget_bytes=0, dtype=torch.float32, points=True)
    assert pointing.missing_bytes(big) == 0


def test_whatever_goes_wrong_in_the_middle_leaves_a_slot_empty(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pool = _pool()
    layers = [pool.add_layer(K, SLICES) for _ in range(2)]
    adapter = pack(layers, {0: _weights((2, 2)), 1: _weights((1, 0))}, dtype=torch.float32)
    allocate, calls = pool._allocate, []

    def fails_at_the_second(block: Any) -> Any:
        calls.append(block)
        if len(calls) == 2:
            raise RuntimeError("device lost")
        return allocate(block)

    monkeypatch.setattr(pool, "_allocate", fails_at_the_second)
    with pytest.raises(RuntimeError, match="device lost"):
        pool.assign(1, adapter)
    assert pool.used_bytes == 0
    assert not layers[0].ranks.any()


def test_scattered_holes_are_joined_when_together_they_suffice() -> None:
    one = AdapterPool(slots=4, budget_bytes=1, dtype=torch.float32)
    size = _bytes(one.add_layer(K, SLICES), (2, 2))
    pool = _pool(budget_bytes=4 * size)
    layer = pool.add_layer(K, SLICES)
    for slot in range(4):
        pool.put(layer, slot, _weights((2, 2), seed=slot))
    pool.clear(layer, 0)
    pool.clear(layer, 2)
    table = layer.a_offsets.data_ptr()
    # Two single holes of `size` each; this adapter needs more than one of them.
    big = _weights((5, 4), seed=9)
    assert size < _bytes(layer, (5, 4)) <= 2 * size
    pool.put(layer, 0, big)
    assert _same(pool.read(layer, 0), big)
    assert _same(pool.read(layer, 1), _weights((2, 2), seed=1))
    assert _same(pool.read(layer, 3), _weights((2, 2), seed=3))
    assert layer.a_offsets.data_ptr() == table


@settings(max_examples=40)
@given(
    steps=st.lists(
        st.tuples(
            st.integers(0, 1), st.integers(0, 3), st.tuples(st.integers(0, 4), st.integers(0, 9))
        ),
        max_size=40,
    )
)
def test_no_history_of_puts_mixes_adapters(
    steps: list[tuple[int, int, tuple[int, int]]],
) -> None:
    pool = _pool(budget_bytes=2048)
    layers = [pool.add_layer(K, SLICES) for _ in range(2)]
    expected: dict[tuple[int, int], list[SliceWeights]] = {}
    for seed, (index, slot, ranks) in enumerate(steps):
        weights = _weights(ranks, seed)
        try:
            pool.put(layers[index], slot, weights)
            expected[index, slot] = weights
        except PoolFullError as error:
            assert error.free_bytes < error.needed_bytes
            expected.pop((index, slot), None)
    for (index, slot), weights in expected.items():
        assert _same(pool.read(layers[index], slot), weights)
    for index, layer in enumerate(layers):
        held = [s for (i, s), w in expected.items() if i == index and any(p for p in w)]
        assert pool.adapts(layer) == bool(held)
        assert sorted(held) == layer.ranks.any(dim=1).nonzero().flatten().tolist()


@given(
    steps=st.lists(st.tuples(st.booleans(), st.integers(1, 12)), max_size=60),
    compact=st.booleans(),
)
def test_extents_never_overlap_and_lose_nothing(
    steps: list[tuple[bool, int]], compact: bool
) -> None:
    extents = Extents(50)
    for allocate, number in steps:
        taken = extents.taken()
        if allocate:
            start = extents.allocate(number)
            assert (start is None) == (number > max(_holes(taken)))
        elif taken:
            extents.release(taken[number % len(taken)][0])
    if compact:
        extents.compact()
        assert len(_holes(extents.taken())) == 1
    holes = _holes(extents.taken())
    assert extents.free == sum(holes)
    assert extents.largest_hole == max(holes)


def _holes(taken: list[tuple[int, int]]) -> list[int]:
    """Sizes of the gaps of a space of 50; fails on overlap."""
    end, holes = 0, [0]
    for start, size in [*taken, (50, 0)]:
        assert start >= end
        if start > end:
            holes.append(start - end)
        end = start + size
    return holes if len(holes) == 1 else holes[1:]


@pytest.mark.parametrize(
    "weights",
    [
        [None],
        [(torch.zeros(2, K + 1), torch.zeros(5, 2)), None],
        [(torch.zeros(2, K), torch.zeros(5, 3)), None],
        [(torch.zeros(0, K), torch.zeros(5, 0)), None],
    ],
)
def test_weights_of_another_layer_are_refused(weights: list[SliceWeights]) -> None:
    pool = _pool()
    layer = pool.add_layer(K, SLICES)
    with pytest.raises(ValueError, match=r"expected .*"):
        pool.put(layer, 0, weights)
    with pytest.raises(ValueError, match="slot"):
        pool.put(layer, 4, _weights((1, 1)))


def test_the_reference_is_the_formula_and_leaves_other_rows_alone() -> None:
    y, x = torch.full((3, 8), 0.1), torch.randn(3, K, generator=torch.Generator().manual_seed(1))
    x[1] = torch.nan  # a base row: must not be read
    ((a0, b0), _) = weights = _weights((2, 0))  # type: ignore[misc]
    out = lora_reference(y, x, [0, -1, 3], {0: weights}, SLICES)
    assert out.dtype == torch.float64
    assert torch.allclose(out[0, :5] - y[0, :5], (b0 @ (a0 @ x[0])).double(), atol=1e-5)
    assert out[0, 5:].equal(y[0, 5:].double())
    assert out[1:].equal(y[1:].double())
    rounded = lora_reference(y, x, [0, -1, 3], {0: weights}, SLICES, dtype=torch.float32)
    assert rounded.dtype == torch.float32
    assert torch.allclose(rounded.double(), out, atol=1e-6, rtol=1e-6)
    assert not rounded.double().equal(out)
    with pytest.raises(ValueError, match="columns"):
        lora_reference(y, x, [0, -1, 3], {0: weights}, (5, 4))


def test_an_empty_pool_can_be_given_another_buffer() -> None:
    pool = AdapterPool(slots=1, budget_bytes=0, dtype=torch.float32)
    layer = pool.add_layer(4, (4,))
    pair = (torch.ones(2, 4), torch.ones(4, 2))
    with pytest.raises(PoolFullError):
        pool.put(layer, 0, [pair])
    pool.reserve(256)
    assert pool.capacity_bytes == pool.free_bytes == 256
    pool.put(layer, 0, [pair])
    with pytest.raises(ValueError, match="expected an empty one"):
        pool.reserve(512)
    assert pool.capacity_bytes == 256
    assert pool.read(layer, 0)[0] is not None
