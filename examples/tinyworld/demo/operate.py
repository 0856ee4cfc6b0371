"""The end of the rollback window."""

import asyncio

from benchmarks.upgrades import settled
from lorebase.serving.cli.client import LorebaseClient
from lorebase.v1 import inference_pb2, upgrade_pb2


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
