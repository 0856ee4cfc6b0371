"""The prefetcher: loads once, elsewhere, bounded; errors reach whoever takes."""

import queue
import threading

import pytest
import torch

from lorebase.kernels.lora.prefetch import Prefetcher


def _never() -> str:
    raise AssertionError("loaded twice")


def _until_ready(prefetcher: Prefetcher[str, str], key: str) -> None:
    for _ in range(1000):
        if not prefetcher.loading(key):
            return
        threading.Event().wait(0.005)
    raise AssertionError(f"{key} never became ready")


def test_a_prefetched_value_is_loaded_once_on_another_thread() -> None:
    prefetcher: Prefetcher[str, str] = Prefetcher(threads=1)
    names = []

    def load() -> str:
        names.append(threading.current_thread().name)
        return "value"

    assert prefetcher.start("a", load)
    assert prefetcher.start("a", _never)
    _until_ready(prefetcher, "a")
    assert prefetcher.take("a", _never) == "value"
    assert names[0].startswith("lora-prefetch")
    assert prefetcher.take("a", lambda: "again") == "again"


def test_taking_waits_for_a_load_that_runs_and_overtakes_one_that_has_not_begun() -> None:
    prefetcher: Prefetcher[str, str] = Prefetcher(threads=1)
    go, running = threading.Event(), threading.Event()

    def slow() -> str:
        running.set()
        assert go.wait(10)
        return "slow"

    prefetcher.start("slow", slow)
    assert running.wait(10)
    prefetcher.start("queued", _never)
    assert prefetcher.take("queued", lambda: "here") == "here"
    threading.Timer(0.02, go.set).start()
    assert prefetcher.take("slow", _never) == "slow"


def test_a_failed_load_raises_where_it_is_taken_and_may_be_tried_again() -> None:
    prefetcher: Prefetcher[str, str] = Prefetcher()
    prefetcher.start("a", lambda: "no".index("x") and "")
    _until_ready(prefetcher, "a")
    with pytest.raises(ValueError, match="substring"):
        prefetcher.take("a", _never)
    assert prefetcher.take("a", lambda: "fine") == "fine"


def test_it_holds_at_most_so_many_and_gives_up_what_waited_longest() -> None:
    prefetcher: Prefetcher[str, str] = Prefetcher(threads=1, most=2)
    for name in "ab":
        prefetcher.start(name, lambda name=name: name)  # type: ignore[misc]
        _until_ready(prefetcher, name)
    assert prefetcher.start("c", lambda: "c")
    assert prefetcher.take("a", lambda: "again") == "again"
    assert prefetcher.take("b", _never) == "b"
    _until_ready(prefetcher, "c")
    assert prefetcher.take("c", _never) == "c"
    go, running = threading.Event(), threading.Event()

    def slow() -> str:
        running.set()
        assert go.wait(10)
        return "slow"

    prefetcher.start("d", slow)
    assert running.wait(10)
    prefetcher.start("e", _never)
    assert not prefetcher.start("f", _never)
    prefetcher.drop("e")
    go.set()
    assert prefetcher.take("d", _never) == "slow"


def test_waiting_values_are_bounded_in_bytes_and_the_newest_stays() -> None:
    prefetcher: Prefetcher[str, str] = Prefetcher(threads=1, most_bytes=5, size_of=len)
    for key, value in (("a", "12"), ("b", "123"), ("failed", ""), ("c", "1"), ("d", "12345678")):
        prefetcher.start(key, lambda value=value: value or 1 / 0)  # type: ignore[misc]
        _until_ready(prefetcher, key)
        for _ in range(1000):  # its bytes are counted just after it is done
            if sum(map(len, _waiting(prefetcher))) <= 5 or key == "d":
                break
            threading.Event().wait(0.005)
        if key == "c":
            assert _waiting(prefetcher) == ["123", "1"]
    assert prefetcher.take("d", _never) == "12345678"
    assert prefetcher.take("b", lambda: "again") == "again"
    with pytest.raises(ValueError, match="most_bytes=0"):
        Prefetcher(most_bytes=0)


def _waiting(prefetcher: Prefetcher[str, str]) -> list[str]:
    futures = prefetcher._futures.values()
    return [f.result() for f in futures if f.done() and f.exception() is None]


def test_loading_takes_one_core_and_leaves_other_threads_theirs() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        prefetcher: Prefetcher[str, int] = Prefetcher()
        prefetcher.start("a", torch.get_num_threads)
        assert prefetcher.take("a", lambda: -1) in (1, -1)
        found: list[int] = []
        prefetcher._pool.submit(lambda: found.append(torch.get_num_threads())).result()
        threads = [threading.Thread(target=lambda: found.append(torch.get_num_threads()))]
        for thread in threads:
            thread.start()
            thread.join()
        assert [*found, torch.get_num_threads()] == [1, 3, 3]
    finally:
        torch.set_num_threads(before)


def test_what_is_kept_waits_beyond_all_bounds_until_it_is_taken_or_dropped() -> None:
    prefetcher: Prefetcher[str, str] = Prefetcher(threads=1, most=1, most_bytes=1, size_of=len)
    kept: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    for name in ("first", "second", "third"):
        assert prefetcher.start(name, lambda name=name: name)  # type: ignore[misc]
        prefetcher.keep(name, kept.put)
        assert kept.get(timeout=10) == name
    assert prefetcher.start("first", _never)
    assert not prefetcher.loading("first")
    assert prefetcher.take("first", _never) == "first"
    assert prefetcher.take("first", lambda: "again") == "again"
    prefetcher.drop("second")
    assert prefetcher.take("second", lambda: "again") == "again"
    assert prefetcher.take("third", _never) == "third"


def test_nothing_is_kept_of_a_value_that_is_not_there() -> None:
    prefetcher: Prefetcher[str, str] = Prefetcher(threads=1)
    kept: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    prefetcher.keep("unknown", kept.put)
    assert kept.get(timeout=10) is None
    go = threading.Event()
    prefetcher.start("failed", lambda: "no" if go.wait(10) and 1 / 0 else "never")
    prefetcher.start("dropped", _never)
    prefetcher.keep("failed", kept.put)
    prefetcher.keep("dropped", kept.put)
    prefetcher.drop("dropped")
    assert kept.get(timeout=10) is None
    go.set()
    assert kept.get(timeout=10) is None
    with pytest.raises(ZeroDivisionError):
        prefetcher.take("failed", _never)


def test_what_is_to_be_kept_makes_no_room_for_others_that_come_first() -> None:
    prefetcher: Prefetcher[str, str] = Prefetcher(threads=2, most=2, most_bytes=1, size_of=len)
    go, kept = threading.Event(), queue.SimpleQueue[str | None]()

    def slow() -> str:
        assert go.wait(10)
        return "slow"

    prefetcher.start("slow", slow)
    prefetcher.keep("slow", kept.put)
    for name in ("others", "more"):
        assert prefetcher.start(name, lambda name=name: name)  # type: ignore[misc]
        _until_ready(prefetcher, name)
    go.set()
    assert kept.get(timeout=10) == "slow"
    assert prefetcher.kept_bytes == 4
    assert prefetcher.take("slow", _never) == "slow"
    assert prefetcher.kept_bytes == 0
