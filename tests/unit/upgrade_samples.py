"""Records that the upgrade tests start from."""

from typing import Any

from lorebase.serving.catalog.records import Migration, Upgrade


def sample_migration(**changes: Any) -> Migration:
    values: dict[str, Any] = {
        "id": "m-1",
        "upgrade_id": "u-1",
        "adapter": "acme/triage",
        "state": "pending",
        "path": "distill",
        "source_version": "v-source",
        "updated_at": 0.0,
    }
    return Migration(**(values | changes))


def sample_upgrade(**changes: Any) -> Upgrade:
    values: dict[str, Any] = {
        "id": "u-1",
        "from_base": "old",
        "to_base": "next",
        "state": "migrating",
        "created_at": 0.0,
    }
    return Upgrade(**(values | changes))
