"""What a client asked and what it got. Pure data.

Times called `start` and `end` are seconds since the epoch, so that they can be compared with the
server's on the same machine; durations come from a monotonic clock.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

OK = "OK"


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Requests for one model name, with the answers that count as right."""

    model: str
    """What goes into `GenerateRequest.model`."""
    adapter: str
    """Adapter name; empty for a bare base."""
    examples: tuple[tuple[str, str], ...]
    """Pairs of (input, target)."""
    prompts: tuple[str, ...]
    """One prompt for each example."""
    stop: tuple[str, ...] = ("\n",)
    max_tokens: int = 28
    """Enough for the longest target of the tiny world."""

    def __post_init__(self) -> None:
        """Checks that there is one prompt for each example."""
        if not self.examples or len(self.prompts) != len(self.examples):
            raise ValueError(
                f"workload {self.model!r}: got {len(self.examples)} examples and "
                f"{len(self.prompts)} prompts, expected as many prompts and at least one"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestRecord:
    """One request as its client saw it."""

    kind: str
    """`foreground` for closed-loop traffic; else why it was sent: `judge`, `warm-up`, ..."""
    client: int
    model: str
    adapter: str
    example: int
    """Index into the workload's examples."""
    start: float
    latency_s: float
    """From sending to the last message, or to the error."""
    code: str
    """gRPC status name, or `INCOMPLETE` if the stream ended without a finish reason."""
    ttft_s: float | None = None
    """From sending to the first message with text or tokens."""
    gaps_s: tuple[float, ...] = ()
    """Seconds between messages after the first."""
    tokens: int = 0
    base: str = ""
    version: str = ""
    revision: int = 0
    track: str = ""
    text: str = ""
    correct: bool = False
    error: str = ""

    @property
    def end(self) -> float:
        """Returns when the last message or the error came, seconds since the epoch."""
        return self.start + self.latency_s

    @property
    def ok(self) -> bool:
        """Returns whether the client got a whole answer."""
        return self.code == OK


def is_correct(text: str, target: str) -> bool:
    """Tells whether an answer equals the target, leaving outer white space aside."""
    return text.strip() == target.strip()


def load_examples(path: Path, limit: int | None = None) -> tuple[tuple[str, str], ...]:
    """Reads `{"input", "target"}` lines.

    Raises:
        ValueError: a line lacks a field, or the file is empty.
    """
    pairs: list[tuple[str, str]] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        row = json.loads(line)
        if not isinstance(row, dict) or not {"input", "target"} <= row.keys():
            raise ValueError(f"{path}:{number}: expected an object with input and target")
        pairs.append((str(row["input"]), str(row["target"])))
        if limit is not None and len(pairs) == limit:
            break
    if not pairs:
        raise ValueError(f"{path}: no examples; expected one JSON object a line")
    return tuple(pairs)


def to_rows(records: Iterable[RequestRecord]) -> list[dict[str, Any]]:
    """Returns the records as plain dictionaries for JSON."""
    return [asdict(record) for record in records]


def from_rows(rows: Sequence[Mapping[str, Any]]) -> list[RequestRecord]:
    """Builds records from what `to_rows` returned."""
    return [RequestRecord(**{**row, "gaps_s": tuple(row["gaps_s"])}) for row in rows]
