"""The transfer suite on the tiny world's bases: cells are run, kept, and not run again."""

import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.transfer.cells import Cell
from benchmarks.transfer.rows import Row, from_hex
from benchmarks.transfer.stage import Bases, Stage
from benchmarks.transfer.work import Delivery, check, run_cells
from lorebase.transfer.ports import Example

from .bench_world import TASK, small_world

torch.set_num_threads(1)

TABLE = ("source", "zero-shot", "legacy", "titok", "lorebase", "oracle", "hop2")
CELLS = [Cell(task=TASK, seed=0, arm=arm, samples=24) for arm in TABLE]
STAMP = {"commit": "abc"}


async def run(cache: Path, seconds: float = 600.0, said: list[str] | None = None) -> Delivery:
    return await run_cells(
        small_world,
        CELLS,
        cache=cache,
        earlier=(),
        workers=1,
        threads=1,
        deadline=time.time() + seconds,
        stamp=STAMP,
        say=[].append if said is None else said.append,
    )


@pytest.mark.timeout(600)
async def test_cells_are_run_once_and_say_what_they_cost(tmp_path: Path) -> None:
    late = await run(tmp_path, seconds=-1.0)
    assert (late.rows, late.left) == ((), len(CELLS)), "nothing is begun after the deadline"

    first = await run(tmp_path)
    assert (first.left, first.failures) == (0, ())
    rows: dict[str, Row] = {row["arm"]: row for row in first.rows}
    assert tuple(rows) == TABLE
    for row in rows.values():
        assert sum(from_hex(row["right"], row["n"])) / row["n"] == pytest.approx(row["accuracy"])
        assert row["n"] == 20
    assert rows["lorebase"]["accuracy"] > rows["zero-shot"]["accuracy"] + 0.3
    assert rows["lorebase"]["data"]["examples"] == 24
    assert rows["lorebase"]["train"]["steps"] == 40
    assert rows["titok"]["train"]["examples"] == 24, "the better half of twice as many"
    assert rows["titok"]["selection"]["token_share"] == pytest.approx(0.7, abs=0.05)
    assert rows["oracle"]["data"]["examples"] == 40, "all that is real, however few the others get"
    assert rows["legacy"]["train"]["examples"] == 24
    assert rows["lorebase"]["commit"] == "abc"
    for arm in ("lorebase", "legacy", "oracle"):
        free = rows[arm]["label_free"]
        agreed = sum(from_hex(free["shadow"], free["n"])) / free["n"]
        assert 0 < free["n"] <= 20
        assert agreed > sum(from_hex(free["bare"], free["n"])) / free["n"]
    hop = rows["hop2"]
    assert hop["carried"]["hops"] == 1
    assert hop["carried"]["from_base"] == "tinyworld-source"
    assert (hop["further_base"], hop["carry_cpu_s"] > 0) == ("tinyworld-source", True)
    assert hop["accuracy"] > rows["zero-shot"]["accuracy"] + 0.2
    assert "label_free" not in hop
    assert rows["titok"]["cpu_s"] > rows["titok"]["train_cpu_s"] > 0
    assert rows["oracle"]["gather_cpu_s"] == 0
    assert rows["lorebase"]["stage"]["kit_cpu_s"] > 0

    said: list[str] = []
    again = await run(tmp_path, said=said)
    assert said == [f"{len(CELLS)} cells are done, 0 are to do"]
    assert sorted(again.rows, key=lambda row: row["key"]) == sorted(
        first.rows, key=lambda row: row["key"]
    )


def test_test_inputs_among_the_real_data_stop_everything(tmp_path: Path) -> None:
    world = small_world()
    task = world.tasks[TASK]
    leaky = replace(task, test=(*task.test, Example(input=task.real[0].input, target="x")))
    stage = Stage.of(Bases(world), leaky, 0, tmp_path)
    assert check(stage) == [f"{TASK}, seed 0: 1 test inputs are among the real data"]
    stage.close()
