"""The hops that brought a version to its base, and what each gate said: drift adds up unseen."""

from collections.abc import Mapping, Sequence
from typing import Any

from lorebase.serving.catalog import Catalog
from lorebase.serving.catalog.records import AdapterVersion, Migration
from lorebase.serving.errors import NotFoundError

MAX_HOPS = 64
"""Followed at most."""
_TOLD = ("evidence", "n", "source_score", "shadow_score", "difference", "interval_low")


def lineage(catalog: Catalog, version: AdapterVersion) -> tuple[dict[str, Any], ...]:
    """Returns the hops that led to a version, the first one first; none if it was uploaded.

    Each has `version`, `base`, `from_base` and what its gate saw (see `hop`).
    """
    hops: list[dict[str, Any]] = []
    while len(hops) < MAX_HOPS:
        upgrade, before = (version.provenance.get(name) for name in ("upgrade", "source_version"))
        if not isinstance(upgrade, str) or not isinstance(before, str):
            break
        try:
            made = [one for one in catalog.migrations_of(upgrade) if _made(one, version)]
            source = catalog.get_version(before)
        except NotFoundError:
            break
        decision = made[0].decision if made else None
        hops.append(hop(version, source.base_id, decision or {}))
        version = source
    return tuple(reversed(hops))


def _made(migration: Migration, version: AdapterVersion) -> bool:
    return migration.shadow_version == version.id


def hop(version: AdapterVersion, from_base: str, decision: Mapping[str, Any]) -> dict[str, Any]:
    """Returns one hop: where it led, and what its gate saw (nothing if it has not decided)."""
    told = {name: decision[name] for name in _TOLD if name in decision}
    return {"version": version.id, "base": version.base_id, "from_base": from_base, **told}


def drift(hops: Sequence[Mapping[str, Any]]) -> str:
    """Says what several hops add up to; empty for one.

    Each gate compares a version with the one before, so that no gate sees the whole.
    """
    if len(hops) < 2:
        return ""
    path = " -> ".join([str(hops[0]["from_base"]), *(str(one["base"]) for one in hops)])
    seen = [one for one in hops if "difference" in one]
    total = sum(one["difference"] for one in seen)
    worst = sum(one["interval_low"] for one in seen)
    return (
        f"over {len(hops)} hops ({path}) the differences add up to {total:+.3f}, at worst "
        f"{worst:+.3f}"
        + ("" if len(seen) == len(hops) else f" ({len(seen)} of them were measured)")
    )
