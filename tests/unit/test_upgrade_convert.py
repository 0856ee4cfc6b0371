"""Records become messages without losing a field."""

import pytest

from lorebase.transfer.evaluate import Decision
from lorebase.transfer.upgrade.convert import decision_to_proto, timestamp, upgrade_to_proto
from lorebase.transfer.upgrade.history import StageRecord
from lorebase.transfer.upgrade.states import UpgradeState
from lorebase.v1 import upgrade_pb2

from .upgrade_samples import sample_migration, sample_upgrade

DECISION = Decision(
    verdict="promote",
    evidence="label-free",
    n=120,
    source_score=1.0,
    shadow_score=0.97,
    bare_score=0.1,
    few_shot_score=0.4,
    difference=-0.03,
    interval_low=-0.07,
    interval_high=-0.01,
    margin=0.1,
    negative_flip_rate=0.03,
    negative_flip_bound=0.06,
    negative_flip_budget=0.1,
    alpha=0.02,
    power=0.9,
    power_at=((0.01, 0.95),),
    reason="120 inputs",
)


def test_every_field_of_a_decision_arrives() -> None:
    message = decision_to_proto(DECISION.as_dict())
    assert message.verdict == upgrade_pb2.VERDICT_PROMOTE
    for field in upgrade_pb2.Decision.DESCRIPTOR.fields:
        if field.name != "verdict":
            assert getattr(message, field.name) == getattr(DECISION, field.name), field.name


def test_an_operators_promotion_shows_beside_the_gates_word() -> None:
    message = decision_to_proto({**DECISION.as_dict(), "operator_promote": True})
    assert message.reason == "promoted by an operator; the gate said: 120 inputs"


def test_an_upgrade_carries_its_migrations_with_their_stages() -> None:
    migration = sample_migration(
        adapter="a",
        state="distilling",
        attempt=2,
        shadow_version="v-2",
        decision=DECISION.as_dict(),
        error="too few",
        updated_at=12.5,
    )
    record = StageRecord(
        adapter="a", stage="distill", attempt=2, started_at=10.25, progress=0.5, summary={"x": 1}
    )
    message = upgrade_to_proto(
        sample_upgrade(created_at=1.5, background_busy_s=3.0, error="note"),
        [migration],
        {"a": [record]},
        eta_seconds=7.0,
    )
    assert (message.id, message.from_base, message.to_base) == ("u-1", "old", "next")
    assert message.state == upgrade_pb2.UPGRADE_STATE_MIGRATING
    assert (message.eta_seconds, message.background_busy_seconds) == (7.0, 3.0)
    assert (message.create_time.seconds, message.create_time.nanos) == (1, 500_000_000)
    assert not message.HasField("end_time")
    [one] = message.migrations
    assert (one.state, one.attempt, one.error) == ("distilling", 2, "too few")
    assert (one.source_version, one.shadow_version) == ("v-source", "v-2")
    assert one.stage_progress == 0.5
    [stage] = one.stages
    assert (stage.stage, stage.attempt, stage.summary_json) == ("distill", 2, '{"x": 1}')
    assert not stage.HasField("end_time")


@pytest.mark.parametrize("state", list(UpgradeState))
def test_every_state_has_a_message(state: UpgradeState) -> None:
    message = upgrade_to_proto(sample_upgrade(state=state.value), [], {}, eta_seconds=0.0)
    name = upgrade_pb2.UpgradeState.Name(message.state)
    assert name == f"UPGRADE_STATE_{state.name}"


@pytest.mark.parametrize("seconds", [0.0, 1.0, 1_763_772_345.123456, 0.9999999])
def test_timestamps_keep_microseconds(seconds: float) -> None:
    stamp = timestamp(seconds)
    assert stamp is not None
    assert stamp.seconds + stamp.nanos / 1e9 == pytest.approx(seconds, abs=1e-6)
    assert 0 <= stamp.nanos < 1_000_000_000
