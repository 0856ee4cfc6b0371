"""One request from admission to the last token, whatever the transport.

The request is resolved on the route table of the moment it is admitted and keeps that answer: a
swap can't touch it.
"""

import asyncio
import random
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass

from ..engine.protocol import Chunk, GenerationRequest
from ..errors import DeadlineExceededError, LorebaseError, UnavailableError, status_of
from ..routing.table import RouteTable, Target
from .admission import Admission
from .calls import Answer, Call, Piece, ServedBy, Usage
from .metrics import NO_BASE, GatewayMetrics
from .ports import Tokenizers
from .resuming import ResumingEngines

WHOLE_ANSWER_WAIT_S = 0.5
"""Between messages of an answer that goes out as a whole: what an engine's death may cost."""


class Core:
    """Generates for clients. One per gateway, on one event loop."""

    def __init__(
        self,
        *,
        table: Callable[[], RouteTable | None],
        engines: ResumingEngines,
        tokenizers: Tokenizers,
        admission: Admission,
        metrics: GatewayMetrics,
        clock: Callable[[], float],
        rng: random.Random,
        max_request_s: float,
        stream_wait_s: float,
    ) -> None:
        self._table = table
        self._engines = engines
        self._tokenizers = tokenizers
        self._admission = admission
        self._metrics = metrics
        self._clock = clock
        self._rng = rng
        self._max_request_s = max_request_s
        self._stream_wait_s = stream_wait_s

    def table(self) -> RouteTable:
        """Returns the present route table.

        Raises:
            UnavailableError: the gateway has none yet.
        """
        table = self._table()
        if table is None:
            raise UnavailableError(
                "this gateway has no route table yet; retry in a second",
                reason="NO_ROUTES",
                retry_after_s=1.0,
            )
        return table

    async def answer(self, call: Call) -> Answer:
        """Answers a call as a whole; cancelling aborts it in the engine.

        Raises:
            LorebaseError: as `run`.
        """
        texts: list[str] = []
        token_ids: list[int] = []
        last: Piece | None = None
        async with aclosing(self.run(call, WHOLE_ANSWER_WAIT_S)) as pieces:
            # To the very end: a generator left before counts as cancelled.
            async for piece in pieces:
                texts.append(piece.text)
                token_ids.extend(piece.token_ids)
                last = piece
        if last is None or last.finish_reason is None or last.usage is None:
            raise LorebaseError("the engine ended the answer without a finish reason")
        return Answer(
            text="".join(texts),
            token_ids=tuple(token_ids),
            finish_reason=last.finish_reason,
            usage=last.usage,
            served_by=last.served_by,
        )

    async def run(self, call: Call, wait_s: float | None = None) -> AsyncGenerator[Piece, None]:
        """Answers a call piece by piece; closing the generator aborts it in the engine.

        Args:
            call: what to answer.
            wait_s: least time between two pieces; None is that of streams.

        Raises:
            NotFoundError: unknown model.
            InvalidArgumentError: the engine refuses the prompt or the sampling.
            ResourceExhaustedError: the queue is full.
            DeadlineExceededError: the call's time is over.
            UnavailableError: no route table yet, or no engine could be reached.
        """
        book = _Book(metrics=self._metrics, clock=self._clock, arrived=self._clock())
        timeout_s = self._max_request_s if call.timeout_s is None else call.timeout_s
        deadline = book.arrived + min(timeout_s, self._max_request_s)
        code = "OK"
        finished = False
        try:
            # Twice on purpose: unknown names fail before they queue, and the table that counts
            # is the one at admission.
            wanted = self.table().resolve(call.model, self._rng).version
            if wanted is not None and self._admission.full:
                self._engines.prefetch(wanted)  # most likely the one, and loaded by then
            async with AsyncExitStack() as held:
                await self._admit(held, deadline)
                target = self.table().resolve(call.model, self._rng)
                book.admitted(target)
                held.callback(book.left)
                request = await self._request_of(call, target)
                wait_s = self._stream_wait_s if wait_s is None else wait_s
                chunks = self._engines.stream(request, target, deadline, wait_s)
                async with aclosing(chunks):
                    async for chunk in chunks:
                        finished = chunk.finish_reason is not None
                        yield book.piece(chunk, target)
        except (asyncio.CancelledError, GeneratorExit):
            # A reader that has the last piece need not ask for the end.
            code = "OK" if finished else "CANCELLED"
            raise
        except Exception as error:
            code = status_of(error).grpc_code.name
            raise
        finally:
            book.ended(code)

    async def _admit(self, held: AsyncExitStack, deadline: float) -> None:
        left = max(0.0, deadline - self._clock())
        self._metrics.queue_depth.inc()
        try:
            async with asyncio.timeout(left):
                waited = await held.enter_async_context(self._admission.slot())
        except TimeoutError:
            raise DeadlineExceededError(
                f"the deadline passed while {self._admission.waiting} other requests waited for "
                "admission; give it more time, or add gateways or engines"
            ) from None
        finally:
            self._metrics.queue_depth.dec()
        self._metrics.queue_wait_s.observe(waited)

    async def _request_of(self, call: Call, target: Target) -> GenerationRequest:
        prompt, token_ids = call.prompt, call.prompt_token_ids
        if call.messages:
            rendered = await self._tokenizers.render_chat(target.base_id, call.messages)
            if isinstance(rendered, str):
                prompt = rendered
            else:
                token_ids = rendered
        return GenerationRequest(
            request_id=call.request_id,
            prompt=prompt,
            prompt_token_ids=token_ids,
            version=target.version,
            sampling=call.sampling,
        )


