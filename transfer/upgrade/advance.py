"""What happens to a record when an event arrives: pure, total, and the only place that decides.

`advance(record, event) -> (record, effects)`. Effects are idempotent and keyed by (migration,
stage, attempt); `due(record)` returns the effect that a record waits for, so that a controller
that was killed finds its work again from the record alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from lorebase.serving.catalog.records import ENDED_UPGRADE_STATES, Migration, Upgrade
from lorebase.serving.errors import ConflictError, FailedPreconditionError

from .states import (
    MIGRATION_TABLE,
    STAGE_STATES,
    UPGRADE_TABLE,
    MigrationEvent,
    MigrationState,
    UpgradeEvent,
    UpgradeState,
    targets,
)

CARRIED = "carried"
"""Key in `Migration.artifacts`: labelled examples of the former attempt, reused by this one."""

CARRIED_INPUTS = "carried_inputs"
"""Key in `Migration.artifacts`: filtered inputs of a former attempt that came to no labels."""

OPERATOR = "operator_promote"
"""Key in `Migration.decision`: an operator overruled the gate."""

_E, _S = MigrationEvent, MigrationState
_STAGE_EVENTS = frozenset(
    {_E.FINISHED, _E.STARVED, _E.GATE_PROMOTE, _E.GATE_RETRY, _E.GATE_REJECT, _E.SWAPPED}
)


class StaleEventError(ConflictError):
    """The event tells of a stage or attempt that the record has left behind; drop it."""

    reason = "STALE_EVENT"


@dataclass(frozen=True, slots=True, kw_only=True)
class Happened:
    """One event with what it brings."""

    event: MigrationEvent
    at: float
    """Seconds since the epoch."""
    stage: str | None = None
    """Stage that ended; needed for stage outcomes."""
    attempt: int | None = None
    """Attempt in which it ended; needed for stage outcomes."""
    artifact: str | None = None
    """Digest of what the stage made."""
    shadow_version: str | None = None
    """Version made by `distill`."""
    decision: Mapping[str, Any] | None = None
    """The gate's decision, from `evaluate`."""
    path: str | None = None
    """Path chosen by `plan`."""
    reason: str | None = None
    """Why it failed, starved or is infeasible; for people."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStage:
    """Run a stage; running it again with the same key gives the same artifact."""

    migration_id: str
    stage: str
    attempt: int

    @property
    def key(self) -> str:
        """Idempotency key, also the seed's source."""
        return f"{self.migration_id}/{self.stage}/{self.attempt}"


@dataclass(frozen=True, slots=True, kw_only=True)
class SetRoute:
    """Point the adapter's route at a version, in the transaction that saves the record."""

    version_id: str
    reason: str


Effect = RunStage | SetRoute


def due(record: Migration) -> RunStage | None:
    """Returns the stage that the record waits for; None when nothing is to be done."""
    state = MigrationState(record.state)
    stage = "plan" if state is _S.PENDING else stage_of(state)
    if stage is None:
        return None
    return RunStage(migration_id=record.id, stage=stage, attempt=record.attempt)


def automatic(record: Migration) -> MigrationEvent | None:
    """Returns the event that follows by itself, without any work; None in all other states."""
    return _E.STARTED if record.state in (_S.PLANNED, _S.RETRYING) else None


def stage_of(state: MigrationState) -> str | None:
    """Returns the stage that runs in `state`."""
    return next((stage for stage, s in STAGE_STATES.items() if s is state), None)


def advance(
    record: Migration, happened: Happened, *, max_attempts: int
) -> tuple[Migration, tuple[Effect, ...]]:
    """Applies an event to a migration.

    Args:
        record: the record as it was read.
        happened: the event.
        max_attempts: attempts after which a retry becomes a rejection.

    Returns:
        The new record (`record_version` untouched: the catalog raises it) and what must follow.

    Raises:
        StaleEventError: the outcome belongs to another stage or attempt.
        FailedPreconditionError: the state does not allow this event.
    """
    state = MigrationState(record.state)
    if happened.event in _STAGE_EVENTS:
        _check_fresh(record, state, happened)
    allowed = targets(MIGRATION_TABLE, state, happened.event)
    if not allowed:
        raise FailedPreconditionError(
            f"migration of {record.adapter!r} is {state.value}: {happened.event.value} is not "
            f"possible there (possible: {_possible(state)})"
        )
    target = _choose(record, happened, allowed, max_attempts)
    updated = replace(
        record,
        state=target.value,
        updated_at=happened.at,
        **_changes(record, happened, target),
    )
    return updated, _effects(updated, happened.event)


