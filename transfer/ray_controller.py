"""The upgrade controller as a detached Ray actor, and its entry point for the configuration."""

import asyncio
import os
import threading
import time
from dataclasses import replace
from typing import Any

import ray
import structlog
from prometheus_client import CollectorRegistry

from lorebase.serving.app import process_env
from lorebase.serving.artifacts import AdapterLimits, ArtifactStore
from lorebase.serving.catalog import Catalog
from lorebase.serving.config import Settings
from lorebase.serving.ray_names import CONTROLLER_ACTOR, NAMESPACE
from lorebase.transfer.governor import Governor, Probe
from lorebase.transfer.upgrade.controller import UpgradeController
from lorebase.transfer.upgrade.deps import Deps
from lorebase.transfer.upgrade.metrics import UpgradeMetrics
from lorebase.transfer.upgrade.settings import settings_from

from .ray_cluster import RayCluster
from .ray_generator import engine_generator
from .ray_workers import RayWorkerPool

CRASH_EXIT = 18

_log = structlog.get_logger(__name__)


def build_deps(settings: Settings) -> Deps:
    """Returns the controller's world on a running instance."""
    upgrade = replace(
        settings_from(settings.upgrade, cores=len(os.sched_getaffinity(0))),
        # As long as a gateway lets a request take: none is cut off because an engine retires.
        drain_timeout_s=settings.serving.max_request_s,
    )
    metrics = UpgradeMetrics(CollectorRegistry())
    cluster = RayCluster(settings)
    governor = Governor(upgrade.governor, Probe(cluster), metrics.lease)
    return Deps(
        catalog=Catalog.open(settings.catalog_url),
        store=ArtifactStore(settings.artifact_root),
        cluster=cluster,
        workers=RayWorkerPool(
            threads=settings.upgrade.threads_per_worker, idle_s=upgrade.idle_worker_s
        ),
        governor=governor,
        generator=lambda holder, on_busy: engine_generator(governor.leases, holder, on_busy),
        settings=upgrade,
        limits=AdapterLimits(
            max_rank=settings.limits.max_adapter_rank, max_bytes=settings.limits.max_artifact_bytes
        ),
        store_root=settings.artifact_root,
        work_root=settings.cluster.state_dir / "work",
        metrics=metrics,
        clock=time.time,
    )


class ControllerActor:
    """Runs the reconciler on a thread of its own, from the first moment of every (re)start."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        threading.Thread(target=self._run, name="reconciler", daemon=True).start()

    def _run(self) -> None:
        try:
            asyncio.run(self._reconcile())
        except BaseException as error:
            _log.exception("controller_died", error=repr(error))
        # A controller that does not reconcile is worse than none: Ray starts a new one.
        os._exit(CRASH_EXIT)

    async def _reconcile(self) -> None:
        await UpgradeController(build_deps(self._settings)).run()


def start(settings: Settings) -> Any:
    """Starts the controller, or finds the running one, and returns its handle."""
    actor = ray.remote(ControllerActor)
    return actor.options(
        name=CONTROLLER_ACTOR,
        namespace=NAMESPACE,
        lifetime="detached",
        get_if_exists=True,
        num_cpus=0,
        max_restarts=-1,
        max_task_retries=-1,
        runtime_env={"env_vars": process_env(settings)},
    ).remote(settings)
