"""Stopping an instance: everything of ours, nothing of others, and never half of it."""

import signal
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lorebase.serving import launch
from lorebase.serving.config import Settings, settings_of
from lorebase.serving.instance import lock
from lorebase.serving.launch import Cluster


class FakeRay:
    """Ray as far as stopping goes, with applications of ours and of others."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.log: list[str] = []
        self.applications = dict.fromkeys(["engine-a", "engine-theirs", "gateway", "theirs"])
        self.stuck = ""
        serve = SimpleNamespace(
            status=lambda: SimpleNamespace(applications=dict(self.applications)),
            delete=self._delete,
            shutdown=lambda: self.log.append("serve"),
        )
        ray = SimpleNamespace(
            serve=serve,
            get_actor=self._get_actor,
            kill=lambda actor, no_restart: self.log.append(actor),
            shutdown=lambda: self.log.append("ray"),
        )
        monkeypatch.setitem(sys.modules, "ray", ray)
        monkeypatch.setitem(sys.modules, "ray.serve", serve)

    def _delete(self, name: str, _blocking: bool) -> None:
        if name == self.stuck:
            raise TimeoutError(name)
        del self.applications[name]
        self.log.append(name)

    def _get_actor(self, name: str, namespace: str) -> Any:
        assert namespace == "lorebase"
        if name == "lorebase-route-hub":
            return name
        raise ValueError("no such actor")


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    return FakeRay(monkeypatch)


def a_config(tmp_path: Path) -> Settings:
    bases = [{"id": "a", "path": "a"}, {"id": "b", "path": "b"}]
    return settings_of({"bases": bases}, folder=tmp_path)


def cluster(tmp_path: Path, *, local: bool) -> Cluster:
    return Cluster(settings=a_config(tmp_path), lock=lock(tmp_path), local=local)


def test_on_a_shared_ray_only_our_own_applications_go(tmp_path: Path, ray: FakeRay) -> None:
    cluster(tmp_path, local=False).down()
    assert sorted(ray.applications) == ["engine-theirs", "theirs"]
    assert ray.log == ["gateway", "engine-a", "lorebase-route-hub", "ray"]


def test_on_a_ray_of_our_own_the_gateways_drain_before_all_else_goes(
    tmp_path: Path, ray: FakeRay
) -> None:
    cluster(tmp_path, local=True).down()
    assert ray.log == ["gateway", "lorebase-route-hub", "serve", "ray"]


def test_signals_mean_to_ray_what_they_meant_before(
    tmp_path: Path, ray: FakeRay, monkeypatch: pytest.MonkeyPatch
) -> None:
    def init(**_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)

    monkeypatch.setattr(sys.modules["ray"], "init", init, raising=False)
    for name in launch.RAY_ENV:
        monkeypatch.setenv(name, "")
    before = signal.getsignal(signal.SIGTERM)
    try:
        launch._connect(a_config(tmp_path))
        assert signal.getsignal(signal.SIGTERM) is before
    finally:
        signal.signal(signal.SIGTERM, before)


def test_trouble_with_one_application_leaves_neither_ray_nor_the_lock_behind(
    tmp_path: Path, ray: FakeRay
) -> None:
    ray.stuck = "gateway"
    running = cluster(tmp_path, local=True)
    with pytest.raises(TimeoutError):
        running.down()
    assert ray.log[-1] == "ray"
    lock(tmp_path).close()
