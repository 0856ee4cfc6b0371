"""The Serve deployments: thin shells around the engine and the gateway, and how to deploy them.

Environment of a process is set here through Ray's runtime environment, because libraries read it
when they are imported.
"""

import os
import threading
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import Any

from ray import serve
from ray.serve.schema import ApplicationStatus

from .coalesce import coalesced
from .config import Settings
from .engine.batch import complete_many
from .engine.factory import create_engine
from .engine.protocol import Chunk, Completion, EngineStats, GenerationRequest, VersionRef
from .engine.settings import cpu_environment
from .errors import EngineDeadError, UnavailableError
from .gateway.ray_clients import RayEngines, RayHubClient, RayPublisher
from .gateway.server import GatewayServer
from .ray_names import (
    ENGINE_DEPLOYMENT,
    GATEWAY_APP,
    GATEWAY_DEPLOYMENT,
    engine_app_name,
)

DEAD_ENGINE_EXIT = 17
"""Exit status of a replica whose engine died. Serve replaces a process that is gone in a third of
a second; one that only says it is ill takes three missed health checks."""

START_TIMEOUT_S = 600.0
"""Bound of starting an engine: a large base takes minutes to load."""

_submitting = threading.Lock()

ROUTER = "ray.serve.experimental.consistent_hash_router:ConsistentHashRouter"


class EngineDeployment:
    """One replica of one base's engine."""

    async def __init__(self, settings: Settings, base_id: str) -> None:  # type: ignore[misc]
        self._engine = await create_engine(settings.engine_settings(base_id))

    async def generate(
        self, request: GenerationRequest, wait_s: float = 0.0
    ) -> AsyncGenerator[Chunk, None]:
        """See Engine.generate; cancelling the call aborts the request.

        Args:
            request: for the engine.
            wait_s: least time between two chunks; see coalesce.py.
        """
        made = _closable(self._engine.generate(request))
        async with aclosing(coalesced(made, wait_s) if wait_s > 0 else made) as chunks:
            async for chunk in chunks:
                yield chunk

    async def generate_many(self, requests: list[GenerationRequest]) -> list[Completion]:
        """Completes all requests; one that fails has its error, the others go on."""
        return await complete_many(self._engine, requests)

    async def prefetch_adapter(self, version: VersionRef) -> None:
        """See Engine.prefetch_adapter."""
        self._engine.prefetch_adapter(version)

    async def ensure_adapter(self, version: VersionRef) -> None:
        """See Engine.ensure_adapter."""
        await self._engine.ensure_adapter(version)

    async def drop_adapter(self, version_id: str) -> bool:
        """See Engine.drop_adapter."""
        return await self._engine.drop_adapter(version_id)

    async def stats(self) -> EngineStats:
        """See Engine.stats."""
        return await self._engine.stats()

    async def check_health(self) -> None:
        """Ends the process if its engine is dead."""
        try:
            await self._engine.check_health()
        except EngineDeadError:
            os._exit(DEAD_ENGINE_EXIT)

    async def __del__(self) -> None:
        engine = getattr(self, "_engine", None)
        if engine is not None:
            await engine.shutdown()


class GatewayDeployment:
    """One gateway."""

    async def __init__(self, settings: Settings) -> None:  # type: ignore[misc]
        engines = RayEngines(sticky=settings.engine.replicas > 1)
        hub = RayHubClient()
        self._server = GatewayServer(
            settings=settings,
            engines=engines,
            publisher=RayPublisher(hub, settings.serving.publish_timeout_s),
            hub=hub,
            on_table=engines.prepare,
        )
        try:
            await self._server.start()
        except BaseException:
            await self._server.stop()
            raise

    async def check_health(self) -> None:
        """See GatewayServer.check_health."""
        await self._server.check_health()

    async def __del__(self) -> None:
        # Serve awaits this when it stops a replica: here the gateway drains.
        server = getattr(self, "_server", None)
        if server is not None:
            await server.stop()


def _closable(chunks: Any) -> AsyncGenerator[Chunk, None]:
    # The Protocol says AsyncIterator; every engine's is a generator, which can be closed.
    generator: AsyncGenerator[Chunk, None] = chunks
    return generator


