"""Training workers on real Ray: they yield the CPU, obey leases, and may die."""

import asyncio
import os
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import psutil
import pytest

from lorebase.serving.errors import InvalidArgumentError, UnavailableError
from lorebase.transfer.governor import Capacity, Lease, LeaseTable
from lorebase.transfer.upgrade.ports import DistillJob
from tests.integration.upgrade_job import make_job

if TYPE_CHECKING:
    # Ray warns while it is imported, and warnings are errors while tests are collected.
    from lorebase.transfer.ray_workers import RayWorkerPool

pytestmark = [
    # Ray's own threads and sockets outlive its shutdown.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

T = TypeVar("T")
ALL = Capacity(workers=1, batches=0, batch_size=1)
NONE = Capacity(workers=0, batches=0, batch_size=1)


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DistillJob]:
    import ray

    # Sockets need a short path.
    with tempfile.TemporaryDirectory(prefix="lb") as folder:
        ray.init(
            address="local",
            num_cpus=1,
            include_dashboard=False,
            _temp_dir=folder,
            log_to_driver=False,
        )
        try:
            yield make_job(tmp_path_factory.mktemp("workers"), steps=1200)
        finally:
            ray.shutdown()


def train(
    act: Callable[["RayWorkerPool", LeaseTable, Lease], Awaitable[T]], idle_s: float = 60.0
) -> T:
    """Runs `act` with a pool and a granted lease."""
    from lorebase.transfer.ray_workers import RayWorkerPool

    async def body() -> T:
        pool, table = RayWorkerPool(threads=1, idle_s=idle_s), LeaseTable()
        table.set_capacity(ALL)
        try:
            async with table.lease("train", "test") as lease:
                return await act(pool, table, lease)
        finally:
            await pool.trim(0)

    return asyncio.run(body())


def worker_process() -> psutil.Process | None:
    for process in psutil.Process().children(recursive=True):
        try:
            if process.cmdline()[0].startswith("ray::DistillWorker"):
                return process
        except (psutil.Error, IndexError):
            continue
    return None


def training_threads(process: psutil.Process) -> list[int]:
    """Ids of the worker's threads that run on idle CPU only."""
    found = []
    for thread in process.threads():
        try:
            if os.sched_getscheduler(thread.id) == os.SCHED_IDLE:
                found.append(thread.id)
        except ProcessLookupError:
            continue
    return found


def test_a_worker_trains_on_idle_cpu_and_stops_while_its_lease_is_revoked(job: DistillJob) -> None:
    async def act(pool: "RayWorkerPool", table: LeaseTable, lease: Lease) -> list[float]:
        seen: list[float] = []
        idle: list[list[int]] = []
        task = asyncio.create_task(pool.distill(job, lease, seen.append))
        while not any(0 < progress < 1 for progress in seen):
            assert not task.done(), "it ended before it was seen training"
            await asyncio.sleep(0.05)
        process = worker_process()
        assert process is not None
        idle.append(training_threads(process))
        table.set_capacity(NONE)
        await asyncio.sleep(1.5)
        held = seen[-1]
        await asyncio.sleep(2.0)
        assert seen[-1] == held, "it trained without a lease"
        assert not task.done()
        table.set_capacity(ALL)
        outcome = await asyncio.wait_for(task, 120)
        assert idle[0], "no thread of the worker runs SCHED_IDLE"
        assert outcome.summary["train"]["steps"] == job.recipe.training.steps
        return seen

    seen = train(act)
    assert seen == sorted(seen)


def test_a_killed_worker_is_an_unavailable_error_and_the_next_one_resumes(
    job: DistillJob,
) -> None:
    async def act(pool: "RayWorkerPool", table: LeaseTable, lease: Lease) -> int:
        seen: list[float] = []
        task = asyncio.create_task(pool.distill(job, lease, seen.append))
        while not any(progress > 0.4 for progress in seen):
            assert not task.done()
            await asyncio.sleep(0.05)
        process = worker_process()
        assert process is not None
        process.kill()
        with pytest.raises(UnavailableError, match="worker"):
            await asyncio.wait_for(task, 60)
        outcome = await asyncio.wait_for(pool.distill(job, lease, seen.append), 120)
        return int(outcome.summary["train"]["resumed_from"])

    assert train(act) > 0


def test_an_error_of_the_training_itself_keeps_its_kind(job: DistillJob) -> None:
    async def act(pool: "RayWorkerPool", table: LeaseTable, lease: Lease) -> None:
        wrong = replace(job, key="other", base_dir=Path("nowhere"))
        with pytest.raises(InvalidArgumentError):
            await asyncio.wait_for(pool.distill(wrong, lease, lambda progress: None), 120)

    train(act)


def test_a_cancelled_training_ends_its_worker(job: DistillJob) -> None:
    async def act(pool: "RayWorkerPool", table: LeaseTable, lease: Lease) -> None:
        seen: list[float] = []
        task = asyncio.create_task(pool.distill(job, lease, seen.append))
        while not any(progress > 0 for progress in seen):
            await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        async with asyncio.timeout(30):
            while worker_process() is not None:
                await asyncio.sleep(0.1)

    train(act)


def test_an_idle_worker_goes_to_free_its_memory(job: DistillJob) -> None:
    async def act(pool: "RayWorkerPool", table: LeaseTable, lease: Lease) -> None:
        short = replace(job, key="short", recipe=job.recipe.trained(steps=5))
        await asyncio.wait_for(pool.distill(short, lease, lambda progress: None), 120)
        async with asyncio.timeout(30):
            while worker_process() is not None:
                await asyncio.sleep(0.1)

    train(act, idle_s=0.5)
