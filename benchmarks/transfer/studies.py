"""Studies on the development tasks: single changes of a recipe, and the grid of its training."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from lorebase.transfer.distill import ALL_LINEAR
from lorebase.transfer.recipes import (
    LOREBASE,
    TITOK,
    TRANS_LORA,
    LoraChoice,
    OnPolicy,
    Recipe,
    Selection,
)
from lorebase.transfer.synthesis import DrawSettings

from .arms import NO_FILTER, Arm
from .world import World

RATES = (2.5e-3, 5e-3, 1e-2)
LENGTHS: dict[str, tuple[dict[str, Any], ...]] = {
    "lorebase": tuple({"steps": steps, "batch_size": 16} for steps in (60, 120, 240)),
    "trans-lora": tuple({"epochs": epochs} for epochs in (5, 10, 20)),
    "titok": tuple({"epochs": epochs} for epochs in (2, 8, 20)),
}
"""Of the training, by recipe: ours counts steps, the papers count passes over the data. Each gets
three, the paper's own among them."""
GRID_TASKS = ("bank/billing-tickets", "contoso/date-iso-to-dmy", "lexi/reverse-drop-first")
GRID_SEEDS = 2
GRID_SAMPLES = 60
"""Few enough for settings to differ: with 250 nearly all of them learn these tasks fully."""
CHANGES = ("soft", "soft-only", "on-policy", "on-policy-hard", "confidence", "contrast", "eva")
"""Single changes of our recipe that `--studies` compares with it, on the same tasks."""
CHANGE_SEEDS = 3
CHANGE_SAMPLES = 16
"""Fewer still: all changes start from the same examples, and ours reaches 0.99 with 60."""


def _variant(name: str, base: Recipe = LOREBASE, **changes: Any) -> Arm:
    """Returns an arm with single changes; those of the training go by `training`."""
    training = tuple(changes.pop("training", {}).items())
    return Arm(
        name=name,
        label=name,
        data="synthetic",
        recipe=replace(base, **changes),
        training=training,
    )


def _passes(epochs: int, rate: float) -> dict[str, Any]:
    return {"epochs": epochs, "learning_rate": rate}


def _grid(base: Recipe) -> dict[str, Arm]:
    """Returns a recipe's arms, one for each length and rate, by name."""
    return {
        arm.name: arm
        for length in LENGTHS[base.name]
        for rate in RATES
        for arm in [
            _variant(
                f"{base.name}-{length.get('steps') or length.get('epochs')}-{rate:g}",
                base,
                training=length | {"learning_rate": rate},
            )
        ]
    }


GRID: dict[str, dict[str, Arm]] = {base.name: _grid(base) for base in (LOREBASE, TRANS_LORA, TITOK)}
"""For each recipe as many settings of its training."""


def used_setting(world: World, recipe: str) -> str:
    """Returns the name of the grid's arm that the table's recipe is trained as; "" if none is."""
    table = next(iter(GRID[recipe].values()))
    wanted = replace(table, training=()).tuned(world).recipe
    same = (name for name, arm in GRID[recipe].items() if arm.tuned(world).recipe == wanted)
    return next(same, "")


CONFIDENT = Selection(by="confidence", samples=0.5)
WRITTEN_BY_NEXT = replace(TITOK, writer="next-base", draw=DrawSettings())
_SOFT = {"soft_share": 0.5}

STUDIES: dict[str, Arm] = {
    arm.name: arm
    for arm in (
        _variant("all-linear", lora=LoraChoice(target_modules=ALL_LINEAR)),
        _variant("q-v", lora=LoraChoice(target_modules=("q_proj", "v_proj"))),
        _variant("confidence", weigh_by_confidence=True),
        _variant("contrast", selection=Selection(by="excess", samples=1.0, tokens=0.7, group=16)),
        _variant("confident", pool=2.0, selection=CONFIDENT),
        _variant("unfiltered-confident", filter=NO_FILTER, pool=2.0, selection=CONFIDENT),
        _variant("unfiltered-weighed", filter=NO_FILTER, weigh_by_confidence=True),
        _variant("soft", training=_SOFT),
        _variant("soft-only", training={"soft_share": 1.0}),
        _variant("soft-hot", training={"soft_share": 0.5, "soft_temperature": 10.0}),
        _variant("on-policy", on_policy=OnPolicy()),
        _variant("on-policy-hard", on_policy=OnPolicy(soft_share=0.0)),
        _variant("eva", lora=LoraChoice(initialisation="eva")),
        _variant("cool", draw=DrawSettings(temperature=0.8)),
        _variant("half-rate", training={"learning_rate": 2.5e-3}),
        _variant("twice-the-steps", training={"steps": 240}),
        *(arm for arms in GRID.values() for arm in arms.values()),
        _variant("trans-lora-letter", TRANS_LORA, training={"learning_rate": 2e-4}),
        *(
            _variant(f"titok-next-{epochs}", WRITTEN_BY_NEXT, training=_passes(epochs, 5e-3))
            for epochs in (2, 8, 20)
        ),
        _variant(
            "titok-all", WRITTEN_BY_NEXT, pool=1.0, selection=None, training=_passes(20, 5e-3)
        ),
        _variant(
            "titok-tokens",
            WRITTEN_BY_NEXT,
            pool=1.0,
            selection=Selection(by="excess", samples=1.0, tokens=0.7),
            training=_passes(20, 5e-3),
        ),
    )
}
"""Single changes of a recipe, for studies on the development tasks."""
