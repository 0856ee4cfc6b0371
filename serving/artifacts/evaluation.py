"""Checks an evaluation set that a tenant entrusts: examples to judge a migration by."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InvalidArgumentError
from .files import check_names, list_files, parse_json

EVALUATION_NAME = "evaluation.jsonl"


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationLimits:
    """What an evaluation set may be."""

    max_examples: int = 10_000
    max_bytes: int = 64 << 20
    """The whole file."""
    max_input_chars: int = 32_768
    """Longer inputs would not fit a prompt anyway."""
    max_target_chars: int = 8_192


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationManifest:
    """What a checked evaluation set is."""

    examples: int


def check_evaluation_set(path: Path, limits: EvaluationLimits) -> EvaluationManifest:
    """Checks a directory with evaluation.jsonl: one {"input", "target"} object a line.

    Raises:
        InvalidArgumentError: another file, too many or too long examples, or a line that is not
            such an object; the message names the line.
    """
    files = list_files(path)
    check_names(files, required=(EVALUATION_NAME,))
    file = files[EVALUATION_NAME]
    size = file.stat().st_size
    if size > limits.max_bytes:
        raise _bad(f"has {size} bytes: expected at most {limits.max_bytes}")
    count = 0
    # Six bytes a character at most ("\u1234"), and some room for keys and spaces.
    longest = 6 * (limits.max_input_chars + limits.max_target_chars) + 1024
    with file.open("rb") as lines:
        while line := lines.readline(longest + 1):
            count += 1
            if count > limits.max_examples:
                raise _bad(f"has more than {limits.max_examples} lines; take a sample")
            if len(line) > longest:
                raise _bad(f"line {count} is longer than {longest} bytes")
            _check_example(parse_json(line, what=f"{EVALUATION_NAME} line {count}"), count, limits)
    if count == 0:
        raise _bad(f"is empty: expected 1 to {limits.max_examples} lines")
    return EvaluationManifest(examples=count)


def _check_example(example: Any, line: int, limits: EvaluationLimits) -> None:
    if not isinstance(example, dict) or set(example) != {"input", "target"}:
        raise _bad(f'line {line} needs exactly the keys "input" and "target"')
    for key, most in (("input", limits.max_input_chars), ("target", limits.max_target_chars)):
        text = example[key]
        if not isinstance(text, str) or not text.strip():
            raise _bad(f"line {line}: {key} must be text that is not empty")
        if len(text) > most:
            raise _bad(f"line {line}: {key} has {len(text)} characters, expected at most {most}")
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            raise _bad(f"line {line}: {key} holds half of a surrogate pair") from None


def _bad(message: str) -> InvalidArgumentError:
    return InvalidArgumentError(f"{EVALUATION_NAME} {message}", reason="BAD_EVALUATION_SET")
