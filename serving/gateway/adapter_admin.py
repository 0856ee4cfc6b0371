"""Creating, changing and deleting adapters: catalog writes, then routes made to take effect.

Blocking catalog and file work runs on threads, so that generation on the same event loop goes on.
"""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from ..artifacts import AdapterManifest, ArtifactStore, check_adapter
from ..catalog import Catalog, split_adapter_name, version_id
from ..catalog.records import Adapter, AdapterVersion, RouteChange
from ..engine.protocol import VersionRef
from ..errors import (
    AlreadyExistsError,
    DeadlineExceededError,
    FailedPreconditionError,
    NotFoundError,
    UnavailableError,
)
from ..routing.table import RouteTable
from .ports import EngineClient, RoutePublisher
from .uploads import Uploads

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterView:
    """An adapter with everything that the API shows of it."""

    adapter: Adapter
    versions: tuple[AdapterVersion, ...]
    stable: str
    """Version that answers now, by this gateway's route table."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewAdapter:
    """What a client wants to create."""

    name: str
    base_id: str
    adapter_digest: str
    kit_digest: str | None
    evaluation_digest: str | None
    request_id: str | None
    validate_only: bool


class AdapterAdmin:
    """Adapters of one catalog."""

    def __init__(
        self,
        *,
        catalog: Catalog,
        store: ArtifactStore,
        uploads: Uploads,
        engines: EngineClient,
        publisher: RoutePublisher,
        table: Callable[[], RouteTable | None],
        clock: Callable[[], float],
    ) -> None:
        self._catalog = catalog
        self._store = store
        self._uploads = uploads
        self._engines = engines
        self._publisher = publisher
        self._table = table
        self._clock = clock
        self._background: set[asyncio.Task[None]] = set()

    async def create(self, wanted: NewAdapter) -> AdapterView:
        """Creates an adapter; when this returns, every gateway answers for its name.

        Raises:
            InvalidArgumentError: bad name, or weights that don't fit the base.
            NotFoundError: unknown base or digest.
            AlreadyExistsError: the name is taken.
        """
        earlier = await self._earlier(wanted)
        if earlier is not None:
            return earlier
        adapter, version = await asyncio.to_thread(self._prepare, wanted)
        await self._warm(version)
        if wanted.validate_only:
            return AdapterView(adapter=adapter, versions=(version,), stable=version.id)
        revision = await asyncio.to_thread(
            self._catalog.create_adapter, adapter, version, request_id=wanted.request_id
        )
        await self._publish(revision)
        return await self.get(wanted.name)

    async def get(self, name: str) -> AdapterView:
        """Returns an adapter.

        Raises:
            NotFoundError: no adapter of that name.
        """
        return await asyncio.to_thread(lambda: self._view(self._catalog.get_adapter(name)))

    async def list_page(
        self, *, tenant: str | None, after: str | None, limit: int
    ) -> list[AdapterView]:
        """Returns adapters in the order of their names, those behind `after`."""

        def read() -> list[AdapterView]:
            found = self._catalog.list_adapters(tenant=tenant, after=after, limit=limit)
            return [self._view(adapter) for adapter in found]

        return await asyncio.to_thread(read)

    async def delete(self, name: str, record_version: int | None) -> None:
        """Removes an adapter; when this returns, no gateway admits requests for it any more.

        Raises:
            NotFoundError: no adapter of that name.
            ConflictError: it has changed since `record_version`.
        """
        versions = await asyncio.to_thread(self._catalog.versions_of, name)
        revision = await asyncio.to_thread(
            self._catalog.delete_adapter, name, record_version=record_version
        )
        await self._publish(revision)
        for version in versions:
            self._in_background(self._drop(self._ref(version)))

    async def attach(
        self, name: str, *, kit_digest: str | None, evaluation_digest: str | None
    ) -> AdapterView:
        """Attaches a transfer kit, an evaluation set or both; None leaves what is there.

        Raises:
            NotFoundError: unknown adapter or digest.
        """

        def write() -> AdapterView:
            for digest in (kit_digest, evaluation_digest):
                if digest is not None:
                    self._store.path(digest)
            # Only what is given: another import may write the other one in this moment.
            changed = self._catalog.set_kit(
                name, kit_digest=kit_digest, evaluation_digest=evaluation_digest
            )
            return self._view(changed)

        return await asyncio.to_thread(write)

    async def route_changes(
        self, *, adapter: str | None, after: int, limit: int
    ) -> list[RouteChange]:
        """Returns the audit trail behind revision `after`, oldest first."""
        return await asyncio.to_thread(
            self._catalog.route_changes, adapter=adapter, after=after, limit=limit
        )

    async def _earlier(self, wanted: NewAdapter) -> AdapterView | None:
        """Returns the result of an earlier call with the same request id."""
        if wanted.request_id is None or wanted.validate_only:
            return None
        name = await asyncio.to_thread(self._catalog.find_request, wanted.request_id)
        if name is None:
            return None
        if name != wanted.name:
            raise AlreadyExistsError(
                f"request_id {wanted.request_id!r} was used to create {name!r}, got "
                f"{wanted.name!r}; use a fresh id for each adapter",
                reason="REQUEST_ID_REUSED",
            )
        return await self.get(name)

    def _prepare(self, wanted: NewAdapter) -> tuple[Adapter, AdapterVersion]:
        tenant, _ = split_adapter_name(wanted.name)
        self._refuse_taken(wanted.name)
        for digest in (wanted.kit_digest, wanted.evaluation_digest):
            if digest is not None:
                self._store.path(digest)
        manifest = self._manifest(self._store.path(wanted.adapter_digest), wanted.base_id)
        now = self._clock()
        adapter = Adapter(
            name=wanted.name,
            tenant=tenant,
            kit_digest=wanted.kit_digest,
            evaluation_digest=wanted.evaluation_digest,
            created_at=now,
        )
        version = AdapterVersion(
            id=version_id(wanted.name, wanted.base_id, wanted.adapter_digest),
            adapter=wanted.name,
            base_id=wanted.base_id,
            digest=wanted.adapter_digest,
            peft_type=manifest.peft_type,
            rank=manifest.rank,
            target_modules=tuple(manifest.target_modules),
            origin="upload",
            provenance={"alpha": manifest.alpha, "parameters": manifest.parameters},
            created_at=now,
        )
        return adapter, version

    def _refuse_taken(self, name: str) -> None:
        try:
            self._catalog.get_adapter(name)
        except NotFoundError:
            return
        raise AlreadyExistsError(
            f"adapter {name!r} exists already; delete it first or choose another name"
        )

    def _manifest(self, path: Path, base_id: str) -> AdapterManifest:
        # Again, although the upload was checked: it may have been checked against another base.
        return check_adapter(path, self._uploads.base_shapes(base_id), self._uploads.adapter_limits)

    async def _warm(self, version: AdapterVersion) -> None:
        """Lets the engine refuse what only it can see, before anything is written."""
        table = self._table()
        if table is None or version.base_id not in table.serving_bases:
            raise FailedPreconditionError(
                f"no engine serves base {version.base_id!r} now (served: "
                f"{', '.join(table.serving_bases) if table else 'none'})",
                reason="BASE_NOT_SERVED",
            )
        try:
            await self._engines.ensure_adapter(self._ref(version))
        except UnavailableError as error:
            # The first request loads it.
            _log.warning("adapter_not_warmed", version=version.id, error=str(error)[:200])

    async def _publish(self, revision: int) -> None:
        try:
            await self._publisher.publish(revision)
        except (DeadlineExceededError, UnavailableError) as error:
            # The write stands; the gateways follow as soon as they reach the hub.
            _log.warning("routes_published_late", revision=revision, error=str(error)[:200])

    async def _drop(self, version: VersionRef) -> None:
        try:
            await self._engines.drop_adapter(version)
        except Exception as error:  # unloading only frees memory
            _log.warning("version_not_dropped", version=version.id, error=repr(error)[:200])

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    def _ref(self, version: AdapterVersion) -> VersionRef:
        return VersionRef(
            id=version.id,
            base_id=version.base_id,
            digest=version.digest,
            path=str(self._store.locate(version.digest)),
            rank=version.rank,
        )

    def _view(self, adapter: Adapter) -> AdapterView:
        versions = tuple(self._catalog.versions_of(adapter.name))
        table = self._table()
        route = None if table is None else table.routes.get(adapter.name)
        # Not routed here yet: created a moment ago, and its only version is what will answer.
        stable = route.stable if route is not None else versions[-1].id
        return AdapterView(adapter=adapter, versions=versions, stable=stable)
