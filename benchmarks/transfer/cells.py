"""One cell of the table: a task, a seed, an arm and a number of samples; run, keyed, kept."""

from __future__ import annotations

import asyncio
import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from lorebase.serving.artifacts import base_shapes
from lorebase.transfer.kit import TransferKit
from lorebase.transfer.ports import Example
from lorebase.transfer.recipes.models import Shadow
from lorebase.transfer.recipes.recipe import Recipe
from lorebase.transfer.recipes.run import gather_examples
from lorebase.transfer.recipes.shadow import train_shadow
from lorebase.transfer.synthesis import label_inputs

from .arms import Arm
from .metered import Spent
from .stage import Stage, digest_of, stage_key
from .world import World

Row = dict[str, Any]


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
    return digest_of(
        stage_key(world, revisions, task, cell.seed),
        [asdict(one) for one in task.test],
        revisions[world.next_id],
        arm.tuned(world).identity(),
        cell.samples,
    )


def run_cell(stage: Stage, arm: Arm, samples: int) -> Row:
    """Trains the arm's adapter, if any, and asks it the test examples.

    Returns:
        The row: accuracy, which answers are right, what it was trained on and what it cost.
    """
    arm = arm.tuned(stage.bases.world)
    before = stage.generator.reading()
    row: Row = {
        "task": stage.task.name,
        "seed": stage.seed,
        "arm": arm.name,
        "samples": samples,
        "split": stage.task.split,
        "skewed": stage.task.skewed,
        "benchmark": stage.task.benchmark,
    }
    if arm.recipe is None:
        shots = stage.kit.seeds if arm.name == "few-shot" else ()
        model = stage.cast.teacher if arm.name == "source" else stage.cast.next_base
        right = stage.right(model, shots)
        trained: Row = {}
        asked = before
    else:
        examples, about = examples_of(stage, arm, samples)
        asked = stage.generator.reading()
        shutil.rmtree(stage.folder / "shadow", ignore_errors=True)
        trained = {"data": about, **_train(stage, arm.recipe, examples)}
        right = stage.right(stage.spec(stage.bases.world.next_id, stage.folder / "shadow"))
    return row | _scores(stage, right) | trained | _costs(stage, before, asked, trained)


def examples_of(stage: Stage, arm: Arm, samples: int) -> tuple[list[Example], Row]:
    """Returns what the arm trains on, and figures about it."""
    assert arm.recipe is not None, "arms that train have a recipe"
    real = [one for one in stage.task.real if one not in stage.kit.seeds]
    count = min(samples, len(stage.task.real))
    if arm.data == "seeds":
        return list(stage.kit.seeds), {"examples": len(stage.kit.seeds)}
    if arm.data == "real":
        chosen = [*stage.kit.seeds, *real][:count]
        return chosen, {"examples": len(chosen)}
    kit = seeds_alone(stage.kit) if arm.legacy else stage.kit
    if arm.data == "random":
        draw = stage.bases.world.random_inputs
        if draw is None:
            raise ValueError("this world has no random inputs: leave the arm out")
        labelled = asyncio.run(
            label_inputs(stage.generator, stage.cast.teacher, kit, draw(count, stage.seed))
        )
        examples, about = labelled.examples, labelled.stats
    else:
        gathered = asyncio.run(
            gather_examples(
                arm.recipe, stage.generator, stage.cast, kit, count=count, seed=stage.seed
            )
        )
        examples, about = gathered.examples, gathered.stats
    test = {one.input.strip() for one in stage.task.test}
    overlap = sum(one.input.strip() in test for one in examples)
    return examples, {"examples": len(examples), "in_test": overlap, **about}


def seeds_alone(kit: TransferKit) -> TransferKit:
    """Returns what is known of the data without a kit: its seeds and their lengths."""
    longest = max(len(seed.input) for seed in kit.seeds)
    return replace(
        kit,
        discriminator_auc=0.5,
        dataset_size=len(kit.seeds),
        real_score_quantiles=(),
        max_input_chars=2 * longest,
    )


def _train(stage: Stage, recipe: Recipe, examples: Sequence[Example]) -> Row:
    world = stage.bases.world
    model, tokenizer = stage.bases.next
    source = stage.task.lora
    shadow = Shadow(
        model=model,
        tokenizer=tokenizer,
        base_id=world.next_id,
        lora=recipe.lora.settings(
            rank=source.rank,
            alpha=source.alpha,
            source_modules=source.target_modules,
            base=tuple(base_shapes(world.next_dir).modules),
        ),
        format=world.format,
        max_answer_tokens=stage.kit.max_answer_tokens,
    )
    began = time.process_time()
    figures = train_shadow(
        recipe,
        shadow,
        examples,
        teacher=lambda: stage.teacher,
        out_dir=stage.folder / "shadow",
        seed=stage.seed,
    )
    train = figures["train"]
    return {
        "train": {key: train[key] for key in ("steps", "examples", "tokens", "last_loss")},
        "selection": figures["selection"],
        "on_policy": figures["on_policy"],
        "train_cpu_s": round(time.process_time() - began, 2),
    }


def _scores(stage: Stage, right: Sequence[bool]) -> Row:
    return {
        "accuracy": round(sum(right) / len(right), 4),
        "n": len(right),
        "right": to_hex(right),
    }


def _costs(stage: Stage, before: Spent, asked: Spent, trained: Row) -> Row:
    end = stage.generator.reading()
    gathered, judged = asked.minus(before), end.minus(asked)
    return {
        "gather_cpu_s": round(gathered.cpu_s, 2),
        "gather_fresh_cpu_s": round(gathered.fresh_cpu_s, 2),
        "judge_cpu_s": round(judged.cpu_s, 2),
        "cpu_s": round(gathered.cpu_s + trained.get("train_cpu_s", 0.0), 2),
        "tokens_read": gathered.tokens_read,
        "tokens_written": gathered.tokens_written,
        "tokens_trained": trained.get("train", {}).get("tokens", 0),
    }


def to_hex(right: Sequence[bool]) -> str:
    """Packs judgements into hexadecimal digits, four a digit, the first highest."""
    bits = "".join("01"[one] for one in right)
    return f"{int(bits or '0', 2):0{-(-len(right) // 4)}x}" if right else ""


def from_hex(text: str, n: int) -> list[bool]:
    """Unpacks `n` judgements."""
    return [bit == "1" for bit in f"{int(text, 16):0{n}b}"] if n else []


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
