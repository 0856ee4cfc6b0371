from dataclasses import replace

import pytest
from pydantic import ValidationError

from lorebase.serving.config_sections import UpgradeSection
from lorebase.transfer.kit import TransferKit
from lorebase.transfer.recipes import RECIPES
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
