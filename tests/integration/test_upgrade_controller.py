"""The reconciler on a real catalog: good ways, bad ways, and a kill at any point."""

import asyncio
import random
from collections import Counter

import pytest

from lorebase.serving.catalog import NewEvent
from lorebase.serving.config_sections import UpgradeSection
from lorebase.serving.errors import FailedPreconditionError, UnavailableError
from lorebase.transfer.governor import Governor
from lorebase.transfer.upgrade.history import STAGE_FAILED, STAGE_PROGRESS

from .conftest import MakeWorld
from .upgrade_world import World


def finished_stages(world: World) -> Counter[tuple[str, str, int]]:
    return Counter(
        (str(event.adapter), event.data["stage"], event.data["attempt"])
        for event in world.events()
        if event.kind == "stage_finished"
    )


async def test_all_adapters_move_and_the_old_engine_goes_after_finish(
    make_world: MakeWorld,
) -> None:
    world = make_world("a/one", "a/two")
    world.add_adapter("b/entrusted", entrusted=True)
    upgrade = world.commands.start("next", [], "")
    world.boot()
    await world.completed()
    assert set(world.states().values()) == {"promoted"}
    assert {world.route(name) for name in world.states()} == {"next"}
    assert len(world.metrics.swaps) == 3
    decisions = {one.adapter: one.decision for one in world.migrations()}
    assert decisions["b/entrusted"]["evidence"] == "entrusted"
    assert decisions["a/one"]["evidence"] == "label-free"
    assert decisions["a/one"]["n"] == 205, "200 held out and 5 seeds"
    assert decisions["a/one"]["bare_score"] == 0.0
    assert set(world.catalog.serving_bases()) == {"old", "next"}

    world.cluster.running_foreground = 1
    _, revision = world.commands.finish(upgrade.id)
    assert revision == world.catalog.route_revision()
    assert world.catalog.serving_bases() == ("next",)
    await asyncio.sleep(0.3)
    assert "old" in world.cluster.engines, "a request is in flight there"
    world.cluster.running_foreground = 0
    await world.until(lambda: "old" not in world.cluster.engines)
    assert world.catalog.current_base() == "next"
    await world.until(lambda: set(world.states().values()) == {"retired"})
    await world.until(lambda: world.metrics.by_state == {"retired": 3})


async def test_a_shadow_version_says_where_it_comes_from(make_world: MakeWorld) -> None:
    world = make_world("a/one")
    world.commands.start("next", [], "")
    world.boot()
    await world.completed()
    migration = world.migrations()[0]
    version = world.catalog.get_version(str(migration.shadow_version))
    assert (version.origin, version.base_id, version.rank) == ("transfer", "next", 2)
    assert version.provenance["source_version"] == migration.source_version
    assert version.provenance["examples"] == migration.artifacts["label"]
    labelled = world.store.get_json(migration.artifacts["label"])
    inputs = {one["input"] for one in labelled["training"]}
    assert not inputs & {one["input"] for one in labelled["held_out"]}, "the gate's inputs leaked"
    assert len(labelled["held_out"]) == 200


async def test_a_bad_shadow_is_rejected_and_the_old_version_keeps_answering(
    make_world: MakeWorld,
) -> None:
    world = make_world("a/good", "a/bad")
    world.quality["a/bad"] = [0.3]
    upgrade = world.commands.start("next", [], "")
    world.boot()
    await world.completed()
    assert world.states() == {"a/good": "promoted", "a/bad": "rejected"}
    assert world.route("a/bad") == "old"

    finished, _ = world.commands.finish(upgrade.id)
    assert "a/bad" in str(finished.error)
    await world.until(lambda: world.states()["a/good"] == "retired")
    await asyncio.sleep(0.1)
    assert "old" in world.cluster.engines, "a route leads to it"
    kept = [event for event in world.events() if event.kind == "engine_kept"]
    assert [event.data["adapters"] for event in kept] == [["a/bad"]]


