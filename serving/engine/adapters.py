"""Which adapter versions an engine holds: loaded once, never confused, bounded.

vLLM keys its caches on integer id and name, and an adapter that it meets for the first time
inside a step can kill the engine. So every version goes through here: it gets an integer id that
is never used again, is loaded before the first request that names it, stays loaded while requests
use it, and leaves by this registry's decision only, never by vLLM's own eviction.
"""

import asyncio
import itertools
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

from ..errors import InvalidArgumentError, ResourceExhaustedError
from .protocol import VersionRef


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedAdapter:
    """A version under the names by which the engine knows it."""

    version: VersionRef
    int_id: int
    """Unique for the life of this registry: a version that was dropped and comes back gets
    another one."""

    @property
    def name(self) -> str:
        """Unique as `int_id` is: vLLM treats adapters of equal names as equal."""
        return f"{self.version.id}#{self.int_id}"


Load = Callable[[LoadedAdapter], Awaitable[None]]
Unload = Callable[[LoadedAdapter], Awaitable[None]]


@dataclass(slots=True, eq=False)
class _Entry:
    adapter: LoadedAdapter
    loading: asyncio.Task[None] | None = None
    users: int = 0
    idle: asyncio.Event = field(default_factory=asyncio.Event)


class AdapterRegistry:
    """Versions known to one engine; for one event loop.

    Args:
        capacity: versions held at once, loading and leaving ones included.
        load: brings a version into the engine; raises if it does not fit.
        unload: takes it out again; must tolerate one that is not there.
        wait_s: seconds to wait for a place when every version held is in use.
    """

    def __init__(self, *, capacity: int, load: Load, unload: Unload, wait_s: float = 10.0) -> None:
        if capacity < 1:
            raise InvalidArgumentError(f"got capacity={capacity}, expected at least 1")
        self._capacity = capacity
        self._load = load
        self._unload = unload
        self._wait_s = wait_s
        self._ids = itertools.count(1)
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._held = 0
        self._placing = asyncio.Lock()
        self._departures: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()

    @property
    def loaded(self) -> tuple[str, ...]:
        """Ids of the versions that are ready, least recently used first."""
        return tuple(key for key, entry in self._entries.items() if entry.loading is None)

    async def ensure(self, version: VersionRef) -> LoadedAdapter:
        """Loads a version unless it is loaded; concurrent calls share one load.

        Raises:
            InvalidArgumentError: the id is known with other content, or `load` refused it.
            ResourceExhaustedError: all places are in use and none became free in time.
        """
        async with self.use(version) as adapter:
            return adapter

    @asynccontextmanager
    async def use(self, version: VersionRef) -> AsyncIterator[LoadedAdapter]:
        """Ensures a version and keeps it loaded while the context is open; raises as `ensure`."""
        entry = self._entries.get(version.id)
        if entry is None:
            entry = _Entry(LoadedAdapter(version=version, int_id=next(self._ids)))
            self._entries[version.id] = entry
            entry.loading = asyncio.create_task(self._enter(entry))
            entry.loading.add_done_callback(_retrieve)
        _check_same(entry.adapter.version, version)
        self._entries.move_to_end(version.id)
        # Counted while it loads already: else it could be evicted between the end of the load
        # and this task's next turn, and with many versions nobody would ever get to run.
        entry.users += 1
        try:
            if entry.loading is not None:
                # Shielded: the load belongs to all who wait for it, not to the first.
                await asyncio.shield(entry.loading)
            yield entry.adapter
        finally:
            entry.users -= 1
            if entry.users == 0:
                entry.idle.set()
                self._changed.set()

    async def drop(self, version_id: str) -> bool:
        """Unloads a version when its last user is gone; returns whether it was held.

        Requests that name the version meanwhile load it afresh under another integer id.
        """
        entry = self._entries.get(version_id)
        if entry is None:
            return False
        if entry.loading is not None:
            with suppress(Exception):
                await asyncio.shield(entry.loading)
        if self._entries.get(version_id) is not entry:
            return False
        del self._entries[version_id]
        await self._depart(entry)
        return True

    async def _enter(self, entry: _Entry) -> None:
        try:
            await self._take_place(entry)
            try:
                await self._load(entry.adapter)
            except BaseException:
                # A load that failed half way may have left something behind.
                with suppress(Exception):
                    await self._unload(entry.adapter)
                self._free_place()
                raise
        except BaseException:
            if self._entries.get(entry.adapter.version.id) is entry:
                del self._entries[entry.adapter.version.id]
            raise
        entry.loading = None

    async def _take_place(self, entry: _Entry) -> None:
        try:
            # The lock makes newcomers take places in the order in which they came.
            async with asyncio.timeout(self._wait_s), self._placing:
                while self._held >= self._capacity:
                    victim = self._least_recently_used_idle()
                    if victim is None:
                        self._changed.clear()
                        await self._changed.wait()
                        continue
                    del self._entries[victim.adapter.version.id]
                    await self._depart(victim)
                self._held += 1
        except TimeoutError:
            raise ResourceExhaustedError(
                f"all {self._capacity} places for adapter versions are in use; adapter version "
                f"{entry.adapter.version.id!r} has to wait. Retry later, or raise "
                "engine.max_cpu_loras",
                reason="ADAPTER_SLOTS_FULL",
                retry_after_s=1.0,
            ) from None

    def _least_recently_used_idle(self) -> _Entry | None:
        return next((e for e in self._entries.values() if e.loading is None and not e.users), None)

    async def _depart(self, entry: _Entry) -> None:
        # Whoever waits may be cancelled; the version must leave nevertheless.
        task = asyncio.create_task(self._leave(entry))
        self._departures.add(task)
        task.add_done_callback(self._departures.discard)
        await asyncio.shield(task)

    async def _leave(self, entry: _Entry) -> None:
        while entry.users:
            entry.idle.clear()
            await entry.idle.wait()
        try:
            await self._unload(entry.adapter)
        finally:
            self._free_place()

    def _free_place(self) -> None:
        self._held -= 1
        self._changed.set()


def _retrieve(task: asyncio.Task[None]) -> None:
    # A failed load whose callers were all cancelled is no news: the next caller meets it again.
    if not task.cancelled():
        task.exception()


def _check_same(known: VersionRef, got: VersionRef) -> None:
    if (known.digest, known.base_id) != (got.digest, got.base_id):
        raise InvalidArgumentError(
            f"adapter version {got.id!r} was given with digest {got.digest} for base "
            f"{got.base_id!r}, but is loaded with digest {known.digest} for base "
            f"{known.base_id!r}; versions are immutable, give new weights a new version id"
        )
