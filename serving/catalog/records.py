"""Rows of the catalog as plain data. The catalog is the truth; everything else is a cache.

Times are seconds since the epoch (UTC, float). Every mutable record has an integer
`record_version`: writes are compare-and-set on it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

ENDED_UPGRADE_STATES = frozenset({"finished", "aborted", "rolled_back", "failed"})
"""States in which an upgrade no longer blocks the next one (`UpgradeState` values)."""

NEXT_KIT = "next_kit"
"""Key of `AdapterVersion.provenance`: digest of the transfer kit with which a migrated version can
move on to a further base. The artifact is kept as long as the version."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """One base-model generation."""

    id: str
    path: str
    """Local directory of the weights and tokenizer."""
    revision: str
    """sha256 over the weight and tokenizer files."""
    architecture: str
    dtype: str
    created_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """The stable name that clients call."""

    name: str
    tenant: str
    kit_digest: str | None = None
    evaluation_digest: str | None = None
    created_at: float
    record_version: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterVersion:
    """Immutable weights of one adapter for one base."""

    id: str
    adapter: str
    base_id: str
    digest: str
    peft_type: str
    rank: int
    target_modules: tuple[str, ...]
    origin: str
    """`upload` or `transfer`."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """Parents, seeds, recipe, code version: enough to say how it came about."""
    created_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteChange:
    """One entry of the audit trail of swaps."""

    revision: int
    adapter: str
    version_id: str | None
    base_id: str | None
    at: float
    reason: str
    """`create`, `promote`, `rollback` or `delete`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Upgrade:
    """One operation: base A to base B for a set of adapters."""

    id: str
    from_base: str
    to_base: str
    state: str
    """A value of transfer.upgrade.states.UpgradeState."""
    error: str | None = None
    request_id: str | None = None
    created_at: float
    ended_at: float | None = None
    background_busy_s: float = 0.0
    record_version: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Migration:
    """One adapter's share of an upgrade."""

    id: str
    upgrade_id: str
    adapter: str
    state: str
    """A value of transfer.upgrade.states.MigrationState."""
    path: str
    source_version: str
    shadow_version: str | None = None
    attempt: int = 1
    artifacts: Mapping[str, str] = field(default_factory=dict)
    """Digest of each finished stage's result in this attempt, by stage name."""
    decision: Mapping[str, Any] | None = None
    """The gate's last decision (fields of lorebase.v1.Decision)."""
    error: str | None = None
    updated_at: float
    record_version: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Append-only history; written in the same transaction as the change it tells of."""

    id: int
    upgrade_id: str
    adapter: str | None
    at: float
    kind: str
    """`upgrade_state`, `migration_state`, `stage_started`, `stage_finished`, `swap`."""
    data: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class NewEvent:
    """An event to append; the catalog adds its id and time."""

    upgrade_id: str
    adapter: str | None = None
    kind: str
    """See `Event.kind`."""
    data: Mapping[str, Any] = field(default_factory=dict)
    """JSON values only; NaN and infinities are refused."""