async def test_an_inconclusive_gate_tries_again_with_more_data_and_steps_and_another_seed(
    make_world: MakeWorld,
) -> None:
    world = make_world("a/one")
    world.quality["a/one"] = [0.85, 1.0]
    world.commands.start("next", [], "")
    world.boot()
    await world.completed()
    assert world.states() == {"a/one": "promoted"}
    assert world.migrations()[0].attempt == 2
    first, second = world.workers.jobs
    assert first.seed != second.seed
    sizes = [len(world.store.get_json(job.examples_digest)["training"]) for job in (first, second)]
    assert sizes[1] >= 1.8 * sizes[0]
    steps = [job.recipe.training.steps for job in (first, second)]
    assert steps == [3, 6], "more inputs are worth nothing if seen less often"


async def test_an_operator_overrules_the_gate(make_world: MakeWorld) -> None:
    world = make_world("a/bad")
    world.quality["a/bad"] = [0.3]
    upgrade = world.commands.start("next", [], "")
    world.boot()
    await world.completed()
    world.commands.promote(upgrade.id, ["a/bad"])
    await world.until(lambda: world.states() == {"a/bad": "promoted"})
    await world.completed()
    assert world.route("a/bad") == "next"
    assert world.cluster.warmed, "it is warmed before a client meets it"


async def test_rollback_needs_no_controller(make_world: MakeWorld) -> None:
    world = make_world("a/one", "a/two")
    upgrade = world.commands.start("next", [], "")
    world.boot()
    await world.completed()
    await world.kill()
    assert world.commands.rollback(upgrade.id, ["a/one"]).revision == world.catalog.route_revision()
    assert (world.route("a/one"), world.route("a/two")) == ("old", "next")
    assert world.commands.rollback(upgrade.id, []).upgrade.state == "rolled_back"
    assert world.route("a/two") == "old"
    world.boot()
    await world.until(lambda: world.cluster.engines == {"old"})
    assert world.catalog.serving_bases() == ("old",)


async def test_an_adapter_that_was_rolled_back_can_be_promoted_again(
    make_world: MakeWorld,
) -> None:
    world = make_world("a/one")
    upgrade = world.commands.start("next", [], "")
    world.boot()
    await world.completed()
    world.commands.rollback(upgrade.id, ["a/one"])
    assert world.states() == {"a/one": "rolled_back"}
    world.commands.promote(upgrade.id, ["a/one"])
    await world.until(lambda: world.states() == {"a/one": "promoted"})
    assert world.route("a/one") == "next"


async def test_rolling_back_everything_while_it_runs_leaves_nothing_on_the_next_base(
    make_world: MakeWorld,
) -> None:
    world = make_world("a/one", "a/two", "a/three", max_parallel_migrations=1)
    upgrade = world.commands.start("next", [], "")
    world.boot()
    await world.until(lambda: "promoted" in world.states().values())
    world.commands.rollback(upgrade.id, [])
    await world.until(lambda: world.cluster.engines == {"old"})
    assert {world.route(name) for name in world.states()} == {"old"}
    assert set(world.states().values()) <= {"rolled_back", "aborted"}


async def test_abort_stops_the_rest_and_keeps_what_is_promoted(make_world: MakeWorld) -> None:
    world = make_world("a/one", "a/two", max_parallel_migrations=1)
    world.boot()
    upgrade = world.commands.start("next", [], "")
    await world.until(lambda: "promoted" in world.states().values())
    world.workers.hang = asyncio.Event()
    world.commands.abort(upgrade.id)
    states = world.states()
    assert set(states.values()) <= {"promoted", "aborted"}
    await asyncio.sleep(0.1)
    assert world.states() == states
    assert world.catalog.active_upgrade() is None
    promoted = [name for name, state in states.items() if state == "promoted"]
    assert all(world.route(name) == "next" for name in promoted)
    assert "next" in world.cluster.engines, "promoted adapters answer from it"


