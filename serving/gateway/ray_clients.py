"""Engines and route hub as the gateway reaches them: through Ray. The rest of the gateway has none.

Errors of other processes come back wrapped; here they become lorebase's own again.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from typing import Any, NoReturn

from ray import serve
from ray.exceptions import RayActorError, RayError, RayTaskError, TaskCancelledError
from ray.serve.exceptions import (
    BackPressureError,
    DeploymentUnavailableError,
    RayServeException,
    ReplicaUnavailableError,
)

from ..engine.protocol import Chunk, GenerationRequest, VersionRef
from ..errors import (
    EngineDeadError,
    LorebaseError,
    ResourceExhaustedError,
    UnavailableError,
)
from ..ray_names import ENGINE_DEPLOYMENT, engine_app_name
from ..routing.ray_hub import find_hub
from ..routing.table import RouteTable

BROADCAST_TIMEOUT_S = 60.0
"""Bound of a call to all replicas: loading an adapter takes milliseconds, or its file system
hangs."""
HINT_TIMEOUT_S = 5.0
"""Bound of a hint that an adapter will be wanted, which the engine answers at once."""


class RayEngines:
    """EngineClient over deployment handles, one per base, made when first needed."""

    def __init__(self, *, sticky: bool) -> None:
        """`sticky` sends all requests of a version to the same replica, for several replicas."""
        self._sticky = sticky
        self._handles: dict[str, Any] = {}
        self._hints: dict[str, asyncio.Task[None]] = {}

    def prepare(self, table: RouteTable) -> None:
        """Makes the handles of a table's bases, and forgets those of bases no longer served."""
        for base_id in table.serving_bases:
            self._handle(base_id)
        for base_id in self._handles.keys() - set(table.serving_bases):
            del self._handles[base_id]

    async def generate(
        self, base_id: str, request: GenerationRequest, wait_s: float
    ) -> AsyncGenerator[Chunk, None]:
        """See EngineClient.generate."""
        handle = self._handle(base_id)
        if self._sticky and request.version is not None:
            handle = handle.options(session_id=request.version.id)
        try:
            response = handle.remote(request, wait_s)
        except Exception as error:
            _raise_own(error, base_id)
        finished = False
        try:
            async for chunk in response:
                yield chunk
            finished = True
        except (GeneratorExit, asyncio.CancelledError):
            raise
        except Exception as error:
            finished = True
            _raise_own(error, base_id)
        finally:
            if not finished:
                response.cancel()

    def prefetch(self, version: VersionRef) -> None:
        """See EngineClient.prefetch; reaches the replica that a request of it would now."""
        if version.id not in self._hints:  # one at a time says as much as many
            hint = asyncio.create_task(self._prefetch(version))
            self._hints[version.id] = hint
            hint.add_done_callback(lambda _: self._hints.pop(version.id))

    async def _prefetch(self, version: VersionRef) -> None:
        changes: dict[str, Any] = {"stream": False, "method_name": "prefetch_adapter"}
        if self._sticky:
            changes["session_id"] = version.id
        with suppress(Exception):  # the request itself will meet whatever is wrong
            async with asyncio.timeout(HINT_TIMEOUT_S):
                await self._handle(version.base_id).options(**changes).remote(version)

    async def ensure_adapter(self, version: VersionRef) -> None:
        """See EngineClient.ensure_adapter; reaches every replica."""
        await self._everywhere(version.base_id, "ensure_adapter", version)

    async def drop_adapter(self, version: VersionRef) -> None:
        """See EngineClient.drop_adapter; reaches every replica."""
        await self._everywhere(version.base_id, "drop_adapter", version.id)

    async def _everywhere(self, base_id: str, method: str, argument: object) -> list[Any]:
        try:
            response = self._handle(base_id).broadcast(method, argument)
            results = await response.results_async(timeout_s=BROADCAST_TIMEOUT_S)
        except TimeoutError:
            raise UnavailableError(
                f"not every engine replica of base {base_id!r} answered {method} within "
                f"{BROADCAST_TIMEOUT_S:.0f} s"
            ) from None
        except Exception as error:
            _raise_own(error, base_id)
        if not results:
            raise UnavailableError(f"no engine replica of base {base_id!r} runs now")
        return list(results)

    def _handle(self, base_id: str) -> Any:
        handle = self._handles.get(base_id)
        if handle is None:
            handle = serve.get_deployment_handle(
                ENGINE_DEPLOYMENT, app_name=engine_app_name(base_id)
            ).options(stream=True, method_name="generate", _by_reference=False)
            self._handles[base_id] = handle
        return handle


def _raise_own(error: Exception, base_id: str) -> NoReturn:
    """Raises what lorebase calls this error of Ray."""
    cause = error.cause if isinstance(error, RayTaskError) else error
    if isinstance(cause, LorebaseError):
        raise cause from None
    if isinstance(cause, BackPressureError):
        raise ResourceExhaustedError(
            f"the engine of base {base_id!r} has too many requests; retry", retry_after_s=1.0
        ) from error
    if isinstance(cause, RayActorError | ReplicaUnavailableError | TaskCancelledError):
        raise EngineDeadError(
            f"an engine replica of base {base_id!r} died", retry_after_s=1.0
        ) from error
    if isinstance(cause, DeploymentUnavailableError | RayServeException):
        raise UnavailableError(
            f"no engine runs for base {base_id!r}: {cause}", retry_after_s=1.0
        ) from error
    raise error


class RayHubClient:
    """The route hub; looked up again after each failure, because it may have been replaced."""

    def __init__(self) -> None:
        self._actor: Any = None

    async def poll(self, gateway_id: str, have: int) -> tuple[int, RouteTable | None]:
        """See hub.Hub.poll."""
        result: tuple[int, RouteTable | None] = await self._call(
            lambda hub: hub.poll.remote(gateway_id, have)
        )
        return result

    async def leave(self, gateway_id: str) -> None:
        """See hub.Hub.leave."""
        await self._call(lambda hub: hub.leave.remote(gateway_id))

    async def publish(self, revision: int, timeout_s: float) -> None:
        """Makes the hub read the catalog and waits until all gateways use `revision`."""
        await self._call(lambda hub: hub.refresh.remote())
        await self._call(lambda hub: hub.wait_acked.remote(revision, timeout_s))

    async def _call(self, call: Callable[[Any], Any]) -> Any:
        try:
            if self._actor is None:
                self._actor = await asyncio.to_thread(find_hub)
            return await call(self._actor)
        except RayTaskError as error:
            if isinstance(error.cause, LorebaseError):
                raise error.cause from None
            raise
        except RayError as error:
            self._actor = None
            raise UnavailableError(f"the route hub does not answer: {error}") from error


class RayPublisher:
    """RoutePublisher through the hub."""

    def __init__(self, hub: RayHubClient, timeout_s: float) -> None:
        self._hub = hub
        self._timeout_s = timeout_s

    async def publish(self, revision: int) -> None:
        """See RoutePublisher.publish."""
        await self._hub.publish(revision, self._timeout_s)
