"""An adapter moves from base to base to base, with the kit that it came with."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest

from lorebase.serving.artifacts import base_revision
from lorebase.serving.catalog.records import NEXT_KIT, Base
from lorebase.transfer.kit import load_kit

from .conftest import MakeWorld
from .upgrade_world import World, make_base


@pytest.fixture
def make_world(make_world: MakeWorld, tmp_path: Path) -> MakeWorld:
    """Worlds with a third base."""

    def make(*adapters: str, **settings: object) -> World:
        world = make_world(*adapters, **settings)
        path = make_base(tmp_path / "third")
        world.catalog.put_base(
            Base(
                id="third",
                path=str(path),
                revision=base_revision(path) + "third",
                architecture="LlamaForCausalLM",
                dtype="auto",
                created_at=0.0,
            )
        )
        return world

    return make


async def hop(world: World, to_base: str, adapters: Sequence[str] = ()) -> None:
    upgrade = world.commands.start(to_base, adapters, "")
    if world.task is None:
        world.boot()
    await world.completed()
    assert set(world.states().values()) == {"promoted"}
    world.commands.finish(upgrade.id)
    await world.until(lambda: set(world.states().values()) == {"retired"})


async def test_the_second_hop_uses_the_kit_that_the_first_one_took_along(
    make_world: MakeWorld,
) -> None:
    world = make_world("a/one")
    kit = world.catalog.get_adapter("a/one").kit_digest
    await hop(world, "next")
    middle = world.catalog.get_version(str(world.migrations()[0].shadow_version))
    carried = middle.provenance[NEXT_KIT]
    assert load_kit(world.store.path(carried)).base_id == "next"
    assert world.catalog.get_adapter("a/one").kit_digest == kit, "the tenant's stays what it is"
    assert carried in world.catalog.referenced_digests()

    await hop(world, "third")
    assert world.route("a/one") == "third"
    assert world.workers.jobs[-1].kit_digest == carried
    # The discriminator of the second hop was asked on the base that it fits.
    judges = {
        model.base_id
        for model, _ in world.models.calls
        if model.version is not None and model.version.digest == carried
    }
    assert judges == {"next"}


async def test_drift_over_the_hops_is_told(make_world: MakeWorld) -> None:
    world = make_world("a/one")
    first = world.commands.start("next", [], "")
    world.boot()
    await world.completed()
    [before] = world.migrations()
    assert before.decision is not None
    assert "hops" not in before.decision, "there is nothing to add up yet"
    world.commands.finish(first.id)
    await world.until(lambda: set(world.states().values()) == {"retired"})
    world.commands.start("third", [], "")
    await world.completed()
    [after] = world.migrations()
    assert after.decision is not None
    one, two = after.decision["hops"]
    assert (one["from_base"], one["base"], two["base"]) == ("old", "next", "third")
    assert one["version"] == before.shadow_version
    assert one["difference"] == before.decision["difference"]
    total = one["difference"] + after.decision["difference"]
    wanted = f"over 2 hops (old -> next -> third) the differences add up to {total:+.3f}"
    assert wanted in after.decision["reason"]
    version = world.catalog.get_version(str(after.shadow_version))
    assert [one["version"] for one in version.provenance["lineage"]] == [before.shadow_version]


async def test_after_a_rollback_the_tenants_kit_is_used_again(make_world: MakeWorld) -> None:
    world = make_world("a/one")
    kit = world.catalog.get_adapter("a/one").kit_digest
    upgrade = world.commands.start("next", [], "")
    world.boot()
    await world.completed()
    world.commands.rollback(upgrade.id, [])
    await world.until(lambda: world.route("a/one") == "old")
    world.commands.start("third", [], "")
    await world.completed()
    assert world.workers.jobs[-1].kit_digest == kit
    assert world.route("a/one") == "third"


async def test_a_kit_that_the_tenant_builds_for_the_new_base_goes_first(
    make_world: MakeWorld, tmp_path: Path
) -> None:
    world = make_world("a/one")
    await hop(world, "next")
    middle = world.catalog.get_version(str(world.migrations()[0].shadow_version))
    fresh = world.kit_for("next", seed=77)
    world.catalog.set_kit("a/one", kit_digest=fresh, evaluation_digest=None)
    assert fresh != middle.provenance[NEXT_KIT]
    await hop(world, "third")
    assert world.workers.jobs[-1].kit_digest == fresh


async def test_without_carrying_the_second_hop_says_what_is_missing(
    make_world: MakeWorld,
) -> None:
    world = make_world("a/one", carry_kits=False)
    await hop(world, "next")
    [planned] = world.commands.plan("third", []).migrations
    assert not planned.feasible
    assert "fits base 'old', but the adapter runs on 'next'" in planned.reason


async def test_an_engine_that_a_former_hop_had_to_keep_goes_when_nothing_holds_it_any_more(
    make_world: MakeWorld,
) -> None:
    world = make_world("a/one")
    world.add_adapter("a/legacy", kit=False)
    await hop(world, "next", ["a/one"])
    await hop(world, "third", ["a/one"])
    await world.until(lambda: world.cluster.engines == {"old", "third"})
    assert set(world.catalog.serving_bases()) == {"old", "third"}, "a/legacy runs on it"
    world.catalog.delete_adapter("a/legacy")
    await world.until(lambda: world.cluster.engines == {"third"})
    assert world.catalog.serving_bases() == ("third",)


async def test_an_engine_is_not_retired_under_requests_that_wait_for_their_first_token(
    make_world: MakeWorld,
) -> None:
    world = make_world("a/one")
    upgrade = world.commands.start("next", [], "")
    world.boot()
    await world.completed()
    world.cluster.waiting_foreground = 1
    world.commands.finish(upgrade.id)
    await world.until(lambda: world.catalog.serving_bases() == ("next",))
    await asyncio.sleep(0.5)
    assert world.cluster.retired == []
    world.cluster.waiting_foreground = 0
    await world.until(lambda: world.cluster.retired == ["old"])


@pytest.mark.parametrize("crash", [False, True])
async def test_a_new_upgrade_does_not_wait_for_an_engine_that_drains(
    make_world: MakeWorld, crash: bool
) -> None:
    world = make_world("a/one")
    upgrade = world.commands.start("next", [], "")
    world.boot()
    await world.completed()
    world.commands.finish(upgrade.id)
    world.cluster.running_foreground = 1
    await world.until(lambda: world.catalog.serving_bases() == ("next",))
    world.commands.start("third", [], "")
    await world.until(lambda: world.upgrade_state() == "migrating")
    assert world.cluster.retired == []
    world.cluster.running_foreground = 0
    if crash:
        await world.reboot()
    await world.completed()
    world.commands.finish("")
    await world.until(lambda: world.cluster.engines == {"third"})
