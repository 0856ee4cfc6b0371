"""What a further attempt takes over from the one before."""

from collections import Counter
from dataclasses import asdict
from pathlib import Path

from lorebase.serving.artifacts import ArtifactStore
from lorebase.serving.catalog.records import Migration
from lorebase.transfer.ports import Example
from lorebase.transfer.upgrade.advance import CARRIED
from lorebase.transfer.upgrade.carry import extra_seeds

from .upgrade_samples import sample_migration


def carried(store: ArtifactStore, examples: list[Example]) -> Migration:
    rows = [asdict(example) for example in examples]
    digest = store.put_json({"training": rows[:-3], "held_out": rows[-3:], "pass_rate": 1.0})
    return sample_migration(artifacts={CARRIED: digest})


def test_extra_seeds_differ_and_no_answer_has_more_than_its_part(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    examples = [
        Example(
            input=f"{number * 7919:09d} of {number}", target="rare" if number % 20 == 0 else "usual"
        )
        for number in range(120)
    ]
    record = carried(store, examples)
    chosen = extra_seeds(record, store, 10, seed=1)
    assert len(chosen) == len(set(chosen)) == 10
    assert set(chosen) <= set(examples)
    assert Counter(item.target for item in chosen) == {"usual": 5, "rare": 5}
    assert extra_seeds(record, store, 10, seed=1) == chosen
    assert extra_seeds(record, store, 10, seed=2) != chosen


def test_a_first_attempt_has_no_extra_seeds(tmp_path: Path) -> None:
    assert extra_seeds(sample_migration(), ArtifactStore(tmp_path), 10, seed=1) == []
