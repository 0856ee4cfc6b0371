import json
from dataclasses import asdict, replace

import pytest

from lorebase.serving.engine.protocol import Completion, Sampling
from lorebase.serving.errors import InvalidArgumentError
from lorebase.transfer.distill import DistillRecipe
from lorebase.transfer.ports import ModelSpec
from lorebase.transfer.recipes import (
    LOREBASE,
    RECIPES,
    TITOK,
    TRANS_LORA,
    LoraChoice,
    OnPolicy,
    Recipe,
    Selection,
    recipe_named,
)
from lorebase.transfer.recipes.run import Cast, gather_examples
from lorebase.transfer.synthesis import MAX_ROUNDS, FilterPolicy

from .transfer_fakes import KIT, Script, done

NEXT, OLD = ModelSpec(base_id="next"), ModelSpec(base_id="old")
CAST = Cast(next_base=NEXT, teacher=OLD, discriminator=ModelSpec(base_id="judge"))
MODULES = ["model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.v_proj", "m.down_proj"]


def test_trans_lora_is_the_papers_where_it_speaks() -> None:
    training = TRANS_LORA.training
    assert TRANS_LORA.writer == "next-base"
    assert TRANS_LORA.filter == FilterPolicy(discriminator=True, calibrated=False, least_auc=0.0)
    assert (training.batch_size, training.learning_rate, training.weight_decay) == (8, 2e-4, 0.0)
    assert training.total_steps(250) == 20 * 250 // 8
    assert training.learning_rate_at(0, 625) == 2e-4, "no warm-up"
    assert training.learning_rate_at(624, 625) == pytest.approx(2e-4 / 625), "linear to zero"
    lora = TRANS_LORA.lora.settings(rank=4, alpha=99, source_modules=["down_proj"], base=MODULES)
    assert lora.target_modules == ("q_proj", "v_proj")
    assert not TRANS_LORA.needs_teacher, "hard labels"


def test_titok_is_its_papers_where_it_speaks() -> None:
    assert TITOK.writer == "source-adapter"
    assert not TITOK.filter.discriminator
    assert TITOK.pool == 2.0
    assert TITOK.selection == Selection(by="excess", samples=0.5, tokens=0.7, group=4)
    assert TITOK.training.total_steps(250) == 125
    assert TITOK.training.learning_rate_at(12, 125) == pytest.approx(5e-5, rel=0.11)
    assert TITOK.training.learning_rate_at(0, 125) == pytest.approx(5e-5 / 12)
    assert TITOK.needs_teacher


def test_ours_is_the_default_and_keeps_the_sources_shape() -> None:
    assert recipe_named("lorebase") is LOREBASE
    shape = LoraChoice().settings(rank=4, alpha=9, source_modules=["v_proj", "x"], base=MODULES)
    assert (shape.rank, shape.alpha, shape.target_modules) == (4, 9, ("v_proj",))
    everything = LoraChoice(target_modules=("all-linear",), alpha_per_rank=2.0)
    shape = everything.settings(rank=4, alpha=9, source_modules=["v_proj"], base=MODULES)
    assert (shape.alpha, shape.target_modules) == (8.0, ("all-linear",))


def test_recipes_are_plain_data() -> None:
    for name, recipe in RECIPES.items():
        assert recipe.name == name
        assert json.loads(json.dumps(asdict(recipe)))["training"]["seed"] == 0
        assert hash(recipe) == hash(replace(recipe))
    names = "lorebase, lorebase-without-kit, titok, trans-lora"
    with pytest.raises(InvalidArgumentError, match=names):
        recipe_named("magic")


def test_training_is_fitted_to_the_size_of_the_base() -> None:
    tiny = TRANS_LORA.trained(steps=10, learning_rate=5e-3)
    assert (tiny.training.steps, tiny.training.epochs) == (10, None)
    assert (tiny.training.learning_rate, tiny.training.batch_size) == (5e-3, 8)
    assert tiny.trained(epochs=3).training.steps is None
    assert TRANS_LORA.training.epochs == 20, "presets stay as they are"


@pytest.mark.parametrize(
    "changes",
    [
        {"selection": Selection(by="excess")},
        {"selection": Selection(by="confidence")},
        {"on_policy": OnPolicy()},
        {"weigh_by_confidence": True},
        {"training": DistillRecipe(steps=1, soft_share=0.5)},
    ],
)
def test_whoever_uses_likelihoods_needs_the_teacher(changes) -> None:  # type: ignore[no-untyped-def]
    assert not Recipe(name="x").needs_teacher
    assert replace(Recipe(name="x"), **changes).needs_teacher


@pytest.mark.parametrize(
    "changes",
    [
        {"pool": 0.5},
        {"selection": Selection(by="excess", samples=0.0)},
        {"selection": Selection(by="excess", tokens=1.5)},
        {"selection": Selection(by="confidence", tokens=0.7)},
        {"on_policy": OnPolicy(rounds=0)},
        {"on_policy": OnPolicy(step_share=0.0)},
    ],
)
def test_senseless_recipes_are_refused(changes) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(InvalidArgumentError):
        Recipe(name="x", **changes)


