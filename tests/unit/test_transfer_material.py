import json
import random
from pathlib import Path

import pytest

from lorebase.serving.errors import InvalidArgumentError
from lorebase.transfer.kit import DOCUMENT
from lorebase.transfer.kit.command import read_examples, run
from lorebase.transfer.kit.kit import MAX_TEXT_CHARS
from lorebase.transfer.kit.material import (
    data_fingerprint,
    discriminator_pairs,
    length_limits,
    split_held_out,
    unique_examples,
    without_real,
)
from lorebase.transfer.ports import Example

DATA = [Example(input=f"input {n}", target=f"answer {n}") for n in range(40)]


def test_repeated_inputs_count_once() -> None:
    assert unique_examples(DATA + DATA[:5], seeds=5) == DATA


@pytest.mark.parametrize(
    ("examples", "seeds", "message"),
    [
        (DATA[:10], 5, "got 10 different examples"),
        (DATA, 14, "at least 42"),
        (DATA, 0, "got 0 seeds"),
        (DATA, 17, "got 17 seeds"),
        ([*DATA, Example(input=" ", target="x")], 5, "example 40 has an empty"),
        ([*DATA, Example(input="y", target="x" * (MAX_TEXT_CHARS + 1))], 5, "longer than"),
    ],
)
def test_data_that_makes_no_kit_is_refused(
    examples: list[Example], seeds: int, message: str
) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        unique_examples(examples, seeds=seeds)


def test_limits_leave_room_above_the_longest_real_texts() -> None:
    examples = [Example(input="ab cd ef", target="x"), Example(input="a", target="x y")]
    limits = length_limits(examples, lambda text: len(text.split()), headroom=1.5)
    assert limits == {
        "max_input_chars": 12,
        "max_input_tokens": 17,
        "max_answer_tokens": 15,
    }


def test_held_out_and_training_share_nothing() -> None:
    training, held = split_held_out([str(n) for n in range(10)], 0.25)
    assert (len(training), len(held)) == (8, 2)
    assert sorted(training + held) == sorted(str(n) for n in range(10))


def test_a_synthetic_input_that_is_real_is_no_negative() -> None:
    assert without_real(["input 3", "new"], DATA) == ["new"]


def test_discriminator_pairs_are_half_and_half_and_hold_every_text() -> None:
    real, fake = ["a", "b", "c", "d", "e"], ["x", "y"]
    pairs = discriminator_pairs(real, fake, DOCUMENT, "things", random.Random(1))
    assert sum(answer == " yes" for _, answer in pairs) == 5
    assert sum(answer == " no" for _, answer in pairs) == 5
    assert {prompt for prompt, answer in pairs if answer == " no"} == {
        DOCUMENT.discriminator_prompt(text, "things") for text in fake
    }


def test_the_fingerprint_is_of_the_data_and_not_of_its_order() -> None:
    assert data_fingerprint(DATA) == data_fingerprint(DATA[::-1])
    changed = [*DATA[1:], Example(input="input 0", target="other")]
    assert data_fingerprint(DATA) != data_fingerprint(changed)


def test_examples_are_read_line_by_line(tmp_path: Path) -> None:
    file = tmp_path / "data.jsonl"
    rows = [{"input": e.input, "target": e.target, "extra": 1} for e in DATA]
    file.write_text("\n\n".join(map(json.dumps, rows)) + "\n")
    assert read_examples(file) == DATA


@pytest.mark.parametrize(
    "line", ["{", "[]", '{"input": "x"}', '{"input": 1, "target": "x"}', '"text"']
)
def test_a_line_that_is_no_example_is_named(tmp_path: Path, line: str) -> None:
    file = tmp_path / "data.jsonl"
    file.write_text('{"input": "x", "target": "y"}\n' + line + "\n")
    with pytest.raises(InvalidArgumentError, match=r"data\.jsonl:2"):
        read_examples(file)


def test_the_command_tells_wrong_arguments_before_it_loads_a_base(tmp_path: Path) -> None:
    wrong = {"base_dir": tmp_path, "base_id": "b", "dataset_name": "d", "out": tmp_path / "kit"}
    with pytest.raises(InvalidArgumentError, match="unknown task format 'xml'"):
        run(data=tmp_path / "none.jsonl", format="xml", **wrong)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError, match="no file"):
        run(data=tmp_path / "none.jsonl", **wrong)  # type: ignore[arg-type]
