"""Evaluation sets: what a line must be, and how large a set may be."""

import io
import json
from pathlib import Path

import pytest

from lorebase.serving.artifacts import (
    ArtifactStore,
    EvaluationLimits,
    EvaluationManifest,
    check_evaluation_set,
)
from lorebase.serving.errors import InvalidArgumentError
from tests.unit.artifact_samples import everything_in, tar_of, write_files

LIMITS = EvaluationLimits(max_examples=3, max_bytes=600, max_input_chars=20, max_target_chars=10)
GOOD = b'{"input": "2 + 2", "target": "4"}\n'


def _line(**fields: object) -> bytes:
    return json.dumps({"input": "a", "target": "b", **fields}).encode()


@pytest.mark.parametrize(
    ("content", "examples"),
    [(GOOD, 1), (GOOD * 3, 3), (GOOD.rstrip(), 1), ('{"target":"ß","input":"ä"}'.encode(), 1)],
)
def test_good_sets_are_counted(tmp_path: Path, content: bytes, examples: int) -> None:
    folder = write_files(tmp_path, {"evaluation.jsonl": content})
    assert check_evaluation_set(folder, LIMITS) == EvaluationManifest(examples=examples)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"data.jsonl": GOOD}, r"'evaluation\.jsonl' is missing"),
        ({"evaluation.jsonl": GOOD, "more.txt": b""}, r"unknown file 'more\.txt'"),
        ({"evaluation.jsonl": GOOD, "model.pt": b""}, "may hold a pickle"),
        ({"evaluation.jsonl": b""}, "is empty: expected 1 to 3 lines"),
        ({"evaluation.jsonl": GOOD * 4}, "more than 3 lines; take a sample"),
        ({"evaluation.jsonl": b"x" * 601}, "601 bytes: expected at most 600"),
        ({"evaluation.jsonl": GOOD + b"\n"}, r"evaluation\.jsonl line 2 is not valid JSON"),
        ({"evaluation.jsonl": GOOD + b"{"}, r"line 2 is not valid JSON"),
        ({"evaluation.jsonl": b"\xff\xfe"}, "line 1 is not valid JSON"),
        ({"evaluation.jsonl": b"[1, 2]"}, 'line 1 needs exactly the keys "input" and "target"'),
        ({"evaluation.jsonl": _line(extra=1)}, "line 1 needs exactly the keys"),
        ({"evaluation.jsonl": b'{"input": "a"}'}, "line 1 needs exactly the keys"),
        ({"evaluation.jsonl": b'{"input": "a", "input": "b", "target": "c"}'}, "same key twice"),
        ({"evaluation.jsonl": _line(input=4)}, "line 1: input must be text that is not empty"),
        ({"evaluation.jsonl": _line(target=" \n")}, "target must be text that is not empty"),
        ({"evaluation.jsonl": _line(input="x" * 21)}, "input has 21 characters, expected at mo"),
        ({"evaluation.jsonl": _line(target="x" * 11)}, "target has 11 characters"),
        ({"evaluation.jsonl": _line(input="\ud800")}, "input holds half of a surrogate pair"),
    ],
)
def test_bad_sets_are_refused_and_leave_nothing(
    tmp_path: Path, files: dict[str, bytes], said: str
) -> None:
    store = ArtifactStore(tmp_path)
    with pytest.raises(InvalidArgumentError, match=said):
        store.import_tar(io.BytesIO(tar_of(files)), lambda path: check_evaluation_set(path, LIMITS))
    assert everything_in(tmp_path) == []


def test_an_endless_line_is_not_read_to_its_end(tmp_path: Path) -> None:
    limits = EvaluationLimits(max_input_chars=5, max_target_chars=5)
    folder = write_files(tmp_path, {"evaluation.jsonl": _line(input="x" * 5000)})
    with pytest.raises(InvalidArgumentError, match="line 1 is longer than 1084 bytes"):
        check_evaluation_set(folder, limits)
