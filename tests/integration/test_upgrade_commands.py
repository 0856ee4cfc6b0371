"""Operators' commands where something stands in their way: nothing is left half done."""

from typing import Any

import pytest

from lorebase.serving.catalog.records import Migration
from lorebase.serving.errors import FailedPreconditionError, UnavailableError
from lorebase.transfer.upgrade import commands
from lorebase.transfer.upgrade.plan import adapters_on
from lorebase.transfer.upgrade.states import UpgradeEvent
from lorebase.transfer.upgrade.writes import move_upgrade

from .conftest import MakeWorld
from .upgrade_world import World


async def upgraded(make_world: MakeWorld, *adapters: str) -> World:
    """A world whose upgrade is completed and whose controller is gone."""
    world = make_world(*adapters)
    world.commands.start("next", [], "")
    world.boot()
    await world.completed()
    await world.kill()
    return world


def refuse_to_save(world: World, monkeypatch: pytest.MonkeyPatch, adapter: str) -> None:
    real = world.catalog.save_migration

    def save(migration: Migration, **rest: Any) -> object:
        if migration.adapter == adapter:
            raise UnavailableError("the catalog is busy")
        return real(migration, **rest)

    monkeypatch.setattr(world.catalog, "save_migration", save)


async def test_a_deleted_adapter_does_not_keep_the_others_from_rolling_back(
    make_world: MakeWorld,
) -> None:
    world = await upgraded(make_world, "a/gone", "b/one", "c/two")
    world.catalog.delete_adapter("a/gone")
    done = world.commands.rollback("", [])
    assert (done.upgrade.state, done.failed) == ("rolled_back", {})
    assert done.revision == world.catalog.route_revision()
    assert (world.route("b/one"), world.route("c/two")) == ("old", "old")
    assert set(world.states().values()) == {"rolled_back"}
    gone = next(one for one in world.migrations() if one.adapter == "a/gone")
    assert "deleted" in str(gone.error)
    assert world.commands.rollback("", []).revision is None


async def test_an_adapter_made_anew_under_its_old_name_is_left_where_it_is(
    make_world: MakeWorld,
) -> None:
    world = await upgraded(make_world, "a/anew", "b/one")
    world.catalog.delete_adapter("a/anew")
    made = world.add_adapter("a/anew", base_id="next")
    done = world.commands.rollback("", [])
    assert (done.upgrade.state, done.failed) == ("rolled_back", {})
    assert done.revision == world.catalog.route_revision()
    table = world.catalog.route_table(str)
    assert table.routes["a/anew"].stable == made.id
    assert world.route("b/one") == "old"
    assert world.states() == {"a/anew": "rolled_back", "b/one": "rolled_back"}


async def test_what_does_not_roll_back_is_named_and_the_rest_moves(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = await upgraded(make_world, "a/one", "b/stuck", "c/two")
    with monkeypatch.context() as patch:
        refuse_to_save(world, patch, "b/stuck")
        done = world.commands.rollback("", [])
    assert done.failed == {"b/stuck": "the catalog is busy"}
    assert done.revision == world.catalog.route_revision()
    assert [world.route(name) for name in world.states()] == ["old", "next", "old"]
    again = world.commands.rollback("", [])
    assert (again.failed, world.route("b/stuck")) == ({}, "old")


async def test_adapters_are_rolled_back_all_or_none(make_world: MakeWorld) -> None:
    world = make_world("a/one", "b/bad")
    world.quality["b/bad"] = [0.3]
    world.commands.start("next", [], "")
    world.boot()
    await world.completed()
    with pytest.raises(FailedPreconditionError, match="b/bad"):
        world.commands.rollback("", ["a/one", "b/bad"])
    assert world.route("a/one") == "next"
    assert world.states() == {"a/one": "promoted", "b/bad": "rejected"}


async def test_a_resume_that_is_refused_leaves_failed_migrations_alone(
    make_world: MakeWorld,
) -> None:
    world = make_world("a/one", max_engine_failures=1)
    first = world.commands.start("next", [], "")
    world.cluster.failing_starts = 1
    world.boot()
    await world.until(lambda: world.upgrade_state() == "failed")
    await world.kill()
    [failed] = world.migrations()
    commands.apply_event(
        world.catalog,
        first.id,
        failed.id,
        commands.Happened(event=commands.MigrationEvent.FAIL, at=0.0, reason="broken"),
        max_attempts=1,
    )
    world.commands.start("next", [], "")
    with pytest.raises(FailedPreconditionError, match="only one upgrade may run"):
        world.commands.resume(first.id)
    assert [one.state for one in world.catalog.migrations_of(first.id)] == ["failed"]


async def test_a_finish_that_is_overtaken_changes_no_current_base(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = await upgraded(make_world, "a/one")

    def overtaken(*args: Any) -> list[str]:
        upgrade = world.catalog.get_upgrade(None)
        move_upgrade(world.catalog, upgrade.id, UpgradeEvent.REOPEN, at=0.0)
        return adapters_on(*args)

    monkeypatch.setattr(commands, "adapters_on", overtaken)
    with pytest.raises(FailedPreconditionError, match="finish is not possible"):
        world.commands.finish("")
    assert world.catalog.current_base() == "old"


async def test_finish_makes_the_next_base_current(make_world: MakeWorld) -> None:
    world = await upgraded(make_world, "a/one")
    world.commands.finish("")
    assert world.catalog.current_base() == "next"
    revision = world.catalog.route_revision()
    world.commands.finish("")
    assert world.catalog.route_revision() == revision