def process_env(settings: Settings) -> dict[str, str]:
    """Returns the environment of processes that run neither engines nor training."""
    return {
        "PROMETHEUS_MULTIPROC_DIR": str(settings.metrics_dir),
        # Threads of numerical libraries that nothing here uses.
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


def engine_app(settings: Settings, base_id: str) -> serve.Application:
    """Returns the Serve application of one base's engine."""
    engine = settings.engine
    routing: dict[str, Any] = {}
    if engine.replicas > 1:
        # All requests of a version to the same replica: each holds its own adapters.
        routing = {"request_router_config": {"request_router_class": ROUTER}}
    deployment: Any = serve.deployment(
        name=ENGINE_DEPLOYMENT,
        num_replicas=engine.replicas,
        # Gateways and the background queue are the bounds; Serve must not add its own.
        max_ongoing_requests=100_000,
        max_queued_requests=-1,
        health_check_period_s=1,
        health_check_timeout_s=30,
        graceful_shutdown_wait_loop_s=0.2,
        graceful_shutdown_timeout_s=settings.serving.drain_s + 5,
        ray_actor_options={
            "num_cpus": engine.replica_cpus,
            "num_gpus": engine.replica_gpus,
            "runtime_env": {"env_vars": cpu_environment(settings.engine_settings(base_id))},
        },
        **routing,
    )(EngineDeployment)
    application: serve.Application = deployment.bind(settings, base_id)
    return application


def gateway_app(settings: Settings) -> serve.Application:
    """Returns the Serve application of the gateways."""
    deployment: Any = serve.deployment(
        name=GATEWAY_DEPLOYMENT,
        num_replicas=settings.serving.gateways,
        max_ongoing_requests=100,
        health_check_period_s=1,
        health_check_timeout_s=10,
        graceful_shutdown_wait_loop_s=0.1,
        graceful_shutdown_timeout_s=settings.serving.drain_s + 5,
        ray_actor_options={"num_cpus": 0, "runtime_env": {"env_vars": process_env(settings)}},
    )(GatewayDeployment)
    application: serve.Application = deployment.bind(settings)
    return application


def deploy_engine(settings: Settings, base_id: str) -> None:
    """Starts a base's engine and returns when it runs; a no-op if it does. Blocks.

    Raises:
        UnavailableError: it did not start; the message says why.
    """
    _deploy({engine_app_name(base_id): engine_app(settings, base_id)})


def retire_engine(base_id: str) -> None:
    """Stops a base's engine after its requests; a no-op if there is none. Blocks."""
    name = engine_app_name(base_id)
    if name in serve.status().applications:
        serve.delete(name, _blocking=True)


def engine_handle(base_id: str) -> Any:
    """Returns a handle of a base's engine; arguments and results travel by value.

    `handle.generate_many.remote(requests)` reaches one replica, `handle.broadcast("stats")` all.
    """
    return serve.get_deployment_handle(
        ENGINE_DEPLOYMENT, app_name=engine_app_name(base_id)
    ).options(_by_reference=False)


def deploy_all(settings: Settings, base_ids: Sequence[str]) -> None:
    """Starts the gateways and the engines of some bases at the same time; returns when all run.

    Raises:
        UnavailableError: something did not start; the message says what and why.
    """
    engines = {engine_app_name(base_id): engine_app(settings, base_id) for base_id in base_ids}
    _deploy({**engines, GATEWAY_APP: gateway_app(settings)})


def _deploy(applications: Mapping[str, serve.Application]) -> None:
    """Runs Serve applications and waits until they are RUNNING.

    Building and submitting applications is not thread-safe in Ray (it registers modules with its
    pickler meanwhile), so that part is serial; waiting is not.
    """
    with _submitting:
        targets = []
        for name, application in applications.items():
            status = _status(name)
            if status in (ApplicationStatus.DEPLOY_FAILED, ApplicationStatus.DELETING):
                serve.delete(name, _blocking=True)
                status = None
            # What runs or starts already is left alone: submitting it again would restart it.
            if status in (None, ApplicationStatus.NOT_STARTED):
                targets.append(serve.RunTarget(application, name=name, route_prefix=None))
        if targets:
            serve.run_many(
                targets,
                wait_for_ingress_deployment_creation=False,
                wait_for_applications_running=False,
            )
    for name in applications:
        _wait_running(name)


def _wait_running(name: str) -> None:
    until = time.monotonic() + START_TIMEOUT_S
    status = None
    while time.monotonic() < until:
        status = _status(name)
        if status == ApplicationStatus.RUNNING:
            return
        if status == ApplicationStatus.DEPLOY_FAILED:
            why = serve.status().applications[name]
            parts = [why.message, *(each.message for each in why.deployments.values())]
            text = " ".join(part for part in parts if part)
            raise UnavailableError(f"{name} did not start: {text[-2000:]}")
        time.sleep(0.1)
    raise UnavailableError(f"{name} did not start within {START_TIMEOUT_S:.0f} s ({status})")


def _status(name: str) -> ApplicationStatus | None:
    application = serve.status().applications.get(name)
    return None if application is None else application.status
