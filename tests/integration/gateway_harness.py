"""A real gateway on loopback: real servers, catalog and store; only the engines are fakes."""

import io
import tarfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from benchmarks.cluster import free_ports
from lorebase.serving.artifacts import ArtifactStore, base_revision
from lorebase.serving.catalog import Catalog
from lorebase.serving.catalog.records import Base
from lorebase.serving.config import Settings, settings_of
from lorebase.serving.gateway.server import GatewayServer
from lorebase.serving.routing.hub import Hub, HubTimes
from lorebase.serving.routing.table import RouteTable
from lorebase.v1 import adapter_pb2, adapter_pb2_grpc, inference_pb2_grpc
from tests.unit.gateway_fakes import SpellingEngines

BASE = "base-a"


class LocalHub:
    """The hub and the publisher in this process, on the real catalog."""

    def __init__(self, settings: Settings, clock: Any) -> None:
        self._catalog = Catalog.open(settings.catalog_url)
        self._store = ArtifactStore(settings.artifact_root)
        self._hub = Hub(clock=clock, times=HubTimes(poll_s=0.2, liveness_s=1.0))

    async def refresh(self) -> None:
        await self._hub.put(self._catalog.route_table(lambda d: str(self._store.locate(d))))

    async def poll(self, gateway_id: str, have: int) -> tuple[int, RouteTable | None]:
        return await self._hub.poll(gateway_id, have)

    async def leave(self, gateway_id: str) -> None:
        await self._hub.leave(gateway_id)

    async def publish(self, revision: int) -> None:
        await self.refresh()
        await self._hub.wait_acked(revision, 5.0)

    def close(self) -> None:
        self._catalog.close()


@dataclass
class Gateway:
    settings: Settings
    engines: SpellingEngines
    server: GatewayServer
    hub: LocalHub
    channels: list[grpc.aio.Channel] = field(default_factory=list)

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.settings.serving.grpc_port}"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.settings.serving.http_port}"

    def channel(self) -> grpc.aio.Channel:
        # A connection of its own, so that tests of balancing and draining see the server's.
        channel = grpc.aio.insecure_channel(
            self.target, options=[("grpc.use_local_subchannel_pool", 1)]
        )
        self.channels.append(channel)
        return channel

    @property
    def inference(self) -> Any:
        return inference_pb2_grpc.InferenceServiceStub(self.channel())

    @property
    def adapters(self) -> Any:
        return adapter_pb2_grpc.AdapterServiceStub(self.channel())

    @property
    def kept(self) -> set[str]:
        """Everything under the artifact store's root except its own bookkeeping."""
        root = self.settings.artifact_root
        return {
            str(path.relative_to(root))
            for path in root.rglob("*")
            if path.is_file() and not path.name.startswith(".")
        }


def gateway_settings(state: Path, base_dir: Path, **sections: dict[str, Any]) -> Settings:
    grpc_port, http_port = free_ports(0, 0)
    serving = {"grpc_port": grpc_port, "http_port": http_port, "drain_s": 5}
    return settings_of(
        {
            "cluster": {"state_dir": str(state)},
            "bases": [{"id": BASE, "path": str(base_dir)}],
            "engine": {"max_lora_rank": 16},
            **sections,
            "gateway": {"extra_servicers": [], "kit_check": None, **sections.get("gateway", {})},
            "serving": {**serving, **sections.get("serving", {})},
            "limits": {"max_adapter_rank": 16, **sections.get("limits", {})},
        },
        folder=state,
    )


def register_base(settings: Settings) -> None:
    catalog = Catalog.open(settings.catalog_url)
    path = settings.bases[0].path
    catalog.put_base(
        Base(
            id=BASE,
            path=str(path),
            revision=base_revision(path),
            architecture="LlamaForCausalLM",
            dtype="auto",
            created_at=1.0,
        )
    )
    catalog.set_current_base(BASE)
    catalog.set_serving(BASE, True)
    catalog.close()


@asynccontextmanager
async def gateway(
    settings: Settings, clock: Any, engines: SpellingEngines | None = None
) -> AsyncIterator[Gateway]:
    register_base(settings)
    hub = LocalHub(settings, clock)
    await hub.refresh()
    engines = engines or SpellingEngines()
    server = GatewayServer(
        settings=settings,
        engines=engines,
        publisher=hub,
        hub=hub,
        on_table=lambda table: None,
    )
    running = Gateway(settings=settings, engines=engines, server=server, hub=hub)
    try:
        await server.start()
        yield running
    finally:
        for channel in running.channels:
            await channel.close()
        await server.stop()
        hub.close()


def archive(folder: Path) -> bytes:
    """An uncompressed tar of a directory's files, as the command line makes it."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for path in sorted(folder.iterdir()):
            if path.name != "README.md":
                tar.add(path, arcname=path.name)
    return buffer.getvalue()


def upload(
    data: bytes, kind: int = adapter_pb2.ARTIFACT_KIND_ADAPTER, base: str = BASE
) -> Iterator[adapter_pb2.UploadArtifactRequest]:
    header = adapter_pb2.UploadArtifactRequest.Header(kind=kind, base=base)
    yield adapter_pb2.UploadArtifactRequest(header=header)
    for start in range(0, len(data), 1 << 16):
        yield adapter_pb2.UploadArtifactRequest(chunk=data[start : start + (1 << 16)])


def reason_of(error: grpc.aio.AioRpcError) -> str:
    """google.rpc.ErrorInfo.reason of a failed call."""
    return str(_details(error)["ErrorInfo"].reason)


def retry_s_of(error: grpc.aio.AioRpcError) -> float:
    """google.rpc.RetryInfo.retry_delay of a failed call, in seconds."""
    return float(_details(error)["RetryInfo"].retry_delay.ToMilliseconds()) / 1000


def _details(error: grpc.aio.AioRpcError) -> dict[str, Any]:
    from google.rpc import error_details_pb2
    from grpc_status import rpc_status

    status = rpc_status.from_call(error)  # type: ignore[arg-type]
    assert status is not None, "the call failed without google.rpc.Status"
    found: dict[str, Any] = {}
    for packed in status.details:
        for kind in (error_details_pb2.ErrorInfo, error_details_pb2.RetryInfo):
            message = kind()
            if packed.Unpack(message):
                found[kind.DESCRIPTOR.name] = message
    return found
