"""A recipe: every choice of a transfer, from whose inputs to which loss, in one frozen object.

The stages of an upgrade, the benchmark and tests read the same object, so that what is compared
is what is run.
"""

from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from lorebase.serving.errors import InvalidArgumentError

from ..distill.settings import ALL_LINEAR, DistillRecipe, LoraSettings, present_modules
from ..synthesis.draw import DrawSettings
from ..synthesis.filter import FilterPolicy

Writer = Literal["next-base", "source-adapter"]
"""Who writes the inputs: the base that will serve them, or the source base with the adapter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which of the labelled inputs, and which of their answers' tokens, are trained on.

    `excess` is what the source adapter adds to its base, log p with it - log p without;
    `confidence` is the probability that the source adapter gives its own answer.
    """

    by: Literal["excess", "confidence"]
    samples: float = 0.5
    """Share of the labelled inputs that is kept: those with the largest mean excess or the largest
    confidence."""
    sure: float = 0.9
    """Confidence from which samples count alike, so that those kept are not just the easiest: of
    them the first drawn are kept, the others only by their confidence and to fill up."""
    tokens: float = 1.0
    """Share of the answers' tokens that is trained on: those with the largest excess."""
    group: int = 4
    """Answers whose tokens compete for a place."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OnPolicy:
    """Rounds after the main training in which the shadow learns from its own mistakes.

    It answers its inputs; where it disagrees with the teacher, it learns the teacher's answer,
    and by the chunk loss how likely the teacher finds its own.
    """

    rounds: int = 2
    """At most; a round without disagreement is the last."""
    step_share: float = 0.25
    """Steps of a round, of the main training's."""
    temperature: float = 1.0
    """Of the shadow's answers; 0 is greedy."""
    learning_rate_share: float = 0.5
    """Of the main training's peak."""
    soft_share: float = 0.5
    """Weight of the chunk loss on the shadow's own answers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraChoice:
    """Shape of the shadow; its rank is always the source's."""

    target_modules: tuple[str, ...] | None = None
    """None takes the source's, as far as the next base has them."""
    alpha_per_rank: float | None = None
    """None takes the source's alpha."""
    dropout: float = 0.0
    initialisation: Literal["random", "eva"] = "random"
    """See LoraSettings."""
    warm_start: bool = False
    """Whether training starts from the source adapter's own weights where they fit the next base
    and beat the bare base there; see warm_start.py."""

    def __post_init__(self) -> None:
        """Checks the bounds."""
        if not 0 <= self.dropout < 1:
            raise InvalidArgumentError(f"got dropout {self.dropout}, expected 0 to below 1")
        if self.alpha_per_rank is not None and self.alpha_per_rank <= 0:
            raise InvalidArgumentError(
                f"got alpha_per_rank {self.alpha_per_rank}, expected above 0"
            )
        if self.target_modules is not None and not self.target_modules:
            raise InvalidArgumentError("got no target modules, expected some, or none named")

    def settings(
        self, *, rank: int, alpha: float, source_modules: Collection[str], base: Collection[str]
    ) -> LoraSettings:
        """Returns the shape for one source adapter.

        Args:
            rank: of the source.
            alpha: of the source.
            source_modules: target modules of the source, by last name (`q_proj`).
            base: full module names of the next base.
        """
        wanted = self.target_modules or tuple(source_modules)
        return LoraSettings(
            rank=rank,
            alpha=alpha if self.alpha_per_rank is None else self.alpha_per_rank * rank,
            target_modules=wanted if wanted == ALL_LINEAR else present_modules(wanted, base),
            dropout=self.dropout,
            initialisation=self.initialisation,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How an adapter is transferred. Plain data: it is stored, hashed and pickled."""

    name: str
    writer: Writer = "next-base"
    pool: float = 1.0
    """Inputs that are gathered for each that is to be trained on."""
    draw: DrawSettings = field(default_factory=DrawSettings)
    """How inputs are sampled."""
    filter: FilterPolicy = field(default_factory=FilterPolicy)
    """How the kit's discriminator is used."""
    answer_share: float = 1.0
    """Largest share of the labelled inputs that may have one and the same answer; what is above it
    is not trained on. 1 drops nothing."""
    selection: Selection | None = None
    """None trains on all tokens of all labelled inputs."""
    weigh_by_confidence: bool = False
    """Whether examples count by the teacher's probability of its answer."""
    on_policy: OnPolicy | None = None
    lora: LoraChoice = field(default_factory=LoraChoice)
    training: DistillRecipe = field(default_factory=lambda: DistillRecipe(epochs=20))
    """Optimizer, schedule, length and losses; its seed is set for each run."""

    def __post_init__(self) -> None:
        """Checks the bounds."""
        if self.pool < 1:
            raise InvalidArgumentError(f"recipe {self.name}: got pool {self.pool}, expected >= 1")
        if not 0 < self.answer_share <= 1:
            raise InvalidArgumentError(
                f"recipe {self.name}: got answer_share {self.answer_share}, expected above 0 and "
                "at most 1"
            )
        selection, rounds = self.selection, self.on_policy
        if selection and not (0 < selection.samples <= 1 and 0 < selection.tokens <= 1):
            raise InvalidArgumentError(
                f"recipe {self.name}: got shares {selection.samples} and {selection.tokens}, "
                "expected above 0 and at most 1"
            )
        if selection and selection.tokens < 1 and selection.by != "excess":
            raise InvalidArgumentError(
                f"recipe {self.name}: tokens are selected by excess, so samples must be, too"
            )
        if rounds and not (rounds.rounds >= 1 and 0 < rounds.step_share <= 1):
            raise InvalidArgumentError(
                f"recipe {self.name}: got {rounds.rounds} on-policy rounds of {rounds.step_share} "
                "of the steps, expected at least one round and a share above 0, at most 1"
            )

    @property
    def needs_teacher(self) -> bool:
        """Whether training asks the teacher for likelihoods, so that it must be loaded there."""
        return bool(
            self.selection
            or self.on_policy
            or self.weigh_by_confidence
            or self.training.soft_share > 0
        )

    def grown(self, factor: int) -> "Recipe":
        """Returns the recipe with `factor` times the steps; epochs grow with the examples."""
        steps = self.training.steps
        return self if steps is None else self.trained(steps=steps * factor)

    def trained(self, **changes: Any) -> "Recipe":
        """Returns the recipe with other values in `training`, for another size of base.

        `steps` and `epochs` replace each other.
        """
        if changes.get("steps") is not None:
            changes.setdefault("epochs", None)
        elif changes.get("epochs") is not None:
            changes.setdefault("steps", None)
        return replace(self, training=replace(self.training, **changes))
