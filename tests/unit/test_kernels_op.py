"""The registered op on the CPU: the same signature as on a GPU, the C++ kernel behind it."""

import pytest
import torch

from lorebase.kernels.lora.cpu import fallback, tables
from lorebase.kernels.lora.layout import pack
from lorebase.kernels.lora.metadata import StepPlan
from lorebase.kernels.lora.op import LoraLinear
from lorebase.kernels.lora.pool import AdapterPool
from lorebase.kernels.lora.reference import lora_reference
from tests.unit.kernel_samples import TOLERANCE, Case, agrees

RANKS = [(8, 0, 3), (64, 16, 1), (0, 0, 0), (1, 40, 33)]
SLOTS = [(5 * t + t // 6) % 5 - 1 for t in range(37)]


@pytest.mark.filterwarnings("ignore:lorebase's C.. LoRA kernel:RuntimeWarning")
@pytest.mark.parametrize("built", [True, False], ids=["library", "torch"])
@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
def test_on_the_cpu_the_op_gives_the_formulas_result(
    dtype: torch.dtype, built: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not built:
        monkeypatch.setattr(tables, "library", lambda: None)
    case = Case(RANKS, dtype=dtype, max_rank=64)
    apply = LoraLinear(case.pool, case.layer, case.plan)
    for slots in (SLOTS, SLOTS[::-1], [-1] * 5, []):  # the same binding, step after step
        y, x = case.inputs(slots, strided=True)
        before = y.clone()
        expected = lora_reference(y, x, slots, case.weights, case.slices)
        case.plan.fill(slots)
        apply(y, x)
        assert agrees(y, expected, dtype)
        base = [row for row, slot in enumerate(slots) if slot < 0]
        assert y[base].equal(before[base])


@pytest.mark.parametrize("built", [True, False], ids=["library", "torch"])
@pytest.mark.filterwarnings("ignore:lorebase's C.. LoRA kernel:RuntimeWarning")
def test_the_op_reads_adapters_outside_of_the_pools_buffer(
    built: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not built:
        monkeypatch.setattr(tables, "library", lambda: None)
    case = Case([(8, 0, 3), (4, 16, 1)], max_rank=16)
    pool = AdapterPool(slots=2, budget_bytes=0, dtype=torch.float32, max_rank=16, points=True)
    layer = pool.add_layer(case.features, case.slices)
    for slot, weights in case.weights.items():
        pool.assign(slot, pack([layer], {0: weights}, dtype=torch.float32))
    slots = [1, 0, -1, 1] * 9
    y, x = case.inputs(slots)
    expected = lora_reference(y, x, slots, case.weights, case.slices)
    case.plan.fill(slots)
    LoraLinear(pool, layer, case.plan)(y, x)
    assert agrees(y, expected, torch.float32)


def test_without_the_library_the_op_says_once_that_torch_serves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tables, "library", lambda: None)
    fallback.warn_of_torch.cache_clear()
    case = Case([(8, 8, 8)], max_rank=8)
    apply = LoraLinear(case.pool, case.layer, case.plan)
    y, x = case.inputs([0])
    case.plan.fill([0])
    with pytest.warns(RuntimeWarning, match="torch serves instead"):
        apply(y, x)
    apply(y, x)  # warnings are errors in tests


def test_a_pool_that_takes_any_rank_is_refused() -> None:
    case = Case([(8, 8, 8)])
    with pytest.raises(ValueError, match="max_rank"):
        LoraLinear(case.pool, case.layer, case.plan)


def test_a_rank_above_the_bound_never_gets_into_the_pool() -> None:
    pool = AdapterPool(slots=1, budget_bytes=1 << 16, dtype=torch.float32, max_rank=8)
    layer = pool.add_layer(4, (4,))
    with pytest.raises(ValueError, match="got rank 9; expected at most 8"):
        pool.put(layer, 0, [(torch.ones(9, 4), torch.ones(4, 9))])
    pool.put(layer, 0, [(torch.ones(8, 4), torch.ones(4, 8))])


@pytest.mark.parametrize("wrong", ["rows", "features", "columns", "dtype", "stride"])
def test_foreign_tensors_are_refused_before_a_pointer_is_used(wrong: str) -> None:
    case = Case([(8, 8, 8)], max_rank=8)
    apply = LoraLinear(case.pool, case.layer, case.plan)
    y, x = case.inputs([0, 0, 0])
    case.plan.fill([0, 0, 0])
    bad_y, bad_x = {
        "rows": (y, x[:2]),
        "features": (y, x[:, 1:]),
        "columns": (y[:, 1:], x),
        "dtype": (y.double(), x),
        "stride": (y.t().contiguous().t(), x),
    }[wrong]
    with pytest.raises(ValueError, match=r"got [xy]"):
        apply(bad_y, bad_x)


def test_a_plan_for_other_slots_is_refused() -> None:
    case = Case([(8, 8, 8)], max_rank=8)
    with pytest.raises(ValueError, match="slots"):
        LoraLinear(case.pool, case.layer, StepPlan(max_tokens=4, slots=2))
