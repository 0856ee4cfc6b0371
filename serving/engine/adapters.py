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
from .loaded import LoadedAdapter
from .protocol import VersionRef

Load = Callable[[LoadedAdapter, Awaitable[object]], Awaitable[int]]
Unload = Callable[[LoadedAdapter], Awaitable[None]]
Measure = Callable[[VersionRef], Awaitable[int]]
MAX_PREFETCHES = 8
"""Versions that load at a time before anybody may wait for them."""


async def _weightless(version: VersionRef) -> int:
    return 0


@dataclass(slots=True, eq=False)
class _Entry:
    adapter: LoadedAdapter
    bytes: int = 0
    loading: asyncio.Task[None] | None = None
    users: int = 0
    idle: asyncio.Event = field(default_factory=asyncio.Event)


class AdapterRegistry:
    """Versions known to one engine; for one event loop.

    Args:
        capacity: versions held at once, loading ones included.
        budget_bytes: memory of all of them together; None: only their number is bounded.
        measure: says how many bytes a version takes; called before it is loaded.
        load: brings a version into the engine and says how many bytes it takes there, at most
            what was measured, or 0 if it does not know; raises if it does not fit. The engine must
            not hold the version before the awaitable that comes with it is done: those that leave
            for it, all at a time, are gone then.
        unload: takes it out again; must tolerate one that is not there.
        wait_s: seconds to wait for a place when every version held is in use.
    """

    def __init__(
        self,
        *,
        capacity: int,
        load: Load,
        unload: Unload,
        wait_s: float = 10.0,
        budget_bytes: int | None = None,
        measure: Measure = _weightless,
    ) -> None:
        if capacity < 1 or (budget_bytes is not None and budget_bytes < 1):
            raise InvalidArgumentError(
                f"got capacity={capacity}, budget_bytes={budget_bytes}; expected at least 1"
            )
        self._capacity = capacity
        self._budget_bytes = budget_bytes
        self._measure = measure
        self._load = load
        self._unload = unload
        self._wait_s = wait_s
        self._ids = itertools.count(1)
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._held = self._held_bytes = self._loading = 0
        self._placing = asyncio.Lock()
        self._departures: set[asyncio.Task[None]] = set()
        self._evictions: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()

    @property
    def loaded(self) -> tuple[str, ...]:
        """Ids of the versions that are ready, least recently used first."""
        return tuple(key for key, entry in self._entries.items() if entry.loading is None)

    @property
    def held_bytes(self) -> int:
        """Memory of all versions held, loading ones included."""
        return self._held_bytes

    def prefetch(self, version: VersionRef) -> None:
        """Begins to load a version that a queued request will use; a hint that never raises.

        Versions that nobody uses leave for it, as they would for the request itself; it waits for
        none that is in use.
        """
        if version.id in self._entries:
            self._entries.move_to_end(version.id)  # soon in use: not the next to leave
            return
        full = self._held >= self._capacity
        if self._budget_bytes is not None:
            full = full or self._held_bytes >= self._budget_bytes
        if self._loading >= MAX_PREFETCHES or (full and not self._least_recently_used_idle()):
            return
        self._begin(version)

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
            entry = self._begin(version)
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

    def _begin(self, version: VersionRef) -> _Entry:
        entry = _Entry(LoadedAdapter(version=version, int_id=next(self._ids)))
        self._entries[version.id] = entry
        self._loading += 1
        entry.loading = asyncio.create_task(self._enter(entry))
        entry.loading.add_done_callback(self._began)
        return entry

    def _began(self, task: asyncio.Task[None]) -> None:
        self._loading -= 1
        # A failed load whose callers were all cancelled is no news: the next one meets it again.
        if not task.cancelled():
            task.exception()

    async def _enter(self, entry: _Entry) -> None:
        try:
            entry.bytes = await self._measure(entry.adapter.version)
            await self._take_place(entry)
            try:
                # All evictions, not just its own: one may have given more than was needed.
                # Shielded: a load that gives up must not keep from leaving whose place is taken.
                room = asyncio.shield(asyncio.gather(*self._evictions))
                taken = await self._load(entry.adapter, room)
            except BaseException:
                # A load that failed half way may have left something behind.
                with suppress(Exception):
                    await self._unload(entry.adapter)
                self._free_place(entry)
                raise
        except BaseException:
            if self._entries.get(entry.adapter.version.id) is entry:
                del self._entries[entry.adapter.version.id]
            raise
        if taken and taken != entry.bytes:
            self._held_bytes += taken - entry.bytes
            entry.bytes = taken
            self._changed.set()
        entry.loading = None

    async def _take_place(self, entry: _Entry) -> None:
        budget = self._budget_bytes
        if budget is not None and entry.bytes > budget:
            raise InvalidArgumentError(
                f"adapter version {entry.adapter.version.id!r} takes {entry.bytes} bytes, and "
                f"engine.adapter_host_bytes is {budget}; raise that, or use a smaller rank",
                reason="ADAPTER_TOO_LARGE",
            )
        try:
            # The lock makes newcomers take places in the order in which they came.
            async with asyncio.timeout(self._wait_s), self._placing:
                while not self._fits(entry):
                    victim = self._least_recently_used_idle()
                    if victim is None:
                        self._changed.clear()
                        await self._changed.wait()
                        continue
                    self._evict(victim)
                self._held += 1
                self._held_bytes += entry.bytes
        except TimeoutError:
            raise ResourceExhaustedError(
                f"{self._held} adapter versions of {self._held_bytes} bytes are in use; adapter "
                f"version {entry.adapter.version.id!r} of {entry.bytes} bytes has to wait. Retry "
                f"later, or raise engine.adapter_host_bytes ({budget}) or engine.max_cpu_loras "
                f"({self._capacity})",
                reason="ADAPTER_SLOTS_FULL",
                retry_after_s=1.0,
            ) from None

    def _least_recently_used_idle(self) -> _Entry | None:
        return next((e for e in self._entries.values() if e.loading is None and not e.users), None)

    def _evict(self, victim: _Entry) -> None:
        """Hands an idle version's place on at once, while it leaves.

        An engine takes orders between two steps only. Were newcomers to queue until each one's
        victims are gone, no more than one could come in a step.
        """
        del self._entries[victim.adapter.version.id]
        self._free_place(victim)
        task = asyncio.ensure_future(self._unload(victim.adapter))
        self._evictions.add(task)
        task.add_done_callback(self._evicted)

    def _evicted(self, task: asyncio.Task[None]) -> None:
        self._evictions.discard(task)
        if not task.cancelled():
            task.exception()  # the newcomer's to report, if it still waits

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
            self._free_place(entry)

    def _fits(self, entry: _Entry) -> bool:
        budget = self._budget_bytes
        return self._held < self._capacity and (
            budget is None or self._held_bytes + entry.bytes <= budget
        )

    def _free_place(self, entry: _Entry) -> None:
        self._held -= 1
        self._held_bytes -= entry.bytes
        self._changed.set()


def _check_same(known: VersionRef, got: VersionRef) -> None:
    if (known.digest, known.base_id) != (got.digest, got.base_id):
        raise InvalidArgumentError(
            f"adapter version {got.id!r} was given with digest {got.digest} for base "
            f"{got.base_id!r}, but is loaded with digest {known.digest} for base "
            f"{known.base_id!r}; versions are immutable, give new weights a new version id"
        )
