"""Leases: bounded, revocable grants of background capacity.

The task that came first goes first, whenever it asks: three tasks that take turns would all reach
their training late, and the first swap would come with the last.
"""

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Literal

from lorebase.serving.errors import ResourceExhaustedError

from .policy import NOTHING, Capacity

LeaseKind = Literal["train", "generate"]

MAX_LEASES = 1024
"""Holders and waiters of one kind; more means that somebody forgets to release."""


class Lease:
    """One task's share. Granted and revoked by its `LeaseTable`; the holder asks and waits.

    Holders of one task have names that begin alike: `task/...`.
    """

    def __init__(self, number: int, kind: LeaseKind, holder: str) -> None:
        self.number = number
        self.kind = kind
        self.holder = holder
        self.task = holder.partition("/")[0]
        self._granted = asyncio.Event()

    @property
    def granted(self) -> bool:
        """Whether the holder may work now."""
        return self._granted.is_set()

    async def wait(self) -> None:
        """Returns once the lease is granted."""
        await self._granted.wait()

    def set(self, granted: bool) -> None:
        """Grants or revokes; only the table calls this."""
        if granted:
            self._granted.set()
        else:
            self._granted.clear()


class LeaseTable:
    """Hands out capacity. When it shrinks, leases of the youngest task are revoked first.

    Args:
        on_change: called with the kind and +1 (granted) or -1 (revoked or released), for metrics.
    """

    def __init__(self, on_change: Callable[[LeaseKind, int], None] | None = None) -> None:
        self._capacity = NOTHING
        self._leases: dict[LeaseKind, dict[int, Lease]] = {"train": {}, "generate": {}}
        self._numbers = itertools.count(1)
        self._seniority: dict[str, int] = {}
        self._on_change = on_change or (lambda kind, change: None)

    @property
    def capacity(self) -> Capacity:
        """What may run now."""
        return self._capacity

    @property
    def batch_size(self) -> int:
        """Prompts that the next generation batch may hold, at least 1."""
        return max(1, self._capacity.batch_size)

    def set_capacity(self, capacity: Capacity) -> None:
        """Sets what may run from now on; grants or revokes leases to match."""
        self._capacity = capacity
        self._assign("train")
        self._assign("generate")

    def granted(self, kind: LeaseKind) -> int:
        """Returns how many leases of a kind are granted now."""
        return sum(lease.granted for lease in self._leases[kind].values())

    def waiting(self, kind: LeaseKind) -> int:
        """Returns how many leases of a kind wait."""
        return len(self._leases[kind]) - self.granted(kind)

    @asynccontextmanager
    async def lease(self, kind: LeaseKind, holder: str) -> AsyncIterator[Lease]:
        """Queues for a lease, yields it once granted, and releases it whatever happens.

        It may be revoked while held: ask `granted` at safe points, `await wait()` to go on.

        Raises:
            ResourceExhaustedError: `MAX_LEASES` are queued already.
        """
        queue = self._leases[kind]
        if len(queue) >= MAX_LEASES:
            raise ResourceExhaustedError(
                f"got lease number {len(queue) + 1} of kind {kind}, expected at most {MAX_LEASES}",
                reason="LEASES_EXHAUSTED",
            )
        lease = Lease(next(self._numbers), kind, holder)
        queue[lease.number] = lease
        self._seniority.setdefault(lease.task, lease.number)
        self._assign(kind)
        try:
            await lease.wait()
            yield lease
        finally:
            del queue[lease.number]
            if lease.granted:
                lease.set(False)
                self._on_change(kind, -1)
            self._assign(kind)

    def end(self, task: str) -> None:
        """Forgets when a task came; one that comes again is the youngest."""
        self._seniority.pop(task, None)

    def _assign(self, kind: LeaseKind) -> None:
        limit = self._capacity.workers if kind == "train" else self._capacity.batches
        # Who holds one keeps it against newcomers: a batch or a training that began should end.
        queue = sorted(self._leases[kind].values(), key=self._rank)
        for position, lease in enumerate(queue):
            wanted = position < limit
            if wanted != lease.granted:
                lease.set(wanted)
                self._on_change(kind, 1 if wanted else -1)

    def _rank(self, lease: Lease) -> tuple[bool, int, int]:
        senior = self._seniority.get(lease.task, lease.number)
        return (not lease.granted, senior, lease.number)
