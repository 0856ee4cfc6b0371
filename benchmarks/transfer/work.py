"""Runs cells in worker processes, task by task and seed by seed, until all are done or time is up.

Every finished cell is on the shelf at once: a run that is cut off goes on where it was.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path

import torch
import transformers

from benchmarks import reference
from lorebase.transfer.evaluate import score
from lorebase.transfer.ports import ModelSpec

from .arms import ARMS, Arm
from .cells import Cell, Shelf, cell_key, run_cell
from .rows import Row
from .stage import Bases, Stage, digest_of, revisions_of
from .studies import STUDIES
from .world import World

CHECKED = 12
"""Test examples of each task and seed on which generation is compared with PEFT's own."""
AGREEMENT = 0.95
"""Share that must agree; two tokens that tie within rounding may differ."""
ALL_ARMS: Mapping[str, Arm] = {**ARMS, **STUDIES}


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """Cells of one task and seed, for one worker."""

    cells: tuple[Cell, ...]
    deadline: float
    """Seconds since the epoch after which no further cell is begun."""
    stamp: Row
    """What each row says about the code that made it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """What came of an order."""

    rows: tuple[Row, ...]
    left: int
    """Cells that time was too short for."""
    failures: tuple[str, ...]
    """Correctness gates that did not hold."""


_make_world: Callable[[], World]
_bases: Bases | None = None


def _start(make_world: Callable[[], World], threads: int) -> None:
    global _make_world
    _make_world = make_world
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    torch.set_num_threads(threads)
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]


def _end_with(parent: int) -> None:
    """Ends this process when its parent is gone: nobody would wait for what it makes."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


def _open_bases() -> Bases:
    global _bases
    if _bases is None:
        _bases = Bases(_make_world())
    return _bases


def _fill(order: Order, cache: Path) -> Delivery:
    """Runs an order's cells; in a worker process."""
    if time.time() > order.deadline:
        return Delivery(rows=(), left=len(order.cells), failures=())
    bases = _open_bases()
    first = order.cells[0]
    stage = Stage.of(bases, bases.world.tasks[first.task], first.seed, cache / "stages")
    shelf = Shelf(cache / "cells")
    rows: list[Row] = []
    try:
        failures = check(stage)
        if not failures:
            for cell in order.cells:
                if time.time() > order.deadline:
                    break
                arm = ALL_ARMS[cell.arm]
                key = cell_key(bases.world, bases.revisions, cell, arm)
                row = run_cell(stage, arm, cell.samples)
                row |= {"stage": stage.notes, **order.stamp, "key": key}
                shelf.put(key, row)
                rows.append(row)
    finally:
        stage.close()
    left = len(order.cells) - len(rows)
    return Delivery(rows=tuple(rows), left=left, failures=tuple(failures))


def check(stage: Stage) -> list[str]:
    """The gate before any figure: no test input was trained on, and answers are PEFT's own.

    Its result is kept with the stage.
    """
    task, world = stage.task, stage.bases.world
    passed = stage.folder / f"checked-{digest_of([asdict(one) for one in task.test])}"
    if passed.is_file():
        return []
    where = f"{task.name}, seed {stage.seed}"
    shared = {one.input for one in task.real} & {one.input for one in task.test}
    if shared:
        return [f"{where}: {len(shared)} test inputs are among the real data"]
    items = task.test[:CHECKED]
    prompts = [world.format.prompt(one.input) for one in items]
    tokens = stage.max_answer_tokens
    expected = reference.answers(
        world.source_dir,
        stage.source_adapter,
        prompts,
        stop=world.format.stop,
        max_tokens=tokens,
    )
    found = _answers(stage, stage.cast.teacher, CHECKED)
    same = sum(a == b.strip() for a, b in zip(found, expected, strict=True))
    if same < AGREEMENT * len(items) - 1:
        return [f"{where}: {same} of {len(items)} answers of the source are transformers + PEFT's"]
    passed.touch()
    return []


def _answers(stage: Stage, model: ModelSpec, count: int) -> list[str]:
    return asyncio.run(
        score(
            stage.generator,
            model,
            stage.task.test[:count],
            stage.bases.world.format,
            max_tokens=stage.max_answer_tokens,
        )
    )


def orders_of(cells: Sequence[Cell], *, deadline: float, stamp: Row) -> list[Order]:
    """Returns the cells of each task and seed together: the table's seed by seed, then the curve's.

    So a run that is cut off has whole parts of the table.
    """
    most = max((cell.samples for cell in cells), default=0)

    def turn(cell: Cell) -> tuple[bool, int, str]:
        return cell.samples < most, cell.seed, cell.task

    return [
        Order(cells=tuple(group), deadline=deadline, stamp=stamp)
        for _, group in groupby(sorted(cells, key=turn), key=turn)
    ]


async def run_cells(
    make_world: Callable[[], World],
    cells: Iterable[Cell],
    *,
    cache: Path,
    earlier: Sequence[Row],
    workers: int,
    threads: int,
    deadline: float,
    stamp: Row,
    say: Callable[[str], None],
) -> Delivery:
    """Runs all cells that are not on the shelf.

    Args:
        make_world: makes the world, here and in every worker; must be picklable.
        cells: what is wanted.
        cache: folder that is kept between runs.
        earlier: rows of an earlier result that are as good as finished cells.
        workers: processes.
        threads: of each.
        deadline: seconds since the epoch after which no cell is begun.
        stamp: what new rows say about the code that made them.
        say: prints a line of progress.
    """
    world = make_world()
    revisions = revisions_of(world)
    shelf = Shelf(cache / "cells", earlier)
    rows: list[Row] = []
    missing: list[Cell] = []
    for cell in cells:
        found = shelf.get(cell_key(world, revisions, cell, ALL_ARMS[cell.arm]))
        if found is None:
            missing.append(cell)
        else:
            rows.append(found)
    say(f"{len(rows)} cells are done, {len(missing)} are to do")
    orders = orders_of(missing, deadline=deadline, stamp=stamp)
    left, failures = 0, list[str]()
    if not orders:
        return Delivery(rows=tuple(rows), left=0, failures=())
    pool = ProcessPoolExecutor(
        max_workers=workers,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start,
        initargs=(make_world, threads),
    )
    try:
        loop = asyncio.get_running_loop()
        pending = [loop.run_in_executor(pool, _fill, order, cache) for order in orders]
        for done in asyncio.as_completed(pending):
            delivery = await done
            rows += delivery.rows
            left += delivery.left
            failures += delivery.failures
            if delivery.rows:
                row = delivery.rows[0]
                marks = ", ".join(f"{one['arm']} {one['accuracy']:.2f}" for one in delivery.rows)
                say(f"{row['task']} seed {row['seed']}: {marks}")
    except BaseException:
        # Finished cells are on the shelf; what runs now is not worth waiting for.
        for process in multiprocessing.active_children():
            process.terminate()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    return Delivery(rows=tuple(rows), left=left, failures=tuple(failures))
