"""What the upgrade's end-to-end test needs: tenants, traffic, and a way to shoot the controller."""

import random
import threading
import time
from dataclasses import dataclass, field

import psutil

from examples.tinyworld.demo.world import TenantAdapter
from examples.tinyworld.tasks import STOP, prompt
from lorebase.serving.cli.client import (
    ADAPTER,
    EVALUATION_SET,
    KIT,
    LorebaseClient,
    generate_request,
)
from lorebase.v1 import inference_pb2

CONTROLLER_TITLE = "ray::ControllerActor"
"""How Ray names the controller's process."""
GATEWAY_TITLE = "ray::ServeReplica:gateway:Gateway"
"""How Serve names a gateway's process."""


def register(client: LorebaseClient, adapter: TenantAdapter, base: str) -> None:
    """Uploads an adapter with all it has and routes its name."""
    evaluation = ""
    if adapter.evaluation_file is not None:
        evaluation = client.upload_artifact(adapter.evaluation_file, EVALUATION_SET).digest
    client.create_adapter(
        adapter.name,
        base,
        client.upload_artifact(adapter.adapter_dir, ADAPTER, base).digest,
        kit_digest=client.upload_artifact(adapter.kit_dir, KIT, base).digest,
        evaluation_digest=evaluation,
    )


def ask(client: LorebaseClient, model: str, text: str) -> inference_pb2.GenerateResponse:
    """Sends one task input, as a tenant's client does."""
    return client.generate(
        generate_request(model, prompt(text), max_tokens=40, temperature=0.0, stop=[STOP])
    )


def controller_process(server_pid: int) -> psutil.Process | None:
    """Finds the upgrade controller below the server; None while it restarts."""
    return next(iter(processes_titled(CONTROLLER_TITLE, server_pid)), None)


def processes_titled(title: str, server_pid: int) -> list[psutil.Process]:
    """Finds the processes of one kind below the server."""
    found = []
    for process in psutil.Process(server_pid).children(recursive=True):
        try:
            if process.cmdline()[:1] and process.cmdline()[0].startswith(title):
                found.append(process)
        except psutil.Error:
            continue
    return found


@dataclass
class Traffic:
    """Clients that call adapters by name, all the while; remembers who answered.

    Each has a connection of its own, so that they meet all gateways.
    """

    endpoint: str
    adapters: list[TenantAdapter]
    clients: int = 3
    """Clients of each adapter."""
    pause_s: float = 0.5
    failures: list[str] = field(default_factory=list)
    answered: dict[tuple[str, int], list[str]] = field(default_factory=dict)
    """Bases that answered, in order, by adapter and client."""

    def __enter__(self) -> "Traffic":
        self._done = threading.Event()
        self._threads = [
            threading.Thread(target=self._call, args=(one, number), daemon=True)
            for one in self.adapters
            for number in range(self.clients)
        ]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()
        for thread in self._threads:
            thread.join(timeout=60)

    def _call(self, adapter: TenantAdapter, number: int) -> None:
        rng = random.Random(f"{adapter.name} {number}")
        bases = self.answered.setdefault((adapter.name, number), [])
        with LorebaseClient(self.endpoint, timeout_s=60) as client:
            while not self._done.wait(self.pause_s):
                text, _ = rng.choice(adapter.held_out)
                try:
                    bases.append(ask(client, adapter.name, text).served_by.base)
                except Exception as error:
                    self.failures.append(f"{adapter.name}: {error!r}")


def wait_for(what: str, condition: object, seconds: float) -> None:
    """Waits until `condition()` is true.

    Raises:
        TimeoutError: it was not in time.
    """
    assert callable(condition)
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            raise TimeoutError(f"{what}: not within {seconds:g} s")
        time.sleep(0.1)
