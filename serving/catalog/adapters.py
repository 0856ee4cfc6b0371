"""Adapters and their immutable versions."""

from typing import Any

from sqlalchemy import Connection, RowMapping, delete, insert, select, update

from ..errors import (
    AlreadyExistsError,
    ConflictError,
    InvalidArgumentError,
    NotFoundError,
)
from . import bases, routes
from .models import adapter_versions, adapters, route_changes
from .names import split_adapter_name, version_id
from .records import Adapter, AdapterVersion

_FIELDS = tuple(adapters.c[name] for name in Adapter.__dataclass_fields__)
_VERSION_FIELDS = tuple(adapter_versions.c[name] for name in AdapterVersion.__dataclass_fields__)


def create(
    connection: Connection,
    adapter: Adapter,
    version: AdapterVersion,
    *,
    request_id: str | None,
    at: float,
) -> int:
    """Adds an adapter, its first version and its route; returns the route table's revision.

    Raises:
        AlreadyExistsError: the name, or the request id under another name, is taken.
        NotFoundError: the version's base is unknown.
        InvalidArgumentError: bad name, tenant or version id.
    """
    _check_adapter(adapter)
    if version.adapter != adapter.name:
        raise InvalidArgumentError(
            f"version {version.id!r} belongs to {version.adapter!r}, not to {adapter.name!r}"
        )
    if request_id is not None:
        former = find_request(connection, request_id)
        if former is not None and former == adapter.name:
            return _created_at_revision(connection, former)
        if former is not None:
            raise AlreadyExistsError(
                f"request id {request_id!r} was used to create {former!r}, not {adapter.name!r}; "
                "use a new id for a new adapter",
                reason="REQUEST_ID_REUSED",
            )
    revision = routes.bump(connection)
    statement = select(adapters.c.name).where(adapters.c.name == adapter.name)
    if connection.execute(statement).scalar_one_or_none() is not None:
        raise AlreadyExistsError(
            f"adapter {adapter.name!r} exists already; delete it first or choose another name",
            reason="ADAPTER_EXISTS",
        )
    values = {name: getattr(adapter, name) for name in Adapter.__dataclass_fields__}
    connection.execute(insert(adapters).values(**values, request_id=request_id))
    _insert_version(connection, version)
    routes.create(connection, revision, adapter.name, version.id, at)
    return revision


def get(connection: Connection, name: str) -> Adapter:
    """Returns one adapter.

    Raises:
        NotFoundError: no such adapter.
    """
    row = connection.execute(select(*_FIELDS).where(adapters.c.name == name)).mappings().first()
    if row is None:
        raise NotFoundError(f"unknown adapter {name!r}", reason="ADAPTER_NOT_FOUND")
    return Adapter(**row)


def list_page(
    connection: Connection, *, tenant: str | None, after: str | None, limit: int
) -> list[Adapter]:
    """Returns adapters in the order of their names, those after `after`."""
    statement = select(*_FIELDS)
    if tenant is not None:
        statement = statement.where(adapters.c.tenant == tenant)
    if after is not None:
        statement = statement.where(adapters.c.name > after)
    rows = connection.execute(statement.order_by(adapters.c.name).limit(limit)).mappings()
    return [Adapter(**row) for row in rows]


def find_request(connection: Connection, request_id: str) -> str | None:
    """Returns the name of the adapter that an earlier call with this id created."""
    statement = select(adapters.c.name).where(adapters.c.request_id == request_id)
    return connection.execute(statement).scalar_one_or_none()


def set_kit(
    connection: Connection, name: str, *, kit_digest: str | None, evaluation_digest: str | None
) -> Adapter:
    """Attaches a kit, an evaluation set or both; None leaves what is there.

    Raises:
        NotFoundError: no such adapter.
    """
    given = {"kit_digest": kit_digest, "evaluation_digest": evaluation_digest}
    values: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    values["record_version"] = adapters.c.record_version + 1
    connection.execute(update(adapters).where(adapters.c.name == name).values(**values))
    return get(connection, name)


