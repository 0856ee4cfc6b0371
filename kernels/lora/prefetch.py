"""Loads adapters on threads of their own before they are needed, so that a step need not wait."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Prefetcher(Generic[K, V]):
    """Values that load or wait to be taken, at most `most` of them. Thread-safe.

    Args:
        threads: That load at a time.
        most: Values loading or waiting. A further one makes the oldest waiting one go; while all
            are still loading it is not prefetched at all.
    """

    def __init__(self, *, threads: int = 2, most: int = 256) -> None:
        if threads < 1 or most < 1:
            raise ValueError(f"got threads={threads}, most={most}; expected at least 1")
        self._most = most
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="lora-prefetch")
        self._lock = threading.Lock()
        self._futures: OrderedDict[K, Future[V]] = OrderedDict()

    def start(self, key: K, load: Callable[[], V]) -> bool:
        """Begins to load a value; returns whether it is on its way (also if it was before)."""
        with self._lock:
            if key in self._futures:
                return True
            if len(self._futures) >= self._most:
                done = next((k for k, future in self._futures.items() if future.done()), None)
                if done is None:
                    return False
                del self._futures[done]
            self._futures[key] = self._pool.submit(load)
            return True

    def take(self, key: K, load: Callable[[], V]) -> V:
        """Returns a value, and forgets it: the prefetched one, waiting if need be, or `load()`'s.

        Raises:
            Exception: What loading raised.
        """
        with self._lock:
            future = self._futures.pop(key, None)
        if future is None or future.cancel():  # still in the queue: faster here
            return load()
        return future.result()

    def drop(self, key: K) -> None:
        """Forgets a value that nobody wants any more; fine if there is none."""
        with self._lock:
            future = self._futures.pop(key, None)
        if future is not None:
            future.cancel()

    def ready(self, key: K) -> bool:
        """Whether a value is loaded and waits to be taken."""
        with self._lock:
            future = self._futures.get(key)
        return future is not None and future.done()

    def loading(self, key: K) -> bool:
        """Whether `take` would have to wait for a load that was started."""
        with self._lock:
            future = self._futures.get(key)
        return future is not None and not future.done()
