"""Orders to an engine's worker that need not wait for the end of a step.

vLLM hears its callers between two steps only, which with a large batch take a third of a second
and more. What touches neither the model nor a step, such as reading an adapter, is told here
instead: over a Unix socket, to a thread of the worker's process. Messages are JSON, one a line;
answers come in any order. Whoever finds the channel gone, or is answered None, goes the slow way,
which also tells what is wrong.
"""

import asyncio
import itertools
import json
import logging
import socket
import tempfile
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

Reply = Callable[[Any], None]
"""Takes the answer, which JSON can say; on any thread, once."""
Answer = Callable[[str, list[Any], Reply], None]
"""Takes an order, its arguments, and whom to reply to. Returns at once: orders share a thread."""


class SideChannel:
    """The engine's end. For one event loop and one worker."""

    def __init__(self) -> None:
        # A folder of its own, which nobody else may enter.
        self._folder = tempfile.TemporaryDirectory(prefix="lorebase-")
        self.address = str(Path(self._folder.name) / "worker")
        self._numbers = itertools.count()
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._writer: asyncio.StreamWriter | None = None
        self._server: asyncio.Server | None = None
        self._there = asyncio.Event()
        self._closed = False

    async def listen(self) -> None:
        """Waits for the worker at `address` from now on.

        Raises:
            OSError: No socket can be made there; a path has room for about 100 characters.
        """
        self._server = await asyncio.start_unix_server(self._connected, self.address)

    async def connected(self, timeout_s: float = 10.0) -> None:
        """Waits for the worker, and lets nobody else in after it.

        Raises:
            TimeoutError: It did not come.
        """
        async with asyncio.timeout(timeout_s):
            await self._there.wait()
        self._stop_listening()

    async def ask(self, order: str, *arguments: Any) -> Any:
        """Sends an order and returns the worker's answer.

        Raises:
            ConnectionError: The worker is not there, or went.
        """
        if self._writer is None:
            raise ConnectionError("the worker is not on the side channel")
        number = next(self._numbers)
        answer = self._waiting[number] = asyncio.get_running_loop().create_future()
        try:
            self._writer.write(_line([number, order, *arguments]))
            return await answer
        finally:
            del self._waiting[number]

    async def close(self) -> None:
        """Ends the channel; the worker's thread ends with it."""
        self._closed = True
        self._stop_listening()
        if self._writer is not None:
            self._writer.close()
            with suppress(ConnectionError):
                await self._writer.wait_closed()

    def _stop_listening(self) -> None:
        if self._server is not None:
            self._server.close()
        self._folder.cleanup()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        self._there.set()
        try:
            while line := await reader.readline():
                number, result = json.loads(line)
                answer = self._waiting.get(number)
                if answer is not None and not answer.done():
                    answer.set_result(result)
        except ConnectionError:
            pass  # said to whoever waits
        finally:
            self._writer = None
            writer.close()
            if not self._closed:
                logger.warning("the worker left the side channel; new adapters wait for steps now")
            for answer in self._waiting.values():
                if not answer.done():
                    answer.set_exception(ConnectionError("the worker left the side channel"))


def serve(address: str, answer: Answer) -> None:
    """The worker's end: connects, and answers on a thread of its own until the engine goes.

    Raises:
        OSError: Nobody listens there.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.connect(address)
    except OSError:
        connection.close()
        raise
    thread = threading.Thread(target=_serve, args=(connection, answer), daemon=True)
    thread.name = "side-channel"
    thread.start()


def _serve(connection: socket.socket, answer: Answer) -> None:
    one_at_a_time = threading.Lock()

    def reply_to(number: int) -> Reply:
        def reply(result: Any) -> None:
            # An engine that is gone wants no answer.
            with one_at_a_time, suppress(OSError):
                connection.sendall(_line([number, result]))

        return reply

    with connection, connection.makefile("rb") as lines, suppress(OSError):
        for line in lines:
            number, order, *arguments = json.loads(line)
            try:
                answer(order, arguments, reply_to(number))
            except Exception:  # of this order alone: the others' way stays open
                logger.exception("the order %s%s failed", order, tuple(arguments))
                reply_to(number)(None)


def _line(message: list[Any]) -> bytes:
    return json.dumps(message).encode() + b"\n"
