"""One gateway: its gRPC and HTTP servers on ports that all gateways of a node share.

SO_REUSEPORT lets the kernel spread connections over the gateways. Stopping is graceful: health
says NOT_SERVING, no new connections, requests in flight finish within `serving.drain_s`.
"""

import asyncio
import random
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import grpc
import grpc.aio
import structlog
import uvicorn
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from lorebase.v1 import (
    adapter_pb2,
    adapter_pb2_grpc,
    inference_pb2,
    inference_pb2_grpc,
)

from ..artifacts import ArtifactStore
from ..catalog import Catalog
from ..config import Settings
from ..errors import UnavailableError
from ..imports import load
from ..routing.table import RouteTable
from .adapter_admin import AdapterAdmin
from .adapter_service import AdapterServicer
from .admission import Admission
from .core import Core
from .http import OpenAiHttp
from .interceptor import ErrorInterceptor
from .listeners import UvicornServer, listen, port_taken
from .metrics import GatewayMetrics
from .ports import EngineClient, GatewayContext, RoutePublisher
from .resuming import ResumingEngines
from .routes_watch import HubClient, RoutesWatch
from .service import InferenceServicer
from .tokenization import BaseTokenizers
from .uploads import Uploads

_log = structlog.get_logger(__name__)

FIRST_TABLE_S = 30.0
"""A gateway that gets no route table for this long fails its start, and is started again."""
MAX_MESSAGE_BYTES = 8 << 20
KEEPALIVE = [
    # Finds dead clients, whose requests would otherwise run to their end.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
]
INFERENCE = inference_pb2.DESCRIPTOR.services_by_name["InferenceService"].full_name
ADAPTERS = adapter_pb2.DESCRIPTOR.services_by_name["AdapterService"].full_name


