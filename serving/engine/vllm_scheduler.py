"""A vLLM scheduler in which the foreground does not wait for the background.

vLLM's own priority policy orders the waiting queue, but a waiting request never takes a seat, an
adapter slot or KV blocks from a running one. This one preempts first (`preemption.choose_victims`)
and then schedules as usual. A preempted request keeps its tokens and starts again from the prefix
cache, so its answer does not change.

The scheduler interface is not public: `scheduler_path` names these classes only for vLLM
versions they were tested with.
"""

import itertools
import time
import warnings

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import Request

from . import vllm_orphans
from .preemption import Room, Seat, choose_victims

SUPPORTED_VLLM = ("0.32.",)
"""Version prefixes whose scheduler these classes fit."""

MAX_NEWCOMERS = 64
"""Waiting requests looked at per step; bounds the work when thousands wait."""


def scheduler_path(vllm_version: str, *, asynchronous: bool) -> str | None:
    """Returns the import string of the preempting scheduler for a vLLM version.

    Args:
        vllm_version: `vllm.__version__`.
        asynchronous: whether vLLM overlaps scheduling with execution (it does on GPU).

    Returns:
        None, with a warning, where only vLLM's own priority scheduling can be used.
    """
    if not vllm_version.startswith(SUPPORTED_VLLM):
        warnings.warn(
            f"the preempting scheduler knows vLLM {', '.join(SUPPORTED_VLLM)}x, this is "
            f"{vllm_version}: falling back to vLLM's priority scheduling, under which foreground "
            "requests may wait for running background requests",
            RuntimeWarning,
            stacklevel=2,
        )
        return None
    kind = PreemptingAsyncScheduler if asynchronous else PreemptingScheduler
    return f"{kind.__module__}.{kind.__name__}"


class _Preempting(Scheduler):
    """The shared part; `Scheduler` comes last in both classes below."""

    def schedule(self, throttle_prefills: bool = False) -> SchedulerOutput:
        """Preempts what is in the way of more important requests, then schedules."""
        if self.waiting and self.running:
            self._make_room()
        return super().schedule(throttle_prefills)

    def _make_room(self) -> None:
        best = self.waiting.peek_request().priority
        if all(request.priority <= best for request in self.running):
            return
        newcomers = itertools.islice(self.waiting, MAX_NEWCOMERS)  # most important first
        victims = choose_victims(
            [self._newcomer(request) for request in newcomers],
            [self._seat(request) for request in self.running],
            Room(
                seats=self.max_num_active_reqs
                - len(self.running)
                - self.num_waiting_for_streaming_input,
                adapters=self.lora_config.max_loras if self.lora_config else None,
                blocks=self.kv_cache_manager.block_pool.get_num_free_blocks(),
            ),
        )
        now_s = time.monotonic()
        for victim in victims:
            request = self.requests[victim.id]
            self.running.remove(request)
            self._preempt_request(request, now_s, drop_stale_output=self.requires_kv_delivery)
            # Should it come back in this very step, the worker must not take it for one that
            # went on running.
            self.prev_step_scheduled_req_ids.discard(victim.id)

    def _seat(self, request: Request) -> Seat:
        blocks = sum(map(len, self.kv_cache_manager.get_block_ids(request.request_id)))
        return self._row(request, blocks)

    def _newcomer(self, request: Request) -> Seat:
        # Without prefix hits, and for the next token: an upper bound, so that a newcomer for
        # whom somebody left does fit.
        tokens = min(request.num_tokens, self.max_num_scheduled_tokens) + 1
        groups = len(self.kv_cache_config.kv_cache_groups)
        return self._row(request, -(-tokens // self.block_size) * groups)

    @staticmethod
    def _row(request: Request, blocks: int) -> Seat:
        return Seat(
            id=request.request_id,
            priority=request.priority,
            arrival=request.arrival_time,
            adapter=request.lora_request.lora_int_id if request.lora_request else None,
            blocks=blocks,
        )


class PreemptingScheduler(_Preempting):
    """For engines that schedule and execute in turn, as on CPU."""


class PreemptingAsyncScheduler(_Preempting, AsyncScheduler):
    """For engines that schedule a step while the one before runs, as on GPU."""


# With tensor parallelism the engine core is no worker, and this is what it imports of ours.
vllm_orphans.watch_parent()
