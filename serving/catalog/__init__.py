"""The catalog: bases, adapters, routes, upgrades and their history, in SQLite or Postgres."""

from .names import check_base_id, split_adapter_name, version_id
from .records import ENDED_UPGRADE_STATES, NewEvent
from .store import Catalog

__all__ = [
    "ENDED_UPGRADE_STATES",
    "Catalog",
    "NewEvent",
    "check_base_id",
    "split_adapter_name",
    "version_id",
]
