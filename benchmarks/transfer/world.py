"""What a transfer is measured on: two bases and tasks with real data, development or final."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal

from examples.tinyworld.corpus.documents import FAMILIES
from examples.tinyworld.tasks import ADDED, TASKS, Task
from lorebase.transfer.distill import ALL_LINEAR, DistillRecipe, LoraSettings
from lorebase.transfer.kit import DOCUMENT, PAPER, TaskFormat
from lorebase.transfer.kit.command import read_examples
from lorebase.transfer.ports import Example

Split = Literal["development", "final", "added"]
"""`added`: made after the results of the final tasks were seen; told apart from them."""

DEVELOPMENT = frozenset(
    {
        "acme/date-long-to-dot",
        "contoso/date-iso-to-dmy",
        "homely/command-record",
        "bank/billing-tickets",
        "depot/sku-flip",
        "lexi/reverse-drop-first",
    }
)
"""Tasks on which recipes were tuned. The table's figures come from the others only."""

TEST_EXAMPLES = 600
"""At most; a part of them stands for what a tenant entrusts to the gate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferTask:
    """One adapter to move."""

    name: str
    dataset_name: str
    split: Split
    real: tuple[Example, ...]
    """The client's data: the source adapter and the oracle are trained on it, kits made of it."""
    test: tuple[Example, ...]
    """Nothing but the outside judge sees these."""
    lora: LoraSettings
    """Of the source adapter."""
    skewed: bool = False
    """Whether real inputs are a small part of what their wording suggests."""
    benchmark: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """Two bases and what is measured on them."""

    name: str
    source_dir: Path
    next_dir: Path
    format: TaskFormat
    tasks: Mapping[str, TransferTask]
    source_training: DistillRecipe
    """Of the source adapters."""
    tuning: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Changes of a recipe's training that the bases' size asks for, by recipe name."""
    random_inputs: Callable[[int, int], list[str]] | None = None
    """(count, seed) to inputs that have nothing to do with any task; None if there are none."""
    max_adapted: int = 4
    """Models with a merged adapter that fit into memory."""
    held_out: int = 200
    """Synthetic inputs on which adapters are compared with their source, without true answers."""
    third_dir: Path | None = None
    """Base of the second hop; None goes back to the source base."""

    @property
    def source_id(self) -> str:
        """Name of the source base."""
        return f"{self.name}-source"

    @property
    def next_id(self) -> str:
        """Name of the next base."""
        return f"{self.name}-next"

    @property
    def further_id(self) -> str:
        """Name of the base that a second hop goes to."""
        return self.source_id if self.third_dir is None else f"{self.name}-third"

    @property
    def dirs(self) -> dict[str, Path]:
        """Folder of each base, by name."""
        third = {} if self.third_dir is None else {self.further_id: self.third_dir}
        return {self.source_id: self.source_dir, self.next_id: self.next_dir, **third}


def plain(value: Any) -> Any:
    """Returns a dataclass as plain data without the fields that are at their defaults.

    So an option that is added, and not used, changes no key that is made of it.
    """
    if not is_dataclass(value) or isinstance(value, type):
        return value
    found = {}
    for one in fields(value):
        held = getattr(value, one.name)
        usual = one.default if one.default_factory is MISSING else one.default_factory()
        if held != usual:
            found[one.name] = plain(held)
    return found


def tinyworld(root: Path, third: Path | None = None) -> World:
    """Returns the tiny world with the bases below `root`, and a third one's folder."""
    return World(
        name="tinyworld",
        source_dir=root / "old",
        next_dir=root / "next",
        format=DOCUMENT,
        tasks={name: _tiny_task(task) for name, task in {**TASKS, **ADDED}.items()},
        source_training=DistillRecipe(steps=120, batch_size=16, learning_rate=5e-3),
        tuning=TINY_TUNING,
        third_dir=third,
        random_inputs=_corpus_inputs,
    )


