"""Suite `transfer`: how much of an adapter's skill each recipe brings to the next base.

For every task and seed: a source adapter and a kit are made from the real data; each arm trains an
adapter of the next base without that data (the oracle with it); all are asked the same test inputs.

Correctness gates: no test input is in the real data; the source adapter answers as transformers +
PEFT do.

Cells are kept under benchmarks/runs/transfer as they are finished, so a run that is cut off or out
of time (`--minutes`) goes on where it was. `--models SOURCE NEXT --data DIR` measures any two bases
on data of your own, `--tuning` the grid of each recipe's training. benchmarks/transfer/README.md
has the rest.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.environment import environment
from benchmarks.suite import SuiteContext, SuiteResult
from benchmarks.transfer.added import added_rows, added_summary
from benchmarks.transfer.arms import ARMS, CURVE, SAMPLES, TABLE
from benchmarks.transfer.batching import batching_rows, batching_summary
from benchmarks.transfer.cells import Cell, describe
from benchmarks.transfer.changes import change_rows, change_summary
from benchmarks.transfer.figures import figure
from benchmarks.transfer.generation import source_digests
from benchmarks.transfer.hops import HOP_ARMS, hop_rows, hop_summary
from benchmarks.transfer.result import extra_rows, summarise
from benchmarks.transfer.rows import Row
from benchmarks.transfer.stage import digest_of
from benchmarks.transfer.studies import (
    CHANGE_SAMPLES,
    CHANGE_SEEDS,
    CHANGES,
    GRID,
    GRID_SAMPLES,
    GRID_SEEDS,
    GRID_TASKS,
    STUDIES,
)
from benchmarks.transfer.tuning import tuning_rows, tuning_summary
from benchmarks.transfer.work import Delivery, run_cells
from benchmarks.transfer.world import DEVELOPMENT, World, folder_world, tinyworld
from examples.tinyworld.places import ROOT

TAKES_ARGUMENTS = True
SEEDS = 3
RUNS = Path(__file__).resolve().parents[1] / "runs" / "transfer"
RESULTS = Path(__file__).resolve().parents[1] / "results"
CURVE_SAMPLES = (16, 32, 64)
# Two with skewed data; two chosen after seeing that five shots do not help there.
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
    add = parser.add_argument
    add("--workers", type=int, default=1, help="processes")
    add("--threads", type=int, default=1, help="of each process")
    add("--minutes", type=float, default=0.0, help="begin no cell after; 0: no end")
    add("--as-is", action="store_true", help="write what is finished when the minutes are over")
    add("--seeds", type=int, default=SEEDS, help="seeds 0 to n - 1")
    add("--samples", type=int, default=SAMPLES, help="examples trained on at most")
    add("--tasks", nargs="+", metavar="TASK", help="instead of the final ones")
    arms = [*ARMS, *STUDIES]
    add("--arms", nargs="+", choices=arms, metavar="ARM", help="instead of the table's")
    add("--no-curve", action="store_true", help="no smaller numbers of samples")
    add("--tuning", action="store_true", help="the grid of each recipe's training, instead")
    add("--studies", action="store_true", help="single changes of our recipe, instead")
    add("--reuse", action="store_true", help="rows of the committed result count as finished")
    add("--bases", type=Path, default=ROOT / "bases", help="of the tiny world")
    add("--third", type=Path, help="only two hops, the second to this base, not back to the source")
    add("--cache", type=Path, default=RUNS, help="where finished cells are kept")
    add("--models", nargs=2, type=Path, metavar=("SOURCE", "NEXT"), help="two other bases")
    add("--data", type=Path, help="<task>/train.jsonl and test.jsonl, with --models")
    add("--rank", type=int, default=8, help="of the source adapters, with --models")
    options = parser.parse_args(list(arguments))
    if bool(options.models) != bool(options.data):
        parser.error("--models and --data go together")
    if (options.tuning or options.studies) and (options.models or options.arms):
        parser.error("--tuning and --studies have arms of their own, for the tiny world")
    return options


async def run(context: SuiteContext) -> SuiteResult:
    """Runs the suite.

    Raises:
        UnfinishedError: `--minutes` were not enough.
    """
    options = options_of(context.arguments)
    make_world = world_maker(options)
    world = make_world()
    cells = wanted_cells(world, options, quick=context.quick)
    name = result_name(options)
    began = time.time()
    delivery = await run_cells(
        make_world,
        cells,
        cache=options.cache,
        earlier=earlier_rows(RESULTS / f"{name}.json") if options.reuse else (),
        workers=options.workers,
        threads=options.threads,
        deadline=began + 60.0 * options.minutes if options.minutes else float("inf"),
        stamp=stamp(),
        say=context.say,
    )
    if delivery.left and not delivery.failures and not options.as_is:
        raise UnfinishedError(
            f"{delivery.left} of {len(cells)} cells are left; the same command goes on with them"
        )
    arms: list[Row] = [
        {"kind": "arm", **describe({**ARMS, **STUDIES}[arm], world)}
        for arm in dict.fromkeys(cell.arm for cell in cells)
    ]
    if options.tuning:
        told = _tuning(world, delivery)
    elif options.studies:
        told = SuiteResult(rows=change_rows(delivery.rows), summary=change_summary(delivery.rows))
    elif _hops_only(options):
        told = _hops(cells, delivery)
    else:
        told = _table(cells, delivery, context.quick)
    shared: list[Row] = []
    if name == "transfer" and not context.quick:
        context.say("measuring what adapters share in one engine")
        shared = await asyncio.to_thread(batching_rows, options.cache / "batching.json")
    return SuiteResult(
        rows=[*arms, *told.rows, *shared, *delivery.rows],
        summary=told.summary | batching_summary(shared) | _facts(world, delivery),
        figure_svg=told.figure_svg,
        failures=list(delivery.failures),
        name=name,
    )


def world_maker(options: argparse.Namespace) -> Callable[[], World]:
    """Returns what makes the world, here and in workers."""
    if not options.models:
        return functools.partial(tinyworld, options.bases, options.third)
    source, following = options.models
    return functools.partial(
        folder_world, source, following, options.data, rank=options.rank, third=options.third
    )


def result_name(options: argparse.Namespace) -> str:
    """Returns the name of the result's files: only a whole run replaces the table's."""
    if options.models:
        return "transfer-models"
    if options.tuning or options.studies:
        return "transfer-tuning" if options.tuning else "transfer-studies"
    if _hops_only(options):
        return "transfer-partial" if options.tasks else "transfer-third"
    whole = not (options.tasks or options.arms or options.no_curve or options.third)
    whole = whole and (options.seeds, options.samples) == (SEEDS, SAMPLES)
    return "transfer" if whole else "transfer-partial"


def stamp() -> Row:
    """Returns what rows say about the code that makes them.

    Returns:
        commit, with a `+` where tracked files differ from it; sources, a digest of what decides
        cells, which says whether they differ where it matters.
    """
    return {"commit": environment()["commit"], "sources": digest_of(source_digests())}


def _table(cells: Sequence[Cell], delivery: Delivery, quick: bool) -> SuiteResult:
    samples = max(cell.samples for cell in cells)
    counted = [row for row in delivery.rows if row["split"] == "final"]
    counted = counted if counted and not quick else list(delivery.rows)
    added = [row for row in delivery.rows if row["split"] == "added"]
    return SuiteResult(
        rows=extra_rows(counted, samples=samples) + added_rows(added, samples=samples),
        summary=summarise(counted, samples=samples) | added_summary(added, samples=samples),
        figure_svg=figure(counted, samples=samples),
    )


def _hops_only(options: argparse.Namespace) -> bool:
    return bool(options.third) and not (options.models or options.arms)


def _hops(cells: Sequence[Cell], delivery: Delivery) -> SuiteResult:
    samples = max(cell.samples for cell in cells)
    return SuiteResult(
        rows=hop_rows(delivery.rows, samples=samples),
        summary=hop_summary(delivery.rows, samples=samples),
    )


def _tuning(world: World, delivery: Delivery) -> SuiteResult:
    return SuiteResult(
        rows=tuning_rows(delivery.rows), summary=tuning_summary(delivery.rows, world)
    )


def wanted_cells(world: World, options: argparse.Namespace, *, quick: bool) -> list[Cell]:
    """Returns the cells of a run.

    Raises:
        ValueError: A task that the world has not.
    """
    if options.tuning:
        return tuning_cells(quick=quick)
    if options.studies:
        return study_cells(quick=quick)
    arms: Sequence[str] = options.arms or (QUICK_ARMS if quick else TABLE)
    if world.random_inputs is None:
        arms = [arm for arm in arms if arm != "random"]
    splits = ("final", "added")
    if _hops_only(options):
        arms, splits = HOP_ARMS, splits[:1]
    final = [name for name, task in world.tasks.items() if task.split in splits]
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
    if not (quick or options.no_curve or options.arms or options.models or options.third):
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


def tuning_cells(*, quick: bool) -> list[Cell]:
    """Returns the cells of `--tuning`: every setting of every recipe, evenly."""
    return [
        Cell(task=task, seed=seed, arm=arm, samples=GRID_SAMPLES)
        for seed in range(1 if quick else GRID_SEEDS)
        for task in (GRID_TASKS[:1] if quick else GRID_TASKS)
        for arms in GRID.values()
        for arm in (list(arms)[:1] if quick else arms)
    ]


def study_cells(*, quick: bool) -> list[Cell]:
    """Returns the cells of `--studies`: our recipe and single changes of it."""
    return [
        Cell(task=task, seed=seed, arm=arm, samples=CHANGE_SAMPLES)
        for seed in range(1 if quick else CHANGE_SEEDS)
        for task in (GRID_TASKS[:1] if quick else GRID_TASKS)
        for arm in ("lorebase", *CHANGES[: 1 if quick else None])
    ]


def earlier_rows(path: Path) -> list[Row]:
    """Returns the rows of a committed result, so that its cells need not be run again."""
    if not path.is_file():
        return []
    found: list[Row] = json.loads(path.read_text(encoding="utf-8"))["rows"]
    return found


def _facts(world: World, delivery: Delivery) -> dict[str, Any]:
    rows = delivery.rows
    return {
        "world": world.name,
        "development_tasks": sorted(DEVELOPMENT) if world.name == "tinyworld" else [],
        "cells": len(rows),
        "cells_left": delivery.left,
        "commits": sorted({row.get("commit", "") for row in rows}),
        "cpu_hours": round(sum(row["cpu_s"] + row["judge_cpu_s"] for row in rows) / 3600, 2),
    }