async def test_a_pause_holds_everything_and_a_resume_goes_on(make_world: MakeWorld) -> None:
    world = make_world("a/one", "a/two")
    world.workers.hang = asyncio.Event()
    upgrade = world.commands.start("next", [], "")
    world.boot()
    await world.until(lambda: bool(world.workers.jobs))
    world.commands.pause(upgrade.id)
    await world.until(lambda: world.controller is not None and world.deps_paused())
    world.workers.hang.set()
    await asyncio.sleep(0.2)
    assert "promoted" not in world.states().values()
    world.commands.resume(upgrade.id)
    await world.completed()
    assert set(world.states().values()) == {"promoted"}


async def test_a_dying_worker_costs_one_more_try_of_the_stage_only(make_world: MakeWorld) -> None:
    world = make_world("a/one")
    world.workers.failures = 2
    world.commands.start("next", [], "")
    world.boot()
    await world.completed()
    assert world.states() == {"a/one": "promoted"}
    assert len(world.workers.jobs) == 3
    assert len({job.key for job in world.workers.jobs}) == 1, "the same key, so the same result"
    assert set(finished_stages(world).values()) == {1}


async def test_progress_that_can_not_be_written_costs_no_work(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_world("a/one")
    real = world.catalog.append_event

    def append(event: NewEvent) -> None:
        if event.kind == STAGE_PROGRESS:
            raise UnavailableError("the catalog is busy")
        real(event)

    monkeypatch.setattr(world.catalog, "append_event", append)
    world.commands.start("next", [], "")
    world.boot()
    await world.completed()
    assert world.states() == {"a/one": "promoted"}
    assert not [event for event in world.events() if event.kind == STAGE_FAILED]


async def test_trouble_that_lasts_fails_the_migration_and_resume_finishes_it(
    make_world: MakeWorld,
) -> None:
    world = make_world("a/one", "a/two", max_stage_failures=2)
    world.workers.failures = 10
    upgrade = world.commands.start("next", [], "")
    world.boot()
    await world.completed()
    assert set(world.states().values()) == {"failed"}
    assert all("worker died" in str(one.error) for one in world.migrations())
    world.workers.failures = 0
    calls = len(world.models.calls)
    world.commands.resume(upgrade.id)
    await world.until(lambda: set(world.states().values()) == {"promoted"})
    synthesized = [spec for spec, _ in world.models.calls[calls:] if spec.base_id == "old"]
    assert len(synthesized) <= 4, "labels were kept: only the seeds were asked again"


async def test_an_engine_that_does_not_start_fails_the_upgrade_and_resume_tries_again(
    make_world: MakeWorld,
) -> None:
    world = make_world("a/one", max_engine_failures=2)
    world.cluster.failing_starts = 2
    upgrade = world.commands.start("next", [], "")
    world.boot()
    await world.until(lambda: world.upgrade_state() == "failed")
    assert "out of memory" in str(world.catalog.get_upgrade(None).error)
    assert world.route("a/one") == "old"
    world.commands.resume(upgrade.id)
    await world.completed()
    assert world.states() == {"a/one": "promoted"}


async def test_a_base_that_writes_rubbish_starves_the_migration(make_world: MakeWorld) -> None:
    world = make_world("a/one")
    world.models.garbage = True
    world.commands.start("next", [], "")
    world.boot()
    await world.completed()
    migration = world.migrations()[0]
    assert migration.state == "rejected"
    assert "no usable input" in str(migration.error)
    assert world.route("a/one") == "old"


async def test_inputs_that_pass_a_strict_filter_add_up_over_the_attempts(
    make_world: MakeWorld,
) -> None:
    once = UpgradeSection(samples=150, steps=3, max_attempts=2, gather_rounds=1)
    world = make_world(min_training_inputs=12, choices=once)
    world.add_adapter("a/entrusted", entrusted=True)
    world.models.pass_every = 20
    world.commands.start("next", [], "")
    world.boot()
    await world.completed()
    migration = world.migrations()[0]
    assert (migration.state, migration.attempt) == ("promoted", 2)
    ended = {e.data["attempt"]: e.data for e in world.events() if e.data.get("stage") == "filter"}
    assert "inputs passed" in ended[1]["summary"]["starved"], "people see why it was not enough"
    kept = world.store.get_json(migration.artifacts["filter"])["kept"]
    assert 12 <= len(set(kept)) == len(kept)


async def test_label_free_evidence_of_a_collapsed_filter_is_not_trusted(
    make_world: MakeWorld,
) -> None:
    world = make_world("a/blind", min_training_inputs=2)
    world.models.pass_every = 50
    world.commands.start("next", [], "")
    world.boot()
    await world.completed()
    migration = world.migrations()[0]
    assert migration.state == "rejected"
    assert "does not carry over" in str(migration.error)


async def test_an_adapter_without_a_kit_is_rejected_with_the_reason(make_world: MakeWorld) -> None:
    world = make_world("a/one")
    world.add_adapter("a/legacy", kit=False)
    world.commands.start("next", [], "")
    world.boot()
    await world.completed()
    legacy = next(one for one in world.migrations() if one.adapter == "a/legacy")
    assert (legacy.state, legacy.path) == ("rejected", "distill-no-kit")
    assert "no transfer kit" in str(legacy.error)


async def test_an_adapter_deleted_meanwhile_does_not_hold_the_others_up(
    make_world: MakeWorld,
) -> None:
    world = make_world("a/one", "a/gone")
    world.workers.hang = asyncio.Event()
    world.commands.start("next", [], "")
    world.boot()
    await world.until(lambda: bool(world.workers.jobs))
    world.catalog.delete_adapter("a/gone")
    world.workers.hang.set()
    await world.completed()
    assert world.states() == {"a/one": "promoted", "a/gone": "failed"}


@pytest.mark.parametrize("seed", range(4))
async def test_kills_at_random_points_never_redo_a_finished_stage(
    make_world: MakeWorld, seed: int
) -> None:
    rng = random.Random(seed)
    # Killed far more often than a stage may start by default.
    world = make_world("a/one", "a/two", "a/three", max_stage_starts=1000)
    world.quality["a/two"] = [0.85, 1.0]
    world.quality["a/three"] = [0.3]
    world.commands.start("next", [], "")
    world.boot()
    for _ in range(12):
        await asyncio.sleep(rng.uniform(0.0, 0.15))
        await world.reboot()
    await world.completed()
    assert world.states() == {"a/one": "promoted", "a/two": "promoted", "a/three": "rejected"}
    counts = finished_stages(world)
    assert set(counts.values()) == {1}, counts
    assert Counter(e.adapter for e in world.events() if e.kind == "swap") == {
        "a/one": 1,
        "a/two": 1,
    }


async def test_a_stage_that_kills_its_process_is_not_tried_for_ever(
    make_world: MakeWorld,
) -> None:
    world = make_world("a/one", max_stage_starts=3)
    world.workers.hang = asyncio.Event()
    world.commands.start("next", [], "")
    world.boot()
    for started in (1, 2, 3):
        await world.until(lambda started=started: len(world.workers.jobs) == started)
        await world.reboot()
    await world.completed()
    assert world.states() == {"a/one": "failed"}
    assert "its process dies" in str(world.migrations()[0].error)


async def test_a_second_upgrade_waits_for_the_first_to_end(make_world: MakeWorld) -> None:
    world = make_world("a/one")
    first = world.commands.start("next", [], "request-1")
    assert world.commands.start("next", [], "request-1").id == first.id
    with pytest.raises(FailedPreconditionError):
        world.commands.start("next", [], "request-2")


async def test_a_controller_without_its_governor_ends_so_that_it_is_started_again(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_world("a/one")

    async def dies(*_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(Governor, "run", dies)
    world.boot()
    assert world.task is not None
    with pytest.raises(RuntimeError, match="governor has ended"):
        await asyncio.wait_for(world.task, 5)
