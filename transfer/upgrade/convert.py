"""Between the catalog's records and lorebase.v1.upgrade. Total: every field is set or read."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from google.protobuf.timestamp_pb2 import Timestamp

from lorebase.serving.catalog.records import Migration, Upgrade
from lorebase.v1 import upgrade_pb2

from .history import StageRecord, progress_of
from .plan import Plan
from .states import UpgradeState

# Quoted: the generated enums have these types only for type checkers.
_State: TypeAlias = "upgrade_pb2.UpgradeState.ValueType"

_STATES: dict[UpgradeState, _State] = {
    UpgradeState.STARTING_ENGINE: upgrade_pb2.UPGRADE_STATE_STARTING_ENGINE,
    UpgradeState.MIGRATING: upgrade_pb2.UPGRADE_STATE_MIGRATING,
    UpgradeState.PAUSED: upgrade_pb2.UPGRADE_STATE_PAUSED,
    UpgradeState.COMPLETED: upgrade_pb2.UPGRADE_STATE_COMPLETED,
    UpgradeState.FINISHED: upgrade_pb2.UPGRADE_STATE_FINISHED,
    UpgradeState.ABORTED: upgrade_pb2.UPGRADE_STATE_ABORTED,
    UpgradeState.ROLLED_BACK: upgrade_pb2.UPGRADE_STATE_ROLLED_BACK,
    UpgradeState.FAILED: upgrade_pb2.UPGRADE_STATE_FAILED,
}

_VERDICTS: dict[str, "upgrade_pb2.Verdict.ValueType"] = {
    "promote": upgrade_pb2.VERDICT_PROMOTE,
    "retry": upgrade_pb2.VERDICT_RETRY,
    "reject": upgrade_pb2.VERDICT_REJECT,
}

_SCORES = (
    "source_score",
    "shadow_score",
    "bare_score",
    "few_shot_score",
    "difference",
    "interval_low",
    "interval_high",
    "margin",
    "negative_flip_rate",
    "negative_flip_bound",
    "negative_flip_budget",
)


def timestamp(seconds: float | None) -> Timestamp | None:
    """Returns a proto timestamp of seconds since the epoch, to the microsecond."""
    if seconds is None:
        return None
    micros = round(seconds * 1_000_000)
    return Timestamp(seconds=micros // 1_000_000, nanos=micros % 1_000_000 * 1000)


def upgrade_state(state: str) -> _State:
    """Returns the proto value of a catalog state."""
    return _STATES[UpgradeState(state)]


def decision_to_proto(decision: Mapping[str, Any]) -> upgrade_pb2.Decision:
    """Returns the gate's decision; fields that it lacks are 0 or empty."""
    reason = str(decision.get("reason", ""))
    if decision.get("operator_promote"):
        reason = f"promoted by an operator; the gate said: {reason}"
    return upgrade_pb2.Decision(
        verdict=_VERDICTS.get(str(decision.get("verdict", "")), upgrade_pb2.VERDICT_UNSPECIFIED),
        evidence=str(decision.get("evidence", "")),
        n=int(decision.get("n", 0)),
        reason=reason,
        **{name: float(decision.get(name, 0.0)) for name in _SCORES},
    )


def stage_to_proto(record: StageRecord) -> upgrade_pb2.StageRecord:
    """Returns one attempt at one stage."""
    return upgrade_pb2.StageRecord(
        stage=record.stage,
        attempt=record.attempt,
        start_time=timestamp(record.started_at),
        end_time=timestamp(record.ended_at),
        artifact=record.artifact,
        summary_json=json.dumps(record.summary, sort_keys=True) if record.summary else "",
    )


def migration_to_proto(
    migration: Migration, records: Sequence[StageRecord]
) -> upgrade_pb2.Migration:
    """Returns a migration with the history of its stages."""
    return upgrade_pb2.Migration(
        adapter=migration.adapter,
        state=migration.state,
        path=migration.path,
        attempt=migration.attempt,
        source_version=migration.source_version,
        shadow_version=migration.shadow_version or "",
        decision=decision_to_proto(migration.decision) if migration.decision else None,
        error=migration.error or "",
        stage_progress=progress_of(migration, records),
        stages=[stage_to_proto(record) for record in records],
        update_time=timestamp(migration.updated_at),
    )


def upgrade_to_proto(
    upgrade: Upgrade,
    migrations: Sequence[Migration],
    records: Mapping[str, Sequence[StageRecord]],
    *,
    eta_seconds: float,
) -> upgrade_pb2.Upgrade:
    """Returns an upgrade with all its migrations.

    Args:
        upgrade: the record.
        migrations: of this upgrade.
        records: stage records by adapter.
        eta_seconds: until the last migration ends; 0 when unknown.
    """
    return upgrade_pb2.Upgrade(
        id=upgrade.id,
        from_base=upgrade.from_base,
        to_base=upgrade.to_base,
        state=upgrade_state(upgrade.state),
        migrations=[migration_to_proto(one, records.get(one.adapter, ())) for one in migrations],
        create_time=timestamp(upgrade.created_at),
        end_time=timestamp(upgrade.ended_at),
        eta_seconds=eta_seconds,
        background_busy_seconds=upgrade.background_busy_s,
        error=upgrade.error or "",
    )


def plan_to_proto(plan: Plan) -> upgrade_pb2.PlanUpgradeResponse:
    """Returns a plan."""
    return upgrade_pb2.PlanUpgradeResponse(
        from_base=plan.from_base,
        to_base=plan.to_base,
        migrations=[
            upgrade_pb2.PlannedMigration(
                adapter=one.adapter,
                path=one.path,
                reason=one.reason,
                feasible=one.feasible,
                evidence=one.evidence,
                rank=one.rank,
                dataset_size=one.dataset_size,
            )
            for one in plan.migrations
        ],
    )
