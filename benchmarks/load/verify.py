"""Did the right version answer? Checked against the audit trail of route changes.

Two independent checks for every answer:

1. *Named*: the version that generated the tokens is the one the route table named for this
   adapter at the revision with which the request was admitted.
2. *Fresh*: that revision was not out of date. Once all gateways have acknowledged revision q, a
   request sent later must be admitted with q or higher; and no answer may carry a revision that
   was written only after the answer had come.

Client, gateways and catalog share one machine's clock here. `CLOCK_SLACK_S` covers the catalog's
rounding of times and nothing more.
"""

import bisect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .records import RequestRecord

CLOCK_SLACK_S = 0.002
"""Protobuf timestamps are exact; SQLite and JSON keep at least milliseconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteStep:
    """One route change, from AdapterService.ListRouteChanges."""

    revision: int
    adapter: str
    version: str
    """Empty after a delete."""
    base: str
    at: float
    """When it was written, seconds since the epoch."""
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Acknowledgement:
    """By `at`, every gateway held route revision `revision` or a later one."""

    revision: int
    at: float


class RouteHistory:
    """The route table at every revision, and since when it must have been known."""

    def __init__(
        self, steps: Iterable[RouteStep], acknowledgements: Iterable[Acknowledgement] = ()
    ) -> None:
        """Takes the changes in any order."""
        self.steps = sorted(steps, key=lambda step: step.revision)
        self._by_adapter: dict[str, list[RouteStep]] = {}
        for step in self.steps:
            self._by_adapter.setdefault(step.adapter, []).append(step)
        self._ack_times: list[float] = []
        self._ack_revisions: list[int] = []
        highest = 0
        for ack in sorted(acknowledgements, key=lambda a: a.at):
            highest = max(highest, ack.revision)
            self._ack_times.append(ack.at)
            self._ack_revisions.append(highest)

    def named(self, adapter: str, revision: int) -> RouteStep | None:
        """Returns the step in force for an adapter at a revision; None before its first."""
        steps = self._by_adapter.get(adapter, [])
        index = bisect.bisect_right([step.revision for step in steps], revision)
        return steps[index - 1] if index else None

    def floor(self, at: float) -> int:
        """Returns the lowest revision that may admit a request sent at `at`."""
        index = bisect.bisect_left(self._ack_times, at - CLOCK_SLACK_S)
        return self._ack_revisions[index - 1] if index else 0

    def swaps(self, reasons: Sequence[str] = ("promote", "rollback")) -> list[RouteStep]:
        """Returns the changes that moved an adapter to another version, oldest first."""
        return [step for step in self.steps if step.reason in reasons]


def wrong_version(record: RequestRecord, history: RouteHistory) -> str | None:
    """Returns what is wrong with who answered, or None if all is well.

    Failed requests have no answer and are not judged here.
    """
    if not record.ok:
        return None
    if record.revision <= 0 or not record.base:
        return "the answer does not say which base and route revision it came from"
    floor = history.floor(record.start)
    if record.revision < floor:
        return (
            f"admitted with route revision {record.revision} although all gateways had "
            f"acknowledged {floor} before it was sent"
        )
    name, _, selector = record.model.partition("@")
    if not record.adapter:
        return _wrong_bare(record, name)
    if record.adapter != name:
        raise ValueError(f"record of {record.model!r} claims adapter {record.adapter!r}")
    if selector:
        if selector in (record.version, record.base) and record.version:
            return None
        return f"asked for {selector}, answered by {record.version} on {record.base}"
    return _wrong_routed(record, history)


def _wrong_bare(record: RequestRecord, base: str) -> str | None:
    if record.version:
        return f"asked for the bare base, answered by adapter version {record.version}"
    if record.base != base:
        return f"asked for base {base}, answered by {record.base}"
    return None


def _wrong_routed(record: RequestRecord, history: RouteHistory) -> str | None:
    step = history.named(record.adapter, record.revision)
    if step is None or not step.version:
        return f"route revision {record.revision} names no version for {record.adapter}"
    if (record.version, record.base) != (step.version, step.base):
        return (
            f"route revision {record.revision} names {step.version} on {step.base}, answered by "
            f"{record.version or 'no adapter'} on {record.base}"
        )
    if step.at > record.end + CLOCK_SLACK_S:
        return (
            f"answered {step.at - record.end:.3f} s before route revision {step.revision} "
            "was written"
        )
    return None
