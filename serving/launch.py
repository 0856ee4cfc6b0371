"""Starts and stops one instance: Ray, catalog, hub, engines, gateways, background plane.

Everything here may be repeated: a second start on the same state directory finds the catalog as
the first left it and serves the same adapters.
"""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import httpx
import psutil
import structlog

from .artifacts import base_revision, base_shapes
from .catalog import Catalog
from .catalog.records import Base
from .config import Settings
from .errors import UnavailableError
from .imports import load
from .instance import lock, ray_temp_dir, reachable, with_ports
from .ray_names import CONTROLLER_ACTOR, GATEWAY_APP, HUB_ACTOR, NAMESPACE, engine_app_name

_log = structlog.get_logger(__name__)

READY_TIMEOUT_S = 60.0
RAY_START_ATTEMPTS = 3
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
        return f"{reachable(self.settings.serving.host)}:{self.settings.serving.grpc_port}"

    @property
    def http_url(self) -> str:
        """Base URL of the HTTP API on this machine."""
        serving = self.settings.serving
        scheme = "http" if serving.tls is None else "https"
        return f"{scheme}://{reachable(serving.host)}:{serving.http_port}"

    def down(self) -> None:
        """Drains the gateways and stops everything that is ours; the catalog stays."""
        with contextlib.ExitStack() as last:
            last.callback(self.lock.close)
            last.callback(_disconnect)
            _stop_applications(self.settings, local=self.local)


def up(settings: Settings) -> Cluster:
    """Starts an instance and returns when it answers requests.

    Call it on a thread that lives as long as the instance: Linux kills Ray's processes when the
    thread that started them ends (PR_SET_PDEATHSIG).

    Raises:
        FailedPreconditionError: another instance uses the state directory, a port is taken, or
            a base's id now stands for other weights.
        UnavailableError: an engine or the gateways did not start; the message says why.
    """
    settings.cluster.state_dir.mkdir(parents=True, exist_ok=True)
    held = lock(settings.cluster.state_dir)
    try:
        settings = with_ports(settings)
        serving_bases = _prepare_catalog(settings)
        _clear_metrics(settings.metrics_dir)
        _connect(settings)
    except BaseException:
        held.close()
        raise
    cluster = Cluster(settings=settings, lock=held, local=settings.cluster.address == "local")
    try:
        _start_applications(settings, serving_bases)
        _wait_serving(cluster)
        if settings.background_plugin is not None:
            load(settings.background_plugin)(settings)
    except BaseException:
        with contextlib.suppress(Exception):
            cluster.down()
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
    with _own_signals():
        if cluster.address != "local":
            ray.init(address=cluster.address, **common)
            return
        _init_local(
            address="local",
            include_dashboard=False,
            num_cpus=cluster.num_cpus,
            object_store_memory=cluster.object_store_bytes,
            _temp_dir=str(ray_temp_dir(cluster.state_dir)),
            log_to_driver=False,
            **common,
        )


@contextlib.contextmanager
def _own_signals() -> Iterator[None]:
    """Puts signal handlers back that Ray replaces.

    Its own prints a trace and aborts the process three seconds later, in the middle of an orderly
    stop.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:
                signal.signal(number, handler)


def _init_local(**options: Any) -> None:
    """Starts Ray, again if its own 30 s for that were not enough on a busy machine."""
    import ray

    myself = psutil.Process()
    for attempt in range(1, RAY_START_ATTEMPTS + 1):
        before = set(myself.children(recursive=True))
        try:
            ray.init(**options)
            return
        except Exception as error:  # Ray raises a bare Exception
            ray.shutdown()
            # What of it did start would otherwise run on, unknown to anyone.
            for child in set(myself.children(recursive=True)) - before:
                with contextlib.suppress(psutil.NoSuchProcess):
                    child.kill()
            _log.warning("ray_did_not_start", attempt=attempt, error=str(error)[:500])
            if attempt == RAY_START_ATTEMPTS:
                raise UnavailableError(
                    f"Ray did not start in {attempt} attempts: {error}; is the machine overloaded?"
                ) from error


def _start_applications(settings: Settings, serving_bases: tuple[str, ...]) -> None:
    from ray import serve

    from . import app
    from .routing.ray_hub import start_hub

    # The gateways have their own servers, so Serve's proxies would only take memory.
    serve.start(proxy_location="Disabled")
    start_hub(settings, app.process_env(settings))
    app.deploy_all(settings, serving_bases)


def _wait_serving(cluster: Cluster) -> None:
    """Asks a gateway as a client would, until it says that it serves."""
    until = time.monotonic() + READY_TIMEOUT_S
    last = "no answer"
    # Not verified: a certificate names the host that clients use, not this machine's loopback,
    # and the port was free before the gateways took it.
    with httpx.Client(base_url=cluster.http_url, timeout=5, verify=False, trust_env=False) as http:
        while time.monotonic() < until:
            try:
                answer = http.get("/health")
                if answer.status_code == httpx.codes.OK:
                    return
                last = answer.text
            except httpx.TransportError as error:
                last = repr(error)
            time.sleep(0.1)
    raise UnavailableError(
        f"{cluster.http_url} is not serving after {READY_TIMEOUT_S:.0f} s: {last[:500]}"
    )


def _stop_applications(settings: Settings, *, local: bool) -> None:
    """Stops what this instance runs. A Ray that was there before keeps what others run on it."""
    from ray import serve

    # The background plane first: its controller must not start engines that are being stopped.
    _kill_actor(CONTROLLER_ACTOR)
    # Gateways before engines: they drain while their engines still answer.
    ours = [GATEWAY_APP, *(engine_app_name(base.id) for base in settings.bases)]
    for name in ours[:1] if local else ours:
        if name in serve.status().applications:
            serve.delete(name, _blocking=True)
    _kill_actor(HUB_ACTOR)
    if local:
        serve.shutdown()  # type: ignore[no-untyped-call]


def _kill_actor(name: str) -> None:
    """Ends one of this instance's detached actors; their state is in the catalog."""
    import ray

    # There is none, or it ends by itself in this moment: just as well.
    with contextlib.suppress(ValueError):
        ray.kill(ray.get_actor(name, namespace=NAMESPACE), no_restart=True)


def _disconnect() -> None:
    import ray

    ray.shutdown()
