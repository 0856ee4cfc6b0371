"""Many requests in one call, for background work."""

import asyncio
import itertools
from collections.abc import Sequence
from contextlib import aclosing
from typing import cast

from ..errors import EngineDeadError, LorebaseError
from .protocol import Chunk, Completion, Engine, FinishReason, GenerationRequest

DEFAULT_CONCURRENCY = 64
"""Requests of one batch that are handed to the engine at a time. More would only wait at its
background gate."""


async def complete_many(
    engine: Engine,
    requests: Sequence[GenerationRequest],
    *,
    concurrency: int = DEFAULT_CONCURRENCY,
) -> list[Completion]:
    """Generates all answers and returns them in the order of the requests.

    A request that fails by itself (its prompt is too long, its adapter is broken, ...) gets a
    Completion with `error`; the others go on. Cancelling the call aborts all of them.

    Raises:
        EngineDeadError: the engine died; the whole batch has to be sent to another one.
    """
    results: list[Completion | None] = [None] * len(requests)
    numbered = iter(enumerate(requests))

    async def worker() -> None:
        for index, request in numbered:
            results[index] = await _complete(engine, request)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in itertools.repeat(None, min(concurrency, len(requests))):
                group.create_task(worker())
    except BaseExceptionGroup as errors:
        # Not `except*`: what it raises comes wrapped in a group on some versions of Python 3.11.
        dead = errors.subgroup(EngineDeadError)
        if dead is None:
            raise
        raise dead.exceptions[0] from None
    return cast(list[Completion], results)


async def _complete(engine: Engine, request: GenerationRequest) -> Completion:
    try:
        return await complete(engine, request)
    except EngineDeadError:
        raise
    except LorebaseError as error:
        return Completion(error=f"{error.reason}: {error.message}")


async def complete(engine: Engine, request: GenerationRequest) -> Completion:
    """Collects the chunks of one request.

    Raises:
        LorebaseError: as `Engine.generate`.
    """
    texts: list[str] = []
    token_ids: list[int] = []
    finish_reason: FinishReason | None = None
    prompt_tokens = 0
    choice_logprobs: tuple[float, ...] = ()
    chunk: Chunk
    # Generators are closed here and now, not when the garbage collector comes by: closing is
    # what aborts the request in the engine.
    async with aclosing(engine.generate(request)) as chunks:  # type: ignore[type-var]
        async for chunk in chunks:
            texts.append(chunk.text)
            token_ids.extend(chunk.token_ids)
            finish_reason = chunk.finish_reason
            prompt_tokens = chunk.prompt_tokens
            choice_logprobs = chunk.choice_logprobs or choice_logprobs
    return Completion(
        text="".join(texts),
        token_ids=tuple(token_ids),
        finish_reason=finish_reason,
        prompt_tokens=prompt_tokens,
        choice_logprobs=choice_logprobs,
    )
