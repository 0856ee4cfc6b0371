"""Ends vLLM's processes when the process that started them is gone.

An engine core whose parent was killed (or left with `os._exit`, as a replica with a dead engine
does) would stay for ever: it holds the memory of a base and waits for requests that can't come.
"""

import multiprocessing
import os
import threading

_NAMES = ("EngineCore", "VllmWorker")
"""How vLLM names the processes it starts."""
EXIT_STATUS = 18
"""Exit status of a process that was left behind."""

_watching = threading.Event()


def watch_parent() -> None:
    """Ends this process when its parent ends, if it is one of vLLM's; idempotent."""
    process, parent = multiprocessing.current_process(), multiprocessing.parent_process()
    if parent is None or not process.name.startswith(_NAMES) or _watching.is_set():
        return
    _watching.set()

    def watch() -> None:
        parent.join()  # sleeps on a pipe that closes with the parent, however that ends
        os._exit(EXIT_STATUS)

    threading.Thread(target=watch, name="watch-parent", daemon=True).start()
