"""The arms of the comparison: what each one trains on, and by which recipe."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from lorebase.transfer.recipes import LOREBASE, TITOK, TRANS_LORA, WITHOUT_KIT, Recipe
from lorebase.transfer.synthesis import FilterPolicy

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
    everything: bool = False
    """Trains on all real data there is, however many samples the others get."""
    hops: int = 1
    """2 goes on to a further base, or back to the source base, with the kit that came along."""
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
        Arm(name="oracle", label="all real data", data="real", recipe=LOREBASE, everything=True),
        Arm(name="hop2", label="lorebase, two hops", data="synthetic", recipe=LOREBASE, hops=2),
        Arm(name="real", label="as many real", data="real", recipe=LOREBASE),
    )
}
"""The table's arms and `real`, the curve's. All that is not a recipe of its own is trained as
`lorebase` is, so that only the data differs."""

TABLE = tuple(name for name in ARMS if name != "real")
CURVE = ("unfiltered", "trans-lora", "titok", "lorebase", "legacy", "real")
"""Arms whose recovery is drawn against the number of samples. At the table's own number `real` is
not run again: the oracle stands there."""
