"""The main job on real parts: vLLM, Ray, gRPC, real transfer, and a controller shot on the way.

One instance and one upgrade serve all of it, because starting them is what takes the time.
"""

import asyncio
import itertools
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from benchmarks.cluster import ServedCluster
from examples.tinyworld.demo.world import TenantAdapter, find_adapters
from lorebase.serving.catalog import Catalog
from lorebase.serving.catalog.records import Event
from lorebase.serving.cli.client import LorebaseClient
from lorebase.serving.errors import NotFoundError
from lorebase.transfer.upgrade.deps import read_events
from lorebase.v1 import upgrade_pb2

from .upgrade_clients import (
    GATEWAY_TITLE,
    Traffic,
    ask,
    controller_process,
    processes_titled,
    register,
    wait_for,
)

WORLD = Path(__file__).parents[2] / "examples" / "tinyworld"
OLD, NEXT = "tinyworld-old", "tinyworld-next"
# One brings an evaluation set, the other is label-free; both are learned by every base so far.
ADAPTERS = ("acme/date-long-to-dot", "telco/phone-flip")
GATEWAYS = 2
JUDGED = 40
"""Held-out examples per adapter that the outside judge asks."""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServedCluster]:
    served = ServedCluster(
        WORLD / "demo.yaml",
        tmp_path,
        # As people run it: vLLM's AsyncLLM, and two gateways that must both take every swap.
        environment={
            "LOREBASE_SERVING__GATEWAYS": str(GATEWAYS),
            "LOREBASE_ENGINE__THREADS": "1",
            # A shadow as good as its source changes two or three answers of the 205 that a
            # label-free gate sees, and now and then a fourth, which at the default's margin is
            # inconclusive. How sure the gate is has tests of its own.
            "LOREBASE_UPGRADE__LABEL_FREE_MARGIN": "0.2",
        },
    )
    with served:
        asyncio.run(served.wait_ready(300))
        yield served


def events_of(state_dir: Path, upgrade_id: str) -> list[Event]:
    catalog = Catalog.open(f"sqlite:///{state_dir / 'catalog.db'}")
    try:
        return read_events(catalog, upgrade_id)
    finally:
        catalog.close()


def shoot_controller_while_distilling(client: LorebaseClient, upgrade_id: str) -> str:
    """Kills the controller's process in the middle of a training; returns whose it was."""
    until = time.monotonic() + 240
    while time.monotonic() < until:
        for one in client.get_upgrade(upgrade_id).migrations:
            if one.state == "distilling" and one.stage_progress > 0.25:
                victim = controller_process(psutil.Process().pid)
                assert victim is not None, "no controller is running"
                victim.kill()
                return str(one.adapter)
        time.sleep(0.1)
    raise TimeoutError("no migration was seen training within 240 s")


def accuracy(client: LorebaseClient, model: str, adapter: TenantAdapter) -> float:
    pairs = adapter.held_out[:JUDGED]
    right = [ask(client, model, text).text.strip() == target for text, target in pairs]
    return sum(right) / len(right)


