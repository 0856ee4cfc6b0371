"""The Triton kernels against the fp64 oracle: interpreted on the CPU, or compiled on a GPU.

Run by test_kernels_triton.py in processes of their own, because triton decides when it is first
imported whether it interprets. By hand:

    TRITON_INTERPRET=1 python -m pytest tests/integration/kernels_triton_cases.py
"""

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from lorebase.kernels.lora.embedding_op import LoraEmbeddingOp, lora_embedding
from lorebase.kernels.lora.gpu import linear
from lorebase.kernels.lora.gpu.config import (
    DECODE_TILE,
    DECODE_TOKENS,
    PREFILL_TILE,
    Expand,
    Fused,
    Shrink,
    tile_tokens_for,
)
from lorebase.kernels.lora.op import LoraLinear, tables_of
from lorebase.kernels.lora.pool import AdapterPool
from lorebase.kernels.lora.reference import lora_reference
from tests.unit.kernel_samples import TOLERANCE, Case, agrees

INTERPRETED = bool(linear.INTERPRETED.value)
if not INTERPRETED and not torch.cuda.is_available():
    pytest.skip("neither a GPU nor TRITON_INTERPRET=1", allow_module_level=True)

# The interpreter of triton 3.6 itself.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Conversion of an array with ndim > 0:DeprecationWarning"
)
torch.set_num_threads(1)
DEVICE = "cpu" if INTERPRETED else "cuda"
SMALL_SPLIT = (
    Shrink(block_r=16, block_k=32, split_k=2, warps=4, stages=2),
    Expand(block_r=16, block_n=32, warps=4, stages=1),
)
SMALL_FUSED = Fused(block_r=16, block_k=32, block_n=16, steps_n=2, warps=4, stages=2)
WAYS = {"split": SMALL_SPLIT, "fused": SMALL_FUSED}


def _case(ranks: Sequence[Sequence[int]], **kwargs: Any) -> Case:
    return Case(ranks, max_rank=max(max(r) for r in ranks) or 1, device=DEVICE, **kwargs)


def _call(case: Case, y: torch.Tensor, x: torch.Tensor) -> linear.Call:
    layer, plan = case.layer, case.plan
    return linear.Call(
        y_TN=y,
        x_TK=x,
        weights=case.pool.buffer,
        a_offsets=layer.a_offsets,
        b_offsets=layer.b_offsets,
        ranks=layer.ranks,
        slice_starts=layer.slice_starts,
        tiles=plan.tiles,
        order=plan.order,
        slice_sizes=layer.slice_sizes,
        tile_tokens=plan.tile_tokens,
        max_rank=case.pool.max_rank or 1,
    )


def _expected(case: Case, y: torch.Tensor, x: torch.Tensor, slots: Sequence[int]) -> torch.Tensor:
    """The oracle's formula with a product per adapter: its loop over tokens is slow for many."""
    out, rows_of = y.double().cpu(), torch.tensor(list(slots), dtype=torch.long)
    if len(slots) <= 64:
        return lora_reference(y.cpu(), x.cpu(), slots, case.weights, case.slices)
    for slot, weights in case.weights.items():
        rows, column = torch.nonzero(rows_of == slot)[:, 0], 0
        for size, pair in zip(case.slices, weights, strict=True):
            if pair is not None:
                delta = x.cpu()[rows].double() @ pair[0].double().t() @ pair[1].double().t()
                out[rows, column : column + size] += delta
            column += size
    return out


def _check(
    case: Case,
    slots: Sequence[int],
    kernels: Fused | tuple[Shrink, Expand] | None = None,
    *,
    strided: bool = False,
) -> torch.Tensor:
    """Runs the op, or certain kernels, and compares; returns y."""
    y, x = case.inputs(slots, strided)
    before = y.clone()
    case.plan.fill(slots)
    if kernels is None:
        LoraLinear(case.pool, case.layer, case.plan)(y, x)
    else:
        linear.run(_call(case, y, x), kernels)
    base = [row for row, slot in enumerate(slots) if slot < 0]
    assert y[base].equal(before[base]), "rows without adapter must stay bit for bit"
    expected = _expected(case, before, x, slots)
    assert agrees(y, expected, case.dtype)
    return y


