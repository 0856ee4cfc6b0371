"""A tenant's own verdict: which answers were right, and nothing of the data.

The tenant calls source and shadow by their version ids, the bare next base and, if it likes, that
base with a few examples in the prompt, on data that never leaves it. What it hands over is this
file: one 0 or 1 an input for each of them. Whoever promotes lets the gate judge it again.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from lorebase.serving.artifacts import read_json
from lorebase.serving.errors import InvalidArgumentError

from ..kit.format import TaskFormat
from ..ports import Example
from .evidence import Evidence, entrusted_evidence

MAX_ITEMS = 10_000
MAX_BYTES = 1 << 20

Ask = Callable[[str, Sequence[str]], list[str]]
"""Answers of a model, by name, to prompts, in order; raises if one can't be had."""

_Name = Annotated[str, Field(min_length=1, max_length=256)]
_Bits = Annotated[str, Field(pattern=r"^[01]*$", max_length=MAX_ITEMS)]


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantVerdict:
    """What a tenant hands over; one character an input, in the same order."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    adapter: _Name
    source_version: _Name
    shadow_version: _Name
    next_base: _Name
    source: _Bits
    """`1` where the answer was right."""
    shadow: _Bits
    bare: _Bits
    few_shot: _Bits = ""
    """Empty if it was not asked."""
    data_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    """Of the data, so that the tenant can show later what it judged by."""

    def evidence(self) -> Evidence:
        """Returns what the gate decides on."""
        bits = (_bools(text) for text in (self.source, self.shadow, self.bare, self.few_shot))
        source, shadow, bare, few_shot = bits
        return Evidence(
            kind="tenant",
            source_correct=source,
            shadow_correct=shadow,
            bare_correct=bare,
            few_shot_correct=few_shot,
        )


def judge(
    ask: Ask,
    items: Sequence[Example],
    *,
    adapter: str,
    source_version: str,
    shadow_version: str,
    next_base: str,
    format: TaskFormat,
    shots: int = 0,
) -> TenantVerdict:
    """Asks all rivals and compares with the true answers.

    Args:
        ask: calls a model.
        items: the tenant's data.
        adapter: its name.
        source_version: version that answers now, or did before a promotion.
        shadow_version: version for the next base.
        next_base: id of the next base.
        format: how inputs and answers are written.
        shots: items that serve as examples for the few-shot rival, and are not judged by.

    Raises:
        InvalidArgumentError: too few or too many items.
    """
    if not shots < len(items) <= MAX_ITEMS:
        raise InvalidArgumentError(
            f"got {len(items)} examples, expected {shots + 1} to {MAX_ITEMS}; a few hundred make "
            "a good verdict"
        )
    examples, asked = items[:shots], items[shots:]
    plain = [format.prompt(item.input) for item in asked]
    longer = [format.few_shot(examples, item.input) for item in asked] if shots else []
    evidence = entrusted_evidence(
        [item.target for item in asked],
        ask(f"{adapter}@{source_version}", plain),
        ask(f"{adapter}@{shadow_version}", plain),
        ask(next_base, plain),
        ask(next_base, longer) if longer else (),
        kind="tenant",
    )
    rows = json.dumps([[item.input, item.target] for item in items]).encode()
    return TenantVerdict(
        adapter=adapter,
        source_version=source_version,
        shadow_version=shadow_version,
        next_base=next_base,
        source=_bits(evidence.source_correct),
        shadow=_bits(evidence.shadow_correct),
        bare=_bits(evidence.bare_correct),
        few_shot=_bits(evidence.few_shot_correct),
        data_sha256=hashlib.sha256(rows).hexdigest(),
    )


def save_verdict(verdict: TenantVerdict, path: Path) -> None:
    """Writes a verdict, whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(asdict(verdict), indent=2) + "\n", encoding="utf-8")
    partial.replace(path)


def load_verdict(path: Path) -> TenantVerdict:
    """Reads a verdict that somebody handed over.

    Raises:
        InvalidArgumentError: not such a file, or figures that don't fit together.
    """
    if not path.is_file():
        raise InvalidArgumentError(f"no file {path}: expected one of `lorebase upgrade judge`")
    value: Any = read_json(path, max_bytes=MAX_BYTES)
    try:
        verdict = _SCHEMA.validate_python(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "the whole"
        raise InvalidArgumentError(
            f"{path.name} is no verdict: {where}: {first['msg']}", reason="VERDICT_INVALID"
        ) from error
    sizes = {len(verdict.source), len(verdict.shadow), len(verdict.bare)}
    if len(sizes) != 1 or sizes == {0} or len(verdict.few_shot) not in (0, *sizes):
        raise InvalidArgumentError(
            f"{path.name} judges {len(verdict.source)}, {len(verdict.shadow)}, "
            f"{len(verdict.bare)} and {len(verdict.few_shot)} inputs, expected equally many",
            reason="VERDICT_INVALID",
        )
    return verdict


def _bits(judgements: Sequence[bool]) -> str:
    return "".join("1" if right else "0" for right in judgements)


def _bools(text: str) -> tuple[bool, ...]:
    return tuple(character == "1" for character in text)


_SCHEMA = TypeAdapter(TenantVerdict)