@dataclass(slots=True, kw_only=True)
class _Book:
    """Counts one request, for its usage and for the metrics."""

    metrics: GatewayMetrics
    clock: Callable[[], float]
    arrived: float
    names: tuple[str, str] = (NO_BASE, NO_BASE)
    """Base and track."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    last_token_at: float | None = None

    def admitted(self, target: Target) -> None:
        self.names = (target.base_id, target.track)
        self.metrics.in_flight.labels(*self.names).inc()

    def left(self) -> None:
        self.metrics.in_flight.labels(*self.names).dec()

    def piece(self, chunk: Chunk, target: Target) -> Piece:
        count = len(chunk.token_ids)
        if count:
            now = self.clock()
            if self.last_token_at is None:
                self.metrics.first_token_s.labels(*self.names).observe(now - self.arrived)
            else:
                gap_s = (now - self.last_token_at) / count
                self.metrics.inter_token_s.labels(*self.names).observe(gap_s)
            self.last_token_at = now
            self.completion_tokens += count
            self.metrics.completion_tokens.labels(*self.names).inc(count)
        if chunk.prompt_tokens and not self.prompt_tokens:
            # Of the first engine: after a resume the cache says nothing about the client's prompt.
            self.prompt_tokens, self.cached_tokens = chunk.prompt_tokens, chunk.cached_tokens
            self.metrics.prompt_tokens.labels(*self.names).inc(chunk.prompt_tokens)
        return Piece(
            text=chunk.text,
            token_ids=chunk.token_ids,
            served_by=ServedBy(
                base_id=chunk.base_id,
                adapter="" if not chunk.version_id else target.adapter or "",
                version_id=chunk.version_id,
                revision=target.revision,
                track=target.track,
            ),
            finish_reason=chunk.finish_reason,
            usage=None if chunk.finish_reason is None else self._usage(),
        )

    def ended(self, code: str) -> None:
        self.metrics.requests.labels(*self.names, code).inc()
        if code == "OK":
            self.metrics.request_s.labels(*self.names).observe(self.clock() - self.arrived)

    def _usage(self) -> Usage:
        return Usage(
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.completion_tokens,
            cached_tokens=self.cached_tokens,
        )
