"""The route hub as a detached Ray actor: a thin shell over hub.Hub.

It reads the catalog, so it may die and restart at any time; gateways keep their last table.
"""

import asyncio
import time
from typing import Any

import ray
import structlog

from ..artifacts import ArtifactStore
from ..catalog import Catalog
from ..config import Settings
from ..errors import UnavailableError
from ..ray_names import HUB_ACTOR, NAMESPACE
from .hub import Hub
from .table import RouteTable

REREAD_S = 1.0
"""A change that nobody announced is seen after this many seconds."""

_log = structlog.get_logger(__name__)


class RouteHub:
    """Actor class: serves the route table of the catalog to the gateways."""

    def __init__(self, settings: Settings) -> None:
        self._catalog = Catalog.open(settings.catalog_url)
        self._artifacts = ArtifactStore(settings.artifact_root)
        self._hub = Hub(clock=time.monotonic)
        self._reading = asyncio.Lock()
        self._reread: asyncio.Task[None] | None = None

    async def poll(self, gateway_id: str, have: int) -> tuple[int, RouteTable | None]:
        """See Hub.poll."""
        await self._start()
        return await self._hub.poll(gateway_id, have)

    async def refresh(self) -> int:
        """Reads the catalog now and returns the revision that gateways get."""
        async with self._reading:
            table = await asyncio.to_thread(self._read, self._hub.revision)
        if table is not None:
            await self._hub.put(table)
        return self._hub.revision

    async def wait_acked(self, revision: int, timeout_s: float) -> list[str]:
        """See Hub.wait_acked."""
        await self._start()
        return await self._hub.wait_acked(revision, timeout_s)

    async def leave(self, gateway_id: str) -> None:
        """See Hub.leave."""
        await self._hub.leave(gateway_id)

    async def gateways(self) -> dict[str, int]:
        """Returns the acknowledged revision of every live gateway."""
        return self._hub.live()

    async def _start(self) -> None:
        if self._reread is None:
            self._reread = asyncio.create_task(self._reread_forever())
            await self.refresh()

    async def _reread_forever(self) -> None:
        while True:
            await asyncio.sleep(REREAD_S)
            try:
                await self.refresh()
            except Exception as error:  # the next round tries again; the last table stays
                _log.warning("catalog_unreadable", error=repr(error))

    def _read(self, have: int) -> RouteTable | None:
        if self._catalog.route_revision() == have:
            return None
        return self._catalog.route_table(self._path_of)

    def _path_of(self, digest: str) -> str:
        # One lost artifact must not take every other route down: its own requests fail at the
        # engine, with a message that names the directory.
        return str(self._artifacts.locate(digest))


def start_hub(settings: Settings, env_vars: dict[str, str]) -> Any:
    """Starts the hub, or finds the running one, and returns its handle."""
    actor = ray.remote(RouteHub)
    return actor.options(
        name=HUB_ACTOR,
        namespace=NAMESPACE,
        lifetime="detached",
        get_if_exists=True,
        num_cpus=0,
        max_restarts=-1,
        # A poll that fails is repeated by the gateway, with what it then has.
        max_task_retries=0,
        max_concurrency=1000,
        runtime_env={"env_vars": env_vars},
    ).remote(settings)


def find_hub() -> Any:
    """Returns the hub's handle.

    Raises:
        UnavailableError: no hub runs; `lorebase serve` starts it.
    """
    try:
        return ray.get_actor(HUB_ACTOR, namespace=NAMESPACE)
    except ValueError as error:
        raise UnavailableError(f"the route hub is not running: {error}") from error
