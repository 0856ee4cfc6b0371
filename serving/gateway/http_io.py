"""Reading HTTP requests within bounds, and noticing that a client has gone."""

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from fastapi import Request

from ..config_sections import LimitsSection
from ..errors import InvalidArgumentError

Result = TypeVar("Result")


async def body_of(request: Request, limits: LimitsSection) -> bytes:
    """Reads a request's body.

    Raises:
        InvalidArgumentError: it is larger than any request within the limits can be.
    """
    # Four bytes a character at most, and JSON's escapes; the prompt itself is checked later.
    most = 16 * limits.max_prompt_chars + (1 << 20)
    parts: list[bytes] = []
    size = 0
    async for part in request.stream():
        size += len(part)
        if size > most:
            raise InvalidArgumentError(f"the request body is larger than {most} bytes")
        parts.append(part)
    return b"".join(parts)


async def until_gone(request: Request, work: Awaitable[Result]) -> Result:
    """Awaits work, but cancels it when the client disconnects.

    Raises:
        ClientGoneError: it did.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait([task, gone], return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGoneError
        return task.result()
    finally:
        for each in (task, gone):
            each.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class ClientGoneError(Exception):
    """The client closed the connection before the answer."""
