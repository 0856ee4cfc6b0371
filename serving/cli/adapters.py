"""The client's calls of AdapterService; part of LorebaseClient."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import grpc

from lorebase.v1 import adapter_pb2, adapter_pb2_grpc

from ..errors import InvalidArgumentError, LorebaseError
from .packing import files_of, tar_chunks

PAGE_SIZE = 1000

ADAPTER = adapter_pb2.ARTIFACT_KIND_ADAPTER
KIT = adapter_pb2.ARTIFACT_KIND_KIT
EVALUATION_SET = adapter_pb2.ARTIFACT_KIND_EVALUATION_SET


class AdapterCalls:
    """Adapter calls over a channel that the subclass opens before calling `__init__`."""

    channel: grpc.Channel
    timeout_s: float
    _errors: Callable[[], AbstractContextManager[None]]

    def __init__(self) -> None:
        super().__init__()
        self._adapters = adapter_pb2_grpc.AdapterServiceStub(self.channel)

    def upload_artifact(
        self,
        source: str | Path,
        kind: adapter_pb2.ArtifactKind.ValueType,
        base: str = "",
        *,
        timeout_s: float | None = None,
    ) -> adapter_pb2.UploadArtifactResponse:
        """Uploads a directory, or an evaluation file, and returns its digest and size.

        Args:
            source: PEFT directory, kit directory, or a JSONL file of an evaluation set.
            kind: ADAPTER, KIT or EVALUATION_SET of this module.
            base: base that the weights fit; needed for adapters and kits.
            timeout_s: deadline in seconds; None takes four times the client's.

        Raises:
            NotFoundError: `source` does not exist.
            InvalidArgumentError: the server refused it; the message says what is wrong.
        """
        single_name = "evaluation.jsonl" if kind == EVALUATION_SET else None
        files = files_of(Path(source), single_name=single_name)

        local_errors: list[Exception] = []

        def messages() -> Iterator[adapter_pb2.UploadArtifactRequest]:
            header = adapter_pb2.UploadArtifactRequest.Header(kind=kind, base=base)
            yield adapter_pb2.UploadArtifactRequest(header=header)
            try:
                for chunk in tar_chunks(files):
                    yield adapter_pb2.UploadArtifactRequest(chunk=chunk)
            except (OSError, InvalidArgumentError) as error:
                # gRPC iterates in its own thread and would report no more than "UNKNOWN".
                local_errors.append(error)
                raise

        deadline_s = timeout_s or 4 * self.timeout_s
        try:
            with self._errors():
                return self._adapters.UploadArtifact(messages(), timeout=deadline_s)
        except LorebaseError:
            if local_errors:
                raise local_errors[0] from None
            raise

    def create_adapter(
        self,
        name: str,
        base: str,
        adapter_digest: str,
        *,
        kit_digest: str = "",
        evaluation_digest: str = "",
        request_id: str = "",
        validate_only: bool = False,
    ) -> adapter_pb2.Adapter:
        """Creates an adapter from uploaded artifacts and routes its name to it."""
        request = adapter_pb2.CreateAdapterRequest(
            name=name,
            base=base,
            adapter_digest=adapter_digest,
            kit_digest=kit_digest,
            evaluation_digest=evaluation_digest,
            request_id=request_id,
            validate_only=validate_only,
        )
        with self._errors():
            return self._adapters.CreateAdapter(request, timeout=self.timeout_s).adapter

    def get_adapter(self, name: str) -> adapter_pb2.Adapter:
        """Returns an adapter with all its versions."""
        request = adapter_pb2.GetAdapterRequest(name=name)
        with self._errors():
            return self._adapters.GetAdapter(request, timeout=self.timeout_s).adapter

    def list_adapters(self, tenant: str = "") -> list[adapter_pb2.Adapter]:
        """Lists adapters by name; of one tenant if given."""
        adapters: list[adapter_pb2.Adapter] = []
        token = ""
        while True:
            request = adapter_pb2.ListAdaptersRequest(
                page_size=PAGE_SIZE, page_token=token, tenant=tenant
            )
            with self._errors():
                response = self._adapters.ListAdapters(request, timeout=self.timeout_s)
            adapters += response.adapters
            token = response.next_page_token
            if not token:
                return adapters

    def delete_adapter(self, name: str, *, etag: str = "") -> None:
        """Removes an adapter's route and versions; with an etag only if it still matches."""
        request = adapter_pb2.DeleteAdapterRequest(name=name, etag=etag)
        with self._errors():
            self._adapters.DeleteAdapter(request, timeout=self.timeout_s)

    def import_kit(
        self, name: str, *, kit_digest: str = "", evaluation_digest: str = ""
    ) -> adapter_pb2.Adapter:
        """Attaches an uploaded kit, and optionally an evaluation set, to an adapter."""
        request = adapter_pb2.ImportKitRequest(
            name=name, kit_digest=kit_digest, evaluation_digest=evaluation_digest
        )
        with self._errors():
            return self._adapters.ImportKit(request, timeout=self.timeout_s).adapter

    def list_route_changes(
        self, adapter: str = "", *, after_revision: int = 0
    ) -> list[adapter_pb2.RouteChange]:
        """Lists every change of routes after a revision, oldest first."""
        changes: list[adapter_pb2.RouteChange] = []
        while True:
            request = adapter_pb2.ListRouteChangesRequest(
                adapter=adapter, after_revision=after_revision, page_size=PAGE_SIZE
            )
            with self._errors():
                response = self._adapters.ListRouteChanges(request, timeout=self.timeout_s)
            changes += response.changes
            if len(response.changes) < PAGE_SIZE:
                return changes
            after_revision = response.changes[-1].revision
