"""Drives an upgrade from outside, over gRPC: follow it, move routes by hand, read its trail."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import grpc
from google.protobuf.timestamp_pb2 import Timestamp

from lorebase.serving.cli.client import LorebaseClient
from lorebase.v1 import adapter_pb2, upgrade_pb2
from lorebase.v1.inference_pb2_grpc import InferenceServiceStub
from lorebase.v1.upgrade_pb2_grpc import UpgradeServiceStub

from .load import Acknowledgement, RouteStep, Workload, channel_to, send
from .load.records import RequestRecord

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
POLL_S = 0.05


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
                    Acknowledgement(
                        revision=int(summary["revision"]), at=seconds_of(stage.end_time)
                    )
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
            at=seconds_of(change.time),
            reason=change.reason,
        )
        for change in changes
    ]


Action = Literal["rollback", "promote"]


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorMove:
    """A rollback or promotion by hand: from the call to the first client that saw it."""

    adapter: str
    action: Action
    called_at: float
    """Seconds since the epoch."""
    call_s: float
    """Until the call returned. A rollback returns once all gateways use the new routes."""
    seen_s: float
    """Until a client's request was answered by the other base."""


async def move(
    client: LorebaseClient,
    action: Action,
    upgrade: upgrade_pb2.Upgrade,
    load: Workload,
    *,
    timeout_s: float,
    on_record: Callable[[RequestRecord], None],
) -> OperatorMove:
    """Rolls one adapter back, or promotes it again, and waits until a client sees it.

    Args:
        client: connection for the command.
        action: `rollback` or `promote`.
        upgrade: the completed upgrade.
        load: requests for the adapter's plain name.
        timeout_s: give up after this long.
        on_record: gets every request that looks for the change.

    Raises:
        TimeoutError: no client was answered by the other base in time.
    """
    calls = {"rollback": client.rollback_upgrade, "promote": client.promote_upgrade}
    wanted = upgrade.from_base if action == "rollback" else upgrade.to_base
    called_at, begin = time.time(), time.perf_counter()
    call = asyncio.create_task(asyncio.to_thread(calls[action], upgrade.id, (load.adapter,)))
    async with asyncio.timeout(timeout_s), channel_to(client.endpoint) as channel:
        stub = InferenceServiceStub(channel)
        await call
        call_s = time.perf_counter() - begin
        while True:
            record = await send(stub, load, 0, kind="operator")
            on_record(record)
            if record.ok and record.base == wanted:
                break
            await asyncio.sleep(POLL_S)
    return OperatorMove(
        adapter=load.adapter,
        action=action,
        called_at=called_at,
        call_s=call_s,
        seen_s=time.perf_counter() - begin,
    )


async def settled(
    client: LorebaseClient, upgrade_id: str, states: frozenset[int], timeout_s: float
) -> upgrade_pb2.Upgrade:
    """Waits until the upgrade is in one of the states.

    Raises:
        TimeoutError: it was not in time.
    """
    async with asyncio.timeout(timeout_s):
        while True:
            upgrade = await asyncio.to_thread(client.get_upgrade, upgrade_id)
            if upgrade.state in states:
                return upgrade
            await asyncio.sleep(POLL_S * 4)


def rollback_acknowledgements(
    moves: Sequence[OperatorMove], steps: Sequence[RouteStep]
) -> list[Acknowledgement]:
    """Returns when all gateways had acknowledged each rollback: when its call returned."""
    found = []
    for one in moves:
        returned = one.called_at + one.call_s
        written = [
            step.revision
            for step in steps
            if step.adapter == one.adapter
            and step.reason == "rollback"
            and one.called_at <= step.at <= returned
        ]
        if one.action == "rollback" and written:
            found.append(Acknowledgement(revision=max(written), at=returned))
    return found


def seconds_of(stamp: Timestamp) -> float:
    """Returns a timestamp as seconds since the epoch."""
    return stamp.seconds + stamp.nanos / 1e9
