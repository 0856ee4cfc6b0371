"""What an operator does by hand: roll back, promote, finish. Timed as clients see it."""

import asyncio
import time
from collections.abc import Callable

from benchmarks.load import Workload, channel_to, send
from benchmarks.load.records import RequestRecord
from lorebase.serving.cli.client import LorebaseClient
from lorebase.v1 import inference_pb2, upgrade_pb2
from lorebase.v1.inference_pb2_grpc import InferenceServiceStub

from .facts import OperatorMove

POLL_S = 0.05


async def move(
    client: LorebaseClient,
    action: str,
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
    begin = time.perf_counter()
    call = asyncio.create_task(asyncio.to_thread(calls[action], upgrade.id, (load.adapter,)))
    call_s = 0.0
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
        adapter=load.adapter, action=action, call_s=call_s, seen_s=time.perf_counter() - begin
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


async def finish(
    client: LorebaseClient, upgrade_id: str, timeout_s: float
) -> tuple[upgrade_pb2.Upgrade, list[str]]:
    """Ends the rollback window.

    Returns:
        The finished upgrade, and the bases that are served no more.

    Raises:
        TimeoutError: it did not finish in time.
    """
    completed = frozenset({upgrade_pb2.UPGRADE_STATE_COMPLETED})
    # A promotion by hand opens the upgrade again for a moment.
    await settled(client, upgrade_id, completed, timeout_s)
    before = await _served_bases(client)
    await asyncio.to_thread(client.finish_upgrade, upgrade_id)
    finished = frozenset({upgrade_pb2.UPGRADE_STATE_FINISHED})
    upgrade = await settled(client, upgrade_id, finished, timeout_s)
    return upgrade, sorted(before - await _served_bases(client))


async def _served_bases(client: LorebaseClient) -> set[str]:
    models = await asyncio.to_thread(client.list_models)
    return {model.id for model in models if model.kind == inference_pb2.Model.KIND_BASE}
