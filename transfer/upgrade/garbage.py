"""Removes artifacts that nothing names any more: of deleted adapters, of superseded attempts."""

import asyncio

import structlog

from .deps import Deps

_log = structlog.get_logger(__name__)


class GarbageCollector:
    """Sweeps the artifact store now and then.

    The controller runs it because there is exactly one per catalog; the store's own lock and the
    age limit make a second one harmless.

    Args:
        deps: the world.
    """

    def __init__(self, deps: Deps) -> None:
        self._deps = deps
        self._next = deps.clock() + deps.settings.garbage_every_s

    async def collect_if_due(self) -> list[str]:
        """Sweeps if `garbage_every_s` have passed since the last time; returns what went."""
        deps = self._deps
        if deps.clock() < self._next:
            return []
        self._next = deps.clock() + deps.settings.garbage_every_s
        # Read before the sweep: what is named later was stored later, and is too young to go.
        keep = deps.catalog.referenced_digests()
        removed = await asyncio.to_thread(
            deps.store.collect_garbage, keep, deps.settings.garbage_age_s
        )
        if removed:
            _log.info("garbage_collected", artifacts=len(removed))
        return removed
