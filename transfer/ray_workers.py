"""Training workers: Ray actors on idle CPU, made when needed and gone when idle."""

import asyncio
import os
import threading
from collections.abc import Callable
from typing import Any

import ray
import structlog
from ray.exceptions import RayError

from lorebase.serving.errors import UnavailableError
from lorebase.transfer.governor.leases import Lease
from lorebase.transfer.upgrade.gate import LeaseGate
from lorebase.transfer.upgrade.ports import DistillJob, DistillOutcome

from .ray_errors import own_error

POLL_S = 0.5
CANCEL_TIMEOUT_S = 10.0
NICEST = 19

_log = structlog.get_logger(__name__)


def yield_cpu() -> None:
    """Makes the calling thread run on CPU time only that nobody else wants.

    Nice as well, because the kernel books nice time apart: the governor sees it as free.
    """
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICEST)
    if hasattr(os, "SCHED_IDLE"):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


class DistillWorker:
    """Actor class: one training at a time, steered from a second thread."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._gates: dict[str, LeaseGate] = {}

    def run(self, job: DistillJob) -> DistillOutcome:
        """Trains; see `jobs.run_job`."""
        gate = self._gates[job.key] = LeaseGate()
        done: list[DistillOutcome | BaseException] = []
        # A thread of its own: its scheduling class must not stick to the threads that answer polls.
        thread = threading.Thread(target=self._train, args=(job, gate, done), daemon=True)
        thread.start()
        thread.join()
        self._gates.pop(job.key, None)
        if isinstance(done[0], BaseException):
            raise done[0]
        return done[0]

    def _train(
        self, job: DistillJob, gate: LeaseGate, done: list[DistillOutcome | BaseException]
    ) -> None:
        try:
            yield_cpu()
            import torch

            from lorebase.transfer.upgrade.jobs import run_job

            torch.set_num_threads(self._threads)
            done.append(run_job(job, gate))
        except BaseException as error:
            done.append(error)

    def poll(self, key: str, granted: bool) -> float:
        """Tells a job whether its lease is granted; returns its progress."""
        gate = self._gates.get(key)
        return 0.0 if gate is None else gate.hear(granted)

    def cancel(self, key: str) -> None:
        """Stops a job at its next step."""
        gate = self._gates.get(key)
        if gate is not None:
            gate.cancel()


class RayWorkerPool:
    """WorkerPool over `DistillWorker` actors. They die with the controller that made them.

    Args:
        threads: CPU threads of one training.
        idle_s: seconds after which an idle worker is stopped.
        num_gpus: GPU share of one worker.
    """

    def __init__(self, *, threads: int, idle_s: float, num_gpus: float = 0.0) -> None:
        self._threads = threads
        self._idle_s = idle_s
        self._num_gpus = num_gpus
        self._idle: list[Any] = []

    async def distill(
        self, job: DistillJob, lease: Lease, on_progress: Callable[[float], None]
    ) -> DistillOutcome:
        """See WorkerPool.distill. The lease bounds how many run, so the pool needs no bound."""
        worker = self._idle.pop() if self._idle else self._start()
        result = worker.run.remote(job)
        try:
            while True:
                ready, _ = await asyncio.to_thread(ray.wait, [result], timeout=POLL_S)
                if ready:
                    outcome: DistillOutcome = await result
                    break
                on_progress(await worker.poll.remote(job.key, lease.granted))
        except RayError as error:
            own = own_error(error, "the training worker died")
            if isinstance(own, UnavailableError):
                _kill(worker)
            else:
                self._release(worker)
            raise own from error
        except BaseException:
            # Whatever it was, the job may be started again: two trainings must not share a folder.
            await self._cancel(worker, job.key, result)
            raise
        self._release(worker)
        return outcome

    async def trim(self, keep: int) -> None:
        """See WorkerPool.trim."""
        while len(self._idle) > keep:
            _kill(self._idle.pop())

    def _start(self) -> Any:
        actor = ray.remote(DistillWorker)
        return actor.options(
            num_cpus=0,  # idle CPU only: it must fit where everything is taken
            num_gpus=self._num_gpus,
            max_restarts=0,  # the stage is tried again instead, from its resume point
            max_concurrency=4,
            runtime_env={
                "env_vars": {
                    "OMP_NUM_THREADS": str(self._threads),
                    "TOKENIZERS_PARALLELISM": "false",
                    "HF_HUB_OFFLINE": "1",
                }
            },
        ).remote(self._threads)

    def _release(self, worker: Any) -> None:
        self._idle.append(worker)
        asyncio.get_running_loop().call_later(self._idle_s, self._expire, worker)

    def _expire(self, worker: Any) -> None:
        if worker in self._idle:
            self._idle.remove(worker)
            _kill(worker)

    async def _cancel(self, worker: Any, key: str, result: Any) -> None:
        try:
            await worker.cancel.remote(key)
            await asyncio.to_thread(ray.wait, [result], timeout=CANCEL_TIMEOUT_S)
        except RayError as error:
            _log.info("worker_gone_while_cancelling", error=repr(error))
        finally:
            _kill(worker)


def _kill(worker: Any) -> None:
    ray.kill(worker, no_restart=True)
