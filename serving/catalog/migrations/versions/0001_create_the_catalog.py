"""Create the catalog: bases, adapters, routes, upgrades and their history."""

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_JSON = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")


def _text(name: str, *, nullable: bool = False) -> sa.Column[Any]:
    return sa.Column(name, sa.Text(), nullable=nullable)


def _string(name: str, length: int, *, nullable: bool = False) -> sa.Column[Any]:
    return sa.Column(name, sa.String(length), nullable=nullable)


def _counter(name: str) -> sa.Column[Any]:
    return sa.Column(name, _BIG, autoincrement=True, nullable=False)


def _foreign(table: str, column: str, target: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint([column], [target], name=op.f(f"fk_{table}_{column}"))


def upgrade() -> None:
    """Moves the schema one revision up."""
    _create_bases_and_adapters()
    _create_routes()
    _create_upgrades()
    _create_events()


def _create_bases_and_adapters() -> None:
    op.create_table(
        "bases",
        _string("id", 63),
        _text("path"),
        _text("revision"),
        _text("architecture"),
        _text("dtype"),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("serving", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_bases")),
    )
    op.create_table(
        "adapters",
        _string("name", 128),
        _string("tenant", 128),
        _text("kit_digest", nullable=True),
        _text("evaluation_digest", nullable=True),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("record_version", sa.Integer(), nullable=False),
        _text("request_id", nullable=True),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_adapters")),
        sa.UniqueConstraint("request_id", name=op.f("uq_adapters_request_id")),
    )
    op.create_index(op.f("ix_adapters_tenant_name"), "adapters", ["tenant", "name"])
    op.create_table(
        "adapter_versions",
        _counter("sequence"),
        _string("id", 32),
        _string("adapter", 128),
        _string("base_id", 63),
        _text("digest"),
        _text("peft_type"),
        sa.Column("rank", sa.Integer(), nullable=False),
        sa.Column("target_modules", _JSON, nullable=False),
        _text("origin"),
        sa.Column("provenance", _JSON, nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        _foreign("adapter_versions", "adapter", "adapters.name"),
        _foreign("adapter_versions", "base_id", "bases.id"),
        sa.PrimaryKeyConstraint("sequence", name=op.f("pk_adapter_versions")),
        sa.UniqueConstraint("id", name=op.f("uq_adapter_versions_id")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_adapter_versions_adapter"), "adapter_versions", ["adapter"])


def _create_routes() -> None:
    state = op.create_table(
        "catalog_state",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        _string("current_base", 63, nullable=True),
        sa.Column("route_revision", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("id = 1", name=op.f("ck_catalog_state_one_row")),
        _foreign("catalog_state", "current_base", "bases.id"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_catalog_state")),
    )
    op.bulk_insert(state, [{"id": 1, "current_base": None, "route_revision": 0}])
    op.create_table(
        "routes",
        _string("adapter", 128),
        _string("stable", 32),
        _foreign("routes", "adapter", "adapters.name"),
        _foreign("routes", "stable", "adapter_versions.id"),
        sa.PrimaryKeyConstraint("adapter", name=op.f("pk_routes")),
    )
    op.create_table(
        "route_changes",
        sa.Column("revision", sa.BigInteger(), autoincrement=False, nullable=False),
        _string("adapter", 128),
        _string("version_id", 32, nullable=True),
        _string("base_id", 63, nullable=True),
        sa.Column("at", sa.Double(), nullable=False),
        _text("reason"),
        sa.PrimaryKeyConstraint("revision", name=op.f("pk_route_changes")),
    )
    op.create_index(
        op.f("ix_route_changes_adapter_revision"), "route_changes", ["adapter", "revision"]
    )


def _create_upgrades() -> None:
    op.create_table(
        "upgrades",
        _counter("sequence"),
        _string("id", 64),
        _string("from_base", 63),
        _string("to_base", 63),
        _string("state", 32),
        _text("error", nullable=True),
        _text("request_id", nullable=True),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("ended_at", sa.Double(), nullable=True),
        sa.Column("background_busy_s", sa.Double(), nullable=False),
        sa.Column("record_version", sa.Integer(), nullable=False),
        sa.Column("active", sa.Integer(), nullable=True),
        sa.CheckConstraint("active IS NULL OR active = 1", name=op.f("ck_upgrades_active_is_one")),
        sa.CheckConstraint(
            "(active IS NULL) = (state IN ('aborted', 'failed', 'finished', 'rolled_back'))",
            name=op.f("ck_upgrades_active_follows_state"),
        ),
        _foreign("upgrades", "from_base", "bases.id"),
        _foreign("upgrades", "to_base", "bases.id"),
        sa.PrimaryKeyConstraint("sequence", name=op.f("pk_upgrades")),
        sa.UniqueConstraint("id", name=op.f("uq_upgrades_id")),
        sa.UniqueConstraint("request_id", name=op.f("uq_upgrades_request_id")),
        sa.UniqueConstraint("active", name=op.f("uq_upgrades_active")),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "migrations",
        _counter("sequence"),
        _string("id", 64),
        _string("upgrade_id", 64),
        _string("adapter", 128),
        _string("state", 32),
        _text("path"),
        _string("source_version", 32),
        _string("shadow_version", 32, nullable=True),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("artifacts", _JSON, nullable=False),
        sa.Column("decision", _JSON, nullable=True),
        _text("error", nullable=True),
        sa.Column("updated_at", sa.Double(), nullable=False),
        sa.Column("record_version", sa.Integer(), nullable=False),
        _foreign("migrations", "upgrade_id", "upgrades.id"),
        sa.PrimaryKeyConstraint("sequence", name=op.f("pk_migrations")),
        sa.UniqueConstraint("id", name=op.f("uq_migrations_id")),
        sa.UniqueConstraint("upgrade_id", "adapter", name=op.f("uq_migrations_upgrade_id_adapter")),
        sqlite_autoincrement=True,
    )


def _create_events() -> None:
    op.create_table(
        "events",
        _counter("id"),
        _string("upgrade_id", 64),
        _string("adapter", 128, nullable=True),
        sa.Column("at", sa.Double(), nullable=False),
        _string("kind", 64),
        sa.Column("data", _JSON, nullable=False),
        _foreign("events", "upgrade_id", "upgrades.id"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_events")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_events_upgrade_id_id"), "events", ["upgrade_id", "id"])


def downgrade() -> None:
    """Moves the schema one revision down: to nothing."""
    for table in (
        "events",
        "migrations",
        "upgrades",
        "routes",
        "route_changes",
        "catalog_state",
        "adapter_versions",
        "adapters",
        "bases",
    ):
        op.drop_table(table)