@pytest.mark.parametrize("rank", [1, 3, 8, 16, 40, 64, 128])
def test_every_rank_gives_the_formulas_result(rank: int) -> None:
    _check(_case([(rank, rank)], slices=(40, 19), max_tokens=21), [0] * 21)


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
def test_mixed_ranks_per_slice_in_every_dtype(dtype: torch.dtype) -> None:
    ranks = [(8, 0, 3), (64, 16, 1), (0, 0, 0), (1, 40, 128), (0, 7, 0)]
    slots = [(5 * t + t // 6) % 6 - 1 for t in range(63)]
    assert {-1, 0, 1, 2, 3, 4} == set(slots)
    _check(_case(ranks, dtype=dtype), slots, SMALL_SPLIT)


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
def test_fused_gives_the_same_for_small_ranks_in_every_dtype(dtype: torch.dtype) -> None:
    ranks = [(8, 0, 3), (16, 16, 1), (0, 0, 0), (1, 13, 2)]
    slots = [(5 * t + t // 6) % 5 - 1 for t in range(37)]
    _check(_case(ranks, dtype=dtype, slices=(70, 24, 19)), slots, SMALL_FUSED)


@pytest.mark.parametrize("tile_tokens", [16, 64])
@pytest.mark.parametrize("ranks", [[(16,), (3,)], [(64,), (24,)]], ids=["r16", "r64"])
def test_the_tables_own_configurations_work(ranks: list[tuple[int]], tile_tokens: int) -> None:
    for tokens in (8, 21):
        case = _case(
            ranks, dtype=torch.bfloat16, tile_tokens=tile_tokens, features=80, slices=(272,)
        )
        _check(case, [(t * 3) % 3 - 1 if t % 2 else 1 for t in range(tokens)])


@pytest.mark.parametrize("tokens", [0, 1, 2, 7, 63, 64, 1000, 8192])
def test_every_number_of_tokens(tokens: int) -> None:
    # Odd features leave tails in K and in N.
    case = _case(
        [(3,), (5,), (2,)],
        features=11,
        slices=(29,),
        max_tokens=max(tokens, 1),
        tile_tokens=tile_tokens_for(tokens),
    )
    _check(case, [(t * 7 + t // 5) % 4 - 1 for t in range(tokens)])


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("length", [1, 15, 16, 17, 32, 33])
def test_groups_of_any_length_fill_their_tiles(length: int, way: str) -> None:
    case = _case([(5,), (2,)], features=19, slices=(37,))
    _check(case, [0] * length + [-1, 1], WAYS[way])


@pytest.mark.parametrize("way", WAYS)
def test_strided_rows_read_and_write_nothing_between_them(way: str) -> None:
    case = _case([(8, 3, 1), (16, 0, 5)])
    y = _check(case, [0, 1, -1, 1, 0] * 4, WAYS[way], strided=True)
    around = y.as_strided((y.shape[0], y.shape[1] + 10), y.stride(), y.storage_offset() - 5)
    assert around[:, :5].isnan().all()
    assert around[:, -5:].isnan().all()


@pytest.mark.parametrize("way", WAYS)
def test_a_batch_without_adapters_touches_nothing(way: str) -> None:
    _check(_case([(8, 8, 8)]), [-1] * 33, WAYS[way])


@pytest.mark.parametrize("way", WAYS)
def test_base_rows_stay_untouched_when_every_slot_is_full(way: str) -> None:
    _check(_case([(8, 8, 8)] * 4), [-1, 3, -1, 0, 1, 2, 3, -1], WAYS[way])


@pytest.mark.parametrize("way", WAYS)
def test_a_cleared_slot_adapts_nothing(way: str) -> None:
    case = _case([(8, 8, 8), (4, 4, 4)])
    case.pool.clear(case.layer, 0)
    case.weights.pop(0)
    _check(case, [0, 1, 0, -1], WAYS[way])


def test_a_wide_output_like_an_lm_heads() -> None:
    _check(_case([(8,), (3,)], slices=(4099,), dtype=torch.float16), [0, -1, 1, 1, 0])


def test_many_features_like_an_embeddings() -> None:
    # Looking a token up is a product with a one-hot row.
    case = _case([(8,), (3,)], features=4099, slices=(64,))
    slots = [0, 1, -1, 0]
    y, x = case.inputs(slots)
    x.zero_()[[0, 1, 2, 3], [4098, 0, 17, 2048]] = 1
    before = y.clone()
    case.plan.fill(slots)
    LoraLinear(case.pool, case.layer, case.plan)(y, x)
    expected = lora_reference(before.cpu(), x.cpu(), slots, case.weights, case.slices)
    assert torch.allclose(y.double().cpu(), expected, atol=1e-5)


def test_h_is_written_up_to_each_rank_and_read_no_further(monkeypatch: pytest.MonkeyPatch) -> None:
    case, made = _case([(8, 0, 3), (40, 16, 1)]), list[torch.Tensor]()

    def full_of_nan(shape: tuple[int, ...], **kwargs: Any) -> torch.Tensor:
        made.append(torch.full(shape, torch.nan, **kwargs))
        return made[-1]

    monkeypatch.setattr(torch, "empty", full_of_nan)
    slots = [0, 1, -1, 1, 0] * 4
    _check(case, slots, SMALL_SPLIT)
    h = next(one for one in made if one.dim() == 4)  # [parts, slices, tokens, ranks]
    order = [slot for slot in sorted(slots) if slot >= 0]
    for index, slot in enumerate(order):
        for number, pair in enumerate(case.weights[slot]):
            rank = 0 if pair is None else len(pair[0])
            assert not h[:, number, index, :rank].isnan().any()
            assert h[:, number, index, rank:].isnan().all()
    assert h[:, :, len(order) :].isnan().all()


@pytest.mark.parametrize("way", WAYS)
def test_a_captured_shape_serves_smaller_steps(way: str) -> None:
    # A graph is launched at the rows it was captured with, and sees the plan of each step.
    case = _case([(8, 8, 8), (4, 4, 4)])
    case.plan.fill([0, 1] * 32)  # leaves tiles and order behind
    slots = [1, -1, 0, 1, 1]
    y, x = case.inputs(slots + [-1] * 27)
    before = y.clone()
    case.plan.fill(slots)
    linear.run(_call(case, y, x), WAYS[way])
    assert y[5:].equal(before[5:])
    expected = _expected(case, before[:5], x[:5], slots)
    assert torch.allclose(y[:5].double().cpu(), expected, atol=2e-5)


@pytest.mark.parametrize("way", WAYS)
def test_equal_inputs_give_equal_bits_whatever_the_company(way: str) -> None:
    case = _case([(8, 3, 13), (16, 16, 1)], dtype=torch.bfloat16)
    slots = [0, 1, -1, 0, 0, 1, 0, 0, 0, 0, 0, 1, 0]
    y, x = case.inputs(slots)
    case.plan.fill(slots)
    results = []
    for _ in range(2):
        results.append(y.clone())
        linear.run(_call(case, results[-1], x), WAYS[way])
    assert results[0].equal(results[1])
    for row in (0, 1, 12):
        alone = y[row : row + 1].clone()
        case.plan.fill([slots[row]])
        linear.run(_call(case, alone, x[row : row + 1]), WAYS[way])
        assert alone[0].equal(results[0][row])


@pytest.mark.parametrize("way", WAYS)
def test_addresses_beyond_32_bits_are_reached(way: str) -> None:
    far = (1 << 31) + 64  # elements; the pages in between are never touched on a CPU
    pool = AdapterPool(
        slots=1, budget_bytes=2 * far + (1 << 16), dtype=torch.float16, device=DEVICE, max_rank=4
    )
    layer = pool.add_layer(16, (16,))
    a, b = torch.randn(4, 16).half() / 4, torch.randn(16, 4).half() / 2
    pool.put(layer, 0, [(a, b)])
    size = layer.b_offsets[0, 0].item() + 64
    pool.buffer[far : far + size] = pool.buffer[:size]
    pool.buffer[:size] = torch.nan
    layer.a_offsets[0] += far
    layer.b_offsets[0] += far
    apart = 1 << 30  # rows of x and y; the third begins beyond 32 bits
    x, y = (
        torch.empty(3 * apart, dtype=torch.float16, device=DEVICE).as_strided((3, 16), (apart, 1))
        for _ in range(2)
    )
    x.copy_(torch.randn(3, 16))
    y.copy_(torch.randn(3, 16))
    case = _case([(4,)], features=16, slices=(16,), dtype=torch.float16, max_tokens=3)
    case.pool, case.layer = pool, layer
    case.plan.fill([0, -1, 0])
    expected = lora_reference(y.cpu(), x.cpu(), [0, -1, 0], {0: [(a, b)]}, (16,))
    linear.run(_call(case, y, x), WAYS[way])
    assert torch.allclose(y.double().cpu(), expected, atol=3e-3)


@pytest.mark.parametrize("way", WAYS)
def test_a_rank_above_the_bound_is_cut_off_and_reaches_no_other_memory(way: str) -> None:
    # The pool refuses such adapters; whoever fills tables otherwise must not corrupt a neighbour.
    case = _case([(16, 16, 16)])
    y, x = case.inputs([0, 0])
    cut = y.clone()
    case.plan.fill([0, 0])
    linear.run(_call(case, y, x), WAYS[way])
    case.layer.ranks[0] = 1000
    linear.run(_call(case, cut, x), WAYS[way])
    assert cut.equal(y)


def test_fused_refuses_ranks_beyond_its_block() -> None:
    case = _case([(17, 17, 17)])
    with pytest.raises(ValueError, match="got max_rank=17"):
        _check(case, [0], SMALL_FUSED)


def test_rounding_is_torchs_also_for_extremes() -> None:
    big = torch.finfo(torch.bfloat16).max
    values = [0.0, 1.0, -big, big, float("inf"), float("-inf"), 0.1, -3.14159, 1.00390625]
    values += [2.0**-126, float("nan"), 1e-30]
    case = _case([(1,)], features=16, slices=(12,), dtype=torch.bfloat16)
    case.pool.put(case.layer, 0, [(torch.ones(1, 16), torch.full((12, 1), 2.0**-8))])
    y = torch.tensor([values], dtype=torch.bfloat16, device=DEVICE)
    expected = (y.float() + 2.0**-8).bfloat16()
    x = torch.zeros(1, 16, dtype=torch.bfloat16, device=DEVICE)
    x[0, 3] = 1
    case.plan.fill([0])
    linear.run(_call(case, y, x), SMALL_SPLIT)
    assert torch.equal(y.nan_to_num(7.0, 8.0, 9.0), expected.nan_to_num(7.0, 8.0, 9.0))


@pytest.fixture
def tiles_run(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Tokens of a tile, of each call that the op makes."""
    seen, run = list[int](), linear.run

    def kept(call: linear.Call) -> None:
        seen.append(call.tile_tokens)
        run(call)

    monkeypatch.setattr(linear, "run", kept)
    return seen


@pytest.mark.parametrize("tokens", [1, DECODE_TOKENS, DECODE_TOKENS + 1, 300])
def test_long_steps_run_over_wide_tiles(tokens: int, tiles_run: list[int]) -> None:
    case = _case(
        [(3,), (5,)],
        features=11,
        slices=(29,),
        max_tokens=304,
        wide_tile_tokens=PREFILL_TILE,
    )
    _check(case, [(t // 90) % 3 - 1 for t in range(tokens)] if tokens > 1 else [1])
    assert tiles_run == [PREFILL_TILE if tokens > DECODE_TOKENS else DECODE_TILE]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_whole_wide_tiles_of_high_ranks_work(dtype: torch.dtype, tiles_run: list[int]) -> None:
    case = _case(
        [(64, 24), (40, 64)],
        dtype=dtype,
        features=144,
        slices=(272, 48),
        max_tokens=DECODE_TOKENS + 32,
        wide_tile_tokens=PREFILL_TILE,
    )
    _check(case, [0] * 130 + [-1] * 5 + [1] * (DECODE_TOKENS - 120))
    assert case.plan.wide_tiles[:6, 2].tolist() == [64, 64, 2, 64, 64, 8]
    assert tiles_run == [PREFILL_TILE]


def test_a_step_without_any_adapter_launches_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    case = _case([(3,), (5,)], features=11, slices=(29,))

    def never(_: linear.Call) -> None:
        raise AssertionError("a captured graph of such a step would hold launches")

    monkeypatch.setattr(linear, "run", never)
    _check(case, [-1] * 9)


VOCAB, EMBEDDED = 53, 24
"""Of the embedding below."""


@pytest.mark.parametrize("ids_dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("tokens", [0, 1, 5, 63, 300])
def test_an_embeddings_tokens_get_their_own_adapters_rows(
    tokens: int, dtype: torch.dtype, ids_dtype: torch.dtype
) -> None:
    case = _case(
        [(8,), (0,), (3,), (40,)],
        features=VOCAB,
        slices=(EMBEDDED,),
        dtype=dtype,
        max_tokens=304,
        wide_tile_tokens=PREFILL_TILE,
    )
    apply = LoraEmbeddingOp(case.pool, case.layer, case.plan)
    slots = [(3 * t + t // 7) % 5 - 1 for t in range(tokens)]
    y, _ = case.inputs(slots, strided=True)
    ids = torch.randint(0, VOCAB, (tokens,), generator=case.rng).to(DEVICE, ids_dtype)
    before = y.clone()
    case.plan.fill(slots)
    apply(y, ids)
    one_hot = torch.nn.functional.one_hot(ids.long(), VOCAB).to(dtype)
    expected = _expected(case, before, one_hot, slots)
    assert agrees(y, expected, dtype, deltas=2)
    base = [row for row, slot in enumerate(slots) if slot < 0]
    assert y[base].equal(before[base])


@pytest.mark.parametrize("wrong", ["rows", "dtype", "stride"])
def test_foreign_ids_are_refused_before_a_launch(wrong: str) -> None:
    case = _case([(4,)], features=VOCAB, slices=(EMBEDDED,))
    y, _ = case.inputs([0, 0])
    case.plan.fill([0, 0])
    ids = {
        "rows": torch.tensor([1]),
        "dtype": torch.tensor([1.0, 2.0]),
        "stride": torch.tensor([1, 0, 2, 0])[::2],
    }[wrong]
    with pytest.raises(ValueError, match=r"got ids .*expected 2 integers"):
        LoraEmbeddingOp(case.pool, case.layer, case.plan)(y, ids.to(DEVICE))


def test_the_embeddings_op_is_registered_right() -> None:
    case = _case([(8,), (3,)], features=VOCAB, slices=(EMBEDDED,))
    y, _ = case.inputs([0, 1, -1])
    case.plan.fill([0, 1, -1])
    passed = torch.library.opcheck(
        lora_embedding.default,
        (
            *(y.nan_to_num(), torch.tensor([3, 0, 52], device=DEVICE), VOCAB),
            *tables_of(case.pool, case.layer, case.plan),
        ),
    )
    assert set(passed.values()) == {"SUCCESS"}
