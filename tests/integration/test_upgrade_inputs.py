"""What an attempt trains on: enough of it, by the right recipe, with what a tenant allows."""

import asyncio
from typing import Any

from lorebase.serving.catalog.records import NEXT_KIT
from lorebase.serving.config_sections import UpgradeSection
from lorebase.transfer.kit import load_kit
from lorebase.transfer.kit.calibrate import LETS_ALL_PASS
from lorebase.transfer.kit.kit import Consent
from lorebase.transfer.upgrade.history import STAGE_FINISHED

from .conftest import MakeWorld
from .upgrade_world import World, answer

CONSENT = Consent(text="A. Owner, for upgrades", given_on="2026-11-22")


async def upgraded(world: World) -> None:
    world.commands.start("next", [], "")
    world.boot()
    await world.completed()


def artifact(world: World, stage: str, adapter: str | None = None) -> Any:
    found = [one for one in world.migrations() if adapter in (None, one.adapter)]
    return world.store.get_json(found[0].artifacts[stage])


async def test_more_is_written_until_enough_has_passed_the_filter(make_world: MakeWorld) -> None:
    world = make_world()
    world.add_adapter("a/skewed", entrusted=True)
    world.models.pass_every = 4
    await upgraded(world)
    [migration] = world.migrations()
    assert (migration.state, migration.attempt) == ("promoted", 1)
    filtered = artifact(world, "filter")
    rounds = filtered["stats"]["rounds"]
    assert len(rounds) > 1
    assert len(filtered["kept"]) >= 150 > rounds[0]["passed"]
    assert len(filtered["scores"]) == len(set(filtered["inputs"])) == len(filtered["inputs"])
    assert len(artifact(world, "label")["training"]) == len(filtered["kept"])


async def test_nothing_more_is_written_where_a_collapsed_filter_decides_anyway(
    make_world: MakeWorld,
) -> None:
    once = UpgradeSection(samples=150, evaluation_samples=200, steps=3, max_attempts=1)
    world = make_world("a/blind", choices=once)
    world.models.pass_every = 50
    await upgraded(world)
    assert world.states() == {"a/blind": "rejected"}
    assert len(artifact(world, "filter")["stats"]["rounds"]) == 1


async def test_nothing_more_is_written_where_enough_has_passed(make_world: MakeWorld) -> None:
    world = make_world("a/one")
    await upgraded(world)
    [only] = artifact(world, "filter")["stats"]["rounds"]
    assert only["written"] == len(artifact(world, "synthesize")["inputs"])
    written = sum(n for model, n in world.models.calls if model.base_id == "next")
    judged = 3 * 205
    assert written - judged < 1.2 * only["written"]


async def test_a_kill_between_two_rounds_repeats_the_filter_only(make_world: MakeWorld) -> None:
    world = make_world()
    world.add_adapter("a/skewed", entrusted=True)
    world.models.pass_every = 4
    complete = world.models.complete
    stuck = asyncio.Event()

    async def hangs_in_the_second_round(model: Any, prompts: Any, sampling: Any) -> Any:
        [migration] = world.migrations()
        if migration.state == "filtering" and sampling.temperature > 0 and not stuck.is_set():
            stuck.set()
            await asyncio.Event().wait()
        return await complete(model, prompts, sampling)

    world.models.complete = hangs_in_the_second_round  # type: ignore[method-assign]
    world.commands.start("next", [], "")
    world.boot()
    await world.until(stuck.is_set)
    await world.reboot()
    await world.completed()
    filtered = artifact(world, "filter")
    assert len(filtered["kept"]) >= 150
    assert len(set(filtered["inputs"])) == len(filtered["inputs"])
    first = artifact(world, "synthesize")["inputs"]
    assert filtered["inputs"][: len(first)] == first, "what was written is not written again"
    done = [e.data["stage"] for e in world.events() if e.kind == STAGE_FINISHED]
    assert (done.count("synthesize"), done.count("filter")) == (1, 1)


