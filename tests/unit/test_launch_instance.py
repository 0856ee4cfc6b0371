"""What makes an instance one instance: its lock and its ports."""

import socket
from pathlib import Path

import pytest

from lorebase.serving.config import Settings, settings_of
from lorebase.serving.errors import FailedPreconditionError
from lorebase.serving.instance import (
    MAX_TEMP_DIR_CHARS,
    lock,
    ray_temp_dir,
    reachable,
    with_ports,
)


def settings(tmp_path: Path, **serving: object) -> Settings:
    return settings_of({"bases": [{"id": "a", "path": "a"}], "serving": serving}, folder=tmp_path)


def test_second_lock_on_a_state_directory_is_refused_with_its_owner(tmp_path: Path) -> None:
    import os

    with lock(tmp_path), pytest.raises(FailedPreconditionError, match=str(os.getpid())):
        lock(tmp_path)


def test_lock_is_free_again_after_closing(tmp_path: Path) -> None:
    lock(tmp_path).close()
    lock(tmp_path).close()


def test_port_zero_becomes_free_different_ports(tmp_path: Path) -> None:
    serving = with_ports(settings(tmp_path, grpc_port=0, http_port=0)).serving
    assert serving.grpc_port > 0
    assert serving.http_port > 0
    assert serving.grpc_port != serving.http_port


def test_chosen_ports_stay(tmp_path: Path) -> None:
    free = with_ports(settings(tmp_path, grpc_port=0, http_port=0)).serving
    chosen = {"grpc_port": free.grpc_port, "http_port": free.http_port}
    assert with_ports(settings(tmp_path, **chosen)).serving.grpc_port == free.grpc_port


def test_port_shared_by_another_instance_is_refused(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(FailedPreconditionError, match="http_port"):
            with_ports(settings(tmp_path, grpc_port=0, http_port=port))


def test_ray_stays_in_a_short_state_directory() -> None:
    assert ray_temp_dir(Path("/var/lib/lorebase")) == Path("/var/lib/lorebase/ray")


def test_long_state_directories_get_short_and_different_ones() -> None:
    long = [Path("/a" * 60), Path("/b" * 60)]
    found = {ray_temp_dir(path) for path in long}
    assert len(found) == 2
    assert all(len(str(path)) <= MAX_TEMP_DIR_CHARS for path in found)


@pytest.mark.parametrize(
    ("host", "expected"),
    [("0.0.0.0", "127.0.0.1"), ("::", "[::1]"), ("::1", "[::1]"), ("192.0.2.1", "192.0.2.1")],
)
def test_wildcard_addresses_are_reached_through_loopback(host: str, expected: str) -> None:
    assert reachable(host) == expected
