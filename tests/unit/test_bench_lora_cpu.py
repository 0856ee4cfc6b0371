"""What the lora-cpu suite makes of its samples: ratios of neighbours in time, named figures."""

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import torch

from benchmarks.charts import Bar, BarPanel, bar_chart
from benchmarks.lora import alone as alone_module
from benchmarks.lora.alone import Alone, measure
from benchmarks.lora.cpu_result import Sample, per_cpu, per_wall, ratios, summarise
from benchmarks.lora.world import BaseShape, make_adapter


def _sample(arm: str, round_: int, wall_s: float, **changes: object) -> Sample:
    values = {
        "workload": "decode", "ranks": "r8", "adapters": 64, "arm": arm, "round": round_,
        "tokens": 512 if arm != "stock" else 128, "wall_s": wall_s, "cpu_s": 2 * wall_s,
    }  # fmt: skip
    return Sample(**{**values, **changes})  # type: ignore[arg-type]


# A machine that gets slower by the round: neighbours still compare.
SAMPLES = [
    _sample(arm, number, seconds * (1 + number))
    for number in range(5)
    for arm, seconds in (("none", 1.0), ("ours", 1.25), ("stock", 1.0))
]


def test_ratios_compare_rates_within_a_round_whatever_the_amounts_of_work() -> None:
    cell = ("decode", "r8", 64)
    assert ratios(SAMPLES, cell, "stock", per_wall) == pytest.approx([3.2] * 5)
    assert ratios(SAMPLES, cell, "none", per_cpu) == pytest.approx([0.8] * 5)
    assert ratios(SAMPLES, ("decode", "r8", 8), "none", per_cpu) == []


def test_the_summary_names_the_figures_of_the_most_adapters() -> None:
    few = [_sample(arm, n, 1.0, adapters=8) for arm in ("ours", "stock") for n in range(2)]
    result = summarise([*few, *SAMPLES], {"dtype": "float32"}, [])
    assert result.summary == {
        "decode_r8_64_vs_stock": 3.2,
        "decode_r8_64_vs_nolora": 0.8,
        "decode_r8_64_ms_over_nolora": 93.75,
        "dtype": "float32",
    }
    ratio = next(r for r in result.rows if r["kind"] == "ratio" and r["adapters"] == 64)
    assert ratio["wall"] == {"p20": 3.2, "p50": 3.2, "p80": 3.2}
    assert ratio["rounds"] == [3.2] * 5
    bound = next(r for r in result.rows if (r.get("of"), r.get("over")) == ("none", "stock"))
    assert bound["wall"]["p50"] == 4.0
    rates = [r for r in result.rows if r["kind"] == "rate" and r["arm"] == "ours"]
    assert [r["adapters"] for r in rates] == [8, 64]
    assert len(rates[1]["wall_s"]) == 5


def test_the_plot_is_well_formed_and_higher_bars_are_higher() -> None:
    bars = [
        Bar(group="1", series="a", value=10.0, low=9.0, high=11.0),
        Bar(group="1", series="b & c", value=1000.0),
        Bar(group="2", series="a", value=None),
    ]
    for logarithmic in (False, True):
        svg = bar_chart(
            [BarPanel(title="t", bars=tuple(bars), logarithmic=logarithmic)],
            {"a": "#000000", "b & c": "#ffffff"},
            label="x",
        )
        root = ET.fromstring(svg)
        drawn = [e for e in root.iter("{http://www.w3.org/2000/svg}rect") if len(e)]
        heights = {next(iter(e)).text: float(e.attrib["height"]) for e in drawn}
        assert heights["a, 1: 10"] < heights["b & c, 1: 1000"]
        assert len(heights) == 2


SMALL = BaseShape(hidden=64, intermediate=96, layers=1, heads=2, vocab=50)


def test_the_kernel_alone_computes_what_a_forward_pass_asks_of_it(tmp_path: Path) -> None:
    paths = [make_adapter(tmp_path / str(r), SMALL, r, seed=r) for r in (4, 8)]
    alone = Alone(paths, SMALL, max_tokens=8)
    columns = sum(sum(shape) for shape in SMALL.linear().values())  # K + N of every module
    assert alone.plan([1, 1, 0]) == (2 * 12 * columns, 2 * (8 + 8 + 4) * columns)
    assert alone.plan([1]) == (2 * 8 * columns, 2 * 8 * columns)
    outputs = alone.step()
    assert [tuple(y.shape) for y in outputs] == [(1, 192), (1, 64), (1, 192), (1, 64)]
    assert all(bool(torch.any(y != 0)) for y in outputs)


def test_the_kernel_alone_stands_beside_what_bounds_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alone_module, "READ_BYTES", 1 << 20)
    paths = [make_adapter(tmp_path / str(n), SMALL, 4, seed=n) for n in range(3)]
    decode, prefill = measure(paths, SMALL, ranks="r4", prompt=512, rounds=1)
    assert (decode["adapters_in_a_step"], prefill["adapters_in_a_step"]) == (3, 2)
    assert prefill["tokens"] == 1024
    assert decode["machine_reads_gb_per_s"]["p50"] > 0
    assert prefill["torch_multiplies_gflop_per_s"]["p50"] > 0
