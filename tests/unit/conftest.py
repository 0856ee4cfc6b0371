"""Keeps unit tests pure: no Ray, no vLLM, no network."""

import socket
import sys
from collections.abc import Iterator
from typing import Any, NoReturn

import grpc
import pytest

_HINT = "unit tests are pure: put this test into tests/integration, or inject a fake"


def _refuse_connection(*args: Any, **kwargs: Any) -> NoReturn:
    raise AssertionError(f"a unit test opened a connection; {_HINT}")


@pytest.fixture(autouse=True)
def _pure() -> Iterator[None]:
    # Its own MonkeyPatch: a test that calls monkeypatch.undo() must not lift this.
    with pytest.MonkeyPatch.context() as patch:
        # None in sys.modules makes `import ray` raise ImportError, also where an integration test
        # of the same process has imported it already.
        for module in ("ray", "vllm"):
            patch.setitem(sys.modules, module, None)
        patch.setattr(socket.socket, "connect", _refuse_connection)
        patch.setattr(socket.socket, "connect_ex", _refuse_connection)
        # gRPC's C core opens its own sockets.
        for place in (grpc, grpc.aio):
            for opener in ("insecure_channel", "secure_channel"):
                patch.setattr(place, opener, _refuse_connection)
        yield
