"""The way to an engine's worker beside its steps: a real socket, both ends in this process."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from lorebase.serving.engine.side_channel import Reply, SideChannel, serve


class Worker:
    """Keeps orders; replies when told to."""

    def __init__(self) -> None:
        self.orders: list[tuple[str, list[Any], Reply]] = []

    def answer(self, order: str, arguments: list[Any], reply: Reply) -> None:
        if order == "fail":
            raise OSError("of this order alone")
        self.orders.append((order, arguments, reply))

    async def heard(self, number: int) -> None:
        async with asyncio.timeout(10):
            while len(self.orders) < number:
                await asyncio.sleep(0.002)


@asynccontextmanager
async def _open() -> AsyncIterator[tuple[SideChannel, Worker]]:
    channel, worker = SideChannel(), Worker()
    await channel.listen()
    try:
        serve(channel.address, worker.answer)
        await channel.connected()
        yield channel, worker
    finally:
        await channel.close()


async def test_answers_find_their_orders_in_any_order() -> None:
    async with _open() as (channel, worker):
        asked = [asyncio.create_task(channel.ask("read", name, 7)) for name in ("ä\n", "b")]
        await worker.heard(2)
        for order, arguments, reply in reversed(worker.orders):
            assert order == "read"
            await asyncio.to_thread(reply, [arguments[0], None])
        assert await asyncio.gather(*asked) == [["ä\n", None], ["b", None]]


async def test_an_order_that_nobody_waits_for_any_more_does_no_harm() -> None:
    async with _open() as (channel, worker):
        given_up = asyncio.create_task(channel.ask("slow"))
        await worker.heard(1)
        given_up.cancel()
        asked = asyncio.create_task(channel.ask("next"))
        await worker.heard(2)
        for _, _, reply in worker.orders:
            reply(5)
        assert await asked == 5


async def test_whoever_waits_is_told_that_the_worker_went() -> None:
    channel = SideChannel()
    await channel.listen()
    with socket.socket(socket.AF_UNIX) as worker:
        worker.connect(channel.address)
        await channel.connected()
        waiting = [asyncio.create_task(channel.ask(order)) for order in ("slow", "more")]
        assert await asyncio.to_thread(worker.recv, 1) == b"["
    for one in waiting:
        with pytest.raises(ConnectionError, match="left"):
            await one
    with pytest.raises(ConnectionError, match="not on the side channel"):
        await channel.ask("again")
    await channel.close()


async def test_an_order_that_fails_is_answered_and_leaves_the_way_open(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with _open() as (channel, worker):
        assert await channel.ask("fail", 3) is None
        assert "the order fail(3,) failed" in caplog.text
        asked = asyncio.create_task(channel.ask("next"))
        await worker.heard(1)
        worker.orders[0][2](5)
        assert await asked == 5


async def test_nobody_else_gets_in(tmp_path: Path) -> None:
    async with _open() as (channel, worker):
        assert not Path(channel.address).parent.exists()
        with pytest.raises(OSError, match="No such file"):
            serve(channel.address, worker.answer)


async def test_closing_leaves_nothing_and_a_late_reply_does_no_harm() -> None:
    async with _open() as (channel, worker):
        waiting = asyncio.create_task(channel.ask("slow"))
        await worker.heard(1)
    with pytest.raises(ConnectionError):
        await waiting
    worker.orders[0][2](1)


async def test_a_worker_that_does_not_come_is_not_waited_for_long() -> None:
    channel = SideChannel()
    await channel.listen()
    with pytest.raises(TimeoutError):
        await channel.connected(timeout_s=0.01)
    await channel.close()
    assert not Path(channel.address).parent.exists()