@pytest.mark.timeout(900)
def test_adapters_move_to_the_next_base_under_traffic_although_the_controller_is_killed(
    server: ServedCluster, tmp_path: Path
) -> None:
    adapters = find_adapters(WORLD / "adapters", only=ADAPTERS)
    assert len(processes_titled(GATEWAY_TITLE, psutil.Process().pid)) == GATEWAYS
    with LorebaseClient(server.grpc, timeout_s=60) as client:
        for adapter in adapters:
            register(client, adapter, OLD)
        before = {one.name: accuracy(client, one.name, one) for one in adapters}
        plan = client.plan_upgrade(NEXT)
        assert [one.feasible for one in plan.migrations] == [True, True]

        with Traffic(server.grpc, adapters) as traffic:
            upgrade_id = client.start_upgrade(NEXT, request_id="e2e").id
            shot = shoot_controller_while_distilling(client, upgrade_id)
            seen = list(client.watch_upgrade(upgrade_id, timeout_s=480))
            upgrade = seen[-1]
            found = {one.adapter: (one.state, one.decision.reason) for one in upgrade.migrations}
            assert {state for state, _ in found.values()} == {"promoted"}, found
            wait_for(
                "clients meet the next base",
                lambda: all(bases[-1:] == [NEXT] for bases in traffic.answered.values()),
                30,
            )
        assert upgrade.state == upgrade_pb2.UPGRADE_STATE_COMPLETED, found

        # No client noticed.
        assert not traffic.failures
        for who, bases in traffic.answered.items():
            switches = sum(a != b for a, b in itertools.pairwise(bases))
            assert (bases[0], bases[-1], switches) == (OLD, NEXT, 1), who
        for adapter in adapters:
            assert accuracy(client, adapter.name, adapter) >= before[adapter.name] - 0.1

        check_history(events_of(tmp_path, upgrade_id), shot)
        check_rollback_and_finish(client, upgrade_id, adapters[0].name)
        check_metrics(server)


def check_history(events: list[Event], shot: str) -> None:
    """What had finished never ran again; only what was running at the shot started twice."""
    starts: Counter[tuple[str | None, str, int]] = Counter()
    finished: set[tuple[str | None, str, int]] = set()
    for event in events:
        if event.kind not in ("stage_started", "stage_finished"):
            continue
        key = (event.adapter, event.data["stage"], event.data["attempt"])
        assert key not in finished, f"{event.kind} after it had finished: {key}"
        if event.kind == "stage_started":
            starts[key] += 1
        else:
            finished.add(key)
        if key == (shot, "distill", 1) and event.kind == "stage_finished":
            assert event.data["summary"]["train"]["resumed_from"] > 0, "it started from scratch"
    assert starts[(shot, "distill", 1)] == 2
    assert sum(count - 1 for count in starts.values()) <= len(ADAPTERS)
    assert Counter(e.adapter for e in events if e.kind == "swap") == dict.fromkeys(ADAPTERS, 1)
    assert [e.data["acked"] for e in events if e.kind == "swap_acked"] == [True] * len(ADAPTERS)


def check_rollback_and_finish(client: LorebaseClient, upgrade_id: str, name: str) -> None:
    """A rollback is instant, an operator can undo it, and finish retires the old engine."""
    text = "The invoice is dated 1 May 2014."
    client.rollback_upgrade(upgrade_id, [name])
    assert ask(client, name, text).served_by.base == OLD
    client.promote_upgrade(upgrade_id, [name])
    wait_for("promoted again", lambda: ask(client, name, text).served_by.base == NEXT, 60)
    completed = upgrade_pb2.UPGRADE_STATE_COMPLETED
    wait_for("completed", lambda: client.get_upgrade(upgrade_id).state == completed, 30)
    client.finish_upgrade(upgrade_id)
    with pytest.raises(NotFoundError):
        ask(client, OLD, text)
    assert ask(client, name, text).served_by.base == NEXT

    def retired() -> bool:
        return {one.state for one in client.get_upgrade(upgrade_id).migrations} == {"retired"}

    wait_for("the old engine is retired", retired, 90)
    assert ask(client, name, text).served_by.base == NEXT


def check_metrics(server: ServedCluster) -> None:
    """Prometheus sees the swaps and the background work."""
    with urllib.request.urlopen(f"http://{server.http}/metrics", timeout=10) as response:
        lines = response.read().decode().splitlines()
    figures = dict(line.rsplit(" ", 1) for line in lines if line and not line.startswith("#"))
    assert float(figures["lorebase_swap_duration_seconds_count"]) >= 2
    assert float(figures['lorebase_background_busy_seconds_total{stage="distill"}']) > 0
    assert float(figures['lorebase_migrations{state="retired"}']) == len(ADAPTERS)
