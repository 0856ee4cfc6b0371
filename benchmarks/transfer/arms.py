"""The arms of the comparison: what each one trains on, and by which recipe."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from lorebase.transfer.distill import ALL_LINEAR
from lorebase.transfer.recipes import (
    LOREBASE,
    TITOK,
    TRANS_LORA,
    WITHOUT_KIT,
    LoraChoice,
    OnPolicy,
    Recipe,
    Selection,
)
from lorebase.transfer.synthesis import DrawSettings, FilterPolicy

from .world import World, plain

Data = Literal["none", "seeds", "random", "synthetic", "real"]
SAMPLES = 250
"""|D| of the paper's experiments: examples that an arm may train on at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One way to get an adapter, or to do without."""

    name: str
    label: str
    """For charts."""
    data: Data
    """What is trained on; `none` trains nothing."""
    recipe: Recipe | None = None
    legacy: bool = False
    """Without a kit: five seeds are all that is known of the data."""
    training: tuple[tuple[str, Any], ...] = ()
    """Changes of the training, after those that the bases' size asks for."""

    def tuned(self, world: World) -> Arm:
        """Returns the arm with its training fitted to the size of the bases."""
        if self.recipe is None:
            return self
        changes = {**world.tuning.get(self.recipe.name, {}), **dict(self.training)}
        return replace(self, recipe=self.recipe.trained(**changes), training=())

    def identity(self) -> dict[str, Any]:
        """Returns what decides its outcome, beside task, bases, seed and number of samples.

        Options at their defaults are left out, so that one that is added changes no key.
        """
        told: dict[str, Any] = plain(self)
        told.pop("label")
        return told


NO_FILTER = FilterPolicy(discriminator=False)

ARMS: dict[str, Arm] = {
    arm.name: arm
    for arm in (
        Arm(name="source", label="source adapter", data="none"),
        Arm(name="zero-shot", label="next base, no shots", data="none"),
        Arm(name="few-shot", label="next base, 5 shots", data="none"),
        Arm(name="seeds-only", label="5 seeds only", data="seeds", recipe=LOREBASE),
        Arm(name="random", label="random inputs", data="random", recipe=LOREBASE),
        Arm(
            name="unfiltered",
            label="ours without filter",
            data="synthetic",
            recipe=replace(LOREBASE, filter=NO_FILTER),
        ),
        Arm(
            name="legacy",
            label="ours without kit",
            data="synthetic",
            recipe=WITHOUT_KIT,
            legacy=True,
        ),
        Arm(name="trans-lora", label="Trans-LoRA", data="synthetic", recipe=TRANS_LORA),
        Arm(name="titok", label="TiTok", data="synthetic", recipe=TITOK),
        Arm(name="lorebase", label="lorebase", data="synthetic", recipe=LOREBASE),
        Arm(name="oracle", label="real data", data="real", recipe=LOREBASE),
    )
}
"""The table's arms. All that is not a recipe of its own is trained as `lorebase` is, so that only
the data differs."""


TABLE = tuple(ARMS)
CURVE = ("unfiltered", "trans-lora", "lorebase")
"""Arms whose recovery is drawn against the number of samples."""


def _grid(epochs: int, rate: float) -> dict[str, Any]:
    return {"epochs": epochs, "learning_rate": rate}


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
        _variant("trans-lora-letter", TRANS_LORA, training={"learning_rate": 2e-4}),
        *(
            _variant(f"titok-{epochs}-{rate:g}", TITOK, training=_grid(epochs, rate))
            for epochs in (2, 8, 20)
            for rate in (2.5e-3, 5e-3)
        ),
        *(
            _variant(f"titok-next-{epochs}", WRITTEN_BY_NEXT, training=_grid(epochs, 5e-3))
            for epochs in (2, 8, 20)
        ),
        _variant("titok-all", WRITTEN_BY_NEXT, pool=1.0, selection=None, training=_grid(20, 5e-3)),
        _variant(
            "titok-tokens",
            WRITTEN_BY_NEXT,
            pool=1.0,
            selection=Selection(by="excess", samples=1.0, tokens=0.7),
            training=_grid(20, 5e-3),
        ),
        _variant("trans-lora-2.5e-3", TRANS_LORA, training={"learning_rate": 2.5e-3}),
    )
}
"""Single changes of a recipe, for studies on the development tasks."""