async def test_a_kit_without_discriminator_goes_through_all_stages(make_world: MakeWorld) -> None:
    world = make_world("a/whole", "b/legacy")
    world.give_kit("b/legacy", discriminator=False, dataset_size=5, **LETS_ALL_PASS)
    whole, legacy = world.commands.plan("next", []).migrations
    assert (whole.path, legacy.path) == ("distill", "distill-no-kit")
    assert legacy.feasible
    assert legacy.evidence == "label-free"
    assert "no discriminator" in legacy.reason
    assert "lorebase-without-kit" in legacy.reason
    await upgraded(world)
    assert world.states() == {"a/whole": "promoted", "b/legacy": "promoted"}
    jobs = {job.recipe.name: job for job in world.workers.jobs}
    assert set(jobs) == {"lorebase", "lorebase-without-kit"}, "each by its own recipe"
    assert jobs["lorebase-without-kit"].recipe.training.steps == 3, "the configured figures"
    migration = next(one for one in world.migrations() if one.adapter == "b/legacy")
    assert migration.path == "distill-no-kit"
    assert migration.decision is not None
    assert migration.decision["evidence"] == "label-free"
    assert not artifact(world, "filter", "b/legacy")["stats"]["filtered"]
    # Twice the configured samples, of which the recipe keeps a half, beside those held out.
    assert len(artifact(world, "label", "b/legacy")["training"]) == 300
    version = world.catalog.get_version(str(migration.shadow_version))
    carried = load_kit(world.store.path(version.provenance[NEXT_KIT]))
    assert (carried.base_id, carried.discriminator) == ("next", False)


async def test_a_recipe_without_discriminator_is_left_to_kits_without_one(
    make_world: MakeWorld,
) -> None:
    titok = UpgradeSection(recipe="titok", samples=150, evaluation_samples=200, steps=3)
    world = make_world("b/legacy", choices=titok)
    world.give_kit("b/legacy", discriminator=False, dataset_size=5, **LETS_ALL_PASS)
    await upgraded(world)
    assert [job.recipe.name for job in world.workers.jobs] == ["titok"]


async def test_real_inputs_that_a_tenant_allows_are_answered_anew(make_world: MakeWorld) -> None:
    world = make_world("a/one")
    real = tuple(f"item {n}" for n in range(40))
    world.give_kit("a/one", real_inputs=real, consent=CONSENT)
    await upgraded(world)
    filtered, labelled = artifact(world, "filter"), artifact(world, "label")
    assert filtered["real"] == filtered["kept"][:40] == list(real)
    assert filtered["stats"]["real_inputs"] == 40
    assert not set(filtered["inputs"]) & set(real), "none is written again"
    answers = {
        one["input"]: one["target"]
        for part in labelled.values()
        if isinstance(part, list)
        for one in part
    }
    assert all(answers[text] == answer(text) for text in real)
    finished = next(
        e for e in world.events() if e.kind == STAGE_FINISHED and e.data["stage"] == "filter"
    )
    assert finished.data["summary"]["real_inputs"] == 40, "people see it"


async def test_a_second_attempt_shows_accepted_inputs_beside_the_seeds(
    make_world: MakeWorld,
) -> None:
    world = make_world("a/one")
    world.quality["a/one"] = [0.5, 1.0]
    prompts: dict[str, list[str]] = {"first": [], "second": []}
    complete = world.models.complete

    async def watched(model: Any, asked: Any, sampling: Any) -> Any:
        if sampling.temperature > 0:
            attempt = world.migrations()[0].attempt
            prompts["first" if attempt == 1 else "second"] += asked
        return await complete(model, asked, sampling)

    world.models.complete = watched  # type: ignore[method-assign]
    await upgraded(world)
    [migration] = world.migrations()
    assert (migration.state, migration.attempt) == ("promoted", 2)
    assert all(prompt.count("Input: seed") == 5 for prompt in prompts["first"])
    for prompt in prompts["second"]:
        assert prompt.count("Input: seed") == 3, "most of what is shown is real"
        assert prompt.count("Input: item") == 2
    shown = {line for prompt in prompts["second"] for line in prompt.splitlines()}
    assert len([line for line in shown if line.startswith("Input: item")]) > 5
