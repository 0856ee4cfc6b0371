"""What is in a kit, and how near synthetic inputs come to real ones. Pure but for reading files."""

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rapidfuzz import process
from rapidfuzz.distance import Levenshtein
from scipy.stats import binomtest

from lorebase.serving.artifacts import list_files

from ..ports import Example
from ..synthesis.dedupe import normalise
from .kit import TransferKit
from .storage import KIT_FILE, load_kit

MIN_CHARS = 6
"""Shorter texts occur anywhere by chance."""
MAX_TEXTS = 2_000
MAX_REFERENCES = 10_000
"""More are sampled: 20 million comparisons take some ten seconds."""
NEAR = 0.1
"""Two texts are near when at most this share of their characters differs."""
_ROWS = 256
_PERCENTILES = (0, 1, 5, 25, 50)

Distances = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Closeness:
    """How near texts come to references: edit distance over length, from 0 (equal) to 1."""

    texts: int
    references: int
    copies: int
    """Texts that are a reference, spaces and case aside."""
    near: int
    """Texts within `NEAR` of one, copies among them."""
    percentiles: dict[str, float]
    """Of the distance to the nearest reference."""

    def as_dict(self) -> dict[str, Any]:
        """Returns plain data."""
        return asdict(self)


def contents(kit_dir: Path) -> dict[str, Any]:
    """Returns everything that a kit says, apart from its weights: figures, texts, files.

    Raises:
        InvalidArgumentError: not a kit.
    """
    kit = load_kit(kit_dir)
    return {
        "files": {name: path.stat().st_size for name, path in list_files(kit_dir).items()},
        "seeds": [asdict(seed) for seed in kit.seeds],
        "seeds_are": str(kit.provenance.get("seeds", "real examples")),
        "dataset_name": kit.dataset_name,
        "dataset_size": kit.dataset_size,
        "discriminator": kit.discriminator,
        "real_inputs": list(kit.real_inputs),
        "consent": None if kit.consent is None else asdict(kit.consent),
        "figures": {
            name: getattr(kit, name)
            for name in (
                "threshold",
                "discriminator_auc",
                "real_pass_rate",
                "fake_pass_rate",
                "real_score_quantiles",
                "max_input_chars",
                "max_input_tokens",
                "max_answer_tokens",
            )
        },
        "provenance": dict(kit.provenance),
    }


def exposed(kit_dir: Path, data: Sequence[Example]) -> dict[str, Any]:
    """Looks for real texts in all that a kit says.

    Returns:
        seeds_from_data: seeds that are examples of the data, which is what they are meant to be.
        by_consent: real inputs in the kit that its consent covers; they are no finding.
        beyond_seeds: real inputs or answers (of some length) in any other text of the kit.
    """
    kit = load_kit(kit_dir)
    seeds = {normalise(seed.input) for seed in kit.seeds}
    known = {normalise(item.input) for item in data}
    said = "\n".join(normalise(text) for text in _other_texts(kit_dir))
    # An answer that is a common word of the task's wording gives nobody away.
    looked_for = {
        text: key
        for item in data
        for text in (item.input, item.target)
        if len(key := normalise(text)) >= MIN_CHARS
    }
    return {
        "seeds_from_data": len(seeds & known),
        "by_consent": len({normalise(text) for text in kit.real_inputs} & known),
        "beyond_seeds": sorted(text for text, key in looked_for.items() if key in said),
    }


def _other_texts(kit_dir: Path) -> Iterator[str]:
    """Yields every string of a kit's JSON files but its seeds and what consent covers."""
    for name, path in list_files(kit_dir).items():
        if not name.endswith(".json"):
            continue
        value = json.loads(path.read_text(encoding="utf-8"))
        if name == KIT_FILE:
            value.pop("seeds")
            value.pop("real_inputs", None)
        yield from _strings(value)


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from _strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)


def closeness(texts: Sequence[str], references: Sequence[str], *, seed: int = 0) -> Closeness:
    """Measures how near texts come to references.

    Args:
        texts: synthetic inputs.
        references: real ones.
        seed: of the samples that are taken if there are too many.

    Raises:
        ValueError: one of the two is empty.
    """
    texts, references = _bounded(texts, MAX_TEXTS, seed), _bounded(references, MAX_REFERENCES, seed)
    return _summary(nearest(texts, references), len(references))


def spread(references: Sequence[str], *, seed: int = 0) -> Closeness:
    """Measures how near each reference comes to another one: what is usual in this data."""
    chosen = _bounded(references, MAX_TEXTS, seed)
    if len(chosen) < 2:
        raise ValueError(f"got {len(chosen)} references, expected at least 2")
    found = np.concatenate(
        [nearest([text], chosen[:place] + chosen[place + 1 :]) for place, text in enumerate(chosen)]
    )
    return _summary(found, len(chosen))


def nearest(texts: Sequence[str], references: Sequence[str]) -> Distances:
    """Returns the distance of each text to the nearest reference."""
    if not texts or not references:
        raise ValueError(
            f"got {len(texts)} texts and {len(references)} references, expected some of both"
        )
    keys = [normalise(text) for text in references]
    found = []
    for first in range(0, len(texts), _ROWS):
        rows = [normalise(text) for text in texts[first : first + _ROWS]]
        table = process.cdist(rows, keys, scorer=Levenshtein.normalized_distance, dtype=np.float32)
        found.append(table.min(axis=1))
    return np.concatenate(found)


def preference(
    texts: Sequence[str], seen: Sequence[str], unseen: Sequence[str], *, seed: int = 0
) -> dict[str, Any]:
    """Tests whether texts come nearer to data that was used than to data that was not.

    Both are cut to the same size; ties count half to each. Without memory the share is one half.

    Returns:
        nearer_to_seen: the share.
        p_value: exact binomial, one-sided; small means that something was remembered.
        texts, references: how many were compared.
    """
    size = min(len(seen), len(unseen), MAX_REFERENCES)
    texts = _bounded(texts, MAX_TEXTS, seed)
    to_seen = nearest(texts, _bounded(seen, size, seed))
    to_unseen = nearest(texts, _bounded(unseen, size, seed))
    wins, losses = int((to_seen < to_unseen).sum()), int((to_seen > to_unseen).sum())
    decided = wins + losses
    test: Any = binomtest(wins, decided, 0.5, alternative="greater") if decided else None
    return {
        "nearer_to_seen": round((wins + (len(texts) - decided) / 2) / len(texts), 4),
        "p_value": float(test.pvalue) if test is not None else 1.0,
        "texts": len(texts),
        "references": size,
    }


def seeds_of(kit: TransferKit) -> list[str]:
    """Returns the inputs of a kit's seeds."""
    return [seed.input for seed in kit.seeds]


def _bounded(texts: Sequence[str], most: int, seed: int) -> list[str]:
    if len(texts) <= most:
        return list(texts)
    return random.Random(f"audit|{seed}").sample(list(texts), most)


def _summary(distances: Distances, references: int) -> Closeness:
    values = np.percentile(distances, _PERCENTILES)
    return Closeness(
        texts=len(distances),
        references=references,
        copies=int((distances == 0).sum()),
        near=int((distances <= NEAR).sum()),
        percentiles={
            f"p{percent}": round(float(value), 4)
            for percent, value in zip(_PERCENTILES, values, strict=True)
        },
    )
