"""Suite `transfer`: how much of an adapter's skill each recipe brings to the next base.

For every task and seed: a source adapter and a kit are made from the real data; each arm trains an
adapter of the next base without that data (the oracle with it); all are asked the same test inputs.

Correctness gates: no test input is in the real data; the source adapter answers as transformers +
PEFT do.

Cells are kept under benchmarks/runs/transfer as they are finished, so a run that is cut off or out
of time (`--minutes`) goes on where it was. `--models SOURCE NEXT --data DIR` measures any two bases
on data of your own; see benchmarks/results/README.md.
"""

from __future__ import annotations

import argparse
import functools
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.suite import SuiteContext, SuiteResult
from benchmarks.transfer.arms import ARMS, CURVE, SAMPLES, STUDIES, TABLE
from benchmarks.transfer.cells import Cell, Row, describe
from benchmarks.transfer.result import extra_rows, figure, summarise
from benchmarks.transfer.work import run_cells
from benchmarks.transfer.world import DEVELOPMENT, World, folder_world, tinyworld
from examples.tinyworld.bases import ROOT

TAKES_ARGUMENTS = True
RUNS = Path(__file__).resolve().parents[1] / "runs" / "transfer"
RESULTS = Path(__file__).resolve().parents[1] / "results"
CURVE_SAMPLES = (16, 32, 64)
# Two with skewed data, two on which five shots do not help.
CURVE_TASKS = (
    "northwind/summer-bookings",
    "villa/attic-cellar",
    "hr/person-id",
    "helpdesk/ticket-queue",
)
QUICK_TASKS = ("acme/date-long-to-dot", "villa/attic-cellar")
QUICK_ARMS = ("source", "zero-shot", "trans-lora", "titok", "lorebase", "oracle")


class UnfinishedError(RuntimeError):
    """Time was up before all cells were done; run again to go on."""


def options_of(arguments: Sequence[str]) -> argparse.Namespace:
    """Reads the suite's own arguments."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run transfer")
    parser.add_argument("--workers", type=int, default=1, help="processes")
    parser.add_argument("--threads", type=int, default=1, help="of each process")
    parser.add_argument("--minutes", type=float, default=0.0, help="begin no cell after; 0: no end")
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0 to n - 1")
    parser.add_argument("--samples", type=int, default=SAMPLES, help="examples trained on at most")
    parser.add_argument("--tasks", nargs="+", metavar="TASK", help="instead of the final ones")
    parser.add_argument(
        "--arms", nargs="+", choices=[*ARMS, *STUDIES], metavar="ARM", help="instead of the table's"
    )
    parser.add_argument("--no-curve", action="store_true", help="no smaller numbers of samples")
    parser.add_argument("--bases", type=Path, default=ROOT / "bases", help="of the tiny world")
    parser.add_argument("--cache", type=Path, default=RUNS, help="where finished cells are kept")
    parser.add_argument(
        "--models", nargs=2, type=Path, metavar=("SOURCE", "NEXT"), help="two other bases"
    )
    parser.add_argument(
        "--data", type=Path, help="<task>/train.jsonl and test.jsonl, with --models"
    )
    parser.add_argument("--rank", type=int, default=8, help="of the source adapters, with --models")
    options = parser.parse_args(list(arguments))
    if bool(options.models) != bool(options.data):
        parser.error("--models and --data go together")
    return options


async def run(context: SuiteContext) -> SuiteResult:
    """Runs the suite.

    Raises:
        UnfinishedError: `--minutes` were not enough.
    """
    options = options_of(context.arguments)
    make_world = functools.partial(tinyworld, options.bases)
    if options.models:
        source, following = options.models
        make_world = functools.partial(
            folder_world, source, following, options.data, rank=options.rank
        )
    world = make_world()
    cells = wanted_cells(world, options, quick=context.quick)
    began = time.time()
    delivery = await run_cells(
        make_world,
        cells,
        cache=options.cache,
        earlier=() if context.quick else earlier_rows(RESULTS / "transfer.json"),
        workers=options.workers,
        threads=options.threads,
        deadline=began + 60.0 * options.minutes if options.minutes else float("inf"),
        say=context.say,
    )
    if delivery.left and not delivery.failures:
        raise UnfinishedError(
            f"{delivery.left} of {len(cells)} cells are left; the same command goes on with them"
        )
    samples = max(cell.samples for cell in cells)
    counted = [row for row in delivery.rows if row["split"] == "final"]
    counted = counted if counted and not context.quick else list(delivery.rows)
    arms: list[Row] = [
        {"kind": "arm", **describe({**ARMS, **STUDIES}[name], world)}
        for name in dict.fromkeys(cell.arm for cell in cells)
    ]
    return SuiteResult(
        rows=[*arms, *extra_rows(counted, samples=samples), *delivery.rows],
        summary=summarise(counted, samples=samples) | _facts(world, delivery.rows),
        figure_svg=figure(counted, samples=samples),
        failures=list(delivery.failures),
    )


def wanted_cells(world: World, options: argparse.Namespace, *, quick: bool) -> list[Cell]:
    """Returns the cells of a run.

    Raises:
        ValueError: A task that the world has not.
    """
    arms: Sequence[str] = options.arms or (QUICK_ARMS if quick else TABLE)
    if world.random_inputs is None:
        arms = [arm for arm in arms if arm != "random"]
    final = [name for name, task in world.tasks.items() if task.split == "final"]
    tasks = options.tasks or (QUICK_TASKS if quick and not options.models else final)
    unknown = set(tasks) - set(world.tasks)
    if unknown:
        raise ValueError(f"unknown tasks {', '.join(sorted(unknown))}: this world has {final}")
    seeds = range(1 if quick else options.seeds)
    samples = 32 if quick else options.samples
    cells = [
        Cell(task=task, seed=seed, arm=arm, samples=samples)
        for seed in seeds
        for task in tasks
        for arm in arms
    ]
    if not (quick or options.no_curve or options.arms or options.models):
        cells += [
            Cell(task=task, seed=seed, arm=arm, samples=count)
            for seed in seeds
            for task in CURVE_TASKS
            if task in tasks
            for count in CURVE_SAMPLES
            if count < samples
            for arm in CURVE
        ]
    return cells


def earlier_rows(path: Path) -> list[Row]:
    """Returns the rows of a committed result, so that its cells need not be run again."""
    if not path.is_file():
        return []
    found: list[Row] = json.loads(path.read_text(encoding="utf-8"))["rows"]
    return found


def _facts(world: World, rows: Sequence[Row]) -> dict[str, Any]:
    return {
        "world": world.name,
        "development_tasks": sorted(DEVELOPMENT) if world.name == "tinyworld" else [],
        "cells": len(rows),
        "cpu_hours": round(sum(row["cpu_s"] + row["judge_cpu_s"] for row in rows) / 3600, 2),
    }
