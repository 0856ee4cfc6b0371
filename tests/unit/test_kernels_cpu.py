"""The CPU kernel against the fp64 oracle, on every instruction set that this machine has."""

import ctypes
import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch

from lorebase.kernels.lora import cpu
from lorebase.kernels.lora.cpu import fallback, linear, native
from lorebase.kernels.lora.metadata import StepPlan
from lorebase.kernels.lora.reference import lora_reference
from tests.unit.kernel_samples import TOLERANCE, Case, agrees

BEST = cpu.best_isa()
WAYS: list[cpu.Isa | None] = [
    None,  # torch, the path without the library
    *([] if BEST is None else [isa for isa in cpu.Isa if isa <= BEST]),
]
RANKS = (1, 3, 4, 7, 8, 13, 15, 16, 29, 40, 64, 128)


@pytest.fixture(params=WAYS, ids=lambda isa: "torch" if isa is None else isa.name)
def bind(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Case], cpu.CpuLinear]:
    """Binds a case's layer to one way of computing."""
    isa: cpu.Isa | None = request.param
    if isa is None:
        monkeypatch.setattr(linear, "library", lambda: None)
        monkeypatch.setattr(linear, "best_isa", lambda: None)

    def to(case: Case) -> cpu.CpuLinear:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            return cpu.CpuLinear(case.pool, case.layer, case.plan, isa=isa)

    return to


def _check(
    case: Case, apply: cpu.CpuLinear, slots: Sequence[int], strided: bool = False
) -> torch.Tensor:
    y, x = case.inputs(slots, strided)
    before = y.clone()
    expected = lora_reference(y, x, slots, case.weights, case.slices)
    case.plan.fill(slots)
    apply(y, x)
    base = [row for row, slot in enumerate(slots) if slot < 0]
    assert y[base].equal(before[base]), "rows without adapter must stay bit for bit"
    assert agrees(y, expected, case.dtype)
    return y


Bind = Callable[[Case], cpu.CpuLinear]


