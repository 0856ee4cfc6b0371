"""The GPU suite without a GPU: its arithmetic, its gate, its turns, its tuner's descent."""

import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

from benchmarks.lora_gpu import tune
from benchmarks.lora_gpu.providers import ours, vllm_configs
from benchmarks.lora_gpu.result import Measured, quantile, ratio, roofline_share, summarise
from benchmarks.lora_gpu.shapes import (
    LLAMA_8B,
    PREFILL_TOKENS,
    Cell,
    Linear,
    cells,
    operations,
    unique_bytes,
)
from benchmarks.lora_gpu.timing import Device, interleaved
from benchmarks.lora_gpu.world import World, make_world
from lorebase.kernels.lora.gpu.config import Expand, Fused, Shrink, table

TINY = (
    Linear(name="qkv", features=48, slices=(32, 16, 16)),
    Linear(name="down", features=80, slices=(48,)),
)


def test_the_bytes_nobody_can_avoid_are_counted_once() -> None:
    one = Linear(name="one", features=100, slices=(30, 20))
    cell = Cell(tokens=4, adapters=2, ranks="mixed")  # ranks 8 and 16
    weights = (8 + 16) * (100 + 30) + (8 + 16) * (100 + 20)
    assert unique_bytes(cell, (one,), 3) == 3 * 2 * (weights + 4 * 100 + 2 * 4 * 50)
    # Two tokens at each rank, one multiplication and one addition for each weight.
    assert operations(cell, (one,), 3) == 3 * 2 * (2 * 8 + 2 * 16) * (100 + 30 + 100 + 20)


def test_padding_is_not_counted() -> None:
    exact, padded = (Cell(tokens=8, adapters=8, ranks=ranks) for ranks in ("r8", "r8 of 64"))
    assert unique_bytes(exact, LLAMA_8B, 1) == unique_bytes(padded, LLAMA_8B, 1)
    assert (exact.max_rank, padded.max_rank) == (8, 64)


def test_cells_are_all_combinations_that_exist() -> None:
    found = list(cells(adapters=(1, 8, 64)))
    assert len(found) == len(set(found)) == (1 + 2 + 3 + 3 + 3) * 5
    assert all(cell.adapters <= cell.tokens for cell in found)
    for cell in found:
        slots = cell.slots()
        assert len(slots) == cell.tokens
        assert set(slots) == set(range(cell.adapters))
        if cell.tokens == PREFILL_TOKENS:
            assert slots == sorted(slots), "a prompt's tokens lie together"


@pytest.fixture
def world() -> World:
    return make_world(Cell(tokens=9, adapters=3, ranks="mixed"), TINY, 2, "cpu")


def test_the_gate_passes_right_outputs_and_leaves_them_fresh(world: World) -> None:
    run = ours(world)
    assert world.wrong(run) is None
    assert all(m.y_TN.equal(b) for m, b in zip(world.modules, world.before, strict=True))
    assert len(world.modules) == 4


def _forgets(world: World) -> None:
    """Leaves out the last module."""
    last = world.modules.pop()
    try:
        ours(world)()
    finally:
        world.modules.append(last)


def _poisons(world: World) -> None:
    ours(world)()
    world.modules[0].y_TN[0, 0] = torch.nan


@pytest.mark.parametrize("breaks", [_forgets, _poisons])
def test_the_gate_stops_wrong_outputs(world: World, breaks: Callable[[World], None]) -> None:
    assert "differs" in str(world.wrong(lambda: breaks(world)))


def test_all_take_turns_in_changing_order() -> None:
    order = list[str]()

    def timed(name: str) -> Callable[[], float]:
        def sample() -> float:
            order.append(name)
            return float(len(order))

        return sample

    samples = interleaved({n: timed(n) for n in "abc"}, rounds=20, rng=random.Random(0))
    rounds = [order[at : at + 3] for at in range(0, len(order), 3)]
    assert len(rounds) == 21  # the first is thrown away
    assert all(sorted(one) == ["a", "b", "c"] for one in rounds)
    assert len({tuple(one) for one in rounds}) > 3
    assert {name: len(values) for name, values in samples.items()} == dict.fromkeys("abc", 20)
    assert min(min(values) for values in samples.values()) > 3


def _measured(cell: Cell, **seconds: list[float]) -> Measured:
    return Measured(cell=cell, unique_bytes=3_000_000, operations=10, seconds=seconds)


MANY = Cell(tokens=64, adapters=64, ranks="r8 of 64")
FEW = Cell(tokens=1, adapters=1, ranks="r8")


def test_quantiles_lie_between_the_samples() -> None:
    assert quantile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert quantile([0.0, 10.0], 0.2) == pytest.approx(2.0)
    assert quantile([5.0], 0.8) == 5.0
    with pytest.raises(ValueError, match="no values"):
        quantile([], 0.5)


