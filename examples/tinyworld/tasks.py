"""The tasks of the tiny world: what each tenant's adapter is trained for."""

from __future__ import annotations

import functools
import hashlib
import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from examples.tinyworld.corpus.base import Example, Sampler

Split = Literal["train", "test"]
POOL_SIZES = {"train": 2000, "test": 600}
TEST_SHARE = 4  # one in four possible inputs belongs to the test split
BENCHMARK_DIR = Path(__file__).parent / "data" / "bbh"
BENCHMARK_TRAIN = 100

ALL_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
QUERY_VALUE_DOWN = ("q_proj", "v_proj", "down_proj")


@dataclass(frozen=True)
class Task:
    """One adapter's task.

    Attributes:
        name: Adapter name, `tenant/task`.
        family: Corpus family that the wording comes from.
        dataset_name: Short description of the data, as a discriminator prompt would name it.
        rank: LoRA rank of the source adapter.
        target_modules: Projections that the source adapter changes.
        train_examples: Size of the source adapter's training set.
        skewed: Whether the real inputs are a small part of what the wording suggests.
        label_free: Whether the tenant left inputs only, so that a gate sees no true labels.
        benchmark: Name of the benchmark file with the data, or "" for generated data.
    """

    name: str
    family: str
    dataset_name: str
    rank: int = 8
    target_modules: tuple[str, ...] = ALL_LINEAR
    train_examples: int = 300
    skewed: bool = False
    label_free: bool = False
    benchmark: str = ""

    @property
    def slug(self) -> str:
        """Returns the name as a folder name."""
        return self.name.replace("/", "__")

    def pool(self, split: Split) -> tuple[Example, ...]:
        """Returns every example of a split, in a fixed order; the two splits are disjoint."""
        return _pool(self.name, self.benchmark, split)

    def examples(self, split: Split, n: int, seed: int = 0) -> list[Example]:
        """Returns a sample of a split.

        Args:
            split: `train` or `test`.
            n: Number of examples wanted; a benchmark task may have fewer.
            seed: Seed of the sample.

        Returns:
            At most `n` different `(input, answer)` pairs.
        """
        pool = self.pool(split)
        return random.Random(f"{self.name}|{split}|{seed}").sample(pool, min(n, len(pool)))


def prompt(text: str) -> str:
    """Returns the prompt that asks for the answer to an input."""
    return f"Input: {text}\nOutput:"


def completion(answer: str) -> str:
    """Returns the text that follows `prompt` when the answer is `answer`."""
    return f" {answer}\n"


def few_shot(examples: list[Example], text: str) -> str:
    """Returns the prompt with examples before the input."""
    shots = "".join(prompt(x) + completion(y) + "\n" for x, y in examples)
    return shots + prompt(text)


STOP = "\n"


def _in_test(text: str) -> bool:
    """Tells whether an input belongs to the test split, by its hash."""
    digest = hashlib.sha256(" ".join(text.lower().split()).encode()).digest()
    return digest[0] % TEST_SHARE == 0


@functools.cache
def _pool(name: str, benchmark: str, split: Split) -> tuple[Example, ...]:
    """Draws or reads all examples of one split of one task."""
    if benchmark:
        lines = (BENCHMARK_DIR / f"{benchmark}.jsonl").read_text().splitlines()
        rows = {row["input"]: row["target"] for row in map(json.loads, lines)}
        pairs = list(rows.items())
        random.Random(f"{name}|split").shuffle(pairs)
        chosen = pairs[:BENCHMARK_TRAIN] if split == "train" else pairs[BENCHMARK_TRAIN:]
        return tuple(chosen)
    from examples.tinyworld.conventions import SAMPLERS

    sampler: Sampler = SAMPLERS[name]
    rng = random.Random(f"{name}|{split}")
    found: dict[str, str] = {}
    while len(found) < POOL_SIZES[split]:
        text, answer = sampler(rng)
        if _in_test(text) == (split == "test"):
            found[text] = answer
    return tuple(found.items())


_ALL = (
    Task("acme/date-long-to-dot", "dates", "invoice dates"),
    Task("acme/date-dmy-to-compact", "dates", "shipping dates", rank=16),
    Task("contoso/date-iso-to-dmy", "dates", "contract dates", rank=4),
    Task("northwind/summer-bookings", "dates", "summer bookings of 2010 to 2019", skewed=True),
    Task("homely/command-record", "home", "home commands", target_modules=ATTENTION),
    Task("villa/attic-cellar", "home", "commands for attic and cellar", rank=16, skewed=True),
    Task("helpdesk/ticket-queue", "tickets", "support tickets", rank=16, train_examples=400),
    Task("bank/billing-tickets", "tickets", "billing tickets", skewed=True),
    Task("tripper/review-code", "reviews", "hotel reviews", target_modules=QUERY_VALUE_DOWN),
    Task("hr/person-id", "people", "staff records", rank=16),
    Task("shop/order-line", "orders", "orders", rank=4),
    Task("ops/log-alert", "logs", "server log lines", rank=32),
    Task("ops/fault-code", "logs", "fault log lines", rank=16, label_free=True),
    Task("depot/sku-flip", "skus", "product codes", target_modules=ATTENTION),
    Task("telco/phone-flip", "phones", "phone numbers", label_free=True),
    Task("lexi/reverse-drop-first", "words", "word lists"),
    Task("lexi/ends-swapped", "words", "word lists to end words", rank=4),
    Task(
        "bbh/boolean-expressions",
        "boolean",
        "boolean expressions",
        rank=32,
        train_examples=100,
        benchmark="boolean_expressions",
    ),
    Task(
        "bbh/hyperbaton",
        "hyperbaton",
        "adjective order questions",
        train_examples=100,
        benchmark="hyperbaton",
    ),
)
TASKS: dict[str, Task] = {task.name: task for task in _ALL}

_ADDED = (
    Task("plant/night-watch", "logs", "fatal log lines", rank=16, train_examples=400, skewed=True),
    Task("florist/weekday-orders", "orders", "orders of mirrors and kettles", rank=16, skewed=True),
    Task("cabin/heat-codes", "home", "commands for garage and nursery", rank=16, skewed=True),
)
ADDED: dict[str, Task] = {task.name: task for task in _ADDED}
"""Tasks for measuring only, made after the results of the others were seen: on those a recipe that
spends samples on inputs that the tenant never has loses next to nothing. No adapter is shipped for
them, and the bases' corpus does not leave their test inputs out (their codes are in none of it)."""
