"""Sockets that several gateways of a node share, and uvicorn inside somebody else's event loop."""

import asyncio
import contextlib
import socket
from collections.abc import Iterator

import uvicorn

from ..errors import FailedPreconditionError


class UvicornServer(uvicorn.Server):
    """uvicorn inside somebody else's event loop: no signal handlers, own socket."""

    def __init__(self, config: uvicorn.Config, listener: socket.socket) -> None:
        super().__init__(config)
        self._listener = listener

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals belong to the process's owner."""
        yield

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serves until `should_exit`, then drains."""
        await super().serve([self._listener])

    async def wait_started(self) -> None:
        """Waits until connections are accepted."""
        while not self.started:
            await asyncio.sleep(0.01)


def listen(host: str, port: int) -> socket.socket:
    """Returns a listening socket on a port that other gateways may listen on too.

    Raises:
        FailedPreconditionError: the port is taken by something else.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind((host, port))
        listener.listen(1024)
    except OSError as error:
        listener.close()
        raise port_taken(port, "serving.http_port") from error
    listener.setblocking(False)
    return listener


def port_taken(port: int, field: str) -> FailedPreconditionError:
    """Returns the error of a port that can't be had; `field` is where it is configured."""
    return FailedPreconditionError(
        f"can't listen on port {port}: another program uses it, or this user may not; set {field} "
        "to another one",
        reason="PORT_TAKEN",
    )