def remove(connection: Connection, name: str, *, record_version: int | None, at: float) -> int:
    """Removes an adapter with its route and versions; returns the route table's revision.

    History (route changes, migrations, events) stays. The name is free again at once. Version
    ids follow from content, so a later adapter of that name can't mix up with this one.

    Raises:
        NotFoundError: no such adapter.
        ConflictError: it changed since `record_version`.
    """
    revision = routes.bump(connection)
    adapter = get(connection, name)
    if record_version is not None and record_version != adapter.record_version:
        raise ConflictError(
            f"adapter {name!r} is at record version {adapter.record_version}, expected "
            f"{record_version}; read it again and retry"
        )
    routes.remove(connection, revision, name, at)
    connection.execute(delete(adapter_versions).where(adapter_versions.c.adapter == name))
    connection.execute(delete(adapters).where(adapters.c.name == name))
    return revision


def add_version(connection: Connection, version: AdapterVersion) -> None:
    """Adds a version without routing to it; a no-op if it is there already.

    Raises:
        NotFoundError: unknown adapter or base.
        InvalidArgumentError: the id does not follow from the content.
        AlreadyExistsError: other content has the same id.
    """
    columns = adapter_versions.c
    statement = select(columns.adapter, columns.base_id, columns.digest)
    found = connection.execute(statement.where(columns.id == version.id)).one_or_none()
    if found is not None:
        _check_version_id(version)
        if tuple(found) != (version.adapter, version.base_id, version.digest):
            raise AlreadyExistsError(f"version id {version.id!r} names other weights already")
        return
    # The table that gateways hold lists all versions: `adapter@version` must find this one.
    routes.bump(connection)
    _insert_version(connection, version)


def get_version(connection: Connection, version_id: str) -> AdapterVersion:
    """Returns one version.

    Raises:
        NotFoundError: no such version.
    """
    statement = select(*_VERSION_FIELDS).where(adapter_versions.c.id == version_id)
    row = connection.execute(statement).mappings().first()
    if row is None:
        raise NotFoundError(f"unknown adapter version {version_id!r}", reason="VERSION_NOT_FOUND")
    return _version(row)


def versions_of(connection: Connection, adapter: str) -> list[AdapterVersion]:
    """Returns an adapter's versions, oldest first.

    Raises:
        NotFoundError: no such adapter.
    """
    statement = select(*_VERSION_FIELDS).where(adapter_versions.c.adapter == adapter)
    rows = connection.execute(statement.order_by(adapter_versions.c.sequence)).mappings()
    found = [_version(row) for row in rows]
    if not found:
        get(connection, adapter)
    return found


def _version(row: RowMapping) -> AdapterVersion:
    return AdapterVersion(**{**row, "target_modules": tuple(row["target_modules"])})


def _insert_version(connection: Connection, version: AdapterVersion) -> None:
    _check_version_id(version)
    get(connection, version.adapter)
    bases.get(connection, version.base_id)
    values = {name: getattr(version, name) for name in AdapterVersion.__dataclass_fields__}
    values["target_modules"] = list(version.target_modules)
    values["provenance"] = dict(version.provenance)
    connection.execute(insert(adapter_versions).values(**values))


def _created_at_revision(connection: Connection, name: str) -> int:
    statement = (
        select(route_changes.c.revision)
        .where(route_changes.c.adapter == name, route_changes.c.reason == "create")
        .order_by(route_changes.c.revision.desc())
        .limit(1)
    )
    return int(connection.execute(statement).scalar_one())


def _check_adapter(adapter: Adapter) -> None:
    tenant, _ = split_adapter_name(adapter.name)
    if adapter.tenant != tenant:
        raise InvalidArgumentError(
            f"adapter {adapter.name!r} has tenant {adapter.tenant!r}: expected {tenant!r}, the "
            "part of its name before '/'"
        )


def _check_version_id(version: AdapterVersion) -> None:
    expected = version_id(version.adapter, version.base_id, version.digest)
    if version.id != expected:
        raise InvalidArgumentError(
            f"version id {version.id!r}: expected {expected!r}, which version_id(adapter, base_id, "
            "digest) gives; engines cache weights by this id, so it must follow from content"
        )