def _possible(state: MigrationState) -> str:
    return ", ".join(sorted({row.event.value for row in MIGRATION_TABLE if row.source is state}))


def _check_fresh(record: Migration, state: MigrationState, happened: Happened) -> None:
    if happened.stage != stage_of(state) or happened.attempt != record.attempt:
        raise StaleEventError(
            f"{happened.event.value} of {happened.stage} (attempt {happened.attempt}) arrived, but "
            f"the migration of {record.adapter!r} is {state.value} (attempt {record.attempt})"
        )


def _choose(
    record: Migration, happened: Happened, allowed: tuple[MigrationState, ...], max_attempts: int
) -> MigrationState:
    if happened.event in (_E.GATE_RETRY, _E.STARVED):
        return _S.RETRYING if record.attempt < max_attempts else _S.REJECTED
    if happened.event is _E.RESUME:
        return _first_unfinished(record)
    if happened.event is _E.OPERATOR_PROMOTE and record.shadow_version is None:
        raise FailedPreconditionError(
            f"{record.adapter!r} has no version for the next base to promote: {record.error}"
        )
    return allowed[0]


def _first_unfinished(record: Migration) -> MigrationState:
    if not record.artifacts:
        return _S.PENDING
    return next(s for stage, s in STAGE_STATES.items() if stage not in record.artifacts)


def _changes(record: Migration, happened: Happened, target: MigrationState) -> dict[str, Any]:
    """Fields of the record that change beside state and time."""
    event = happened.event
    changes: dict[str, Any] = {}
    artifacts = dict(record.artifacts)
    if happened.stage is not None and happened.artifact is not None:
        artifacts[happened.stage] = happened.artifact
    if event is _E.STARTED and target is _S.SYNTHESIZING and record.state == _S.RETRYING:
        artifacts = _carried_over(artifacts)
        changes["attempt"] = record.attempt + 1
    if event is _E.OPERATOR_PROMOTE:
        # The engines may have dropped the version since: warm it again.
        artifacts.pop("shadow", None)
        changes["decision"] = {**(record.decision or {}), OPERATOR: True}
    if happened.decision is not None:
        changes["decision"] = dict(happened.decision)
    if happened.shadow_version is not None:
        changes["shadow_version"] = happened.shadow_version
    if happened.path is not None:
        changes["path"] = happened.path
    if event in (
        _E.FAIL, _E.STARVED, _E.INFEASIBLE, _E.GATE_REJECT, _E.GATE_RETRY, _E.ROLLBACK,
    ):  # fmt: skip
        changes["error"] = happened.reason
    elif event in (_E.RESUME, _E.OPERATOR_PROMOTE, _E.FINISHED, _E.GATE_PROMOTE):
        changes["error"] = None
    changes["artifacts"] = artifacts
    return changes


def _carried_over(artifacts: Mapping[str, str]) -> dict[str, str]:
    """What a further attempt starts with: work that the former one did is not thrown away."""
    labels = artifacts.get("label", artifacts.get(CARRIED))
    # Labels hold all inputs that were filtered until then.
    inputs = (
        None if "label" in artifacts else artifacts.get("filter", artifacts.get(CARRIED_INPUTS))
    )
    carried = {CARRIED: labels, CARRIED_INPUTS: inputs}
    return {name: digest for name, digest in carried.items() if digest is not None}


def _effects(record: Migration, event: MigrationEvent) -> tuple[Effect, ...]:
    if event is _E.SWAPPED:
        assert record.shadow_version is not None
        return (SetRoute(version_id=record.shadow_version, reason="promote"),)
    if event is _E.ROLLBACK:
        return (SetRoute(version_id=record.source_version, reason="rollback"),)
    effect = due(record)
    return () if effect is None else (effect,)


def advance_upgrade(
    record: Upgrade, event: UpgradeEvent, *, at: float, error: str | None = None
) -> Upgrade:
    """Applies an event to an upgrade.

    Args:
        record: the record as it was read.
        event: the event.
        at: seconds since the epoch.
        error: what went wrong, or a note for people; None clears it.

    Raises:
        FailedPreconditionError: the state does not allow this event.
    """
    state = UpgradeState(record.state)
    allowed = targets(UPGRADE_TABLE, state, event)
    if not allowed:
        possible = sorted({row.event.value for row in UPGRADE_TABLE if row.source is state})
        raise FailedPreconditionError(
            f"upgrade {record.id} is {state.value}: {event.value} is not possible there "
            f"(possible: {', '.join(possible) or 'nothing, it has ended'})"
        )
    target = allowed[0]
    ended_at = at if target.value in ENDED_UPGRADE_STATES else None
    return replace(record, state=target.value, error=error, ended_at=ended_at)
