"""The prefetcher: loads once, elsewhere, bounded; errors reach whoever takes."""

import threading

import pytest

from lorebase.kernels.lora.prefetch import Prefetcher


def _never() -> str:
    raise AssertionError("loaded twice")


def _until_ready(prefetcher: Prefetcher[str, str], key: str) -> None:
    for _ in range(1000):
        if prefetcher.ready(key):
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
    assert not prefetcher.ready("a")
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
    assert not prefetcher.ready("a")
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
