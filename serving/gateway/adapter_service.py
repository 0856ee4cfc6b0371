"""AdapterService over grpc.aio: protos in and out of AdapterAdmin and Uploads."""

from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio

from lorebase.v1 import adapter_pb2, adapter_pb2_grpc

from ..errors import InvalidArgumentError
from .adapter_admin import AdapterAdmin, AdapterView, NewAdapter
from .checks import check_request_id
from .convert import (
    adapter_of,
    last_of,
    page_size_of,
    page_token_of,
    record_version_of,
    route_change_of,
)
from .uploads import Kind, Uploads

_Context = grpc.aio.ServicerContext[Any, Any]

_KINDS: dict[int, Kind] = {
    adapter_pb2.ARTIFACT_KIND_ADAPTER: "adapter",
    adapter_pb2.ARTIFACT_KIND_KIT: "kit",
    adapter_pb2.ARTIFACT_KIND_EVALUATION_SET: "evaluation_set",
}


class AdapterServicer(adapter_pb2_grpc.AdapterServiceServicer):
    """Registers adapters at run time."""

    def __init__(self, admin: AdapterAdmin, uploads: Uploads) -> None:
        self._admin = admin
        self._uploads = uploads

    async def UploadArtifact(
        self,
        request_iterator: AsyncIterator[adapter_pb2.UploadArtifactRequest],
        context: _Context,
    ) -> adapter_pb2.UploadArtifactResponse:
        """Receives, checks and stores an artifact."""
        first = await anext(request_iterator, None)
        if first is None or first.WhichOneof("payload") != "header":
            raise InvalidArgumentError(
                "the first message of an upload must carry the header, the others chunks"
            )
        kind = _KINDS.get(first.header.kind)
        if kind is None:
            raise InvalidArgumentError(
                f"artifact kind {first.header.kind} is not one of adapter, kit, evaluation set"
            )
        digest, size = await self._uploads.receive(
            kind, first.header.base, _chunks(request_iterator)
        )
        return adapter_pb2.UploadArtifactResponse(digest=digest, size_bytes=size)

    async def CreateAdapter(
        self, request: adapter_pb2.CreateAdapterRequest, context: _Context
    ) -> adapter_pb2.CreateAdapterResponse:
        """Creates an adapter with its first version."""
        for field in ("name", "base", "adapter_digest"):
            if not getattr(request, field):
                raise InvalidArgumentError(f"{field} is empty, but needed to create an adapter")
        view = await self._admin.create(
            NewAdapter(
                name=request.name,
                base_id=request.base,
                adapter_digest=request.adapter_digest,
                kit_digest=request.kit_digest or None,
                evaluation_digest=request.evaluation_digest or None,
                request_id=check_request_id(request.request_id) or None,
                validate_only=request.validate_only,
            )
        )
        return adapter_pb2.CreateAdapterResponse(adapter=_proto(view))

    async def GetAdapter(
        self, request: adapter_pb2.GetAdapterRequest, context: _Context
    ) -> adapter_pb2.GetAdapterResponse:
        """Returns one adapter."""
        return adapter_pb2.GetAdapterResponse(adapter=_proto(await self._admin.get(request.name)))

    async def ListAdapters(
        self, request: adapter_pb2.ListAdaptersRequest, context: _Context
    ) -> adapter_pb2.ListAdaptersResponse:
        """Lists adapters by name."""
        size = page_size_of(request.page_size, default=100, most=1000)
        views = await self._admin.list_page(
            tenant=request.tenant or None, after=last_of(request.page_token), limit=size
        )
        # A full page may be the last; its token then leads to an empty one, which is allowed.
        full = len(views) == size
        return adapter_pb2.ListAdaptersResponse(
            adapters=[_proto(view) for view in views],
            next_page_token=page_token_of(views[-1].adapter.name) if full else "",
        )

    async def DeleteAdapter(
        self, request: adapter_pb2.DeleteAdapterRequest, context: _Context
    ) -> adapter_pb2.DeleteAdapterResponse:
        """Deletes an adapter; requests in flight finish."""
        await self._admin.delete(request.name, record_version_of(request.etag))
        return adapter_pb2.DeleteAdapterResponse()

    async def ImportKit(
        self, request: adapter_pb2.ImportKitRequest, context: _Context
    ) -> adapter_pb2.ImportKitResponse:
        """Attaches a kit, an evaluation set or both."""
        if not (request.kit_digest or request.evaluation_digest):
            raise InvalidArgumentError("give kit_digest, evaluation_digest or both")
        view = await self._admin.attach(
            request.name,
            kit_digest=request.kit_digest or None,
            evaluation_digest=request.evaluation_digest or None,
        )
        return adapter_pb2.ImportKitResponse(adapter=_proto(view))

    async def ListRouteChanges(
        self, request: adapter_pb2.ListRouteChangesRequest, context: _Context
    ) -> adapter_pb2.ListRouteChangesResponse:
        """Lists changes of routes, oldest first."""
        changes = await self._admin.route_changes(
            adapter=request.adapter or None,
            after=request.after_revision,
            limit=page_size_of(request.page_size, default=1000, most=10_000),
        )
        return adapter_pb2.ListRouteChangesResponse(changes=[route_change_of(c) for c in changes])


def _proto(view: AdapterView) -> adapter_pb2.Adapter:
    return adapter_of(view.adapter, view.versions, view.stable)


async def _chunks(
    messages: AsyncIterator[adapter_pb2.UploadArtifactRequest],
) -> AsyncIterator[bytes]:
    async for message in messages:
        if message.WhichOneof("payload") != "chunk":
            raise InvalidArgumentError("only the first message of an upload may carry a header")
        yield message.chunk
