"""A small gRPC server on loopback that keeps what the CLI sends and answers from memory."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_status import rpc_status

from lorebase.serving.errors import LorebaseError, NotFoundError, UnavailableError, status_of
from lorebase.v1 import (
    adapter_pb2,
    adapter_pb2_grpc,
    inference_pb2,
    inference_pb2_grpc,
    upgrade_pb2,
    upgrade_pb2_grpc,
)

_HEADER = adapter_pb2.UploadArtifactRequest.Header


def refuse(context: grpc.ServicerContext, error: LorebaseError) -> None:
    """Ends a call as the gateway does: google.rpc.Status with ErrorInfo."""
    info = any_pb2.Any()
    info.Pack(error_details_pb2.ErrorInfo(reason=error.reason, domain="lorebase"))
    status = status_pb2.Status(
        code=status_of(error).grpc_code.value[0], message=error.message, details=[info]
    )
    context.abort_with_status(rpc_status.to_status(status))


class Adapters(adapter_pb2_grpc.AdapterServiceServicer):
    """Adapters by name, uploads by digest."""

    def __init__(self) -> None:
        self.uploads: dict[str, tuple[_HEADER, bytes]] = {}
        self.largest_chunk = 0
        self.by_name: dict[str, adapter_pb2.Adapter] = {}
        self.creates: list[adapter_pb2.CreateAdapterRequest] = []
        self.page_limit = 2

    def UploadArtifact(
        self,
        request_iterator: Iterator[adapter_pb2.UploadArtifactRequest],
        context: grpc.ServicerContext,
    ) -> adapter_pb2.UploadArtifactResponse:
        header = next(request_iterator).header
        data = bytearray()
        for request in request_iterator:
            self.largest_chunk = max(self.largest_chunk, len(request.chunk))
            data += request.chunk
        digest = f"sha256:{len(self.uploads):064x}"
        self.uploads[digest] = (header, bytes(data))
        return adapter_pb2.UploadArtifactResponse(digest=digest, size_bytes=len(data))

    def CreateAdapter(
        self, request: adapter_pb2.CreateAdapterRequest, context: grpc.ServicerContext
    ) -> adapter_pb2.CreateAdapterResponse:
        self.creates.append(request)
        adapter = adapter_pb2.Adapter(
            name=request.name,
            base=request.base,
            kit_digest=request.kit_digest,
            evaluation_digest=request.evaluation_digest,
            stable_version="v-1",
        )
        if not request.validate_only:
            self.by_name[request.name] = adapter
        return adapter_pb2.CreateAdapterResponse(adapter=adapter)

    def GetAdapter(
        self, request: adapter_pb2.GetAdapterRequest, context: grpc.ServicerContext
    ) -> adapter_pb2.GetAdapterResponse:
        adapter = self.by_name.get(request.name)
        if adapter is None:
            refuse(
                context,
                NotFoundError(f"no adapter {request.name!r}", reason="ADAPTER_NOT_FOUND"),
            )
        return adapter_pb2.GetAdapterResponse(adapter=adapter)

    def ListAdapters(
        self, request: adapter_pb2.ListAdaptersRequest, context: grpc.ServicerContext
    ) -> adapter_pb2.ListAdaptersResponse:
        names = sorted(name for name in self.by_name if name > request.page_token)
        page = names[: self.page_limit]
        return adapter_pb2.ListAdaptersResponse(
            adapters=[self.by_name[name] for name in page],
            next_page_token=page[-1] if len(names) > len(page) else "",
        )

    def DeleteAdapter(
        self, request: adapter_pb2.DeleteAdapterRequest, context: grpc.ServicerContext
    ) -> adapter_pb2.DeleteAdapterResponse:
        del self.by_name[request.name]
        return adapter_pb2.DeleteAdapterResponse()


class Inference(inference_pb2_grpc.InferenceServiceServicer):
    """Answers with the prompt in capitals, word by word when streaming."""

    def __init__(self) -> None:
        self.requests: list[inference_pb2.GenerateRequest] = []
        self.cancelled = threading.Event()
        self.down = 0
        """Calls to refuse first, as if the engine still started."""

    def Generate(
        self, request: inference_pb2.GenerateRequest, context: grpc.ServicerContext
    ) -> inference_pb2.GenerateResponse:
        self.requests.append(request)
        if self.down:
            self.down -= 1
            refuse(context, UnavailableError("no engine runs for base 'old'"))
        return inference_pb2.GenerateResponse(
            text=request.prompt.upper(),
            usage=inference_pb2.Usage(prompt_tokens=2, completion_tokens=3),
            served_by=inference_pb2.ServedBy(
                base="old", adapter=request.model, adapter_version="v-1"
            ),
        )

    def GenerateStream(
        self, request: inference_pb2.GenerateRequest, context: grpc.ServicerContext
    ) -> Iterator[inference_pb2.GenerateStreamResponse]:
        self.requests.append(request)
        context.add_callback(self.cancelled.set)
        for word in request.prompt.upper().split():
            yield inference_pb2.GenerateStreamResponse(text=f"{word} ")
        yield inference_pb2.GenerateStreamResponse(
            text=".", served_by=inference_pb2.ServedBy(base="old")
        )

    def ListModels(
        self, request: inference_pb2.ListModelsRequest, context: grpc.ServicerContext
    ) -> inference_pb2.ListModelsResponse:
        kind = inference_pb2.Model.KIND_BASE
        return inference_pb2.ListModelsResponse(
            models=[inference_pb2.Model(id="old", kind=kind, base="old")]
        )


class Upgrades(upgrade_pb2_grpc.UpgradeServiceServicer):
    """One upgrade whose history is given."""

    def __init__(self) -> None:
        self.history: list[upgrade_pb2.Upgrade] = []
        self.starts: list[upgrade_pb2.StartUpgradeRequest] = []
        self.rollbacks: list[upgrade_pb2.RollbackUpgradeRequest] = []
        self.promotions: list[upgrade_pb2.PromoteUpgradeRequest] = []

    def GetUpgrade(
        self, request: upgrade_pb2.GetUpgradeRequest, context: grpc.ServicerContext
    ) -> upgrade_pb2.GetUpgradeResponse:
        if not self.history:
            refuse(context, NotFoundError("there is no upgrade yet", reason="UPGRADE_NOT_FOUND"))
        return upgrade_pb2.GetUpgradeResponse(upgrade=self.history[-1])

    def StartUpgrade(
        self, request: upgrade_pb2.StartUpgradeRequest, context: grpc.ServicerContext
    ) -> upgrade_pb2.StartUpgradeResponse:
        self.starts.append(request)
        return upgrade_pb2.StartUpgradeResponse(upgrade=self.history[0])

    def WatchUpgrade(
        self, request: upgrade_pb2.WatchUpgradeRequest, context: grpc.ServicerContext
    ) -> Iterator[upgrade_pb2.WatchUpgradeResponse]:
        for upgrade in self.history:
            yield upgrade_pb2.WatchUpgradeResponse(upgrade=upgrade)

    def PromoteUpgrade(
        self, request: upgrade_pb2.PromoteUpgradeRequest, context: grpc.ServicerContext
    ) -> upgrade_pb2.PromoteUpgradeResponse:
        self.promotions.append(request)
        return upgrade_pb2.PromoteUpgradeResponse(upgrade=self.history[-1])

    def RollbackUpgrade(
        self, request: upgrade_pb2.RollbackUpgradeRequest, context: grpc.ServicerContext
    ) -> upgrade_pb2.RollbackUpgradeResponse:
        self.rollbacks.append(request)
        return upgrade_pb2.RollbackUpgradeResponse(upgrade=self.history[-1])


class Server:
    """All services on a free loopback port."""

    def __init__(self, credentials: grpc.ServerCredentials | None = None) -> None:
        self.adapters = Adapters()
        self.inference = Inference()
        self.upgrades = Upgrades()
        self.health = health.HealthServicer()
        self._grpc = grpc.server(ThreadPoolExecutor(max_workers=4))
        adapter_pb2_grpc.add_AdapterServiceServicer_to_server(self.adapters, self._grpc)
        inference_pb2_grpc.add_InferenceServiceServicer_to_server(self.inference, self._grpc)
        upgrade_pb2_grpc.add_UpgradeServiceServicer_to_server(self.upgrades, self._grpc)
        health_pb2_grpc.add_HealthServicer_to_server(self.health, self._grpc)
        self.set_serving(True)
        if credentials is None:
            port = self._grpc.add_insecure_port("127.0.0.1:0")
        else:
            port = self._grpc.add_secure_port("127.0.0.1:0", credentials)
        self.endpoint = f"127.0.0.1:{port}"
        self._grpc.start()

    def set_serving(self, serving: bool) -> None:
        status = health_pb2.HealthCheckResponse.ServingStatus
        self.health.set("", status.Value("SERVING" if serving else "NOT_SERVING"))

    def stop(self) -> None:
        self._grpc.stop(grace=None).wait()
