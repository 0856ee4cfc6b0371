"""The transfer suite's arithmetic, its cache of completions, and what it makes of rows."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.suites import transfer as suite
from benchmarks.transfer.arms import ARMS, STUDIES, TABLE
from benchmarks.transfer.cells import Cell, Row, Shelf, cell_key, from_hex, to_hex
from benchmarks.transfer.metered import MeteredGenerator, runs
from benchmarks.transfer.result import curves_of, extra_rows, figure, gate_record, summarise
from benchmarks.transfer.statistics import (
    differences,
    estimate,
    flips,
    gains,
    recoveries,
    table_of,
)
from benchmarks.transfer.world import DEVELOPMENT, TransferTask, World, folder_world, tinyworld
from lorebase.serving.engine.protocol import Completion, Sampling
from lorebase.transfer.distill import DistillRecipe, LoraSettings
from lorebase.transfer.kit import DOCUMENT
from lorebase.transfer.ports import Example, ModelSpec
from tests.unit.transfer_fakes import Script

N = 200


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
    }
    assert tuple(rights) == TABLE
    return [
        row(arm, right - 2 * seed, task=task, seed=seed)
        for task in ("a/x", "b/y")
        for seed in range(3)
        for arm, right in rights.items()
    ]


@given(st.lists(st.booleans(), max_size=70))
def test_judgements_survive_packing(right: list[bool]) -> None:
    assert from_hex(to_hex(right), len(right)) == right


def test_recovery_is_the_share_of_what_real_data_would_gain() -> None:
    table = table_of([row("zero-shot", 20), row("oracle", 120), row("lorebase", 70)], 250)
    assert recoveries(table, "lorebase") == {"a/x": [pytest.approx(0.5)]}


def test_where_real_data_gains_nothing_there_is_no_recovery() -> None:
    table = table_of([row("zero-shot", 110), row("oracle", 120), row("lorebase", 130)], 250)
    assert recoveries(table, "lorebase") == {}


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
    assert second["p"] < 0.05
    assert not second["significant"], "0.03 does not pass Holm among three tasks"
    assert not third["significant"]


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
    assert summary["hop2_loss_points"] is None
    assert summary["shared_work_gain"] == 2.0
    assert summary["cpu_s_by_samples"] == {"250": 60.0}
    json.dumps(summary)


def test_the_gate_judges_every_trained_adapter_on_a_part_and_is_checked_on_the_rest() -> None:
    def shuffled(arm: str, wrong: range) -> Row:
        bits = [number not in wrong for number in range(N)]
        return row(arm, 0) | {"accuracy": sum(bits) / N, "right": to_hex(bits)}

    rows = [
        shuffled("source", range(0)),
        row("zero-shot", 0),
        shuffled("lorebase", range(0)),
        shuffled("random", range(0, N, 4)),  # a quarter wrong everywhere: refused
        shuffled("titok", range(150, N)),  # all of its mistakes are hidden from the gate
    ]
    policy_sized = gate_record(table_of(rows, 250))
    assert policy_sized["gated"] == 3
    assert policy_sized["worse"] == 2
    assert policy_sized["promoted"] == policy_sized["false_promotions"] == 0, "80 decide nothing"


def test_a_bad_adapter_that_hides_its_mistakes_is_a_false_promotion(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from benchmarks.transfer import result

    monkeypatch.setattr(result, "ENTRUSTED_SHARE", 0.6)
    hidden = [number < 130 for number in range(N)]
    rows = [row("source", N), row("zero-shot", 0), row("lorebase", N)]
    rows.append(row("titok", 130) | {"right": to_hex(hidden)})
    record = gate_record(table_of(rows, 250))
    assert record == {"gated": 2, "promoted": 2, "worse": 1, "false_promotions": 1}


def test_the_figure_is_one_svg_with_a_dot_for_each_arm_and_task() -> None:
    rows = table_rows()
    rows += [
        row(arm, 100, task=task, seed=seed, samples=32)
        for task in ("a/x", "b/y")
        for seed in range(3)
        for arm in ("unfiltered", "trans-lora", "lorebase")
    ]
    drawn = figure(rows, samples=250)
    root = ElementTree.fromstring(drawn)
    circles = root.findall(".//{http://www.w3.org/2000/svg}circle")
    assert len(circles) == 2 * 6 + 3 * 2
    assert "lorebase: 0.9" in drawn
    assert [len(curve.points) for curve in curves_of(rows)] == [2, 2, 2]
    assert curves_of(table_rows()) == [], "one number of samples makes no curve"


def test_rows_say_task_by_task_what_was_recovered() -> None:
    told = extra_rows(table_rows(), samples=250)
    task = next(one for one in told if one["kind"] == "task")
    assert task["recovery"]["lorebase"] == pytest.approx(0.94, abs=0.01)
    assert task["accuracy"]["oracle"] == pytest.approx(0.99, abs=0.01)
    assert len([one for one in told if one["kind"] == "filtering"]) == 2


BASE = ModelSpec(base_id="next")


def echo(prompt: str, number: int) -> Completion:
    return Completion(text=f"{prompt}!", finish_reason="stop", token_ids=(1, 2), prompt_tokens=3)


async def test_a_completion_is_made_once_and_charged_every_time(tmp_path: Path) -> None:
    script = Script(echo)
    meter = MeteredGenerator(script, tmp_path / "made.sqlite", {"next": "r1"})
    greedy = Sampling(max_tokens=4)
    first = await meter.complete(BASE, ["a", "b"], greedy)
    again = await meter.complete(BASE, ["b", "c", "a"], greedy)
    assert [one.text for one in again] == ["b!", "c!", "a!"]
    assert again[2] == first[0]
    assert [prompts for _, prompts, _ in script.calls] == [["a", "b"], ["c"]]
    spent = meter.reading()
    assert (spent.completions, spent.tokens_read, spent.tokens_written) == (5, 15, 10)
    meter.close()
    kept = MeteredGenerator(Script(echo), tmp_path / "made.sqlite", {"next": "r1"})
    assert (await kept.complete(BASE, ["a"], greedy))[0] == first[0]
    assert kept.reading().fresh_cpu_s == 0.0
    other = Script(echo)
    changed = MeteredGenerator(other, tmp_path / "made.sqlite", {"next": "r2"})
    await changed.complete(BASE, ["a"], greedy)
    assert len(other.calls) == 1, "another revision of the base answers for itself"


async def test_samples_keep_the_seed_of_their_place(tmp_path: Path) -> None:
    script = Script(echo)
    meter = MeteredGenerator(script, tmp_path / "made.sqlite", {"next": "r1"})
    await meter.complete(BASE, ["p"] * 4, Sampling(temperature=1.0, seed=10))
    await meter.complete(BASE, ["p"] * 6, Sampling(temperature=1.0, seed=8))
    assert [(len(prompts), s.seed) for _, prompts, s in script.calls] == [(4, 10), (2, 8)]
    await meter.complete(BASE, ["p"] * 8, Sampling(temperature=1.0, seed=8))
    assert [(len(prompts), s.seed) for _, prompts, s in script.calls][2:] == [(2, 14)]


async def test_failed_completions_are_asked_again(tmp_path: Path) -> None:
    script = Script(lambda prompt, number: Completion(error="x") if number == 0 else echo("a", 1))
    meter = MeteredGenerator(script, tmp_path / "made.sqlite", {"next": "r1"})
    assert (await meter.complete(BASE, ["a"], Sampling()))[0].error == "x"
    assert (await meter.complete(BASE, ["a"], Sampling()))[0].error is None


def test_runs_are_the_stretches_of_what_is_wanted() -> None:
    assert list(runs([True, True, False, True])) == [(0, 2), (3, 4)]
    assert list(runs([])) == []


WORLD = World(
    name="w",
    source_dir=Path("a"),
    next_dir=Path("b"),
    format=DOCUMENT,
    tasks={
        "t": TransferTask(
            name="t",
            dataset_name="things",
            split="final",
            real=(Example(input="1", target="2"),),
            test=(Example(input="3", target="4"),),
            lora=LoraSettings(rank=4, alpha=8.0),
        )
    },
    source_training=DistillRecipe(steps=1),
    tuning={"lorebase": {"steps": 7}},
)


def test_a_cells_key_is_all_that_decides_it_and_nothing_else() -> None:
    revisions = {"w-source": "r1", "w-next": "r2"}
    cell = Cell(task="t", seed=0, arm="lorebase", samples=10)
    arm = ARMS["lorebase"]
    key = cell_key(WORLD, revisions, cell, arm)
    assert cell_key(WORLD, revisions, cell, replace(arm, label="other")) == key
    others = [
        cell_key(WORLD, revisions | {"w-next": "r3"}, cell, arm),
        cell_key(WORLD, revisions | {"w-source": "r3"}, cell, arm),
        cell_key(WORLD, revisions, replace(cell, seed=1), arm),
        cell_key(WORLD, revisions, replace(cell, samples=11), arm),
        cell_key(WORLD, revisions, cell, ARMS["unfiltered"]),
        cell_key(replace(WORLD, tuning={}), revisions, cell, arm),
    ]
    assert len({key, *others}) == 7


def test_options_at_their_defaults_are_no_part_of_a_key() -> None:
    told = ARMS["unfiltered"].tuned(WORLD).identity()
    assert told == {
        "name": "unfiltered",
        "data": "synthetic",
        "recipe": {
            "name": "lorebase",
            "filter": {"discriminator": False},
            "training": {"steps": 7, "batch_size": 8, "learning_rate": 2e-4},
        },
    }


def test_tuning_reaches_every_arm_of_a_recipe_and_studies_go_on_top() -> None:
    assert ARMS["oracle"].tuned(WORLD).recipe.training.steps == 7  # type: ignore[union-attr]
    tuned = STUDIES["soft"].tuned(WORLD).recipe
    assert tuned is not None
    assert (tuned.training.steps, tuned.training.soft_share) == (7, 0.5)
    assert ARMS["zero-shot"].tuned(WORLD).recipe is None


def test_finished_cells_are_found_in_the_folder_and_in_an_earlier_result(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path / "cells", [{"kind": "arm"}, {"key": "k1", "accuracy": 0.5}])
    assert shelf.get("k0") is None
    assert shelf.get("k1") == {"key": "k1", "accuracy": 0.5}
    shelf.put("k0", {"accuracy": 1.0})
    assert Shelf(tmp_path / "cells").get("k0") == {"key": "k0", "accuracy": 1.0}


def test_development_tasks_stay_out_of_the_table() -> None:
    world = tinyworld(Path("bases"))
    assert set(world.tasks) >= DEVELOPMENT
    cells = suite.wanted_cells(world, suite.options_of([]), quick=False)
    assert not {cell.task for cell in cells} & DEVELOPMENT
    assert len({cell.task for cell in cells}) >= 10
    assert {cell.arm for cell in cells} == set(TABLE)
    curve = [cell for cell in cells if cell.samples < 250]
    assert {cell.samples for cell in curve} == set(suite.CURVE_SAMPLES)
    assert {cell.task for cell in curve} == set(suite.CURVE_TASKS)
    one = suite.wanted_cells(
        world, suite.options_of(["--tasks", "hr/person-id", "--arms", "soft"]), quick=False
    )
    assert [asdict(cell)["seed"] for cell in one] == [0, 1, 2]
    with pytest.raises(ValueError, match="unknown tasks no/such"):
        suite.wanted_cells(world, suite.options_of(["--tasks", "no/such"]), quick=False)


def test_real_and_test_inputs_of_the_tiny_world_are_apart() -> None:
    for task in tinyworld(Path("bases")).tasks.values():
        assert not {one.input for one in task.real} & {one.input for one in task.test}, task.name


def test_a_folder_of_data_makes_a_world(tmp_path: Path) -> None:
    def write(name: str, *inputs: str) -> None:
        path = tmp_path / "bbh" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("\n".join(json.dumps({"input": one, "target": "x"}) for one in inputs))

    write("train.jsonl", "a", "b")
    write("test.jsonl", "c")
    world = folder_world(Path("old"), Path("new"), tmp_path, rank=4)
    assert world.tasks["bbh"].lora.rank == 4
    assert world.random_inputs is None
    cells = suite.wanted_cells(
        world, suite.options_of(["--models", "old", "new", "--data", str(tmp_path)]), quick=False
    )
    assert "random" not in {cell.arm for cell in cells}
    write("test.jsonl", "b")
    with pytest.raises(ValueError, match="1 test inputs are training inputs"):
        folder_world(Path("old"), Path("new"), tmp_path)
    with pytest.raises(ValueError, match="no <task>"):
        folder_world(Path("old"), Path("new"), tmp_path / "bbh")


def test_other_bases_need_data_of_their_own() -> None:
    with pytest.raises(SystemExit):
        suite.options_of(["--models", "a", "b"])
