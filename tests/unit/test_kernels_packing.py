"""Packing lists: an adapter packed in one native call is the one that was packed piece by piece."""

from collections.abc import Mapping, Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lorebase.kernels.lora.cpu import is_built, packing
from lorebase.kernels.lora.cpu.packing import Matrix, PackingList, packing_list
from lorebase.kernels.lora.layout import PackedAdapter, pack
from lorebase.kernels.lora.pool import AdapterPool, PoolLayer
from lorebase.kernels.lora.reference import SliceWeights

LAYERS = ((24, (16, 8)), (40, (24,)), (7, (130, 1, 65)))
Ranks = tuple[tuple[int, ...], ...]
RANKS: Ranks = ((8, 3), (0,), (64, 1, 5))
needs_library = pytest.mark.skipif(not is_built(), reason="the C++ kernel is not built")


def _layers() -> list[PoolLayer]:
    pool = AdapterPool(slots=1, budget_bytes=0, dtype=torch.float32, points=True)
    return [pool.add_layer(features, slices) for features, slices in LAYERS]


def _weights(ranks: Ranks, dtype: torch.dtype, seed: int) -> dict[int, list[SliceWeights]]:
    rng = torch.Generator().manual_seed(seed)
    return {
        index: [
            (
                torch.randn(r, features, generator=rng).to(dtype),
                torch.randn(n, r, generator=rng).to(dtype),
            )
            if r
            else None
            for r, n in zip(of_slices, slices, strict=True)
        ]
        for index, ((features, slices), of_slices) in enumerate(zip(LAYERS, ranks, strict=True))
    }


def _file(
    weights: Mapping[int, Sequence[SliceWeights]], order: int = 0
) -> tuple[torch.Tensor, list[Matrix]]:
    """Puts matrices one after the other, as a file has them, in an order of its own."""
    parts, matrices, offset = [], [], 0
    sides = [
        (index, slice_, is_a)
        for index, of_layer in weights.items()
        for slice_, pair in enumerate(of_layer)
        if pair is not None
        for is_a in (True, False)
    ]
    shuffled = torch.randperm(len(sides), generator=torch.Generator().manual_seed(order))
    for index, slice_, is_a in (sides[n] for n in shuffled.tolist()):
        pair = weights[index][slice_]
        assert pair is not None
        tensor = pair[0 if is_a else 1].contiguous()
        shape = (tensor.shape[0], tensor.shape[1])
        matrices.append(Matrix(offset=offset, shape=shape, layer=index, slice=slice_, is_a=is_a))
        parts.append(tensor.flatten().view(torch.uint8))
        offset += tensor.nbytes
    return torch.cat(parts), matrices


def _list(ranks: Ranks, dtype: torch.dtype, order: int = 0) -> PackingList:
    """The list that a first adapter leaves behind."""
    weights = _weights(ranks, dtype, seed=1)
    data, matrices = _file(weights, order)
    found = packing_list(matrices, pack(_layers(), weights, dtype=dtype), len(data))
    assert found is not None
    return found


def _assert_same(one: PackedAdapter, other: PackedAdapter) -> None:
    assert one.blocks == other.blocks
    assert one.data.dtype == other.data.dtype
    assert one.data.data_ptr() % 64 == 0
    for layer in _layers():
        for got, wanted in zip(one.read(layer), other.read(layer), strict=True):
            assert (got is None) == (wanted is None)
            if got is not None and wanted is not None:
                assert torch.equal(got[0], wanted[0])
                assert torch.equal(got[1], wanted[1])


@needs_library
@given(
    ranks=st.tuples(
        *(st.tuples(*(st.sampled_from((0, 1, 3, 8, 64)) for _ in sizes)) for _, sizes in LAYERS)
    ).filter(lambda ranks: any(map(any, ranks))),
    dtype=st.sampled_from((torch.float32, torch.bfloat16, torch.float16)),
    order=st.integers(0, 9),
)
def test_the_next_adapter_of_the_same_shapes_is_packed_like_the_first(
    ranks: Ranks, dtype: torch.dtype, order: int
) -> None:
    copies = _list(ranks, dtype, order)
    weights = _weights(ranks, dtype, seed=2)
    data, _ = _file(weights, order)
    packed = copies.pack(data)
    assert packed is not None
    _assert_same(packed, pack(_layers(), weights, dtype=dtype))


@needs_library
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("zero", [0.0, -0.0])
def test_a_slice_that_adapts_nothing_is_left_to_the_slow_way(
    dtype: torch.dtype, zero: float
) -> None:
    weights = _weights(RANKS, dtype, seed=2)
    pair = weights[2][1]
    assert pair is not None
    weights[2][1] = (pair[0], torch.full_like(pair[1], zero))
    assert _list(RANKS, dtype).pack(_file(weights)[0]) is None
    pair[1][-1, -1] = torch.nan  # is not zero
    weights[2][1] = pair
    assert _list(RANKS, dtype).pack(_file(weights)[0]) is not None


def test_no_list_is_made_of_an_adapter_with_a_slice_that_adapts_nothing() -> None:
    weights = _weights(RANKS, torch.float32, seed=1)
    pair = weights[0][1]
    assert pair is not None
    weights[0][1] = (pair[0], torch.zeros_like(pair[1]))
    data, matrices = _file(weights)
    packed = pack(_layers(), weights, dtype=torch.float32)
    assert packed.blocks[0].ranks == (8, 0)
    assert packing_list(matrices, packed, len(data)) is None


def test_data_of_another_size_or_no_library_are_left_to_the_slow_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    copies = _list(RANKS, torch.float32)
    data, _ = _file(_weights(RANKS, torch.float32, seed=2))
    assert copies.pack(data[:-4]) is None
    monkeypatch.setattr(packing, "library", lambda: None)
    assert copies.pack(data) is None
