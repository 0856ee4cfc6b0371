"""Rows for tests of the catalog and of what stands on it."""

import hashlib
from collections.abc import Iterator
from typing import Any

from lorebase.serving.catalog import Catalog, version_id
from lorebase.serving.catalog.records import Adapter, AdapterVersion, Base, Migration, Upgrade


def ticking(start: float = 1000.0) -> Iterator[float]:
    """Seconds that grow by one each time: order without a real clock."""
    while True:
        yield start
        start += 1.0


def digest(content: str) -> str:
    return "sha256:" + hashlib.sha256(content.encode()).hexdigest()


def base(base_id: str, *, revision: str = "r1", created_at: float = 1.0) -> Base:
    return Base(
        id=base_id,
        path=f"/bases/{base_id}",
        revision=revision,
        architecture="LlamaForCausalLM",
        dtype="float32",
        created_at=created_at,
    )


def adapter(name: str, **fields: Any) -> Adapter:
    return Adapter(**{"name": name, "tenant": name.split("/")[0], "created_at": 5.0, **fields})


def version(name: str, base_id: str = "old", content: str = "weights") -> AdapterVersion:
    weights = digest(f"{name} {base_id} {content}")
    return AdapterVersion(
        id=version_id(name, base_id, weights),
        adapter=name,
        base_id=base_id,
        digest=weights,
        peft_type="LORA",
        rank=8,
        target_modules=("down_proj", "q_proj"),
        origin="upload",
        provenance={"seed": 3, "parents": ["a", "b"]},
        created_at=6.0,
    )


def upgrade(upgrade_id: str = "up-1", **fields: Any) -> Upgrade:
    values = {
        "id": upgrade_id,
        "from_base": "old",
        "to_base": "new",
        "state": "migrating",
        "created_at": 7.0,
    }
    return Upgrade(**{**values, **fields})


def migration(name: str, *, upgrade_id: str = "up-1", **fields: Any) -> Migration:
    values = {
        "id": f"{upgrade_id}/{name}",
        "upgrade_id": upgrade_id,
        "adapter": name,
        "state": "planned",
        "path": "distill",
        "source_version": version(name).id,
        "updated_at": 7.0,
    }
    return Migration(**{**values, **fields})


def two_bases(catalog: Catalog) -> None:
    """Registers `old` (current) and `new`, both serving."""
    catalog.put_base(base("old", created_at=1.0))
    catalog.put_base(base("new", created_at=2.0))
    catalog.set_current_base("old")
    catalog.set_serving("old", True)
    catalog.set_serving("new", True)
