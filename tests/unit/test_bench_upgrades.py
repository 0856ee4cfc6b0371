"""Acknowledgements and route steps, read from an upgrade's messages."""

import json

from google.protobuf.timestamp_pb2 import Timestamp

from benchmarks.load import Acknowledgement, RouteStep
from benchmarks.upgrades import (
    OperatorMove,
    acknowledgements,
    rollback_acknowledgements,
    route_steps,
)
from lorebase.v1 import adapter_pb2, upgrade_pb2


def stage(name: str, at: int, **summary: object) -> upgrade_pb2.StageRecord:
    return upgrade_pb2.StageRecord(
        stage=name,
        start_time=Timestamp(seconds=at - 1),
        end_time=Timestamp(seconds=at, nanos=500_000_000),
        summary_json=json.dumps(summary),
    )


def test_only_acknowledged_promotions_count() -> None:
    upgrade = upgrade_pb2.Upgrade(
        migrations=[
            upgrade_pb2.Migration(
                adapter="a/x",
                stages=[
                    stage("distill", 90, revision=3, acked=True),
                    stage("promote", 100, revision=7, acked=True),
                ],
            ),
            upgrade_pb2.Migration(
                adapter="a/y", stages=[stage("promote", 101, revision=8, acked=False)]
            ),
            upgrade_pb2.Migration(adapter="a/z"),
        ]
    )
    assert acknowledgements(upgrade) == [Acknowledgement(revision=7, at=100.5)]


def test_a_rollback_is_acknowledged_when_its_call_returns() -> None:
    def step(revision: int, at: float, reason: str, adapter: str = "a/x") -> RouteStep:
        return RouteStep(
            revision=revision, adapter=adapter, version="v", base="b", at=at, reason=reason
        )

    steps = [
        step(5, 90.0, "rollback"),
        step(6, 100.1, "rollback"),
        step(7, 100.1, "rollback", "a/other"),
        step(8, 105.0, "promote"),
    ]
    moves = [
        OperatorMove(adapter="a/x", action="rollback", called_at=100.0, call_s=0.5, seen_s=0.6),
        OperatorMove(adapter="a/x", action="promote", called_at=104.0, call_s=0.5, seen_s=1.6),
    ]
    assert rollback_acknowledgements(moves, steps) == [Acknowledgement(revision=6, at=100.5)]


def test_route_changes_keep_their_fraction_of_a_second() -> None:
    change = adapter_pb2.RouteChange(
        revision=3,
        adapter="a/x",
        version="v",
        base="b",
        time=Timestamp(seconds=5, nanos=250_000_000),
        reason="create",
    )
    assert route_steps([change]) == [
        RouteStep(revision=3, adapter="a/x", version="v", base="b", at=5.25, reason="create")
    ]
