"""What the transfer suite makes of its rows: statistics, summary, the gate's record, plots."""

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.transfer import batching, gated, statistics
from benchmarks.transfer.added import added_rows, added_summary
from benchmarks.transfer.arms import CURVE, TABLE
from benchmarks.transfer.changes import change_rows, change_summary
from benchmarks.transfer.figures import curves_of, figure
from benchmarks.transfer.gated import gate_record, gate_summary
from benchmarks.transfer.hops import hop_rows, hop_summary
from benchmarks.transfer.result import by_samples, extra_rows, summarise
from benchmarks.transfer.rows import Row, from_hex, to_hex
from benchmarks.transfer.statistics import (
    differences,
    estimate,
    flips,
    gains,
    ratio_of_means,
    recoveries,
    sign_flip_p_value,
    table_of,
)
from benchmarks.transfer.studies import CHANGE_SAMPLES, GRID
from benchmarks.transfer.tuning import tuning_rows, tuning_summary
from benchmarks.transfer.world import tinyworld

N = 200


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Intervals of what these tests ask need no 10,000 resamples."""
    monkeypatch.setattr(statistics, "RESAMPLES", 1000)


def row(arm: str, right: int, *, task: str = "a/x", seed: int = 0, samples: int = 250) -> Row:
    """A finished cell that has the first `right` of its answers right."""
    bits = [number < right for number in range(N)]
    trained: dict[str, Any] = {}
    if arm not in ("source", "zero-shot", "few-shot"):
        trained = {"train": {"steps": 1}}
    return {
        "task": task,
        "seed": seed,
        "arm": arm,
        "samples": samples,
        "split": "final",
        "accuracy": right / N,
        "n": N,
        "right": to_hex(bits),
        "cpu_s": 60.0,
        "judge_cpu_s": 2.0,
        "gather_cpu_s": 10.0,
        "gather_fresh_cpu_s": 5.0,
        "tokens_written": 100,
        "tokens_trained": 1000,
        "stage": {"kit_cpu_s": 30.0},
        "key": f"{task}{seed}{arm}{samples}",
        **trained,
    }


def table_rows() -> list[Row]:
    rights = {
        "source": 198,
        "zero-shot": 20,
        "few-shot": 100,
        "seeds-only": 60,
        "random": 80,
        "unfiltered": 150,
        "legacy": 150,
        "trans-lora": 170,
        "titok": 180,
        "lorebase": 190,
        "oracle": 200,
        "hop2": 189,
    }
    assert tuple(rights) == TABLE
    return [
        row(arm, right - 2 * seed, task=task, seed=seed)
        for task in ("a/x", "b/y")
        for seed in range(3)
        for arm, right in rights.items()
    ]


def test_two_hops_lose_what_the_last_base_has_less_than_the_first() -> None:
    rows = [
        row(arm, right, task=task, seed=seed)
        for task, hop2 in (("a/x", 190), ("a/y", 180))
        for seed in (0, 1)
        for arm, right in (("source", 200), ("lorebase", 198), ("hop2", hop2))
    ]
    rows += [row("source", 200, task="a/z"), row("lorebase", 10, task="a/z")]  # no second hop yet
    told = hop_summary(rows, samples=250)
    assert (told["tasks"], told["seeds"]) == (2, 2)
    assert told["hop1_loss_points"] == [1.0, 1.0, 1.0]
    assert told["hop2_loss_points"][0] == 7.5
    assert [one["accuracy"]["hop2"] for one in hop_rows(rows, samples=250)] == [0.95, 0.9]
    assert hop_summary([], samples=250)["hop2_loss_points"] is None


def test_added_tasks_are_told_apart() -> None:
    assert added_summary([], samples=250) == {}
    rows = [one | {"split": "added"} for one in table_rows()]
    told = added_summary(rows, samples=250)["added"]
    whole = summarise(rows, samples=250)
    assert told["tasks"] == sorted({one["task"] for one in rows})
    for arm in ("lorebase", "translora", "titok", "legacy", "unfiltered"):
        assert told[f"recovery_{arm}"][0] == whole[f"recovery_{arm}"]
    assert told["lorebase_minus_translora_points"][0] == whole["lorebase_minus_translora_points"]
    assert told["tasks_where_filtering_gains"] == whole["tasks_where_filtering_gains"]
    assert told["false_promotions"] == whole["false_promotions"]
    assert {one["kind"] for one in added_rows(rows, samples=250)} == {"filtering-added"}


@given(st.lists(st.booleans(), max_size=70))
def test_judgements_survive_packing(right: list[bool]) -> None:
    assert from_hex(to_hex(right), len(right)) == right


def test_recovery_is_the_share_of_what_real_data_would_gain() -> None:
    table = table_of([row("zero-shot", 20), row("oracle", 120), row("lorebase", 70)], 250)
    assert recoveries(table, "lorebase") == {"a/x": [pytest.approx(0.5)]}


def test_where_real_data_gains_nothing_there_is_no_recovery() -> None:
    table = table_of([row("zero-shot", 110), row("oracle", 120), row("lorebase", 130)], 250)
    assert recoveries(table, "lorebase") == {}


def test_the_mean_over_the_seeds_tells_whether_there_is_anything_to_recover() -> None:
    rows = [row(arm, right, seed=0) for arm, right in (("zero-shot", 0), ("lorebase", 80))]
    rows += [row(arm, right, seed=1) for arm, right in (("zero-shot", 0), ("lorebase", 100))]
    rows += [row("oracle", 0, seed=0), row("oracle", 120, seed=1)]
    found = recoveries(table_of(rows, 250), "lorebase")
    assert found == {"a/x": [pytest.approx(80 / 60), pytest.approx(100 / 60)]}


def test_the_ratio_of_means_lets_tasks_count_by_what_there_is_to_recover() -> None:
    rows = [row("zero-shot", 0), row("oracle", 200), row("lorebase", 100)]
    rows += [row(arm, n, task="b/y") for arm, n in (("zero-shot", 0), ("oracle", 50))]
    rows += [row("lorebase", 50, task="b/y")]
    table = table_of(rows, 250)
    assert ratio_of_means(table, "lorebase") == pytest.approx(150 / 250)
    assert ratio_of_means(table, "titok") is None


def test_differences_are_points_between_cells_of_one_task_and_seed() -> None:
    rows = [row("lorebase", 190), row("titok", 180), row("titok", 0, seed=1)]
    assert differences(table_of(rows, 250), "lorebase", "titok") == {"a/x": [pytest.approx(5.0)]}


def test_an_interval_covers_the_mean_and_shrinks_with_agreement() -> None:
    wide = estimate({"a": [0.0, 0.2], "b": [1.0, 0.8]})
    tight = estimate({"a": [0.5, 0.5], "b": [0.5, 0.5]})
    assert wide is not None
    assert tight is not None
    assert wide.mean == pytest.approx(0.5)
    assert wide.low < 0.2
    assert wide.high > 0.8
    assert (tight.low, tight.high) == (0.5, 0.5)
    assert estimate({}) is None


def test_negative_flips_count_answers_that_the_source_had_right() -> None:
    table = table_of([row("source", 100), row("lorebase", 90)], 250)
    assert flips(table, "lorebase") == {"a/x": pytest.approx(0.05)}


def test_a_gain_is_significant_only_after_correction_over_the_tasks() -> None:
    rows = []
    for number, gained in enumerate((40, 6, 0)):
        rows += [row("unfiltered", 100, task=f"t/{number}")]
        rows += [row("lorebase", 100 + gained, task=f"t/{number}")]
    first, second, third = gains(table_of(rows, 250), "lorebase", "unfiltered")
    assert (first["points"], first["significant"]) == (20.0, True)
    assert second["p"] == pytest.approx(2 / 2**6), "all six of 64 signs, both ways"
    assert not second["significant"], "0.03 does not pass Holm among three tasks"
    assert (third["p"], third["significant"]) == (1.0, False)


def test_more_seeds_of_the_same_inputs_are_no_more_inputs() -> None:
    rows = []
    for seed in range(3):
        rows += [row("unfiltered", 100, seed=seed), row("lorebase", 104, seed=seed)]
    [found] = gains(table_of(rows, 250), "lorebase", "unfiltered")
    assert found["p"] == pytest.approx(2 / 2**4)
    assert found["by_seed"] == [2.0, 2.0, 2.0]


def test_the_sign_flip_test_knows_no_gain_from_losses_as_large() -> None:
    assert sign_flip_p_value(np.array([1.0, -1.0, 0.0])) == 1.0
    assert sign_flip_p_value(np.zeros(9)) == 1.0
    assert sign_flip_p_value(np.full(8, -0.5)) == pytest.approx(2 / 2**8), "exact"
    many = np.concatenate([np.full(60, 1.0), np.full(40, -1.0)])
    assert sign_flip_p_value(many) == pytest.approx(0.057, abs=0.02), "two-sided binomial"
    assert sign_flip_p_value(many) == sign_flip_p_value(many), "it repeats"


def test_the_summary_names_the_promised_figures() -> None:
    rows = table_rows()
    summary = summarise(rows, samples=250)
    assert summary["recovery_lorebase"] == pytest.approx(0.94, abs=0.01)
    assert summary["lorebase_minus_translora_points"] == pytest.approx(10.0)
    assert summary["lorebase_minus_titok_points_interval"] == [5.0, 5.0]
    assert summary["recovery_legacy"] < summary["recovery_titok"]
    assert (summary["tasks"], summary["seeds"]) == (2, 3)
    assert summary["minutes_per_task"] == 1.0
    assert summary["tasks_where_filtering_gains"] == ["a/x", "b/y"]
    assert summary["false_promotions"] == 0
    assert summary["hop1_loss_points"] == pytest.approx(4.0)
    assert summary["hop2_loss_points"] == pytest.approx(4.5)
    assert summary["hop2_loss_points_interval"] == [4.5, 4.5]
    assert summary["recovery_lorebase_ratio_of_means"] == pytest.approx(0.94, abs=0.01)
    assert summary["cache_gain"] == 2.0
    assert summary["by_samples"] == {}, "one number of samples makes no curve"
    assert summary["cpu_s_by_samples"] == {"250": 60.0}
    json.dumps(summary)


def spread(arm: str, wrong: range) -> Row:
    bits = [number not in wrong for number in range(N)]
    return row(arm, 0) | {"accuracy": sum(bits) / N, "right": to_hex(bits)}


def test_the_gate_judges_every_trained_adapter_on_a_part_and_is_checked_on_the_rest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = [
        spread("source", range(0)),
        row("zero-shot", 0),
        spread("lorebase", range(0)),
        spread("random", range(0, N, 4)),  # a quarter wrong everywhere: refused
        spread("titok", range(150, N)),  # all of its mistakes are hidden from the gate
        spread("hop2", range(0)),  # of another base: not this gate's
    ]
    assert gate_record(rows)["entrusted"]["gated"] == 0, "80 inputs decide nothing"
    monkeypatch.setattr(gated, "ENTRUSTED_SHARE", 0.6)
    assert gate_record(rows)["entrusted"] == {
        "gated": 3,
        "promoted": 2,
        "worse": 2,
        "false_promotions": 1,
    }


def test_without_true_answers_the_gate_goes_by_agreement_and_errs_where_that_misleads() -> None:
    def agreeing(arm: str, right: int, agreed: int, n: int = 200) -> Row:
        told = {
            "n": n,
            "shadow": to_hex([number < agreed for number in range(n)]),
            "bare": to_hex([False] * n),
        }
        return row(arm, right) | {"label_free": told}

    rows = [
        row("source", N),
        row("zero-shot", 0),
        agreeing("lorebase", N, 200),
        agreeing("random", 100, 100),
        agreeing("titok", 100, 200),  # agrees on synthetic inputs, fails on true ones
        agreeing("seeds-only", 100, 60, n=60),  # too few to say
    ]
    record = gate_record(rows)["label_free"]
    assert record == {"gated": 3, "promoted": 2, "worse": 2, "false_promotions": 1}
    summary = gate_summary(rows)
    assert summary["false_promotions_entrusted"] == summary["gated_entrusted"] == 0
    assert summary["false_promotions"] == summary["false_promotions_label_free"] == 1


def curve_rows() -> list[Row]:
    """The table and its curve at 32 samples: 100 right, `real` 150."""
    return table_rows() + [
        row(arm, 150 if arm == "real" else 100, task=task, seed=seed, samples=32)
        for task in ("a/x", "b/y")
        for seed in range(3)
        for arm in CURVE
    ]


def test_the_main_figures_are_told_at_each_number_of_samples() -> None:
    told = by_samples(curve_rows(), samples=250)
    assert list(told) == ["32", "250"]
    assert told["32"]["cells"] == 6
    assert told["32"]["lorebase_minus_points"]["real"] == [-25.0, -25.0, -25.0]
    assert told["32"]["recovery"]["real"] == pytest.approx((150 - 18) / 180, abs=1e-3)
    assert told["250"]["recovery"]["real"] == pytest.approx(1.0), "the oracle itself"
    assert told["32"]["tasks_where_filtering_gains"] == []
    assert told["250"]["tasks_where_filtering_gains"] == ["a/x", "b/y"]


def test_a_grid_tells_each_recipes_best_setting_and_how_far_the_used_one_is_from_it() -> None:
    world = tinyworld(Path("bases"))
    rows = [
        row(arm, 120 if arm in ("titok-20-0.005", "lorebase-120-0.005") else 100, samples=60)
        for arms in GRID.values()
        for arm in arms
    ]
    summary = tuning_summary(rows, world)
    assert summary["titok_best"] == "titok-20-0.005"
    assert summary["titok_used"] == "titok-20-0.0025"
    assert summary["titok_used_below_best_points"] == 10.0
    assert summary["lorebase_used_below_best_points"] == 0.0
    assert summary["translora_settings"] == 9
    assert len(tuning_rows(rows)) == 27


def test_a_change_of_our_recipe_is_compared_with_it_cell_by_cell() -> None:
    rows = [
        row(arm, right, task=task, seed=seed, samples=CHANGE_SAMPLES) | {"cpu_s": cpu_s}
        for task in ("a/x", "b/y")
        for seed in (0, 1)
        for arm, right, cpu_s in (("lorebase", 100, 10.0), ("soft", 120, 15.0), ("eva", 90, 10.0))
    ]
    told = {one["arm"]: one for one in change_rows(rows)}
    assert list(told) == ["lorebase", "soft", "eva"]
    assert told["soft"]["points"] == [10.0, 10.0, 10.0]
    assert (told["soft"]["cells"], told["soft"]["cpu_ratio"]) == (4, 1.5)
    assert told["eva"]["by_task"] == {"a/x": -5.0, "b/y": -5.0}
    summary = change_summary(rows)
    assert summary["changes_that_gain"] == ["soft"]
    assert summary["changes_that_harm"] == ["eva"]
    assert (summary["tasks"], summary["seeds"]) == (2, 2)


def test_the_figure_is_one_svg_with_a_dot_for_each_arm_and_task() -> None:
    rows = curve_rows()
    drawn = figure(rows, samples=250)
    root = ElementTree.fromstring(drawn)
    circles = root.findall(".//{http://www.w3.org/2000/svg}circle")
    assert len(circles) == 2 * len(TABLE) + 2 * len(CURVE)
    assert "lorebase: 0.9" in drawn
    assert [len(curve.points) for curve in curves_of(rows, samples=250)] == [2] * len(CURVE)
    assert curves_of(table_rows(), samples=250) == []


def test_rows_say_task_by_task_what_was_recovered() -> None:
    told = extra_rows(table_rows(), samples=250)
    task = next(one for one in told if one["kind"] == "task")
    assert task["recovery"]["lorebase"] == pytest.approx(0.94, abs=0.01)
    assert task["accuracy"]["oracle"] == pytest.approx(0.99, abs=0.01)
    assert len([one for one in told if one["kind"] == "filtering"]) == 2


def test_batching_tells_gains_by_adapters_and_by_the_engines_cap() -> None:
    rows = [
        {"kind": "batching", "adapters": 16, "background_cap": cap, "gain": gain}
        for cap, gain in ((batching.STEP_SLOTS, 3.5), (8, 1.1))
    ]
    assert batching.batching_summary(rows) == {
        "batching_gain_16": 3.5,
        "batching_gain_16_at_default_cap": 1.1,
    }


def test_batches_of_all_adapters_hold_each_input_once() -> None:
    who = batching.labellers(2, 3 * batching.PROMPTS)
    asked = [
        request.prompt
        for one in who
        for run in range(3)
        for request in one.requests(run * batching.PROMPTS, "r")
    ]
    assert len(asked) == len(set(asked)) == 2 * 3 * batching.PROMPTS
    with pytest.raises(ValueError, match="expected 99"):
        batching.labellers(99, 1)
