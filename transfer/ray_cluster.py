"""Engines, routes and gateways for the controller: Ray behind the `Cluster` Protocol."""

import asyncio
from functools import cache
from typing import Any

from lorebase.serving import app
from lorebase.serving.catalog.records import Base
from lorebase.serving.config import Settings
from lorebase.serving.engine.protocol import EngineStats, VersionRef
from lorebase.serving.errors import DeadlineExceededError, UnavailableError
from lorebase.serving.routing.ray_hub import find_hub

from .ray_errors import own_error

BROADCAST_TIMEOUT_S = 60.0


@cache
def engine_handle(base_id: str) -> Any:
    """Returns the handle of a base's engine; one per process and base, as Serve wants it."""
    return app.engine_handle(base_id)


async def engine_call(base_id: str, method: str, *arguments: object) -> Any:
    """Calls one replica of an engine.

    Raises:
        UnavailableError: no replica, or it died; besides what the engine raises.
    """
    try:
        return await getattr(engine_handle(base_id), method).remote(*arguments)
    except Exception as error:
        raise own_error(error, f"{method} on the engine of base {base_id!r}") from error


async def engine_broadcast(base_id: str, method: str, *arguments: object) -> list[Any]:
    """Calls every replica of an engine; see `engine_call` for errors."""
    try:
        response = engine_handle(base_id).broadcast(method, *arguments)
        results = list(await response.results_async(timeout_s=BROADCAST_TIMEOUT_S))
    except Exception as error:
        raise own_error(error, f"{method} on the engine of base {base_id!r}") from error
    if not results:
        raise UnavailableError(f"no engine replica of base {base_id!r} runs now")
    return results


class RayCluster:
    """The cluster as the controller sees it.

    Args:
        settings: the whole configuration.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    async def deploy_engine(self, base: Base) -> None:
        """See Cluster.deploy_engine."""
        await asyncio.to_thread(app.deploy_engine, self._settings, base.id)

    async def retire_engine(self, base_id: str) -> None:
        """See Cluster.retire_engine."""
        await asyncio.to_thread(app.retire_engine, base_id)
        # A later engine of the same base is another application.
        engine_handle.cache_clear()

    async def refresh_routes(self) -> None:
        """See Cluster.refresh_routes."""
        hub = await asyncio.to_thread(find_hub)
        await hub.refresh.remote()

    async def wait_acks(self, revision: int, timeout_s: float) -> bool:
        """See Cluster.wait_acks."""
        hub = await asyncio.to_thread(find_hub)
        try:
            await hub.wait_acked.remote(revision, timeout_s)
        except Exception as error:
            if isinstance(own_error(error, "wait_acked"), DeadlineExceededError):
                return False
            raise
        return True

    async def warm(self, version: VersionRef) -> int:
        """See Cluster.warm."""
        return len(await engine_broadcast(version.base_id, "ensure_adapter", version))

    async def engine_stats(self, base_id: str) -> EngineStats:
        """See Cluster.engine_stats."""
        found: list[EngineStats] = await engine_broadcast(base_id, "stats")
        return EngineStats(
            base_id=base_id,
            running_foreground=sum(one.running_foreground for one in found),
            waiting_foreground=sum(one.waiting_foreground for one in found),
            running_background=sum(one.running_background for one in found),
            loaded_versions=max(one.loaded_versions for one in found),
            rss_bytes=sum(one.rss_bytes for one in found),
        )