class GatewayServer:
    """The servers of one gateway and everything behind them, without Ray."""

    def __init__(
        self,
        *,
        settings: Settings,
        engines: EngineClient,
        publisher: RoutePublisher,
        hub: HubClient,
        on_table: Callable[[RouteTable], None],
        metrics: GatewayMetrics | None = None,
    ) -> None:
        """Opens the catalog; listens only after `start`.

        Args:
            settings: ports must not be 0.
            engines: the engines of all bases.
            publisher: makes route changes take effect.
            hub: where route tables come from.
            on_table: called with each table before it takes effect.
            metrics: for tests; otherwise new ones.
        """
        self._settings = settings
        self._metrics = metrics or GatewayMetrics()
        self._catalog = Catalog.open(settings.catalog_url)
        self._store = ArtifactStore(settings.artifact_root)
        self._engines = engines
        self._publisher = publisher
        self._id = uuid.uuid4().hex
        self._watch = RoutesWatch(
            gateway_id=self._id, hub=hub, metrics=self._metrics, on_table=on_table
        )
        serving = settings.serving
        self._admission = Admission(
            max_concurrency=serving.max_concurrency,
            max_queue=serving.max_queue,
            clock=time.monotonic,
        )
        self._core = self._make_core()
        self._health = health.aio.HealthServicer()  # type: ignore[attr-defined]
        self._services: list[str] = []
        self._serving = False
        self._polling: asyncio.Task[None] | None = None
        self._http_task: asyncio.Task[None] | None = None
        self._grpc: grpc.aio.Server | None = None
        self._http: UvicornServer | None = None

    def _make_core(self) -> Core:
        tokenizers = BaseTokenizers(self._base_path)
        return Core(
            table=self._table,
            engines=ResumingEngines(
                engines=self._engines,
                tokenizers=tokenizers,
                metrics=self._metrics,
                clock=time.monotonic,
                new_id=_short_id,
                attempts=self._settings.serving.resume_attempts,
            ),
            tokenizers=tokenizers,
            admission=self._admission,
            metrics=self._metrics,
            clock=time.monotonic,
            rng=random.Random(),
            max_request_s=self._settings.serving.max_request_s,
            stream_wait_s=self._settings.serving.stream_wait_s,
        )

    def _table(self) -> RouteTable | None:
        return self._watch.table

    def _base_path(self, base_id: str) -> Path:
        return Path(self._catalog.get_base(base_id).path)

    async def start(self) -> None:
        """Waits for a route table, then listens. Health is SERVING when this returns.

        Raises:
            UnavailableError: no route table came.
            FailedPreconditionError: a port is taken by something that is not a gateway.
        """
        self._polling = asyncio.create_task(self._watch.run())
        try:
            async with asyncio.timeout(FIRST_TABLE_S):
                await self._watch.wait_first()
        except TimeoutError:
            raise UnavailableError(
                f"no route table within {FIRST_TABLE_S:.0f} s; is the route hub running?"
            ) from None
        self._grpc = server = self._make_grpc()
        await server.start()
        self._http = self._make_http()
        self._http_task = asyncio.create_task(self._http.serve())
        await self._http.wait_started()
        self._serving = True
        for name in ("", *self._services):
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        _log.info(
            "gateway_serving",
            gateway=self._id,
            grpc_port=self._settings.serving.grpc_port,
            http_port=self._settings.serving.http_port,
        )

    def _make_grpc(self) -> grpc.aio.Server:
        serving = self._settings.serving
        server = grpc.aio.server(
            interceptors=[ErrorInterceptor(self._metrics)],
            options=[
                ("grpc.so_reuseport", 1),
                ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
                *KEEPALIVE,
            ],
        )
        self._add_services(server)
        address = f"{serving.host}:{serving.grpc_port}"
        try:
            if serving.tls is None:
                server.add_insecure_port(address)
            else:
                pair = (serving.tls.key.read_bytes(), serving.tls.cert.read_bytes())
                server.add_secure_port(address, grpc.ssl_server_credentials([pair]))
        except RuntimeError as error:
            raise port_taken(serving.grpc_port, "serving.grpc_port") from error
        return server

    def _add_services(self, server: grpc.aio.Server) -> None:
        settings = self._settings
        inference_pb2_grpc.add_InferenceServiceServicer_to_server(
            InferenceServicer(self._core, settings.limits, _long_id), server
        )
        kit_check = settings.gateway.kit_check
        uploads = Uploads(
            catalog=self._catalog,
            store=self._store,
            limits=settings.limits,
            kit_check=None if kit_check is None else load(kit_check),
        )
        admin = AdapterAdmin(
            catalog=self._catalog,
            store=self._store,
            uploads=uploads,
            engines=self._engines,
            publisher=self._publisher,
            table=self._table,
            clock=time.time,
        )
        adapter_pb2_grpc.add_AdapterServiceServicer_to_server(
            AdapterServicer(admin, uploads), server
        )
        self._services = [INFERENCE, ADAPTERS]
        context = GatewayContext(
            settings=settings,
            catalog=self._catalog,
            artifacts=self._store,
            engines=self._engines,
            publisher=self._publisher,
            table=self._table,
        )
        for name in settings.gateway.extra_servicers:
            self._services += load(name)(server, context)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        reflection.enable_server_reflection(
            [*self._services, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name,
             reflection.SERVICE_NAME],
            server,
        )  # fmt: skip

    def _make_http(self) -> UvicornServer:
        serving = self._settings.serving
        app = OpenAiHttp(
            core=self._core,
            limits=self._settings.limits,
            metrics=self._metrics,
            serving=lambda: self._serving,
            new_id=_long_id,
            clock=time.time,
        ).app()
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            lifespan="off",
            timeout_graceful_shutdown=max(1, round(serving.drain_s)),
            ssl_certfile=None if serving.tls is None else serving.tls.cert,
            ssl_keyfile=None if serving.tls is None else serving.tls.key,
        )
        return UvicornServer(config, listen(serving.host, serving.http_port))

    async def check_health(self) -> None:
        """Raises if this gateway can't serve any more and must be replaced."""
        for task in (self._polling, self._http_task):
            if task is None or task.done():
                raise UnavailableError(f"a part of this gateway has ended: {task}")

    async def stop(self) -> None:
        """Drains and closes; safe to call twice and after a failed start."""
        self._serving = False
        await self._health.enter_graceful_shutdown()
        drain_s = self._settings.serving.drain_s
        stopping: list[asyncio.Task[None]] = []
        if self._grpc is not None:
            # Calls that race with this on open connections are refused by gRPC before they reach
            # a servicer, and its clients repeat them elsewhere by themselves. So admission need
            # not refuse any: what it has is answered.
            stopping.append(asyncio.create_task(self._grpc.stop(drain_s)))
        if self._http is not None and self._http_task is not None:
            self._http.should_exit = True
            stopping.append(self._http_task)
        await self._watch.leave()
        if stopping:
            await asyncio.wait(stopping, timeout=drain_s + 1)
        tasks = [task for task in (self._polling, *stopping) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._polling = self._http_task = self._grpc = self._http = None
        self._catalog.close()


def _long_id() -> str:
    return uuid.uuid4().hex


def _short_id() -> str:
    return uuid.uuid4().hex[:8]
