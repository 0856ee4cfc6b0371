"""The catalog's tables. Column names equal the field names of records.py.

SQLAlchemy Core rather than mapped classes: every write is one explicit compare-and-set
statement, and rows turn into the frozen records without an identity map in between.
"""

import json
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Dialect,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.types import TypeEngine

from .records import ENDED_UPGRADE_STATES

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)


class StrictJson(TypeDecorator[Any]):
    """JSON (JSONB on Postgres) that refuses NaN and foreign types before they are sent.

    Otherwise the drivers differ: in when they notice, in what they raise and in whether NaN
    is stored.
    """

    impl = JSON
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """Chooses the column type."""
        kind = JSONB if dialect.name == "postgresql" else JSON
        return dialect.type_descriptor(kind(none_as_null=True))

    def process_bind_param(self, value: Any, dialect: Dialect) -> Any:
        """Checks a value on its way in."""
        if value is not None:
            json.dumps(value, allow_nan=False)
        return value


def _sequence() -> Column[Any]:
    """Ever-growing row number: the order of insertion, never reused."""
    # SQLite only counts up by itself for a column that is exactly INTEGER PRIMARY KEY.
    kind = BigInteger().with_variant(Integer(), "sqlite")
    return Column("sequence", kind, primary_key=True, autoincrement=True)


bases = Table(
    "bases",
    metadata,
    Column("id", String(63), primary_key=True),
    Column("path", Text, nullable=False),
    Column("revision", Text, nullable=False),
    Column("architecture", Text, nullable=False),
    Column("dtype", Text, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("serving", Boolean, nullable=False),
)

catalog_state = Table(
    "catalog_state",
    metadata,
    # One row. Writers of routes update it first, which puts them in line on every database.
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("current_base", String(63), ForeignKey("bases.id"), nullable=True),
    Column("route_revision", BigInteger, nullable=False),
    CheckConstraint("id = 1", name="one_row"),
)

adapters = Table(
    "adapters",
    metadata,
    Column("name", String(128), primary_key=True),
    Column("tenant", String(128), nullable=False),
    Column("kit_digest", Text, nullable=True),
    Column("evaluation_digest", Text, nullable=True),
    Column("created_at", Double, nullable=False),
    Column("record_version", Integer, nullable=False),
    Column("request_id", Text, nullable=True, unique=True),
    Index(None, "tenant", "name"),
)

adapter_versions = Table(
    "adapter_versions",
    metadata,
    _sequence(),
    Column("id", String(32), nullable=False, unique=True),
    Column("adapter", String(128), ForeignKey("adapters.name"), nullable=False, index=True),
    Column("base_id", String(63), ForeignKey("bases.id"), nullable=False),
    Column("digest", Text, nullable=False),
    Column("peft_type", Text, nullable=False),
    Column("rank", Integer, nullable=False),
    Column("target_modules", StrictJson(), nullable=False),
    Column("origin", Text, nullable=False),
    Column("provenance", StrictJson(), nullable=False),
    Column("created_at", Double, nullable=False),
    sqlite_autoincrement=True,
)

routes = Table(
    "routes",
    metadata,
    Column("adapter", String(128), ForeignKey("adapters.name"), primary_key=True),
    Column("stable", String(32), ForeignKey("adapter_versions.id"), nullable=False),
)

route_changes = Table(
    "route_changes",
    metadata,
    # No foreign keys: the audit trail outlives what it tells of.
    Column("revision", BigInteger, primary_key=True, autoincrement=False),
    Column("adapter", String(128), nullable=False),
    Column("version_id", String(32), nullable=True),
    Column("base_id", String(63), nullable=True),
    Column("at", Double, nullable=False),
    Column("reason", Text, nullable=False),
    Index(None, "adapter", "revision"),
)

_ENDED = ", ".join(f"'{state}'" for state in sorted(ENDED_UPGRADE_STATES))

upgrades = Table(
    "upgrades",
    metadata,
    _sequence(),
    Column("id", String(64), nullable=False, unique=True),
    Column("from_base", String(63), ForeignKey("bases.id"), nullable=False),
    Column("to_base", String(63), ForeignKey("bases.id"), nullable=False),
    Column("state", String(32), nullable=False),
    Column("error", Text, nullable=True),
    Column("request_id", Text, nullable=True, unique=True),
    Column("created_at", Double, nullable=False),
    Column("ended_at", Double, nullable=True),
    Column("background_busy_s", Double, nullable=False),
    Column("record_version", Integer, nullable=False),
    # 1 while the upgrade has not ended, else NULL: unique, so the database itself refuses a
    # second active upgrade (NULLs never collide), on SQLite and Postgres alike.
    Column("active", Integer, nullable=True, unique=True),
    CheckConstraint("active IS NULL OR active = 1", name="active_is_one"),
    CheckConstraint(f"(active IS NULL) = (state IN ({_ENDED}))", name="active_follows_state"),
    sqlite_autoincrement=True,
)

migrations = Table(
    "migrations",
    metadata,
    _sequence(),
    Column("id", String(64), nullable=False, unique=True),
    Column("upgrade_id", String(64), ForeignKey("upgrades.id"), nullable=False),
    # No foreign keys to adapter and versions: a deleted adapter keeps its history.
    Column("adapter", String(128), nullable=False),
    Column("state", String(32), nullable=False),
    Column("path", Text, nullable=False),
    Column("source_version", String(32), nullable=False),
    Column("shadow_version", String(32), nullable=True),
    Column("attempt", Integer, nullable=False),
    Column("artifacts", StrictJson(), nullable=False),
    Column("decision", StrictJson(), nullable=True),
    Column("error", Text, nullable=True),
    Column("updated_at", Double, nullable=False),
    Column("record_version", Integer, nullable=False),
    UniqueConstraint("upgrade_id", "adapter"),
    sqlite_autoincrement=True,
)

events = Table(
    "events",
    metadata,
    Column(
        "id", BigInteger().with_variant(Integer(), "sqlite"), primary_key=True, autoincrement=True
    ),
    Column("upgrade_id", String(64), ForeignKey("upgrades.id"), nullable=False),
    Column("adapter", String(128), nullable=True),
    Column("at", Double, nullable=False),
    Column("kind", String(64), nullable=False),
    Column("data", StrictJson(), nullable=False),
    Index(None, "upgrade_id", "id"),
    sqlite_autoincrement=True,
)
