from dataclasses import replace

import pytest
from pydantic import ValidationError

from lorebase.serving.config_sections import UpgradeSection
from lorebase.transfer.kit import TransferKit
from lorebase.transfer.recipes import RECIPES, LoraChoice, OnPolicy, Selection
from lorebase.transfer.synthesis import FilterPolicy
from lorebase.transfer.upgrade.amounts import held_out_inputs, samples_to_write, wanted_inputs
from lorebase.transfer.upgrade.settings import (
    MAX_RETRY_GROWTH,
    UpgradeSettings,
    configured_recipe,
    retry_growth,
    settings_from,
)

from .transfer_fakes import KIT

ROOMY: TransferKit = replace(KIT, dataset_size=1000, fake_pass_rate=0.5)


def settings(**choices: object) -> UpgradeSettings:
    return UpgradeSettings(choices=UpgradeSection(**choices))


def test_every_retry_doubles_inputs_and_steps_up_to_a_bound() -> None:
    assert [retry_growth(attempt) for attempt in (1, 2, 3, 4, 5, 10)] == [1, 2, 4, 8, 8, 8]
    assert MAX_RETRY_GROWTH == 8
    recipe = configured_recipe(UpgradeSection(steps=70))
    assert recipe.grown(4).training.steps == 280
    epochs = configured_recipe(UpgradeSection(steps=0))
    assert epochs.grown(4) == epochs, "epochs grow with the examples by themselves"


def test_the_recipe_is_the_named_one_as_it_is() -> None:
    for name, recipe in RECIPES.items():
        assert configured_recipe(UpgradeSection(recipe=name)) == recipe
    assert settings().recipe == RECIPES["lorebase"]
    with pytest.raises(ValidationError):
        UpgradeSection(recipe="magic")


def test_the_configurations_figures_replace_the_recipes() -> None:
    changed = configured_recipe(
        UpgradeSection(recipe="trans-lora", steps=70, batch_size=16, learning_rate=5e-3)
    )
    assert (changed.training.steps, changed.training.epochs) == (70, None)
    assert (changed.training.batch_size, changed.training.learning_rate) == (16, 5e-3)
    assert changed.lora == RECIPES["trans-lora"].lora
    paper = configured_recipe(UpgradeSection(recipe="titok", steps=0))
    assert paper.training.epochs == 20.0


def test_a_kit_without_discriminator_takes_the_recipe_that_needs_none() -> None:
    bare = replace(ROOMY, discriminator=False, dataset_size=5)
    ours = settings(samples=250, evaluation_samples=100, steps=70, learning_rate=5e-3)
    assert ours.recipe_for(ROOMY) == ours.recipe
    found = ours.recipe_for(bare)
    assert (found.name, found.training.steps) == ("lorebase-without-kit", 70)
    assert found.training.learning_rate == 5e-3
    assert settings(recipe="titok").recipe_for(bare).name == "titok"
    wanted = wanted_inputs(ours, bare, attempt=1, entrusted=False)
    assert wanted == 2 * 250 + 100, "nobody knows how much data there was"
    assert samples_to_write(ours, bare, wanted, None) == wanted


def test_options_of_a_kits_recipe_leave_what_stands_in_for_the_discriminator() -> None:
    bare = replace(ROOMY, discriminator=False)
    options = {"pool": 3.0, "filter": {"calibrated": False}, "lora": {"initialisation": "eva"}}
    found = settings(recipe_options=options).recipe_for(bare)
    usual = RECIPES["lorebase-without-kit"]
    assert (found.pool, found.filter, found.selection) == (
        usual.pool,
        usual.filter,
        usual.selection,
    )
    assert found.lora.initialisation == "eva"


