"""One cell of the table: a task, a seed, an arm and a number of samples; run, keyed, kept."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from .arms import Arm
from .generation import generation_of
from .held_out import label_free
from .metered import Spent
from .moves import move
from .rows import Row, to_hex
from .stage import Stage, digest_of, stage_key
from .world import World


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """What is measured once."""

    task: str
    seed: int
    arm: str
    samples: int
    """Examples that may be trained on at most; an arm that trains nothing ignores it."""


def cell_key(world: World, revisions: dict[str, str], cell: Cell, arm: Arm) -> str:
    """Returns a digest of all that decides the cell's row."""
    task = world.tasks[cell.task]
    bases = [world.next_id, *([world.further_id] if arm.hops > 1 else [])]
    return digest_of(
        generation_of(arm.name),
        stage_key(world, revisions, task, cell.seed),
        [asdict(one) for one in task.test],
        world.held_out,
        [revisions[base] for base in bases],
        arm.tuned(world).identity(),
        cell.samples,
    )


def run_cell(stage: Stage, arm: Arm, samples: int) -> Row:
    """Trains the arm's adapter, if any, and asks it the test examples.

    Returns:
        The row: accuracy, which answers are right, what it was trained on, what it cost, and of
        adapters of the next base how they agree with the source adapter on held-out inputs.
    """
    arm = arm.tuned(stage.bases.world)
    row: Row = {
        "task": stage.task.name,
        "seed": stage.seed,
        "arm": arm.name,
        "samples": samples,
        "split": stage.task.split,
        "skewed": stage.task.skewed,
        "benchmark": stage.task.benchmark,
        "generation": generation_of(arm.name),
    }
    if arm.recipe is None:
        shots = stage.kit.seeds if arm.name == "few-shot" else ()
        model = stage.cast.teacher if arm.name == "source" else stage.cast.next_base
        before = stage.generator.reading()
        right = stage.right(model, shots)
        return row | _scores(right) | _costs(Spent(), stage.generator.reading().minus(before), {})
    moved = move(stage, arm, samples)
    before = stage.generator.reading()
    right = stage.right(moved.model)
    judged = stage.generator.reading().minus(before)
    row |= _scores(right) | moved.figures | _costs(moved.gathered, judged, moved.figures)
    if arm.hops == 1:
        row["label_free"] = label_free(stage, arm, moved)
    return row


def _scores(right: Sequence[bool]) -> Row:
    return {
        "accuracy": round(sum(right) / len(right), 4),
        "n": len(right),
        "right": to_hex(right),
    }


def _costs(gathered: Spent, judged: Spent, figures: Row) -> Row:
    trained = figures.get("train_cpu_s", 0.0) + figures.get("carry_cpu_s", 0.0)
    return {
        "gather_cpu_s": round(gathered.cpu_s, 2),
        "gather_fresh_cpu_s": round(gathered.fresh_cpu_s, 2),
        "judge_cpu_s": round(judged.cpu_s, 2),
        "cpu_s": round(gathered.cpu_s + trained, 2),
        "tokens_read": gathered.tokens_read,
        "tokens_written": gathered.tokens_written,
        "tokens_trained": figures.get("train", {}).get("tokens", 0),
    }


class Shelf:
    """Finished cells: files in a folder, and the rows of an earlier result."""

    def __init__(self, folder: Path, earlier: Sequence[Row] = ()) -> None:
        self._folder = folder
        self._earlier = {row["key"]: row for row in earlier if "key" in row}

    def get(self, key: str) -> Row | None:
        """Returns a finished cell's row."""
        path = self._folder / f"{key}.json"
        if path.is_file():
            found: Row = json.loads(path.read_text(encoding="utf-8"))
            return found
        return self._earlier.get(key)

    def put(self, key: str, row: Row) -> None:
        """Keeps a row."""
        self._folder.mkdir(parents=True, exist_ok=True)
        partial = self._folder / f".{key}.partial"
        partial.write_text(json.dumps(row | {"key": key}), encoding="utf-8")
        partial.replace(self._folder / f"{key}.json")


def describe(arm: Arm, world: World) -> Row:
    """Returns the arm's recipe as it was run, for the result file."""
    tuned = arm.tuned(world)
    return {"arm": arm.name, "label": arm.label, "data": arm.data} | (
        {"recipe": asdict(tuned.recipe)} if tuned.recipe else {}
    )