@pytest.mark.parametrize("rank", RANKS)
def test_every_rank_gives_the_formulas_result(bind: Bind, rank: int) -> None:
    case = Case([(rank, rank, rank)])
    _check(case, bind(case), [0] * 21)


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
def test_mixed_ranks_per_slice_in_every_dtype(bind: Bind, dtype: torch.dtype) -> None:
    ranks = [(8, 0, 3), (64, 16, 1), (0, 0, 0), (1, 40, 128), (0, 7, 0)]
    case = Case(ranks, dtype=dtype)
    slots = [(5 * t + t // 6) % 6 - 1 for t in range(63)]
    assert {-1, 0, 1, 2, 3, 4} == set(slots)
    _check(case, bind(case), slots)


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("tokens", [0, 1, 2, 7, 63, 64, 1000, 8192])
def test_every_number_of_tokens(bind: Bind, tokens: int, dtype: torch.dtype) -> None:
    # Odd features leave tails in K and in N of both kinds of blocks.
    case = Case([(3,), (5,), (2,)], features=11, slices=(29,), max_tokens=8192, dtype=dtype)
    slots = [(t * 7 + t // 5) % 4 - 1 for t in range(tokens)]
    y, x = case.inputs(slots)
    expected = y.double()
    for slot in range(3):
        rows = [row for row, its in enumerate(slots) if its == slot]
        ((a, b),) = case.weights[slot]  # type: ignore[misc]
        expected[rows] += x[rows].double() @ a.double().t() @ b.double().t()
    case.plan.fill(slots)
    bind(case)(y, x)
    assert agrees(y, expected, dtype)


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
def test_a_wide_output_like_an_lm_heads(bind: Bind, dtype: torch.dtype) -> None:
    # Wider than the columns that one token's sums are kept for, and than a block of B's copy.
    case = Case([(8,), (3,), (64,)], slices=(4099,), dtype=dtype)
    _check(case, bind(case), [0, -1, 1, 1, 2, 0, *([2] * 9)])


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
def test_many_features_like_an_embeddings(bind: Bind, dtype: torch.dtype) -> None:
    # Looking a token up is a product with a one-hot row.
    case = Case([(8,), (3,)], features=4099, slices=(64,), dtype=dtype)
    slots = [0, 1, -1, 0]
    y, x = case.inputs(slots)
    x.zero_()[[0, 1, 2, 3], [4098, 0, 17, 2048]] = 1
    expected = lora_reference(y, x, slots, case.weights, case.slices)
    case.plan.fill(slots)
    bind(case)(y, x)
    assert agrees(y, expected, dtype)


@pytest.mark.parametrize("length", range(1, 20))
def test_groups_of_every_length_use_every_block_shape(bind: Bind, length: int) -> None:
    case = Case([(5,), (2,)], features=19, slices=(73,))
    _check(case, bind(case), [0] * length + [-1, 1])


def test_strided_rows_read_and_write_nothing_between_them(bind: Bind) -> None:
    case = Case([(8, 3, 1), (16, 0, 5)])
    y = _check(case, bind(case), [0, 1, -1, 1, 0] * 5, strided=True)
    around = y.as_strided((y.shape[0], y.shape[1] + 10), y.stride(), y.storage_offset() - 5)
    assert around[:, :5].isnan().all()
    assert around[:, -5:].isnan().all()


def test_a_batch_without_adapters_touches_nothing(bind: Bind) -> None:
    case = Case([(8, 8, 8)])
    _check(case, bind(case), [-1] * 33)


def test_base_rows_stay_untouched_when_every_slot_is_full(bind: Bind) -> None:
    # vLLM's own CPU wrapper gives them the last slot's adapter: another tenant's weights.
    case = Case([(8, 8, 8)] * 4)
    _check(case, bind(case), [-1, 3, -1, 0, 1, 2, 3, -1])


def test_a_cleared_slot_adapts_nothing(bind: Bind) -> None:
    case = Case([(8, 8, 8), (4, 4, 4)])
    case.pool.clear(case.layer, 0)
    case.weights.pop(0)
    _check(case, bind(case), [0, 1, 0, -1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("ranks", "slices"),
    [([(8, 3, 40), (64, 16, 1)], (40, 24, 19)), ([(13, 20), (29, 5)], (1100, 67))],
)
def test_a_tokens_result_does_not_depend_on_its_company(
    bind: Bind, ranks: list[tuple[int, ...]], slices: tuple[int, ...], dtype: torch.dtype
) -> None:
    # Alone it goes through passes over B's rows, among eight or more through B's packed blocks.
    case = Case(ranks, slices=slices, dtype=dtype)
    apply = bind(case)
    slots = [0, 1, -1, 0, 0, 1, 0, 0, 0, 0, 0, 1, 0]
    y, x = case.inputs(slots)
    together = y.clone()
    case.plan.fill(slots)
    apply(together, x)
    for row, slot in enumerate(slots):
        alone = y[row : row + 1].clone()
        case.plan.fill([slot])
        apply(alone, x[row : row + 1])
        if apply._library is None:  # torch picks its summation order by shape
            assert torch.allclose(alone[0].float(), together[row].float(), atol=TOLERANCE[dtype])
        else:
            assert alone[0].equal(together[row])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_rounding_is_torchs_also_for_extremes(bind: Bind, dtype: torch.dtype) -> None:
    case = Case([(1,)], features=1, slices=(12,), dtype=dtype)
    case.pool.put(case.layer, 0, [(torch.ones(1, 1), torch.zeros(12, 1))])
    big = torch.finfo(dtype).max
    values = [0.0, -0.0, 1.0, -big, big, float("inf"), float("-inf"), torch.finfo(dtype).tiny]
    values += [torch.finfo(dtype).tiny / 8, 0.1, -3.14159, float("nan")]
    y = torch.tensor([values], dtype=dtype)
    before = y.clone()
    case.plan.fill([0])
    bind(case)(y, torch.ones(1, 1, dtype=dtype))
    assert torch.equal(y.nan_to_num(7.0, 8.0, 9.0), before.nan_to_num(7.0, 8.0, 9.0))


def test_the_library_is_built_where_there_is_a_compiler() -> None:
    if shutil.which("g++") is None and shutil.which("c++") is None:
        pytest.skip("no C++ compiler: torch serves")
    assert cpu.is_built(), "run `make setup`: it compiles kernels/lora/cpu"
    assert native.shares_threads(), "torch's OpenMP runtime should be found"
    best = native.best_isa()
    assert best is not None
    assert native.described() == f"C++ for {best.name}, on all threads of torch"


def test_without_the_library_torch_serves_with_one_warning(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(linear, "library", lambda: None)
    monkeypatch.setattr(linear, "best_isa", lambda: None)
    fallback.warn_of_torch.cache_clear()
    case = Case([(2, 2, 2)])
    with pytest.warns(RuntimeWarning, match="not built"):
        cpu.CpuLinear(case.pool, case.layer, case.plan)
    cpu.CpuLinear(case.pool, case.layer, case.plan)  # warnings are errors in tests


@pytest.fixture
def found_anew(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Looks for the library again, in this test and after it."""
    native._found.cache_clear()
    yield monkeypatch
    monkeypatch.undo()
    native._found.cache_clear()


@pytest.mark.parametrize("version", [None, native.ABI + 1])
def test_a_library_of_other_sources_is_not_used_but_said_to_need_building(
    found_anew: pytest.MonkeyPatch, version: int | None
) -> None:
    class Stale:
        if version is not None:
            lb_abi_version = staticmethod(lambda: version)

    found_anew.setattr(native, "built_at", lambda: Path("stale.so"))
    found_anew.setattr(ctypes, "CDLL", lambda path: Stale())
    assert native.library() is None
    fallback.warn_of_torch.cache_clear()
    case = Case([(2, 2, 2)])
    with pytest.warns(RuntimeWarning, match=rf"ABI is {version or 0}.*build it again; torch serv"):
        _check(case, cpu.CpuLinear(case.pool, case.layer, case.plan), [0, -1])


def test_a_broken_library_is_said_to_be_so(found_anew: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "broken.so"
    broken.write_bytes(b"no library")
    found_anew.setattr(native, "built_at", lambda: broken)
    assert native.library() is None
    assert "can't be loaded" in str(native.why_missing())
    assert native.described().startswith("torch (the C++ kernel can't be loaded")


def test_both_sides_name_the_same_abi() -> None:
    header = (Path(native.__file__).parent / "grouped.h").read_text()
    assert f"#define LB_ABI {native.ABI}\n" in header


def test_codes_of_the_library_say_what_went_wrong() -> None:
    native.check(0)
    with pytest.raises(ValueError, match="got an instruction set beyond"):
        native.check(-1)
    with pytest.raises(MemoryError, match="scratch"):
        native.check(-2)


def test_several_threads_give_the_same_bits_as_one() -> None:
    case = Case([(40, 40, 40), (16, 8, 64)] * 2, features=320, slices=(200, 120, 90))
    slots = [t % 5 - 1 for t in range(64)]
    y, x = case.inputs(slots)
    case.plan.fill(slots)
    apply = cpu.CpuLinear(case.pool, case.layer, case.plan)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(y.clone())
            apply(results[-1], x)
    finally:
        torch.set_num_threads(threads)
    assert not results[0].equal(y)
    assert results[1].equal(results[0])
    assert results[2].equal(results[0])


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("tokens", [1, 3, 5, 16, 19])
def test_threads_share_a_tile_and_give_the_same_bits_as_one(
    tokens: int, dtype: torch.dtype
) -> None:
    # Fewer tiles than threads, and enough work that they are woken up: 512 KiB of one adapter.
    case = Case([(100, 0, 64), (7, 200, 1)], features=1031, slices=(1200, 777, 90), dtype=dtype)
    slots = [0] * tokens + [-1, 1]
    y, x = case.inputs(slots)
    expected = lora_reference(y, x, slots, case.weights, case.slices)
    case.plan.fill(slots)
    assert case.plan.num_tiles <= 3
    apply = cpu.CpuLinear(case.pool, case.layer, case.plan)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 4, 7):
            torch.set_num_threads(count)
            for _ in range(1 if count == 1 else 5):
                results.append(y.clone())
                apply(results[-1], x)
    finally:
        torch.set_num_threads(threads)
    assert agrees(results[0], expected, dtype, deltas=2)
    assert all(one.equal(results[0]) for one in results)


@pytest.mark.parametrize("wrong", ["dtype", "columns", "rows", "stride"])
def test_foreign_tensors_are_refused_before_a_pointer_is_used(bind: Bind, wrong: str) -> None:
    case = Case([(8, 8, 8)])
    y, x = case.inputs([0, 0, 0])
    case.plan.fill([0, 0, 0])
    bad = {
        "dtype": x.double(),
        "columns": x[:, 1:],
        "rows": x[:2],
        "stride": x.t().contiguous().t(),
    }[wrong]
    with pytest.raises(ValueError, match="got x"):
        bind(case)(y, bad)


def test_pool_and_plan_must_belong_together() -> None:
    case = Case([(8, 8, 8)])
    with pytest.raises(ValueError, match="slots"):
        cpu.CpuLinear(case.pool, case.layer, StepPlan(max_tokens=4, slots=2))
