"""Starting from the source adapter's own weights, on real (tiny, random) models."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lorebase.transfer.distill import DistillRecipe, LoraSettings
from lorebase.transfer.distill.distill import load_base
from lorebase.transfer.kit import DOCUMENT
from lorebase.transfer.ports import Example
from lorebase.transfer.recipes import LOREBASE, LoraChoice
from lorebase.transfer.recipes.models import Shadow
from lorebase.transfer.recipes.shadow import train_shadow

from .tiny_models import make_tiny_base

torch.set_num_threads(1)

EXAMPLES = [Example(input=f"item {n}", target=f"\u00e9{n % 7} yes") for n in range(40)]
OTHERS = [Example(input=f"item {n}", target=f"no {n % 3} q") for n in range(40)]
LORA = LoraSettings(rank=4, alpha=8)
RECIPE = replace(
    LOREBASE,
    lora=LoraChoice(warm_start=True),
    training=DistillRecipe(steps=2, batch_size=8, learning_rate=1e-4, weights_dtype="float32"),
)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    return load_base(make_tiny_base(tmp_path_factory.mktemp("base")))


def _shadow(base: tuple[Any, Any], **changes: Any) -> Shadow:
    model, tokenizer = base
    made = Shadow(
        model=model,
        tokenizer=tokenizer,
        base_id="next",
        lora=LORA,
        format=DOCUMENT,
        max_answer_tokens=8,
    )
    return replace(made, **changes)


def _train(shadow: Shadow, examples: list[Example], out: Path, recipe: Any = RECIPE) -> Any:
    def never() -> Any:
        raise AssertionError("no likelihoods are asked for")

    return train_shadow(recipe, shadow, examples, teacher=never, out_dir=out, seed=1)


@pytest.fixture(scope="module")
def source(base: tuple[Any, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("source")
    training = replace(RECIPE.training, steps=60, learning_rate=1e-2)
    _train(_shadow(base), EXAMPLES, out, replace(RECIPE, training=training))
    return out


def test_on_a_base_of_its_lineage_the_source_adapter_is_the_start(
    base: tuple[Any, Any], source: Path, tmp_path: Path
) -> None:
    told = _train(_shadow(base, source_dir=source), EXAMPLES, tmp_path / "warm")
    warmth = told["warm_start"]
    assert warmth["kept"]
    assert warmth["copied_loss"] < 0.5 * warmth["bare_loss"]
    fresh = _train(_shadow(base), EXAMPLES, tmp_path / "fresh")
    assert "warm_start" not in fresh
    assert told["train"]["last_loss"] < 0.5 * fresh["train"]["last_loss"]
    assert not hasattr(base[0], "peft_config"), "the base is left as it was"


def test_one_that_does_worse_than_the_bare_base_is_not(
    base: tuple[Any, Any], source: Path, tmp_path: Path
) -> None:
    told = _train(_shadow(base, source_dir=source), OTHERS, tmp_path / "warm")
    warmth = told["warm_start"]
    assert (warmth["fits"], warmth["kept"]) == (True, False)
    assert warmth["copied_loss"] >= warmth["bare_loss"]
    _train(_shadow(base), OTHERS, tmp_path / "fresh")
    same = [
        (tmp_path / way / "adapter_model.safetensors").read_bytes() for way in ("warm", "fresh")
    ]
    assert same[0] == same[1]


def test_one_of_another_shape_does_not_fit_and_training_starts_afresh(
    base: tuple[Any, Any], source: Path, tmp_path: Path
) -> None:
    shadow = _shadow(base, source_dir=source, lora=replace(LORA, rank=2))
    told = _train(shadow, EXAMPLES, tmp_path)
    assert told["warm_start"]["fits"] is False
    assert "can't start from the adapter" in told["warm_start"]["reason"]
    assert told["train"]["steps"] == 2


def test_without_being_asked_for_it_is_not_tried(
    base: tuple[Any, Any], source: Path, tmp_path: Path
) -> None:
    recipe = replace(RECIPE, lora=LoraChoice())
    told = _train(_shadow(base, source_dir=source), EXAMPLES, tmp_path, recipe)
    assert "warm_start" not in told
