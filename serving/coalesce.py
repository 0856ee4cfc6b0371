"""Fewer, larger messages between engine and gateway, at a bounded delay.

Each message that crosses processes costs about half a millisecond of CPU on both sides, which is
more than a small model needs for a token. What an engine makes within `wait_s` of the last message
therefore travels together. The first tokens never wait, and an engine slower than one token per
`wait_s` is not delayed at all.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import suppress
from dataclasses import replace

from .engine.protocol import Chunk


async def coalesced(
    chunks: AsyncGenerator[Chunk, None], wait_s: float
) -> AsyncGenerator[Chunk, None]:
    """Yields the same answer in chunks at least `wait_s` seconds apart.

    Closing this generator closes `chunks`, which aborts the request in the engine. An error of
    `chunks` comes after everything that was made before it.
    """
    buffer = _Buffer()
    pump = asyncio.create_task(buffer.fill(chunks))
    try:
        while True:
            await buffer.some.wait()
            # Before the take: during the yield the rest may come, and the end with it.
            ended = buffer.ended.is_set()
            merged = buffer.take()
            if merged is not None:
                yield merged
            if ended:
                await pump
                return
            with suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await buffer.ended.wait()
    finally:
        pump.cancel()
        with suppress(asyncio.CancelledError, Exception):
            await pump


class _Buffer:
    """What has come and was not sent yet."""

    def __init__(self) -> None:
        self.some = asyncio.Event()
        """Set when there is something to take, or the end."""
        self.ended = asyncio.Event()
        self._chunks: list[Chunk] = []

    async def fill(self, chunks: AsyncGenerator[Chunk, None]) -> None:
        try:
            async for chunk in chunks:
                self._chunks.append(chunk)
                self.some.set()
        finally:
            self.ended.set()
            self.some.set()
            await chunks.aclose()

    def take(self) -> Chunk | None:
        """Returns everything so far as one chunk, None if there is nothing."""
        if not self.ended.is_set():
            self.some.clear()
        chunks, self._chunks = self._chunks, []
        if len(chunks) < 2:
            return chunks[0] if chunks else None
        last = chunks[-1]
        return replace(
            last,
            text="".join(chunk.text for chunk in chunks),
            token_ids=tuple(token for chunk in chunks for token in chunk.token_ids),
            prompt_tokens=max(chunk.prompt_tokens for chunk in chunks),
            cached_tokens=max(chunk.cached_tokens for chunk in chunks),
            choice_logprobs=next(
                (chunk.choice_logprobs for chunk in reversed(chunks) if chunk.choice_logprobs), ()
            ),
        )
