"""Ids, seeds and folder names that follow from idempotency keys. Pure."""

import hashlib


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def migration_id(upgrade_id: str, adapter: str) -> str:
    """Returns the id of an adapter's migration within an upgrade."""
    return "m-" + _hash(f"{upgrade_id}\0{adapter}")[:16]


def seed_of(key: str, base: int = 0) -> int:
    """Returns a seed, 0 <= seed < 2**31, that the same key and base seed always give."""
    return int(_hash(f"{base}\0{key}")[:15], 16) % (1 << 31)


def folder_of(key: str) -> str:
    """Returns a folder name for the working files of a key."""
    return "job-" + _hash(key)[:16]
