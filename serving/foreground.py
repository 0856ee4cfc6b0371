"""`lorebase serve`: one instance in the foreground, until a signal asks it to stop."""

import signal
import sys
import threading
from pathlib import Path
from types import FrameType

from .config import load_settings
from .launch import running

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def serve(config: str | Path) -> None:
    """Starts what a configuration file describes, and drains and stops it on SIGINT or SIGTERM.

    Must be called on the main thread.

    Raises:
        LorebaseError: the configuration is wrong, or something did not start.
    """
    settings = load_settings(config)
    asked = threading.Event()

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    def ask(number: int, frame: FrameType | None) -> None:
        asked.set()

    # While it starts, a signal unwinds the start. Ray sets handlers of its own in between.
    for number in STOP_SIGNALS:
        signal.signal(number, interrupt)
    with running(settings) as cluster:
        for number in STOP_SIGNALS:
            # From here on an orderly stop, which further signals do not cut short.
            signal.signal(number, ask)
        print(
            f"serving: gRPC {cluster.grpc_target}, HTTP {cluster.http_url}; "
            "stop with Ctrl-C or SIGTERM",
            file=sys.stderr,
            flush=True,
        )
        asked.wait()
        print("stopping", file=sys.stderr, flush=True)