def test_options_change_single_choices_of_the_recipe() -> None:
    recipe = configured_recipe(
        UpgradeSection(
            steps=70,
            recipe_options={
                "pool": 2,
                "weigh_by_confidence": True,
                "answer_share": 0.5,
                "selection": {"by": "excess", "tokens": 0.7},
                "on_policy": {"rounds": 1},
                "training": {"soft_share": 0.5},
                "lora": {"target_modules": ["q_proj", "v_proj"], "initialisation": "eva"},
                "filter": {"calibrated": False},
            },
        )
    )
    usual = RECIPES["lorebase"]
    assert recipe == replace(
        usual,
        pool=2.0,
        weigh_by_confidence=True,
        answer_share=0.5,
        selection=Selection(by="excess", tokens=0.7),
        on_policy=OnPolicy(rounds=1),
        training=replace(usual.training, soft_share=0.5, steps=70, epochs=None),
        lora=LoraChoice(target_modules=("q_proj", "v_proj"), initialisation="eva"),
        filter=FilterPolicy(calibrated=False),
    )
    assert hash(recipe)
    off = UpgradeSection(recipe="titok", recipe_options={"selection": None, "pool": 1})
    assert configured_recipe(off).selection is None
    kept = UpgradeSection(recipe="titok", recipe_options={"selection": {"samples": 0.25}})
    changed = configured_recipe(kept).selection
    assert changed == replace(RECIPES["titok"].selection, samples=0.25)  # type: ignore[type-var]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pol": 2}, r"unknown option upgrade.recipe_options.pol: expected one of writer, pool"),
        ({"on_policy": {"roundz": 1}}, r"on_policy.roundz: expected one of rounds, step_share"),
        ({"pool": "2"}, r"recipe_options.pool: got '2', expected float"),
        ({"pool": 0.5}, r"got pool 0.5, expected >= 1"),
        ({"weigh_by_confidence": 1}, r"weigh_by_confidence: got 1, expected bool"),
        ({"writer": "me"}, r"writer: got 'me', expected Literal\['next-base', 'source-adapter'\]"),
        ({"lora": {"target_modules": "q_proj"}}, r"target_modules: got 'q_proj', expected tuple"),
        ({"lora": {"dropout": 1.0}}, r"got dropout 1.0"),
        ({"filter": {"least_auc": 2}}, r"got least_auc 2"),
        ({"draw": {"top_p": 0.0}}, r"top_p 0.0"),
        ({"selection": {"samples": 0.5}}, r"recipe_options.selection: 'by' is missing"),
        ({"selection": 3}, r"selection: got 3, expected a mapping with any of by, samples"),
        ({"answer_share": 0}, r"got answer_share 0"),
        ({"name": "x"}, r"recipe_options.name is no option: what sets it is `upgrade.recipe`"),
        ({"training": {"steps": 3}}, r"training.steps is no option: .*`upgrade.steps`"),
        ({"training": {"soft_share": 3}}, r"soft_share 3"),
    ],
)
def test_options_that_make_no_recipe_are_refused_with_the_configuration(
    options: dict[str, object], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        UpgradeSection(recipe_options=options)


def test_an_attempt_wants_what_is_trained_on_and_what_is_held_out() -> None:
    few = settings(samples=250, evaluation_samples=100)
    assert wanted_inputs(few, ROOMY, attempt=1, entrusted=True) == 250
    assert wanted_inputs(few, ROOMY, attempt=1, entrusted=False) == 350
    assert wanted_inputs(few, replace(ROOMY, dataset_size=5), attempt=1, entrusted=False) == 200
    assert wanted_inputs(few, replace(ROOMY, dataset_size=5), attempt=1, entrusted=True) == 16
    wants = [wanted_inputs(few, ROOMY, attempt=n, entrusted=True) for n in (1, 2, 3, 4)]
    assert wants == [250, 250, 500, 1000], "what is carried over counts, so the sum doubles"
    assert held_out_inputs(few, entrusted=True) == 0


def test_titok_wants_twice_as_many_and_draws_no_more_than_that() -> None:
    titok = settings(recipe="titok", samples=250, evaluation_samples=100)
    wanted = wanted_inputs(titok, ROOMY, attempt=1, entrusted=False)
    assert wanted == 600
    assert samples_to_write(titok, ROOMY, wanted, None) == 600
    ours = settings(samples=250)
    assert samples_to_write(ours, ROOMY, 100, None) == 221, "half of them pass"
    assert samples_to_write(ours, ROOMY, 100, 0.25) == 441, "a better guess"


@pytest.mark.parametrize(("cores", "batches"), [(1, 1), (2, 1), (3, 1), (4, 2), (64, 2)])
def test_generation_leaves_half_of_the_cores_to_clients(cores: int, batches: int) -> None:
    assert settings_from(UpgradeSection(), cores).governor.max_batches == batches
