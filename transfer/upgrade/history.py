"""What the events of an upgrade tell: stage records, progress, tries and the time left. Pure."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from lorebase.serving.catalog.records import Event, Migration

from .advance import due
from .states import ACTIVE_STATES, STAGES, MigrationState

STAGE_STARTED = "stage_started"
STAGE_FINISHED = "stage_finished"
STAGE_FAILED = "stage_failed"
STAGE_PROGRESS = "stage_progress"
MIGRATION_STATE = "migration_state"
UPGRADE_STATE = "upgrade_state"
SWAP = "swap"
SWAP_ACKED = "swap_acked"
RESUMED = "resumed"
ENGINE_FAILED = "engine_failed"
ENGINE_RETIRED = "engine_retired"
ENGINE_KEPT = "engine_kept"


@dataclass(frozen=True, slots=True, kw_only=True)
class StageRecord:
    """One attempt at one stage."""

    adapter: str
    stage: str
    attempt: int
    started_at: float
    """Last start, seconds since the epoch."""
    ended_at: float | None = None
    artifact: str = ""
    summary: dict[str, Any] = field(default_factory=dict)
    progress: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Tries:
    """How often one stage of one attempt was tried since the last resume."""

    starts: int = 0
    failures: int = 0


def stage_records(events: Iterable[Event]) -> dict[str, list[StageRecord]]:
    """Returns the stage records of every adapter, in order of their first start."""
    records: dict[tuple[str, str, int], StageRecord] = {}
    for event in events:
        if event.kind == SWAP_ACKED and event.adapter:
            swap = _swap_record(event)
            records[(swap.adapter, swap.stage, swap.attempt)] = swap
            continue
        if event.kind not in (STAGE_STARTED, STAGE_FINISHED, STAGE_PROGRESS) or not event.adapter:
            continue
        key = (event.adapter, str(event.data["stage"]), int(event.data["attempt"]))
        records[key] = _applied(records.get(key), event, key)
    by_adapter: dict[str, list[StageRecord]] = {}
    for record in records.values():
        by_adapter.setdefault(record.adapter, []).append(record)
    return by_adapter


def _swap_record(event: Event) -> StageRecord:
    """A promotion, from the committed route to the last gateway's acknowledgement.

    Outside observers need revision and end: a request sent later must not see older routes.
    """
    data = event.data
    return StageRecord(
        adapter=str(event.adapter),
        stage="promote",
        attempt=int(data.get("attempt", 1)),
        started_at=event.at - float(data["seconds"]),
        ended_at=event.at,
        summary={name: data[name] for name in ("revision", "seconds", "acked")},
        progress=1.0,
    )


def _applied(old: StageRecord | None, event: Event, key: tuple[str, str, int]) -> StageRecord:
    adapter, stage, attempt = key
    started_at = event.at if old is None or event.kind == STAGE_STARTED else old.started_at
    finished = event.kind == STAGE_FINISHED
    return StageRecord(
        adapter=adapter,
        stage=stage,
        attempt=attempt,
        started_at=started_at,
        ended_at=event.at if finished else None,
        artifact=str(event.data.get("artifact") or "") if finished else "",
        summary=dict(event.data.get("summary") or {}) if finished else {},
        progress=1.0 if finished else float(event.data.get("progress", 0.0)),
    )


def progress_of(migration: Migration, records: Sequence[StageRecord]) -> float:
    """Returns how far the current stage is, 0 to 1; 1 once the migration has ended."""
    waiting = due(migration)
    if waiting is None:
        return 1.0 if MigrationState(migration.state) not in ACTIVE_STATES else 0.0
    for record in reversed(records):
        if record.stage == waiting.stage and record.attempt == waiting.attempt:
            return record.progress if record.ended_at is None else 0.0
    return 0.0


def tries(events: Iterable[Event], adapter: str, stage: str, attempt: int) -> Tries:
    """Counts starts and failures of a stage; a resume, a finish or an operator starts anew."""
    starts = failures = 0
    for event in events:
        if event.kind == RESUMED and event.adapter in (None, adapter):
            starts = failures = 0
        if event.adapter != adapter or event.data.get("stage") != stage:
            continue
        if event.data.get("attempt") != attempt:
            continue
        starts += event.kind == STAGE_STARTED
        failures += event.kind == STAGE_FAILED
        if event.kind == STAGE_FINISHED:
            starts = failures = 0
    return Tries(starts=starts, failures=failures)


def engine_failures(events: Iterable[Event]) -> int:
    """Counts failed starts of the next base's engine since the last resume."""
    failures = 0
    for event in events:
        failures += event.kind == ENGINE_FAILED
        if event.kind == RESUMED and event.adapter is None:
            failures = 0
    return failures


def eta_seconds(
    migrations: Sequence[Migration],
    records: dict[str, list[StageRecord]],
    *,
    now: float,
    parallel: int,
) -> float:
    """Returns the seconds until the last migration ends, extrapolated; 0 when unknown.

    Every stage still to come is taken to last as long as that stage lasted so far on average,
    less what the running one has done. What runs side by side is bounded by `parallel`.

    Args:
        migrations: all of the upgrade.
        records: see `stage_records`.
        now: seconds since the epoch.
        parallel: migrations that work at once.
    """
    durations: dict[str, list[float]] = {}
    for record in (one for of_adapter in records.values() for one in of_adapter):
        if record.ended_at is not None:
            durations.setdefault(record.stage, []).append(record.ended_at - record.started_at)
    mean = {stage: sum(values) / len(values) for stage, values in durations.items()}
    left = [
        _seconds_left(one, records.get(one.adapter, []), mean, now)
        for one in migrations
        if MigrationState(one.state) in ACTIVE_STATES
    ]
    if not left or any(seconds is None for seconds in left):
        return 0.0
    known = [seconds for seconds in left if seconds is not None]
    return max(max(known), sum(known) / max(1, min(parallel, len(known))))


def _seconds_left(
    migration: Migration, records: Sequence[StageRecord], mean: dict[str, float], now: float
) -> float | None:
    waiting = due(migration)
    first = waiting.stage if waiting and waiting.stage in STAGES else STAGES[0]
    coming = STAGES[STAGES.index(first) :]
    # Promotion takes milliseconds, so not having seen one yet does not hide the rest.
    if any(stage not in mean for stage in coming if stage not in ("shadow", "promote")):
        return None
    total = sum(mean.get(stage, 0.0) for stage in coming)
    running = next((r for r in reversed(records) if r.stage == first and r.ended_at is None), None)
    if running is not None and waiting is not None and running.attempt == waiting.attempt:
        total -= min(mean.get(first, 0.0), now - running.started_at)
    return total
