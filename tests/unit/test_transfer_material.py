import json
import random
from dataclasses import replace
from pathlib import Path

import pytest

from lorebase.serving.errors import InvalidArgumentError
from lorebase.transfer.kit import DOCUMENT, load_kit
from lorebase.transfer.kit.command import read_examples, run
from lorebase.transfer.kit.consented import with_real_inputs
from lorebase.transfer.kit.kit import MAX_TEXT_CHARS, Consent
from lorebase.transfer.kit.material import (
    data_fingerprint,
    discriminator_pairs,
    length_limits,
    split_held_out,
    unique_examples,
    without_real,
)
from lorebase.transfer.kit.seeds_only import build_seeds_only
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


def test_five_examples_make_a_kit_without_a_discriminator_and_four_do_not(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="--seeds-only"):
        unique_examples(DATA[:10], seeds=5)
    with pytest.raises(InvalidArgumentError, match="got 4 different examples, at least 5"):
        unique_examples(DATA[:4], seeds=5, seeds_only=True)
    kit = build_seeds_only(
        tokenizer=Words(),
        examples=DATA[:5],
        dataset_name="things",
        base_id="old",
        format=DOCUMENT,
        out_dir=tmp_path / "kit",
    )
    assert load_kit(tmp_path / "kit") == kit
    assert sorted(seed.input for seed in kit.seeds) == [item.input for item in DATA[:5]]
    assert (kit.discriminator, kit.discriminates, kit.schema_version) == (False, False, 2)
    assert kit.max_input_chars == 2 * len("input 0")
    assert kit.max_input_tokens == 2 * (2 + 8), "two words, room for the stop, twice"


class Words:
    """A tokenizer whose tokens are words."""

    def encode(self, text: str, add_special_tokens: bool) -> list[str]:
        assert not add_special_tokens
        return text.split()


def test_real_inputs_go_into_a_kit_with_a_consent_only(tmp_path: Path) -> None:
    plain = build_seeds_only(
        tokenizer=Words(),
        examples=DATA,
        dataset_name="things",
        base_id="old",
        format=DOCUMENT,
        out_dir=tmp_path / "kit",
    )
    consent = Consent(text="A. Owner, for upgrades", given_on="2026-11-22")
    shared = with_real_inputs(plain, DATA, 30, consent)
    seeds = {seed.input for seed in plain.seeds}
    assert len(shared.real_inputs) == 30
    assert set(shared.real_inputs) <= {item.input for item in DATA} - seeds
    assert len(with_real_inputs(plain, DATA, 1000, consent).real_inputs) == 35, "all there are"
    assert with_real_inputs(plain, DATA, 0, None) == plain
    for count, given, message in (
        (3, None, "no consent"),
        (0, consent, "no real inputs"),
        (1001, consent, "got 1001 real inputs"),
        (3, replace(consent, text="  yes   "), "who allows it"),
    ):
        with pytest.raises(InvalidArgumentError, match=message):
            with_real_inputs(plain, DATA, count, given)
    with pytest.raises(InvalidArgumentError, match="all of them seeds"):
        with_real_inputs(plain, plain.seeds, 3, consent)


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
