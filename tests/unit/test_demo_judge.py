"""What the outside judge asks, and how live texts are checked."""

import json
from pathlib import Path

import pytest

from benchmarks.load.records import RequestRecord
from examples.tinyworld.demo.judge import (
    Candidate,
    compare_texts,
    conditions,
    difference,
    scores,
)
from tests.unit.demo_samples import record

EXAMPLES = (("one", "1"), ("two", "2"))


def answer(version: str, example: int, text: str, **changes: object) -> RequestRecord:
    return record(
        0.0, "a/x", version=version, example=example, text=text, correct=text == "1", **changes
    )


def test_four_conditions_ask_the_same_examples() -> None:
    candidate = Candidate(
        name="a/x",
        examples=EXAMPLES,
        seeds=(("zero", "0"),),
        source_version="v-1",
        shadow_version="v-2",
    )
    found = conditions(candidate, "next")
    assert {name: load.model for name, load in found.items()} == {
        "bare": "next",
        "few_shot": "next",
        "source": "a/x@v-1",
        "shadow": "a/x@v-2",
    }
    assert found["bare"].prompts[1] == "Input: two\nOutput:"
    assert found["few_shot"].prompts[1] == "Input: zero\nOutput: 0\n\nInput: two\nOutput:"
    assert found["shadow"].adapter == "a/x"
    assert found["bare"].adapter == ""


def test_without_a_shadow_it_is_not_measured() -> None:
    candidate = Candidate(
        name="a/x", examples=EXAMPLES, seeds=(), source_version="v-1", shadow_version=""
    )
    assert "shadow" not in conditions(candidate, "next")
    assert difference({"source": [answer("v-1", 0, "1")]}) is None


def test_accuracy_and_paired_difference_come_from_the_records() -> None:
    answers = {
        "source": [answer("v-1", 0, "1"), answer("v-1", 1, "1")],
        "shadow": [answer("v-2", 0, "1"), answer("v-2", 1, "x")],
    }
    assert {name: s.value for name, s in scores(answers).items()} == {"source": 1.0, "shadow": 0.5}
    found = difference(answers)
    assert found is not None
    assert found.value == -0.5


def test_live_texts_are_compared_with_the_version_that_they_name() -> None:
    pinned = {
        "a/x": {
            "source": [answer("v-1", 0, "old"), answer("v-1", 1, "same")],
            "shadow": [answer("v-2", 0, "new"), answer("v-2", 1, "same")],
        }
    }
    live = [
        answer("v-1", 0, "old"),
        answer("v-2", 0, "new"),
        answer("v-2", 0, "old"),  # says v-2, talks like v-1
        answer("v-2", 0, "noise"),
        answer("v-1", 1, "same"),
        answer("v-3", 0, "unknown version: not comparable"),
        answer("v-1", 0, "", code="UNAVAILABLE"),
    ]
    found = compare_texts(live, pinned)
    assert (found.compared, found.as_pinned, found.of_other_version) == (5, 3, 1)


def test_the_judges_questions_must_not_be_in_the_evaluation_set(tmp_path: Path) -> None:
    from examples.tinyworld.demo.world import find_adapters

    folder = tmp_path / "a__x"
    (folder / "adapter").mkdir(parents=True)
    (folder / "train_meta.json").write_text(json.dumps({"adapter": "a/x", "family": "f"}))
    (folder / "adapter" / "adapter_config.json").write_text(json.dumps({"r": 4}))
    row = json.dumps({"input": "seen by both", "target": "1"})
    (folder / "heldout.jsonl").write_text(row + "\n")
    (folder / "evaluation.jsonl").write_text(row + "\n")
    with pytest.raises(ValueError, match="outside judge needs data of its own"):
        find_adapters(tmp_path)


def test_a_missing_adapter_is_named(tmp_path: Path) -> None:
    from examples.tinyworld.demo.world import find_adapters

    with pytest.raises(FileNotFoundError, match="expected a/missing, found none"):
        find_adapters(tmp_path, only=("a/missing",))