def test_ratios_pair_samples_of_one_round() -> None:
    one = _measured(MANY, ours=[1e-6, 2e-6, 4e-6], vllm=[2e-6, 6e-6, 12e-6])
    assert ratio(one, "vllm") == pytest.approx(3.0)
    assert ratio(one, "sglang") is None
    assert roofline_share(one, 3e12) == pytest.approx(0.5)


def test_the_suite_names_the_promised_figures() -> None:
    cells_measured = [
        _measured(MANY, ours=[2e-6] * 3, vllm=[4e-6] * 3),
        _measured(Cell(tokens=64, adapters=8, ranks="r8"), ours=[4e-6] * 3, vllm=[3e-6] * 3),
        _measured(FEW, ours=[9e-6] * 3, vllm=[9e-6] * 3),
    ]
    result = summarise(
        cells_measured, bandwidth=3e12, device="a GPU", baselines={}, facts={}, failures=[]
    )
    assert result.summary["roofline_share_min_at_8plus"] == pytest.approx(0.25)  # not FEW's 0.111
    assert result.summary["vs_vllm_min"] == pytest.approx(0.75)
    assert result.summary["vs_vllm_r8_of_64"] == pytest.approx(2.0)
    assert result.summary["device"] == "a GPU"
    assert result.rows[0]["ours"]["p50_us"] == 2.0
    assert result.rows[0]["vllm"]["ours_is_faster_by"] == 2.0
    json.dumps(result.rows)
    ElementTree.fromstring(result.figure_svg)


def test_without_baselines_their_figures_are_missing_not_invented() -> None:
    result = summarise(
        [_measured(MANY, ours=[2e-6])],
        bandwidth=3e12,
        device="a GPU",
        baselines={"vllm": "not installed"},
        facts={},
        failures=[],
    )
    assert result.summary["vs_vllm_min"] is None
    assert result.summary["vs_vllm_r8_of_64"] is None
    assert result.summary["baselines"] == {"vllm": "not installed"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_nothing_is_measured_and_the_reader_is_told() -> None:
    with pytest.raises(RuntimeError, match="Nothing was measured"):
        Device()
    assert tune.main([]) == 2


START = (
    Shrink(block_r=16, block_k=64, split_k=1, warps=4, stages=2),
    Expand(block_r=16, block_n=64, warps=4, stages=1),
)


def _seconds(kernels: tune.Kernels) -> float:
    """Has its minimum at block_k 256, split_k 8, block_n 256, all else at the start's."""
    shrink, expand = kernels  # type: ignore[misc]
    off = abs(math.log2(shrink.block_k / 256)) + abs(math.log2(shrink.split_k / 8))
    off += abs(math.log2(expand.block_n / 256)) + abs(expand.warps - 4) + abs(shrink.warps - 4)
    return 1 + off


def test_tuning_walks_to_the_fastest_configuration() -> None:
    best, seconds = tune.descend(START, _seconds, lambda kernels: True)
    assert seconds == 1.0
    shrink, expand = best  # type: ignore[misc]
    assert (shrink.block_k, shrink.split_k, expand.block_n) == (256, 8, 256)


def test_tuning_never_takes_what_is_unfit_or_cannot_run() -> None:
    def score(kernels: tune.Kernels) -> float:
        return math.inf if kernels[1].block_n > 64 else _seconds(kernels)  # type: ignore[index]

    best, _ = tune.descend(START, score, lambda kernels: kernels[0].block_k < 256)  # type: ignore[index]
    shrink, expand = best  # type: ignore[misc]
    assert (shrink.block_k, shrink.split_k, expand.block_n) == (128, 8, 64)


def test_noise_does_not_move_the_tuner() -> None:
    noise = random.Random(1)
    best, _ = tune.descend(START, lambda k: 1 - noise.random() * 0.009, lambda k: True)
    assert best == START


@pytest.mark.parametrize("arch", ["sm_80", "sm_90", "sm_100"])
def test_every_row_can_be_tuned_and_written(arch: str) -> None:
    shipped = table(arch)
    for row in shipped.rows:
        assert len(tune.neighbours(row.kernels)) >= 8
        for cell in tune.batches(row):
            assert row.rank is None or cell.max_rank <= row.rank
            assert row.tokens is None or cell.tokens <= row.tokens
            if isinstance(row.kernels, Fused):
                assert cell.max_rank <= row.kernels.block_r
    values = json.loads(tune.as_text(shipped))
    assert values["rows"] == [row.as_json() for row in shipped.rows]


def test_vllms_configurations_are_labelled_by_what_it_will_find(tmp_path: Path) -> None:
    gpu = "NVIDIA H100 80GB-HBM3"
    assert vllm_configs(None, gpu) == vllm_configs(str(tmp_path), gpu) == "default"
    (tmp_path / "NVIDIA_H100_80GB_HBM3_SHRINK.json").touch()
    assert vllm_configs(str(tmp_path), gpu) == "default, but tuned shrink"
    (tmp_path / "NVIDIA_H100_80GB_HBM3_EXPAND_TRUE.json").touch()
    assert vllm_configs(str(tmp_path), gpu) == "tuned"
    assert vllm_configs(str(tmp_path), "another") == "default"
