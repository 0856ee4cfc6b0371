"""Streams of one target that survive the death of the engine under them."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import replace

import structlog

from ..engine.protocol import Chunk, GenerationRequest, VersionRef
from ..errors import DeadlineExceededError, EngineDeadError
from ..routing.table import Target
from .metrics import GatewayMetrics
from .ports import EngineClient, Tokenizers
from .resume import Continuation, Trimmer, continuation

_log = structlog.get_logger(__name__)

PAUSE_STEP_S = 0.1
PAUSE_MAX_S = 1.0


class ResumingEngines:
    """Generates with a deadline, and resubmits when an engine dies."""

    def __init__(
        self,
        *,
        engines: EngineClient,
        tokenizers: Tokenizers,
        metrics: GatewayMetrics,
        clock: Callable[[], float],
        new_id: Callable[[], str],
        attempts: int,
    ) -> None:
        self._engines = engines
        self._tokenizers = tokenizers
        self._metrics = metrics
        self._clock = clock
        self._new_id = new_id
        self._attempts = attempts

    def prefetch(self, version: VersionRef) -> None:
        """See EngineClient.prefetch."""
        self._engines.prefetch(version)

    async def stream(
        self, request: GenerationRequest, target: Target, deadline: float, wait_s: float
    ) -> AsyncGenerator[Chunk, None]:
        """Yields the answer's chunks as if one engine had made them.

        Args:
            request: for the engine of `target`.
            target: what the request was resolved to.
            deadline: on the injected clock.
            wait_s: least time between two chunks.

        Raises:
            DeadlineExceededError: the deadline passed; the engine's request is aborted.
            EngineDeadError: the engine died once more than `attempts` allows.
        """
        token_ids: list[int] = []
        texts: list[str] = []
        died = 0
        while True:
            plan = await self._plan(request, target, token_ids, texts)
            if plan.request is None:
                yield _ended_by_length(target)
                return
            trimmer = Trimmer(plan)
            try:
                attempt = self._attempt(plan.request, target, deadline, wait_s)
                async with aclosing(attempt) as chunks:
                    async for chunk in chunks:
                        new = trimmer.trim(chunk)
                        token_ids.extend(new.token_ids)
                        texts.append(new.text)
                        yield new
                return
            except EngineDeadError as error:
                died += 1
                if died > self._attempts:
                    raise
                self._metrics.resumes.labels(target.base_id).inc()
                _log.warning(
                    "engine_died_under_request",
                    request_id=request.request_id,
                    base=target.base_id,
                    sent_tokens=len(token_ids),
                    attempt=died,
                    error=str(error)[:200],
                )
            await self._pause(died, deadline)

    async def _plan(
        self, request: GenerationRequest, target: Target, token_ids: list[int], texts: list[str]
    ) -> Continuation:
        if not token_ids:
            return Continuation(request=request)
        codec = await self._tokenizers.codec(target.base_id)
        return continuation(request, tuple(token_ids), "".join(texts), codec)

    async def _attempt(
        self, request: GenerationRequest, target: Target, deadline: float, wait_s: float
    ) -> AsyncGenerator[Chunk, None]:
        # The engine's id is fresh each time: clients may reuse theirs, and an engine may still
        # hold the one of the last attempt.
        fresh = replace(request, request_id=f"{request.request_id}-{self._new_id()}")
        version_id = "" if target.version is None else target.version.id
        async with aclosing(self._engines.generate(target.base_id, fresh, wait_s)) as chunks:
            while True:
                try:
                    async with asyncio.timeout(self._left(deadline)):
                        chunk = await anext(chunks)
                except StopAsyncIteration:
                    return
                except TimeoutError:
                    raise _too_late() from None
                if (chunk.base_id, chunk.version_id) != (target.base_id, version_id):
                    self._metrics.version_mismatches.labels(target.base_id).inc()
                    _log.error(
                        "answered_by_another_version",
                        request_id=request.request_id,
                        wanted=(target.base_id, version_id),
                        got=(chunk.base_id, chunk.version_id),
                    )
                yield chunk

    async def _pause(self, died: int, deadline: float) -> None:
        pause = min(PAUSE_MAX_S, PAUSE_STEP_S * died)
        left = self._left(deadline)
        if left <= pause:
            raise _too_late()
        await asyncio.sleep(pause)

    def _left(self, deadline: float) -> float:
        return max(0.0, deadline - self._clock())


def _too_late() -> DeadlineExceededError:
    return DeadlineExceededError(
        "the deadline passed before the answer was complete; the engine's request is aborted"
    )


def _ended_by_length(target: Target) -> Chunk:
    """The last chunk of an engine that died between the last token and saying so."""
    return Chunk(
        text="",
        token_ids=(),
        finish_reason="length",
        base_id=target.base_id,
        version_id="" if target.version is None else target.version.id,
    )
