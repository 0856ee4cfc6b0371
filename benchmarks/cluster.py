"""`lorebase serve` as a subprocess: start, wait, look at its log, stop everything it started."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

from lorebase.serving.cli.client import LorebaseClient
from lorebase.serving.errors import LorebaseError, UnavailableError

from .processes import MemorySample, TreeSampler, stop_tree

HOST = "127.0.0.1"
READY_LINE = "serving: gRPC"
"""`lorebase serve` prints it once everything runs."""


def free_ports(*preferred: int) -> list[int]:
    """Returns different ports: each the preferred one, or another where somebody listens there.

    All are held until all are found: one that was let go might be found again.
    """
    with ExitStack() as held:
        return [_held_port(held, port) for port in preferred]


def _held_port(held: ExitStack, preferred: int) -> int:
    for port in (preferred, 0):
        probe = held.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
        try:
            probe.bind((HOST, port))
        except OSError:
            continue
        return int(probe.getsockname()[1])
    raise OSError(f"no free port on {HOST}")


class ServedCluster:
    """One `lorebase serve` with its own state directory and ports.

    Args:
        config: YAML file.
        state_dir: where catalog, artifacts and `serve.log` go; made if missing.
        grpc_port: port for gRPC; 0 finds a free one.
        http_port: port for HTTP; 0 finds a free one.
        environment: further `LOREBASE_*` overrides of the configuration.
    """

    def __init__(
        self,
        config: Path,
        state_dir: Path,
        *,
        grpc_port: int = 0,
        http_port: int = 0,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        state_dir.mkdir(parents=True, exist_ok=True)
        self.log_path = state_dir / "serve.log"
        self.grpc, self.http = (f"{HOST}:{port}" for port in free_ports(grpc_port, http_port))
        self._config = config
        self._environment = {
            **os.environ,
            "LOREBASE_CLUSTER__STATE_DIR": str(state_dir),
            "LOREBASE_SERVING__GRPC_PORT": self.grpc.rpartition(":")[2],
            "LOREBASE_SERVING__HTTP_PORT": self.http.rpartition(":")[2],
            "HF_HUB_OFFLINE": "1",
            **(environment or {}),
        }
        self._process: subprocess.Popen[bytes] | None = None
        self._sampler = TreeSampler(os.getpid())

    def __enter__(self) -> ServedCluster:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def memory(self) -> list[MemorySample]:
        """Returns memory samples of this process and everything below it, clients included."""
        return self._sampler.samples

    def start(self) -> None:
        """Starts the process; `wait_ready` waits until it serves."""
        # The console script of this interpreter's environment, as a user would call it.
        command = [str(Path(sys.executable).with_name("lorebase")), "serve", str(self._config)]
        with self.log_path.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # Ctrl-C must reach this process only: it ends the other one in order.
                start_new_session=True,
            )
        self._sampler.start()

    async def wait_ready(self, timeout_s: float) -> None:
        """Waits until the gateway says SERVING and `lorebase serve` that everything runs.

        Gateways answer health checks before engines and the background plane are up.

        Raises:
            UnavailableError: the process ended, or was not ready in time.
        """
        deadline = time.monotonic() + timeout_s
        seen = "nothing answered"
        while time.monotonic() < deadline:
            self.check_alive()
            # A fresh connection each time: gRPC's own back-off would add seconds.
            with (
                contextlib.suppress(UnavailableError),
                LorebaseClient(self.grpc, timeout_s=5) as client,
            ):
                try:
                    seen = await asyncio.to_thread(client.health)
                    if seen == "SERVING" and READY_LINE in self.log_tail(200):
                        return
                except LorebaseError as error:
                    seen = error.message
            await asyncio.sleep(0.5)
        raise UnavailableError(
            f"lorebase serve was not ready within {timeout_s:g} s; last seen: {seen}; "
            f"log: {self.log_path}"
        )

    def check_alive(self) -> None:
        """Raises UnavailableError if the process has ended."""
        code = None if self._process is None else self._process.poll()
        if self._process is None or code is not None:
            raise UnavailableError(
                f"lorebase serve ended with exit code {code}; log: {self.log_path}"
            )

    def log_tail(self, lines: int = 60) -> str:
        """Returns the last lines of the log."""
        try:
            content = self.log_path.read_text(encoding="utf-8", errors="replace")
        except OSError as error:
            return f"({error})"
        return "\n".join(content.splitlines()[-lines:])

    def stop(self, grace_s: float = 60.0) -> list[int]:
        """Stops the process and everything it started; returns ids that had to be killed."""
        self._sampler.stop()
        if self._process is None:
            return []
        process, self._process = self._process, None
        return stop_tree(process, self._sampler.seen, grace_s=grace_s)
