"""What a further attempt takes over from the one before: filtered inputs, labelled examples."""

import math
import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

from lorebase.serving.artifacts import ArtifactStore
from lorebase.serving.catalog.records import Migration
from lorebase.transfer.kit.scrub import diverse
from lorebase.transfer.ports import Example

from .advance import CARRIED, CARRIED_INPUTS

CANDIDATES = 200
"""Examples among which extra seeds are chosen: comparing them all with each other takes a while."""


def former_labels(migration: Migration, store: ArtifactStore) -> dict[str, Any] | None:
    """Returns the label artifact of the attempt before; None if it did not come that far."""
    digest = migration.artifacts.get(CARRIED)
    found: dict[str, Any] | None = None if digest is None else store.get_json(digest)
    return found


def carried_examples(migration: Migration, store: ArtifactStore) -> list[Example]:
    """Returns all examples of the attempt before, those that were held out included.

    The new attempt trains a new shadow and draws its own held-out part, so none of them has
    been seen by what is judged.
    """
    former = former_labels(migration, store)
    if former is None:
        return []
    return [Example(**item) for item in (*former["training"], *former["held_out"])]


def carried_inputs(migration: Migration, store: ArtifactStore) -> list[str]:
    """Returns the filtered inputs of earlier attempts that starved before they were labelled."""
    digest = migration.artifacts.get(CARRIED_INPUTS)
    return [] if digest is None else list(store.get_json(digest)["kept"])


def extra_seeds(migration: Migration, store: ArtifactStore, count: int, seed: int) -> list[Example]:
    """Returns up to `count` examples of the attempt before that show the task beside the seeds.

    They have passed the filter and have the teacher's answers. Those that are chosen differ as
    much as can be, and no answer has more than its part of them: an attempt that failed may have
    seen too little of the task.
    """
    known = carried_examples(migration, store)
    if not known or count < 1:
        return []
    random.Random(f"extra|{seed}").shuffle(known)
    answers = len({example.target for example in known[:CANDIDATES]})
    most = math.ceil(count / answers)
    seen: Counter[str] = Counter()
    candidates = []
    for example in known[:CANDIDATES]:
        seen[example.target] += 1
        if seen[example.target] <= most:
            candidates.append(example)
    return diverse(candidates, count)


def merge_examples(former: Sequence[Example], new: Sequence[Example]) -> list[Example]:
    """Joins the examples of two attempts; of an input that is in both, the first label stays."""
    merged = {example.input: example for example in reversed((*former, *new))}
    return list(reversed(merged.values()))
