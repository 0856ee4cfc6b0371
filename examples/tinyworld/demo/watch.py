"""Follows an upgrade over gRPC and turns what it says into facts."""

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from typing import Any

import grpc
from google.protobuf.timestamp_pb2 import Timestamp

from benchmarks.charts import GanttBar, GanttRow
from benchmarks.load import Acknowledgement, RouteStep
from lorebase.v1 import adapter_pb2, upgrade_pb2
from lorebase.v1.upgrade_pb2_grpc import UpgradeServiceStub

from .facts import GateWord

ENDED = frozenset(
    {
        upgrade_pb2.UPGRADE_STATE_COMPLETED,
        upgrade_pb2.UPGRADE_STATE_FINISHED,
        upgrade_pb2.UPGRADE_STATE_ABORTED,
        upgrade_pb2.UPGRADE_STATE_ROLLED_BACK,
        upgrade_pb2.UPGRADE_STATE_FAILED,
    }
)
RECONNECT_S = 1.0


class StalledError(RuntimeError):
    """The upgrade did not end, or did not move, in the time it had."""


def state_name(state: upgrade_pb2.UpgradeState.ValueType) -> str:
    """Returns `completed` for UPGRADE_STATE_COMPLETED, and so on."""
    return upgrade_pb2.UpgradeState.Name(state).removeprefix("UPGRADE_STATE_").lower()


async def follow(
    channel: grpc.aio.Channel,
    upgrade_id: str,
    on_update: Callable[[upgrade_pb2.Upgrade], None],
    *,
    timeout_s: float,
    stall_s: float,
) -> upgrade_pb2.Upgrade:
    """Watches until every migration has ended; a broken stream is opened again.

    Raises:
        StalledError: no end within `timeout_s`, or no change within `stall_s`.
    """
    stub = UpgradeServiceStub(channel)
    request = upgrade_pb2.WatchUpgradeRequest(id=upgrade_id)
    deadline = time.monotonic() + timeout_s
    last_seen, last_change, last_key = None, time.monotonic(), ""
    while True:
        now = time.monotonic()
        left = min(deadline - now, last_change + stall_s - now)
        if left <= 0:
            state = "nothing" if last_seen is None else state_name(last_seen.state)
            raise StalledError(
                f"upgrade {upgrade_id} did not end in {timeout_s:g} s, or did not move for "
                f"{stall_s:g} s; last seen: {state}"
            )
        try:
            async for message in stub.WatchUpgrade(request, timeout=left):
                last_seen = message.upgrade
                key = _movement(last_seen)
                if key != last_key:
                    last_key, last_change = key, time.monotonic()
                on_update(last_seen)
                if last_seen.state in ENDED:
                    return last_seen
                if time.monotonic() > last_change + stall_s:
                    break
        except grpc.aio.AioRpcError as error:
            if error.code() not in (
                grpc.StatusCode.UNAVAILABLE,
                grpc.StatusCode.DEADLINE_EXCEEDED,
                grpc.StatusCode.CANCELLED,
            ):
                raise
        await asyncio.sleep(RECONNECT_S)


def _movement(upgrade: upgrade_pb2.Upgrade) -> str:
    """Returns what differs as long as an upgrade is alive, without its clock figures."""
    parts = [str(upgrade.state)]
    for one in upgrade.migrations:
        parts.append(f"{one.adapter}:{one.state}:{one.attempt}:{one.stage_progress:.3f}")
    return "|".join(parts)


def gate_word(decision: upgrade_pb2.Decision) -> GateWord:
    """Returns the gate's decision as plain data."""
    if decision.verdict == upgrade_pb2.VERDICT_UNSPECIFIED:
        return GateWord()
    return GateWord(
        verdict=upgrade_pb2.Verdict.Name(decision.verdict).removeprefix("VERDICT_").lower(),
        evidence=decision.evidence,
        n=decision.n,
        source_score=decision.source_score,
        shadow_score=decision.shadow_score,
        interval_low=decision.interval_low,
        interval_high=decision.interval_high,
        margin=decision.margin,
        negative_flip_rate=decision.negative_flip_rate,
        reason=decision.reason,
    )


def stage_rows(upgrade: upgrade_pb2.Upgrade, origin: float) -> list[GanttRow]:
    """Returns every migration's stages for the Gantt chart; unfinished ones are left out."""
    rows = []
    for one in upgrade.migrations:
        bars = tuple(
            GanttBar(
                start_s=_seconds(stage.start_time) - origin,
                end_s=_seconds(stage.end_time) - origin,
                kind=stage.stage,
                label=f"{stage.stage} (attempt {stage.attempt})",
            )
            for stage in one.stages
            if stage.HasField("start_time") and stage.HasField("end_time")
        )
        rows.append(GanttRow(name=one.adapter, bars=bars, end_mark=one.state))
    return rows


def acknowledgements(upgrade: upgrade_pb2.Upgrade) -> list[Acknowledgement]:
    """Returns when all gateways had acknowledged each promotion.

    The controller records the end of `promote` after the last acknowledgement, with the route
    revision in the stage's summary.
    """
    found = []
    for one in upgrade.migrations:
        for stage in one.stages:
            if stage.stage != "promote" or not stage.HasField("end_time"):
                continue
            summary: dict[str, Any] = json.loads(stage.summary_json or "{}")
            if summary.get("acked") and summary.get("revision"):
                found.append(
                    Acknowledgement(revision=int(summary["revision"]), at=_seconds(stage.end_time))
                )
    return found


def route_steps(changes: Sequence[adapter_pb2.RouteChange]) -> list[RouteStep]:
    """Returns the audit trail as plain data."""
    return [
        RouteStep(
            revision=change.revision,
            adapter=change.adapter,
            version=change.version,
            base=change.base,
            at=_seconds(change.time),
            reason=change.reason,
        )
        for change in changes
    ]


def migration_seconds(one: upgrade_pb2.Migration) -> float:
    """Returns the seconds from the first stage's start to the last one's end."""
    begins = [_seconds(s.start_time) for s in one.stages if s.HasField("start_time")]
    ends = [_seconds(s.end_time) for s in one.stages if s.HasField("end_time")]
    return max(ends) - min(begins) if begins and ends else 0.0


def _seconds(stamp: Timestamp) -> float:
    return stamp.seconds + stamp.nanos / 1e9
