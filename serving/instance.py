"""What makes an instance one instance: its lock, its ports and its directories. No Ray."""

import contextlib
import fcntl
import hashlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from tempfile import gettempdir
from typing import IO

from .config import Settings
from .errors import FailedPreconditionError

MAX_TEMP_DIR_CHARS = 40
"""Ray appends up to 62 characters for its sockets, and Linux allows 107 in all."""


def lock(state_dir: Path) -> IO[str]:
    """Takes the lock of a state directory.

    The kernel frees it when this process ends, however it ends; closing the file frees it too.

    Raises:
        FailedPreconditionError: another instance has it.
    """
    file = (state_dir / "lock").open("a+", encoding="ascii")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.seek(0)
        owner = file.read().strip() or "unknown"
        file.close()
        raise FailedPreconditionError(
            f"another instance (process {owner}) runs on {state_dir}; stop it, or give this one "
            "another cluster.state_dir",
            reason="STATE_DIR_IN_USE",
        ) from None
    file.truncate(0)
    file.write(f"{os.getpid()}\n")
    file.flush()
    return file


def with_ports(settings: Settings) -> Settings:
    """Replaces port 0 by free ones, and refuses ports that somebody listens on.

    Gateways share their ports with SO_REUSEPORT, so a second instance on the same ports would not
    fail: it would silently take half of the first one's clients.

    Raises:
        FailedPreconditionError: a port is taken.
    """
    serving = settings.serving
    with contextlib.ExitStack() as held:
        ports = {
            field: held.enter_context(_probe(serving.host, getattr(serving, field), field))
            for field in ("grpc_port", "http_port")
        }
    return settings.model_copy(update={"serving": serving.model_copy(update=ports)})


@contextlib.contextmanager
def _probe(host: str, port: int, field: str) -> Iterator[int]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise FailedPreconditionError(
                f"can't listen on {host}:{port} ({error}); set serving.{field} to a free port",
                reason="PORT_TAKEN",
            ) from None
        yield int(probe.getsockname()[1])


def ray_temp_dir(state_dir: Path) -> Path:
    """Returns where Ray keeps its sockets and logs: in the state directory if that is short."""
    inside = state_dir / "ray"
    if len(str(inside)) <= MAX_TEMP_DIR_CHARS:
        return inside
    name = hashlib.sha256(str(state_dir).encode()).hexdigest()[:10]
    places = [Path(place) / f"lorebase-{os.getuid()}" / name for place in (gettempdir(), "/tmp")]
    return min(places, key=lambda place: len(str(place)) > MAX_TEMP_DIR_CHARS)


def reachable(host: str) -> str:
    """Returns an address under which this machine reaches a server bound to `host`."""
    if host in ("0.0.0.0", ""):
        return "127.0.0.1"
    if host == "::":
        return "[::1]"
    return f"[{host}]" if ":" in host else host