class World(Script):
    """A next base that writes numbered inputs, a judge, and a teacher that repeats the number."""

    def __init__(self, passing: int = 1) -> None:
        super().__init__(lambda prompt, number: done(""))
        self.passing = passing
        self.written = 0

    async def complete(
        self, model: ModelSpec, prompts: list[str], sampling: Sampling
    ) -> list[Completion]:
        self.calls.append((model, list(prompts), sampling))
        if sampling.choices:
            real = [int(prompt.split("item ")[1].split("\n")[0]) for prompt in prompts]
            return [
                Completion(
                    choice_logprobs=(-0.1, -3.0) if n % self.passing == 0 else (-3.0, -0.1),
                    finish_reason="length",
                )
                for n in real
            ]
        if sampling.temperature > 0:
            numbers = range(self.written, self.written + len(prompts))
            self.written += len(prompts)
            return [done(f" item {n}") for n in numbers]
        return [done(" " + prompt.split("item ")[1].split("\n")[0]) for prompt in prompts]

    def writers(self) -> set[str]:
        return {model.base_id for model, _, sampling in self.calls if sampling.temperature > 0}


async def test_inputs_are_drawn_until_enough_have_passed_and_rejects_never_come_back() -> None:
    world = World(passing=3)
    found = await gather_examples(TRANS_LORA, world, CAST, KIT, count=60, seed=1)
    assert len(found.examples) == 60
    assert all(int(one.target) % 3 == 0 for one in found.examples)
    assert len({one.input for one in found.examples}) == 60
    assert found.stats["rounds"] > 1, "the kit promised that 40 % pass, but a third did"
    assert world.writers() == {"next"}


async def test_gathering_ends_where_nothing_passes() -> None:
    world = World(passing=10**9)
    found = await gather_examples(TRANS_LORA, world, CAST, KIT, count=20, seed=1)
    assert found.stats["rounds"] == MAX_ROUNDS
    assert len(found.examples) <= 1, "number 0 is the only multiple"


async def test_whether_the_discriminator_is_believed_follows_from_all_rounds_together() -> None:
    """A late round's few inputs may all look real by chance; they must not pass unfiltered."""

    class Lucky(World):
        """Rejects half of what it sees; what it keeps of the late inputs looks better than real."""

        async def complete(
            self, model: ModelSpec, prompts: list[str], sampling: Sampling
        ) -> list[Completion]:
            if not sampling.choices:
                return await super().complete(model, prompts, sampling)
            numbers = [int(prompt.split("item ")[1].split("\n")[0]) for prompt in prompts]
            scores = [-1.0 if n % 2 else 0.1 if n < 100 else 9.0 for n in numbers]
            return [Completion(choice_logprobs=(s, 0.0), finish_reason="length") for s in scores]

    kit = replace(KIT, real_score_quantiles=(0.5, 1.0), threshold=0.0, fake_pass_rate=1.0)
    found = await gather_examples(Recipe(name="x"), Lucky(), CAST, kit, count=90, seed=1)
    first, second, *_ = found.stats["by_round"]
    assert (first["written"], first["passed"]) == (100, 50)
    assert second["passed"] < 50 + second["written"], "alone it would not have been filtered"
    assert all(int(one.target) % 2 == 0 for one in found.examples)
    assert len(found.examples) == 90
    assert found.stats["filter"]["scored"] == len(found.judged) == len(found.scores) > 100


async def test_a_writer_that_has_nothing_new_to_say_is_not_asked_round_after_round() -> None:
    class Repeats(World):
        async def complete(
            self, model: ModelSpec, prompts: list[str], sampling: Sampling
        ) -> list[Completion]:
            found = await super().complete(model, prompts, sampling)
            if sampling.temperature == 0:
                return found
            return [done(f" item {(self.written - n) % 20}") for n in range(len(prompts))]

    world = Repeats()
    found = await gather_examples(TRANS_LORA, world, CAST, KIT, count=60, seed=1)
    assert (len(found.examples), found.stats["rounds"]) == (20, 1)


async def test_consented_inputs_are_answered_first_and_count() -> None:
    kit = replace(KIT, schema_version=2, real_inputs=tuple(f"item {n}" for n in range(900, 920)))
    found = await gather_examples(TRANS_LORA, World(), CAST, kit, count=30, seed=1)
    assert [one.input for one in found.examples[:20]] == list(kit.real_inputs)
    assert (len(found.examples), found.stats["real_inputs"]) == (30, 20)
    assert found.stats["written"] == 28, "for the ten that are missing"


async def test_no_answer_has_more_than_its_share() -> None:
    capped = replace(TITOK, answer_share=0.25, pool=1.0)
    world = World()
    kit = replace(KIT, schema_version=2, real_inputs=("item 7", "item  7", " item 7"))
    found = await gather_examples(capped, world, CAST, kit, count=4, seed=1)
    assert [one.target for one in found.examples].count("7") == 1


async def test_each_round_draws_from_a_stream_of_its_own() -> None:
    world = World(passing=3)
    await gather_examples(TRANS_LORA, world, CAST, KIT, count=60, seed=1)
    seeds = [s.seed for _, _, s in world.calls if s.temperature > 0]
    assert len(set(seeds)) == len(seeds)


async def test_titok_lets_the_source_adapter_write_twice_as_many_and_filters_nothing() -> None:
    world = World()
    found = await gather_examples(TITOK, world, CAST, KIT, count=30, seed=1)
    assert len(found.examples) == 60
    assert world.writers() == {"old"}
    assert not [model for model, _, _ in world.calls if model.base_id == "judge"]
    assert {s.top_p for _, _, s in world.calls if s.temperature > 0} == {0.9}
