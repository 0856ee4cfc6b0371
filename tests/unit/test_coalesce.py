"""Coalesced chunks: the same answer in fewer messages, nothing late, nothing lost."""

import asyncio
from collections.abc import AsyncGenerator

import pytest

from lorebase.serving.coalesce import coalesced
from lorebase.serving.engine.protocol import Chunk
from lorebase.serving.errors import EngineDeadError


class Source:
    """Gives one chunk for each number put in; ends on None, fails on an exception."""

    def __init__(self) -> None:
        self.feed: asyncio.Queue[int | BaseException | None] = asyncio.Queue()
        self.closed = False

    async def chunks(self) -> AsyncGenerator[Chunk, None]:
        try:
            while (item := await self.feed.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                yield Chunk(
                    text=chr(item),
                    token_ids=(item,),
                    prompt_tokens=3,
                    cached_tokens=2 if item == 97 else 0,
                    finish_reason="stop" if item == 122 else None,
                )
        finally:
            self.closed = True

    def put(self, *items: int | BaseException | None) -> None:
        for item in items:
            self.feed.put_nowait(item)


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_first_chunk_does_not_wait() -> None:
    source = Source()
    stream = coalesced(source.chunks(), 3600)
    source.put(97)
    async with asyncio.timeout(1):
        assert (await anext(stream)).text == "a"
    await stream.aclose()


async def test_what_comes_within_the_wait_travels_together() -> None:
    source = Source()
    stream = coalesced(source.chunks(), 0.05)
    source.put(97)
    first = await anext(stream)
    source.put(98, 99, 122, None)
    rest = await anext(stream)
    assert (first.text, rest.text) == ("a", "bcz")
    assert rest.token_ids == (98, 99, 122)
    assert (rest.finish_reason, rest.prompt_tokens) == ("stop", 3)
    assert [chunk async for chunk in stream] == []
    assert source.closed


async def test_end_does_not_wait_for_the_interval() -> None:
    source = Source()
    stream = coalesced(source.chunks(), 3600)
    source.put(97)
    await anext(stream)
    source.put(122, None)
    async with asyncio.timeout(1):
        assert [chunk.text async for chunk in stream] == ["z"]


async def test_slow_engine_is_not_delayed() -> None:
    source = Source()
    stream = coalesced(source.chunks(), 0.01)
    for item in (97, 98, 99):
        source.put(item)
        async with asyncio.timeout(1):
            assert (await anext(stream)).token_ids == (item,)
        await asyncio.sleep(0.03)
    await stream.aclose()


async def test_what_was_made_before_an_error_comes_before_it() -> None:
    source = Source()
    stream = coalesced(source.chunks(), 0.01)
    source.put(97, 98, EngineDeadError("dead"))
    await settle()
    got = ""
    with pytest.raises(EngineDeadError):
        async for chunk in stream:
            got += chunk.text
    assert got == "ab"


async def test_chunks_that_come_while_the_reader_is_busy_are_kept() -> None:
    source = Source()
    stream = coalesced(source.chunks(), 0.0)
    source.put(97)
    got = (await anext(stream)).text
    source.put(98, 122, None)
    await settle()
    got += "".join([chunk.text async for chunk in stream])
    assert got == "abz"


async def test_closing_closes_the_engines_stream() -> None:
    source = Source()
    stream = coalesced(source.chunks(), 3600)
    source.put(97)
    await anext(stream)
    await stream.aclose()
    assert source.closed


async def test_cancelled_reader_closes_the_engines_stream() -> None:
    source = Source()
    stream = coalesced(source.chunks(), 3600)

    async def read() -> None:
        async for _ in stream:
            pass

    task = asyncio.create_task(read())
    await settle()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await stream.aclose()
    assert source.closed


async def test_cached_tokens_of_the_first_chunk_survive_merging() -> None:
    source = Source()
    stream = coalesced(source.chunks(), 0.01)
    source.put(97, 122, None)
    await settle()
    (chunk,) = [chunk async for chunk in stream]
    assert chunk.cached_tokens == 2
