"""Loads adapters on threads of their own before they are needed, so that a step need not wait."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

from .threads import stay_single

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Prefetcher(Generic[K, V]):
    """Values that load or wait to be taken, bounded in number and bytes unless kept. Thread-safe.

    Args:
        threads: That load at a time, each on one core.
        most: Values loading or waiting. A further one makes the oldest waiting one go; while all
            are still loading it is not prefetched at all.
        most_bytes: Of values that wait. When another one comes, the oldest go until these are
            kept; it stays itself, however large. None: any.
        size_of: Bytes of a value.
    """

    def __init__(
        self,
        *,
        threads: int = 2,
        most: int = 256,
        most_bytes: int | None = None,
        size_of: Callable[[V], int] = lambda _: 0,
    ) -> None:
        if threads < 1 or most < 1 or (most_bytes is not None and most_bytes < 1):
            raise ValueError(f"got {threads=}, {most=}, {most_bytes=}; expected at least 1")
        self._most, self._most_bytes, self._size_of = most, most_bytes, size_of
        self._pool = ThreadPoolExecutor(
            threads, thread_name_prefix="lora-prefetch", initializer=stay_single
        )
        self._lock = threading.Lock()
        self._futures: OrderedDict[K, Future[V]] = OrderedDict()
        self._wanted: set[K] = set()
        """Loading or waiting, and to be kept."""
        self._kept: dict[K, V] = {}

    def start(self, key: K, load: Callable[[], V]) -> bool:
        """Begins to load a value; returns whether it is on its way (also if it was before)."""
        with self._lock:
            if key in self._futures or key in self._kept:
                return True
            if len(self._futures) >= self._most:
                done = next((k for k, one in self._futures.items() if self._may_go(k, one)), None)
                if done is None:
                    return False
                del self._futures[done]
            future = self._futures[key] = self._pool.submit(load)
        future.add_done_callback(self._keep_bytes)  # at once, if it is done already
        return True

    def keep(self, key: K, then: Callable[[V | None], None]) -> None:
        """Has a value that was started wait until it is taken or dropped, beyond all bounds.

        Args:
            key: Whose.
            then: Told the value as soon as it is kept, on any thread; None where there is none to
                keep, or loading it failed, which `take` says.
        """
        with self._lock:
            future = self._futures.get(key)
            if future is not None:
                self._wanted.add(key)
        if future is None:
            then(None)
        else:
            future.add_done_callback(lambda done: then(self._keep(key, done)))

    @property
    def kept_bytes(self) -> int:
        """Of all values that are kept."""
        with self._lock:
            return sum(map(self._size_of, self._kept.values()))

    def _keep(self, key: K, future: Future[V]) -> V | None:
        with self._lock:
            if self._futures.get(key) is not future:  # taken or dropped meanwhile
                return None
            self._wanted.discard(key)
            if future.exception() is not None:
                return None
            del self._futures[key]
            self._kept[key] = future.result()
        return future.result()

    def _may_go(self, key: K, future: Future[V]) -> bool:
        return future.done() and key not in self._wanted

    def take(self, key: K, load: Callable[[], V]) -> V:
        """Returns a value, and forgets it: the prefetched one, waiting if need be, or `load()`'s.

        Raises:
            Exception: What loading raised.
        """
        with self._lock:
            if key in self._kept:
                return self._kept.pop(key)
            self._wanted.discard(key)
            future = self._futures.pop(key, None)
        if future is None or future.cancel():  # still in the queue: faster here
            return load()
        return future.result()

    def drop(self, key: K) -> None:
        """Forgets a value that nobody wants any more; fine if there is none."""
        with self._lock:
            self._kept.pop(key, None)
            self._wanted.discard(key)
            future = self._futures.pop(key, None)
        if future is not None:
            future.cancel()

    def loading(self, key: K) -> bool:
        """Whether `take` would have to wait for a load that was started."""
        with self._lock:
            future = self._futures.get(key)
        return future is not None and not future.done()

    def _keep_bytes(self, newest: Future[V]) -> None:
        if self._most_bytes is None:
            return
        with self._lock:
            sizes = {
                key: self._size_of(future.result())
                for key, future in self._futures.items()
                if self._may_go(key, future) and future.exception() is None
            }
            excess = sum(sizes.values()) - self._most_bytes
            for key, size in sizes.items():
                if excess > 0 and self._futures[key] is not newest:
                    del self._futures[key]
                    excess -= size
