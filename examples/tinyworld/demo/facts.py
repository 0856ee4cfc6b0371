"""What the demo found: plain data between the run, the checks and the report."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.charts import GanttRow, Phase
from benchmarks.load.records import RequestRecord
from benchmarks.load.statistics import Interval
from benchmarks.processes import MemorySample
from benchmarks.upgrades import OperatorMove

CONDITIONS = ("bare", "few_shot", "source", "shadow")


@dataclass(frozen=True, slots=True, kw_only=True)
class GateWord:
    """What the gate said about one adapter, from its Decision."""

    verdict: str = ""
    """promote, retry or reject; empty if it never decided."""
    evidence: str = ""
    n: int = 0
    source_score: float = 0.0
    shadow_score: float = 0.0
    interval_low: float = 0.0
    interval_high: float = 0.0
    margin: float = 0.0
    negative_flip_rate: float = 0.0
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterFacts:
    """One adapter: what it is, how it fared before the outside judge, where it ended."""

    name: str
    family: str
    benchmark: bool
    """A public benchmark's task, reported as it comes out; does not count as tiny."""
    peft_type: str
    rank: int
    skewed: bool
    scores: dict[str, Interval]
    """By condition; a condition that could not be measured is missing."""
    n: int
    """Held-out examples of each condition."""
    difference: Interval | None
    """Shadow minus source on the same examples."""
    gate: GateWord
    state: str
    """The migration's state at the very end."""
    attempts: int
    error: str
    migration_s: float
    """From the first stage's start to the last one's end."""
    answers_from: str
    """Base that answered the adapter's plain name at the very end."""
    answering_version: str

    @property
    def promoted(self) -> bool:
        """Returns whether the migration ended on the next base."""
        return self.state in {"promoted", "retired"}

    @property
    def decision(self) -> str:
        """Returns `promoted`, `rejected` or whatever other state it ended in."""
        return "promoted" if self.promoted else self.state


@dataclass(frozen=True, slots=True, kw_only=True)
class Swap:
    """One route change that clients lived through."""

    adapter: str
    revision: int
    at: float
    """When it was written, seconds since the epoch."""
    reason: str
    to_base: str
    propagation_s: float | None
    """Until all gateways had acknowledged it; None where that is not known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TextCheck:
    """Live answers against what the version they name says to a pinned request."""

    compared: int
    as_pinned: int
    of_other_version: int
    """Equal to the other version's answer although both versions' answers differ."""


@dataclass(slots=True, kw_only=True)
class DemoFacts:
    """The whole run."""

    started: float
    """Seconds since the epoch; origin of all charts."""
    ended: float
    old_base: str
    next_base: str
    upgrade_state: str
    upgrade_error: str
    adapters: list[AdapterFacts]
    records: Sequence[RequestRecord]
    """Everything clients and judge sent."""
    wrong: list[tuple[RequestRecord, str]]
    """Answers by the wrong version, with what is wrong."""
    text_check: TextCheck
    swaps: list[Swap]
    moves: list[OperatorMove]
    phases: list[Phase]
    stages: list[GanttRow]
    memory: Sequence[MemorySample]
    background_busy_s: float
    retired_bases: list[str]
    """Bases whose engine had gone after finish."""
    environment: dict[str, Any]
    clients: int
    think_s: tuple[float, float]

    @property
    def seconds(self) -> float:
        """Returns the length of the whole run."""
        return self.ended - self.started

    @property
    def live(self) -> list[RequestRecord]:
        """Returns the closed-loop clients' requests, without the judge's."""
        return [record for record in self.records if record.kind == "foreground"]

    @property
    def failed(self) -> list[RequestRecord]:
        """Returns the requests without a whole answer."""
        return [record for record in self.records if not record.ok]

    @property
    def peak_bytes(self) -> int:
        """Returns the highest memory of the whole process tree."""
        return max((sample.bytes for sample in self.memory), default=0)
