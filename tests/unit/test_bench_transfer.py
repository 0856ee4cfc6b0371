"""The transfer suite's cells: what is asked for, its keys, its cache of completions."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from benchmarks.suites import transfer as suite
from benchmarks.transfer import generation
from benchmarks.transfer.arms import ARMS, CURVE, TABLE
from benchmarks.transfer.cells import Cell, Shelf, cell_key
from benchmarks.transfer.hops import HOP_ARMS
from benchmarks.transfer.metered import MeteredGenerator, runs
from benchmarks.transfer.moves import gather, seeds_alone
from benchmarks.transfer.stage import Stage
from benchmarks.transfer.studies import GRID, STUDIES, used_setting
from benchmarks.transfer.work import orders_of
from benchmarks.transfer.world import DEVELOPMENT, TransferTask, World, folder_world, tinyworld
from examples.tinyworld.tasks import ADDED
from lorebase.serving.engine.protocol import Completion, Sampling
from lorebase.transfer.distill import DistillRecipe, LoraSettings
from lorebase.transfer.kit import DOCUMENT, TransferKit
from lorebase.transfer.ports import Example, ModelSpec
from tests.unit.transfer_fakes import Script

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
        cell_key(replace(WORLD, held_out=7), revisions, cell, arm),
        cell_key(WORLD, revisions, cell, replace(arm, everything=True)),
        cell_key(WORLD, revisions, cell, replace(arm, hops=2)),
    ]
    assert len({key, *others}) == 10


def test_a_second_hops_key_names_the_base_that_it_goes_to() -> None:
    revisions = {"w-source": "r1", "w-next": "r2", "w-third": "r3"}
    cell = Cell(task="t", seed=0, arm="hop2", samples=10)
    third = replace(WORLD, third_dir=Path("c"))
    assert WORLD.dirs == {"w-source": Path("a"), "w-next": Path("b")}
    assert third.dirs == WORLD.dirs | {"w-third": Path("c")}
    one_hop = {
        cell_key(world, revisions, replace(cell, arm="lorebase"), ARMS["lorebase"])
        for world in (WORLD, third)
    }
    two_hops = {cell_key(world, revisions, cell, ARMS["hop2"]) for world in (WORLD, third)}
    assert (len(one_hop), len(two_hops)) == (1, 2)


def test_a_generation_makes_all_cells_anew_or_those_of_one_arm(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    revisions = {"w-source": "r1", "w-next": "r2"}

    def keys() -> list[str]:
        return [
            cell_key(WORLD, revisions, Cell(task="t", seed=0, arm=arm, samples=9), ARMS[arm])
            for arm in ("lorebase", "legacy")
        ]

    first = keys()
    monkeypatch.setitem(generation.ARMS, "legacy", 1)
    second = keys()
    assert (second[0] == first[0], second[1] == first[1]) == (True, False)
    monkeypatch.setattr(generation, "CELLS", generation.CELLS + 1)
    assert not set(keys()) & {*first, *second}


def test_a_digest_of_code_leaves_out_what_it_does_not_do() -> None:
    code = "class A:\n    x: int = 1\n"
    told = (
        '"""Text."""\nclass A:\n    """More."""\n    # and more\n\n    x: int = 1\n    """x."""\n'
    )
    assert generation.code_digest(told) == generation.code_digest(code)
    assert generation.code_digest(code.replace("1", "2")) != generation.code_digest(code)


def test_whoever_changes_what_decides_cells_says_what_becomes_of_old_ones() -> None:
    version, pinned = generation.pinned()
    if version != generation.python_version():
        pytest.skip(f"digests of syntax trees were pinned with Python {version}")
    now = generation.source_digests()
    changed = {path for path in pinned.keys() | now.keys() if pinned.get(path) != now.get(path)}
    assert not changed, (
        f"{sorted(changed)} decide the cells of suite transfer: if results change, raise a "
        "generation in benchmarks/transfer/generation.py; then, in any case, run "
        "`python -m benchmarks.transfer.generation`"
    )


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


def test_each_recipe_is_tuned_on_a_grid_of_the_same_size() -> None:
    assert [len(arms) for arms in GRID.values()] == [9, 9, 9]
    world = tinyworld(Path("bases"))
    used = {recipe: used_setting(world, recipe) for recipe in GRID}
    assert all(used[recipe] in GRID[recipe] for recipe in GRID), used
    assert used_setting(replace(world, tuning={}), "titok") == "", "the paper's rate is not there"
    cells = suite.wanted_cells(world, suite.options_of(["--tuning"]), quick=False)
    assert len(cells) == len(set(cells)) == 3 * 9 * 3 * 2
    assert {cell.task for cell in cells} <= DEVELOPMENT


def test_without_a_kit_no_length_is_known_but_the_seeds(tmp_path: Path) -> None:
    seeds = tuple(Example(input="abc"[: n % 3 + 1] + str(n), target="yy") for n in range(5))
    kit = TransferKit(
        base_id="b",
        dataset_name="d",
        dataset_size=300,
        format=DOCUMENT,
        seeds=seeds,
        threshold=1.5,
        discriminator_auc=0.9,
        real_pass_rate=0.9,
        fake_pass_rate=0.1,
        real_score_quantiles=(1.0, 2.0),
        max_input_chars=77,
        max_input_tokens=78,
        max_answer_tokens=79,
        provenance={"data": "digest"},
    )

    class Letters:
        def encode(self, text: str, *, add_special_tokens: bool) -> list[str]:
            assert not add_special_tokens
            return list(text)

    known = seeds_alone(kit, Letters(), tmp_path / "a", 0)
    assert (known.max_input_chars, known.max_input_tokens, known.max_answer_tokens) == (8, 24, 20)
    other = replace(kit, max_input_chars=9, dataset_size=7, provenance={}, threshold=0.0)
    assert seeds_alone(other, Letters(), tmp_path / "b", 0) == known
    assert set(known.seeds) == set(seeds)
    assert (known.dataset_size, known.discriminates) == (5, False)


def test_an_arm_trains_on_as_much_real_data_as_it_may() -> None:
    real = tuple(Example(input=str(n), target="x") for n in range(30))
    kit, task = SimpleNamespace(seeds=real[20:25]), SimpleNamespace(real=real)
    stage = cast(Stage, SimpleNamespace(kit=kit, task=task))
    assert gather(stage, ARMS["oracle"], 10).examples == list(real)
    assert gather(stage, ARMS["seeds-only"], 10).examples == list(real[20:25])
    assert gather(stage, ARMS["real"], 10).examples == [*real[20:25], *real[:5]]
    assert len(gather(stage, ARMS["real"], 99).examples) == 30


def test_only_a_whole_run_replaces_the_table() -> None:
    names = {
        " ".join(told): suite.result_name(suite.options_of(told))
        for told in (
            [],
            ["--workers", "4", "--minutes", "5", "--as-is", "--reuse"],
            ["--tasks", "hr/person-id"],
            ["--arms", "soft"],
            ["--seeds", "1"],
            ["--samples", "60"],
            ["--no-curve"],
            ["--third", "third", "--tasks", "hr/person-id"],
            ["--third", "third"],
            ["--tuning"],
            ["--studies"],
            ["--models", "a", "b", "--data", "c"],
        )
    }
    assert list(names.values()) == [
        *("transfer",) * 2,
        *("transfer-partial",) * 6,
        "transfer-third",
        "transfer-tuning",
        "transfer-studies",
        "transfer-models",
    ]


def test_with_a_third_base_only_what_two_hops_need_is_run() -> None:
    world = tinyworld(Path("bases"), Path("later"))
    cells = suite.wanted_cells(world, suite.options_of(["--third", "later"]), quick=False)
    assert {cell.arm for cell in cells} == set(HOP_ARMS)
    assert {world.tasks[cell.task].split for cell in cells} == {"final"}
    assert {cell.samples for cell in cells} == {250}
    whole = suite.wanted_cells(
        world, suite.options_of(["--third", "later", "--arms", "titok"]), quick=False
    )
    assert {cell.arm for cell in whole} == {"titok"}


def test_a_run_that_is_cut_off_has_whole_seeds_of_the_table_before_the_curve() -> None:
    cells = [
        Cell(task=task, seed=seed, arm=arm, samples=samples)
        for samples, arms in ((250, ("lorebase", "hop2")), (16, ("lorebase",)), (32, ("real",)))
        for task in ("b", "a")
        for seed in (1, 0)
        for arm in arms
    ]
    orders = orders_of(cells, deadline=1.0, stamp={})
    firsts = [order.cells[0] for order in orders]
    told = [(first.samples < 250, first.seed, first.task) for first in firsts]
    assert told == sorted(told)
    assert [len(order.cells) for order in orders] == [2] * 8
    assert [cell.arm for cell in orders[0].cells] == ["lorebase", "hop2"], "in the order asked for"
    assert orders_of([], deadline=1.0, stamp={}) == []


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
    assert {cell.arm for cell in cells if cell.samples == 250} == set(TABLE)
    curve = [cell for cell in cells if cell.samples < 250]
    assert {cell.samples for cell in curve} == set(suite.CURVE_SAMPLES)
    assert {cell.task for cell in curve} == set(suite.CURVE_TASKS)
    assert {cell.arm for cell in curve} == set(CURVE)
    one = suite.wanted_cells(
        world, suite.options_of(["--tasks", "hr/person-id", "--arms", "soft"]), quick=False
    )
    assert [asdict(cell)["seed"] for cell in one] == [0, 1, 2]
    added = {name for name, task in world.tasks.items() if task.split == "added"}
    assert added == set(ADDED)
    assert {cell.arm for cell in cells if cell.task in added} == set(TABLE)
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


def test_in_added_tasks_a_code_belongs_to_a_pair_and_no_other_input_has_one() -> None:
    for task in ADDED.values():
        codes = {answer.partition("-")[0] for _, answer in task.pool("train")}
        assert len(codes) in (12, 14, 16)
        assert codes >= {answer.partition("-")[0] for _, answer in task.pool("test")}
        assert task.skewed
