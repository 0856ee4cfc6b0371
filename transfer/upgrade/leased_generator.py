"""TextGenerator in batches, at background priority and under leases. No Ray: the call is given."""

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt, wait_random

from lorebase.serving.engine.protocol import (
    BACKGROUND_PRIORITY,
    Completion,
    GenerationRequest,
    Sampling,
)
from lorebase.serving.errors import ResourceExhaustedError, UnavailableError
from lorebase.transfer.governor import LeaseTable
from lorebase.transfer.ports import ModelSpec

MAX_BATCH = 64
ATTEMPTS = 20
"""Tries of one batch: with these waits about half a minute, which a restarting engine needs."""
RETRY_WAIT_S = (0.5, 3.0)
"""Shortest and longest wait between two tries."""

Call = Callable[[str, list[GenerationRequest]], Awaitable[list[Completion]]]
"""Sends one batch to the engine of a base; raises UnavailableError if it can't be reached."""


class LeasedGenerator:
    """Generates in batches; each batch waits for a lease, so a busy foreground stops it soon.

    Args:
        leases: where leases come from.
        holder: who generates.
        on_busy: called with the seconds that each batch took.
        call: sends a batch to an engine.
    """

    def __init__(
        self,
        leases: LeaseTable,
        holder: str,
        on_busy: Callable[[float], None],
        call: Call,
    ) -> None:
        self._leases = leases
        self._holder = holder
        self._on_busy = on_busy
        self._call = call
        self._numbers = itertools.count()

    async def complete(
        self, model: ModelSpec, prompts: Sequence[str], sampling: Sampling
    ) -> list[Completion]:
        """See TextGenerator.complete."""
        requests = [
            self._request(model, prompt, sampling, number) for number, prompt in enumerate(prompts)
        ]
        results: list[Completion | None] = [None] * len(requests)
        waiting = iter(range(len(requests)))

        async def work() -> None:
            while True:
                async with self._leases.lease("generate", self._holder):
                    # Cut to size only now: a lease says how big a batch may be.
                    size = min(MAX_BATCH, self._leases.batch_size)
                    chosen = list(itertools.islice(waiting, size))
                    if not chosen:
                        return
                    answers = await self._send(model.base_id, [requests[n] for n in chosen])
                for number, answer in zip(chosen, answers, strict=True):
                    results[number] = answer

        lanes = max(1, self._leases.capacity.batches)
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(lanes, len(requests))):
                    group.create_task(work())
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        return [answer for answer in results if answer is not None]

    def _request(
        self, model: ModelSpec, prompt: str, sampling: Sampling, number: int
    ) -> GenerationRequest:
        seed = None if sampling.seed is None else sampling.seed + number
        return GenerationRequest(
            request_id=f"bg-{self._holder}-{next(self._numbers)}",
            prompt=prompt,
            version=model.version,
            sampling=replace(sampling, seed=seed),
            priority=BACKGROUND_PRIORITY,
        )

    async def _send(self, base_id: str, batch: list[GenerationRequest]) -> list[Completion]:
        transient = (UnavailableError, ResourceExhaustedError)
        async for attempt in AsyncRetrying(
            stop=stop_after_attempt(ATTEMPTS),
            wait=wait_random(*RETRY_WAIT_S),
            retry=retry_if_exception_type(transient),
            reraise=True,
        ):
            with attempt:
                began = time.monotonic()
                answers = await self._call(base_id, batch)
                self._on_busy(time.monotonic() - began)
                return answers
        raise AssertionError("retrying ends with an answer or an error")