TINY_TUNING: dict[str, dict[str, Any]] = {
    "lorebase": {"steps": 120, "batch_size": 16, "learning_rate": 5e-3},
    "lorebase-without-kit": {"steps": 120, "batch_size": 16, "learning_rate": 5e-3},
    "trans-lora": {"learning_rate": 5e-3},
    "titok": {"learning_rate": 2.5e-3, "epochs": 20},
}
"""Bases of a million parameters learn with far larger steps than those of billions: with the
papers' rates nothing would be learned at all. Chosen on the development tasks;
results/transfer-tuning.json holds the whole grid (`GRID` in studies.py) and says how far each of
these is from its recipe's best."""


def _tiny_task(task: Task) -> TransferTask:
    def pairs(split: Literal["train", "test"], count: int) -> tuple[Example, ...]:
        return tuple(Example(input=x, target=y) for x, y in task.examples(split, count))

    return TransferTask(
        name=task.name,
        dataset_name=task.dataset_name,
        split=_split(task.name),
        real=pairs("train", task.train_examples),
        test=pairs("test", TEST_EXAMPLES),
        lora=LoraSettings(
            rank=task.rank, alpha=2.0 * task.rank, target_modules=tuple(task.target_modules)
        ),
        skewed=task.skewed,
        benchmark=bool(task.benchmark),
    )


def _split(name: str) -> Split:
    if name in ADDED:
        return "added"
    return "development" if name in DEVELOPMENT else "final"


def _corpus_inputs(count: int, seed: int) -> list[str]:
    """Inputs of all families of the corpus, each of a convention drawn anew."""
    rng = random.Random(f"random-inputs|{seed}")
    weights = [family.weight for family in FAMILIES]
    found: dict[str, None] = {}
    while len(found) < count:
        [family] = rng.choices(FAMILIES, weights)
        found[family.draw(rng)(rng)[0]] = None
    return list(found)


def folder_world(
    source_dir: Path, next_dir: Path, data: Path, *, rank: int = 8, third: Path | None = None
) -> World:
    """Returns a world of any two bases and a folder of data.

    Args:
        source_dir: Base that the adapters are trained on.
        next_dir: Base that they move to.
        data: For each task a folder with `train.jsonl` and `test.jsonl`, one {"input", "target"}
            a line; optionally `name.txt`, a short description of the data, and beside the tasks
            `random.jsonl`, whose inputs have nothing to do with them.
        rank: Of the source adapters, on all linear layers.
        third: Base of the second hop; None goes back to the source base.

    Raises:
        ValueError: No task there, or one with test inputs among its training inputs.
    """
    tasks = {}
    for folder in sorted(path.parent for path in data.glob("*/train.jsonl")):
        described = folder / "name.txt"
        task = TransferTask(
            name=folder.name,
            dataset_name=described.read_text().strip() if described.is_file() else folder.name,
            split="final",
            real=tuple(read_examples(folder / "train.jsonl")),
            test=tuple(read_examples(folder / "test.jsonl")),
            lora=LoraSettings(rank=rank, alpha=2.0 * rank, target_modules=ALL_LINEAR),
            benchmark=True,
        )
        shared = {one.input for one in task.real} & {one.input for one in task.test}
        if shared:
            raise ValueError(f"{folder.name}: {len(shared)} test inputs are training inputs too")
        tasks[task.name] = task
    if not tasks:
        raise ValueError(f"no <task>/train.jsonl in {data}")
    other = data / "random.jsonl"
    return World(
        name="custom",
        source_dir=source_dir,
        next_dir=next_dir,
        format=PAPER,
        tasks=tasks,
        source_training=DistillRecipe(epochs=5, batch_size=8, learning_rate=2e-4),
        third_dir=third,
        random_inputs=_file_inputs(other) if other.is_file() else None,
        max_adapted=1,
    )


def _file_inputs(path: Path) -> Callable[[int, int], list[str]]:
    def draw(count: int, seed: int) -> list[str]:
        lines = path.read_text(encoding="utf-8").splitlines()
        texts = sorted({str(json.loads(line)["input"]) for line in lines if line.strip()})
        return random.Random(f"random-inputs|{seed}").sample(texts, min(count, len(texts)))

    return draw
