"""UpgradeService over real gRPC and a real catalog, with a controller behind it."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest

from lorebase.serving.catalog.records import Migration
from lorebase.serving.config import Settings, settings_of
from lorebase.serving.errors import DeadlineExceededError, UnavailableError
from lorebase.serving.gateway.interceptor import ErrorInterceptor
from lorebase.serving.gateway.metrics import GatewayMetrics
from lorebase.transfer.upgrade.servicer import install
from lorebase.v1 import upgrade_pb2 as pb
from lorebase.v1.upgrade_pb2_grpc import UpgradeServiceStub

from .upgrade_world import World


class Publisher:
    """Remembers what was published; some gateways may be slow."""

    def __init__(self) -> None:
        self.published: list[int] = []
        self.slow = False

    async def publish(self, revision: int) -> None:
        self.published.append(revision)
        if self.slow:
            raise DeadlineExceededError("1 of 2 gateways do not use it yet")


@dataclass(frozen=True)
class Context:
    settings: Settings
    catalog: object
    artifacts: object
    publisher: Publisher


@dataclass
class Served:
    world: World
    stub: UpgradeServiceStub
    publisher: Publisher
    services: list[str]


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    world = World(tmp_path, ["a/one", "a/two"])
    world.quality["a/two"] = [0.3]
    bases = [{"id": "old", "path": "old"}, {"id": "next", "path": "next"}]
    publisher = Publisher()
    context = Context(
        settings=settings_of({"bases": bases}, folder=tmp_path),
        catalog=world.catalog,
        artifacts=world.store,
        publisher=publisher,
    )
    metrics = GatewayMetrics()
    server = grpc.aio.server(interceptors=[ErrorInterceptor(metrics)])
    services = install(server, context)  # type: ignore[arg-type]
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield Served(world, UpgradeServiceStub(channel), publisher, services)
    await server.stop(None)
    if world.task is not None:
        await world.kill()
    world.catalog.close()


def states(upgrade: pb.Upgrade) -> dict[str, str]:
    return {one.adapter: one.state for one in upgrade.migrations}


async def test_the_service_is_named_for_reflection(served: Served) -> None:
    assert served.services == ["lorebase.v1.UpgradeService"]


async def test_a_plan_says_what_happens_to_every_adapter_and_changes_nothing(
    served: Served,
) -> None:
    served.world.add_adapter("a/legacy", kit=False)
    plan = await served.stub.PlanUpgrade(pb.PlanUpgradeRequest(to_base="next"))
    assert (plan.from_base, plan.to_base) == ("old", "next")
    found = {one.adapter: one for one in plan.migrations}
    assert found["a/one"].feasible
    assert (found["a/one"].path, found["a/one"].evidence) == ("distill", "label-free")
    assert (found["a/one"].rank, found["a/one"].dataset_size) == (2, 150)
    assert not found["a/legacy"].feasible
    assert found["a/legacy"].reason.startswith("no transfer kit")
    assert served.world.catalog.active_upgrade() is None


async def test_a_watch_follows_the_upgrade_to_its_end(served: Served) -> None:
    started = await served.stub.StartUpgrade(pb.StartUpgradeRequest(to_base="next"))
    assert started.upgrade.state == pb.UPGRADE_STATE_STARTING_ENGINE
    assert states(started.upgrade) == {"a/one": "pending", "a/two": "pending"}
    served.world.boot()
    seen: list[pb.Upgrade] = []
    async with asyncio.timeout(60):
        async for message in served.stub.WatchUpgrade(pb.WatchUpgradeRequest()):
            seen.append(message.upgrade)
    last = seen[-1]
    assert last.state == pb.UPGRADE_STATE_COMPLETED
    assert states(last) == {"a/one": "promoted", "a/two": "rejected"}
    one, two = last.migrations
    assert one.decision.verdict == pb.VERDICT_PROMOTE
    assert two.decision.verdict == pb.VERDICT_REJECT
    assert two.error == two.decision.reason
    assert two.decision.shadow_score < 0.5 <= two.decision.source_score
    assert [stage.stage for stage in one.stages] == [
        *("synthesize", "filter", "label", "distill", "evaluate", "shadow", "promote")
    ]
    assert all(stage.HasField("end_time") for stage in one.stages)
    assert json.loads(one.stages[2].summary_json)["training"] > 0
    assert last.background_busy_seconds >= 1.5


async def test_start_is_idempotent_by_request_id(served: Served) -> None:
    request = pb.StartUpgradeRequest(to_base="next", request_id="r1")
    first = await served.stub.StartUpgrade(request)
    again = await served.stub.StartUpgrade(request)
    assert again.upgrade.id == first.upgrade.id
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await served.stub.StartUpgrade(pb.StartUpgradeRequest(to_base="next"))
    assert caught.value.code() == grpc.StatusCode.FAILED_PRECONDITION


async def test_rollback_is_published_at_once_and_slow_gateways_are_no_error(
    served: Served,
) -> None:
    await served.stub.StartUpgrade(pb.StartUpgradeRequest(to_base="next"))
    served.world.boot()
    await served.world.completed()
    await served.world.kill()
    served.publisher.slow = True
    answer = await served.stub.RollbackUpgrade(pb.RollbackUpgradeRequest())
    assert answer.upgrade.state == pb.UPGRADE_STATE_ROLLED_BACK
    assert answer.upgrade.HasField("end_time")
    assert served.publisher.published == [served.world.catalog.route_revision()]
    assert served.world.route("a/one") == "old"


async def test_a_rollback_that_is_not_complete_is_published_before_it_is_told(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = served.world
    world.quality["a/two"] = [1.0]
    await served.stub.StartUpgrade(pb.StartUpgradeRequest(to_base="next"))
    world.boot()
    await world.completed()
    await world.kill()
    real = world.catalog.save_migration

    def save(migration: Migration, **rest: Any) -> object:
        if migration.adapter == "a/two":
            raise UnavailableError("the catalog is busy")
        return real(migration, **rest)

    monkeypatch.setattr(world.catalog, "save_migration", save)
    with pytest.raises(grpc.aio.AioRpcError, match="a/two: the catalog is busy") as caught:
        await served.stub.RollbackUpgrade(pb.RollbackUpgradeRequest())
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    assert served.publisher.published == [world.catalog.route_revision()]
    assert (world.route("a/one"), world.route("a/two")) == ("old", "next")


async def test_promote_finish_and_list(served: Served) -> None:
    started = await served.stub.StartUpgrade(pb.StartUpgradeRequest(to_base="next"))
    served.world.boot()
    await served.world.completed()
    await served.stub.PromoteUpgrade(pb.PromoteUpgradeRequest(adapters=["a/two"]))
    await served.world.until(lambda: served.world.states()["a/two"] == "promoted")
    await served.world.completed()
    shown = await served.stub.GetUpgrade(pb.GetUpgradeRequest(id=started.upgrade.id))
    two = next(one for one in shown.upgrade.migrations if one.adapter == "a/two")
    assert two.decision.reason.startswith("promoted by an operator")
    finished = await served.stub.FinishUpgrade(pb.FinishUpgradeRequest())
    assert finished.upgrade.state == pb.UPGRADE_STATE_FINISHED
    assert served.world.catalog.serving_bases() == ("next",)
    listed = await served.stub.ListUpgrades(pb.ListUpgradesRequest(page_size=1))
    assert [one.id for one in listed.upgrades] == [started.upgrade.id]
    rest = await served.stub.ListUpgrades(
        pb.ListUpgradesRequest(page_size=1, page_token=listed.next_page_token)
    )
    assert not rest.upgrades


async def test_pause_resume_and_abort(served: Served) -> None:
    started = await served.stub.StartUpgrade(pb.StartUpgradeRequest(to_base="next"))
    paused = await served.stub.PauseUpgrade(pb.PauseUpgradeRequest(id=started.upgrade.id))
    assert paused.upgrade.state == pb.UPGRADE_STATE_PAUSED
    again = await served.stub.PauseUpgrade(pb.PauseUpgradeRequest())
    assert again.upgrade.state == pb.UPGRADE_STATE_PAUSED
    resumed = await served.stub.ResumeUpgrade(pb.ResumeUpgradeRequest())
    assert resumed.upgrade.state == pb.UPGRADE_STATE_STARTING_ENGINE
    aborted = await served.stub.AbortUpgrade(pb.AbortUpgradeRequest())
    assert aborted.upgrade.state == pb.UPGRADE_STATE_ABORTED
    assert set(states(aborted.upgrade).values()) == {"aborted"}


@pytest.mark.parametrize(
    ("method", "request_", "code"),
    [
        ("GetUpgrade", pb.GetUpgradeRequest(id="u-none"), grpc.StatusCode.NOT_FOUND),
        ("GetUpgrade", pb.GetUpgradeRequest(), grpc.StatusCode.NOT_FOUND),
        ("PlanUpgrade", pb.PlanUpgradeRequest(), grpc.StatusCode.INVALID_ARGUMENT),
        ("PlanUpgrade", pb.PlanUpgradeRequest(to_base="none"), grpc.StatusCode.NOT_FOUND),
        ("PlanUpgrade", pb.PlanUpgradeRequest(to_base="old"), grpc.StatusCode.FAILED_PRECONDITION),
        (
            "PlanUpgrade",
            pb.PlanUpgradeRequest(to_base="next", adapters=["a/none"]),
            grpc.StatusCode.NOT_FOUND,
        ),
        (
            "StartUpgrade",
            pb.StartUpgradeRequest(to_base="next", request_id="x" * 200),
            grpc.StatusCode.INVALID_ARGUMENT,
        ),
        ("ListUpgrades", pb.ListUpgradesRequest(page_size=-1), grpc.StatusCode.INVALID_ARGUMENT),
        ("FinishUpgrade", pb.FinishUpgradeRequest(), grpc.StatusCode.NOT_FOUND),
    ],
)
async def test_errors_have_their_codes(
    served: Served, method: str, request_: object, code: grpc.StatusCode
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await getattr(served.stub, method)(request_)
    assert caught.value.code() == code, caught.value.details()


async def test_what_is_not_possible_now_is_a_failed_precondition(served: Served) -> None:
    await served.stub.StartUpgrade(pb.StartUpgradeRequest(to_base="next"))
    for method, request in (
        ("FinishUpgrade", pb.FinishUpgradeRequest()),
        ("ResumeUpgrade", pb.ResumeUpgradeRequest()),
        ("RollbackUpgrade", pb.RollbackUpgradeRequest(adapters=["a/one"])),
        ("PromoteUpgrade", pb.PromoteUpgradeRequest(adapters=["a/one"])),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await getattr(served.stub, method)(request)
        assert caught.value.code() == grpc.StatusCode.FAILED_PRECONDITION, method
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await served.stub.PromoteUpgrade(pb.PromoteUpgradeRequest())
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
