"""Starts and stops one instance: Ray, catalog, hub, engines, gateways, background plane.

Everything here may be repeated: a second start on the same state directory finds the catalog as
the first left it and serves the same adapters.
"""

import contextlib
import fcntl
import hashlib
import os
import socket
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import grpc
import structlog
from grpc_health.v1 import health_pb2, health_pb2_grpc

from .artifacts import base_revision, base_shapes
from .catalog import Catalog
from .catalog.records import Base
from .config import Settings
from .errors import FailedPreconditionError, UnavailableError
from .imports import load
from .ray_names import GATEWAY_APP, NAMESPACE

_log = structlog.get_logger(__name__)

READY_TIMEOUT_S = 60.0
MAX_TEMP_DIR_CHARS = 40
"""Ray appends up to 62 characters for its sockets, and Linux allows 107 in all."""

RAY_ENV = {
    # Idle workers are 70 MB each, and none of ours can use one: they all have an environment.
    "RAY_enable_worker_prestart": "0",
    "RAY_prestart_worker_first_driver": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS": "0",
    # Ray runs its workers at nice 15. Gateways and engines are the foreground here; background
    # training lowers its own priority.
    "RAY_worker_niceness": "0",
    # Serve's access log costs a line per call on the request path; logs are in files anyway.
    "RAY_SERVE_LOG_TO_STDERR": "0",
    "RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE": "1000",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """A running instance, as its starter sees it."""

    settings: Settings
    """With the ports that were really taken."""
    lock: IO[str]
    local: bool
    """Whether Ray was started here and ends with the instance."""

    @property
    def grpc_target(self) -> str:
        """`host:port` for gRPC clients on this machine."""
        return f"{_reachable(self.settings.serving.host)}:{self.settings.serving.grpc_port}"

    @property
    def http_url(self) -> str:
        """Base URL of the HTTP API on this machine."""
        serving = self.settings.serving
        scheme = "http" if serving.tls is None else "https"
        return f"{scheme}://{_reachable(serving.host)}:{serving.http_port}"

    def down(self) -> None:
        """Drains the gateways and stops everything; the catalog stays."""
        _stop_applications()
        _disconnect()
        self.lock.close()


def up(settings: Settings) -> Cluster:
    """Starts an instance and returns when it answers requests.

    Raises:
        FailedPreconditionError: another instance uses the state directory, a port is taken, or
            a base's id now stands for other weights.
        UnavailableError: an engine or the gateways did not start; the message says why.
    """
    settings.cluster.state_dir.mkdir(parents=True, exist_ok=True)
    lock = _lock(settings.cluster.state_dir)
    try:
        settings = _with_ports(settings)
        serving_bases = _prepare_catalog(settings)
        _clear_metrics(settings.metrics_dir)
        _connect(settings)
    except BaseException:
        lock.close()
        raise
    try:
        _start_applications(settings, serving_bases)
        cluster = Cluster(settings=settings, lock=lock, local=settings.cluster.address == "local")
        _wait_serving(cluster)
        if settings.background_plugin is not None:
            load(settings.background_plugin)(settings)
    except BaseException:
        with contextlib.suppress(Exception):
            _stop_applications()
        _disconnect()
        lock.close()
        raise
    _log.info("up", grpc=cluster.grpc_target, http=cluster.http_url, bases=serving_bases)
    return cluster


@contextlib.contextmanager
def running(settings: Settings) -> Iterator[Cluster]:
    """Runs an instance for the length of the block."""
    cluster = up(settings)
    try:
        yield cluster
    finally:
        cluster.down()


def _lock(state_dir: Path) -> IO[str]:
    """Takes the instance's lock; the kernel frees it when this process ends, however it ends."""
    file = (state_dir / "lock").open("a+", encoding="ascii")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.seek(0)
        owner = file.read().strip() or "unknown"
        file.close()
        raise FailedPreconditionError(
            f"another instance (process {owner}) runs on {state_dir}; stop it, or give this one "
            "another cluster.state_dir",
            reason="STATE_DIR_IN_USE",
        ) from None
    file.truncate(0)
    file.write(f"{os.getpid()}\n")
    file.flush()
    return file


def _with_ports(settings: Settings) -> Settings:
    """Replaces port 0 by free ones, and refuses ports that somebody listens on.

    Gateways share their ports with SO_REUSEPORT, so a second instance on the same ports would not
    fail: it would silently take half of the first one's clients.
    """
    serving = settings.serving
    with contextlib.ExitStack() as held:
        ports = {
            field: held.enter_context(_probe(serving.host, getattr(serving, field), field))
            for field in ("grpc_port", "http_port")
        }
    return settings.model_copy(update={"serving": serving.model_copy(update=ports)})


@contextlib.contextmanager
def _probe(host: str, port: int, field: str) -> Iterator[int]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise FailedPreconditionError(
                f"can't listen on {host}:{port} ({error}); set serving.{field} to a free port",
                reason="PORT_TAKEN",
            ) from None
        yield int(probe.getsockname()[1])


def _prepare_catalog(settings: Settings) -> tuple[str, ...]:
    """Registers the configured bases and returns those that need an engine."""
    catalog = Catalog.open(settings.catalog_url)
    try:
        for entry in settings.bases:
            shapes = base_shapes(entry.path)
            catalog.put_base(
                Base(
                    id=entry.id,
                    path=str(entry.path),
                    revision=base_revision(entry.path),
                    architecture=shapes.architecture,
                    dtype=entry.dtype,
                    created_at=time.time(),
                )
            )
        if catalog.current_base() is None:
            catalog.set_current_base(settings.serving.base or settings.bases[0].id)
        current = catalog.current_base()
        if current not in catalog.serving_bases() and current is not None:
            catalog.set_serving(current, True)
        for base_id in catalog.serving_bases():
            settings.base_entry(base_id)
        return catalog.serving_bases()
    finally:
        catalog.close()


def _clear_metrics(folder: Path) -> None:
    """Counters start at 0 with the instance: files of ended processes are of no use to it."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in folder.glob("*.db"):
        file.unlink()


def _connect(settings: Settings) -> None:
    cluster = settings.cluster
    for name, value in RAY_ENV.items():
        os.environ.setdefault(name, value)
    # After the environment is set: Ray reads it when it is imported.
    import ray

    common: dict[str, Any] = {"namespace": NAMESPACE, "logging_level": "warning"}
    if cluster.address == "local":
        ray.init(
            address="local",
            include_dashboard=False,
            num_cpus=cluster.num_cpus,
            object_store_memory=cluster.object_store_bytes,
            _temp_dir=str(_ray_temp_dir(cluster.state_dir)),
            log_to_driver=False,
            **common,
        )
    else:
        ray.init(address=cluster.address, **common)


def _ray_temp_dir(state_dir: Path) -> Path:
    inside = state_dir / "ray"
    if len(str(inside)) <= MAX_TEMP_DIR_CHARS:
        return inside
    name = hashlib.sha256(str(state_dir).encode()).hexdigest()[:10]
    return Path(tempfile.gettempdir()) / f"lorebase-{os.getuid()}" / name


def _start_applications(settings: Settings, serving_bases: tuple[str, ...]) -> None:
    from ray import serve

    from . import app
    from .routing.ray_hub import start_hub

    # The gateways have their own servers, so Serve's proxies would only take memory.
    serve.start(proxy_location="Disabled")
    start_hub(settings, app.process_env(settings))
    app.deploy_all(settings, serving_bases)


def _wait_serving(cluster: Cluster) -> None:
    """Asks the health service as a client would, until it says SERVING."""
    until = time.monotonic() + READY_TIMEOUT_S
    tls = cluster.settings.serving.tls
    if tls is None:
        channel = grpc.insecure_channel(cluster.grpc_target)
    else:
        credentials = grpc.ssl_channel_credentials(tls.cert.read_bytes())
        channel = grpc.secure_channel(cluster.grpc_target, credentials)
    with channel:
        check = health_pb2_grpc.HealthStub(channel).Check
        while True:
            try:
                answer = check(health_pb2.HealthCheckRequest(), timeout=5, wait_for_ready=True)
                if answer.status == health_pb2.HealthCheckResponse.SERVING:
                    return
                last = f"health status {answer.status}"
            except grpc.RpcError as error:
                last = str(error.details())
            if time.monotonic() > until:
                raise UnavailableError(
                    f"{cluster.grpc_target} is not serving after {READY_TIMEOUT_S:.0f} s: {last}"
                )
            time.sleep(0.1)


def _stop_applications() -> None:
    from ray import serve

    from .routing.ray_hub import stop_hub

    # Gateways first: they drain while their engines still answer.
    if GATEWAY_APP in serve.status().applications:
        serve.delete(GATEWAY_APP, _blocking=True)
    stop_hub()
    serve.shutdown()


def _disconnect() -> None:
    import ray

    ray.shutdown()  # type: ignore[no-untyped-call]


def _reachable(host: str) -> str:
    if host in ("0.0.0.0", ""):
        return "127.0.0.1"
    if host == "::":
        return "[::1]"
    return f"[{host}]" if ":" in host else host
