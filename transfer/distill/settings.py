"""What a distillation trains and how, as data."""

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from lorebase.serving.errors import InvalidArgumentError

ALL_LINEAR = ("all-linear",)
"""Every linear layer but the output head."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraSettings:
    """Shape of the adapter to train."""

    rank: int
    alpha: float
    target_modules: tuple[str, ...] = ALL_LINEAR
    """Names of modules, or `("all-linear",)`."""
    dropout: float = 0.0
    initialisation: Literal["random", "eva"] = "random"
    """`eva` starts from the directions in which the training inputs' activations vary most."""

    def __post_init__(self) -> None:
        """Checks the bounds."""
        if self.rank < 1 or self.alpha <= 0 or not self.target_modules:
            raise InvalidArgumentError(
                f"got rank {self.rank}, alpha {self.alpha}, {len(self.target_modules)} target "
                "modules; expected rank >= 1, alpha > 0 and at least one module"
            )
        if not 0 <= self.dropout < 1:
            raise InvalidArgumentError(f"got dropout {self.dropout}, expected 0 <= dropout < 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillRecipe:
    """How the adapter is trained. Either `steps` or `epochs` is set."""

    steps: int | None = None
    epochs: float | None = None
    batch_size: int = 16
    learning_rate: float = 4e-3
    """Peak. Tiny bases need far more than the 1e-4 to 2e-4 of big ones."""
    warmup_steps: int = 10
    warmup_share: float = 0.0
    """Of all steps; the longer of the two warm-ups counts."""
    final_learning_rate_share: float = 0.05
    """The linear decay ends at this share of the peak."""
    weight_decay: float = 0.0
    max_gradient_norm: float = 1.0
    """0 does not clip."""
    soft_share: float = 0.0
    """Weight of the chunk loss, 0 to 1; the rest is cross entropy on the answers."""
    soft_temperature: float = 1.0
    """Of the chunk loss."""
    seed: int = 0
    max_tokens: int = 2048
    """Longer examples are left out and counted."""
    save_every: int = 0
    """Steps between resume points in the output directory; 0 writes none."""
    weights_dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Of the saved adapter; training is fp32."""

    def __post_init__(self) -> None:
        """Checks the bounds."""
        if (self.steps is None) == (self.epochs is None):
            raise InvalidArgumentError(
                f"got steps={self.steps} and epochs={self.epochs}, expected exactly one of them"
            )
        if (self.steps or self.epochs or 0) <= 0 or self.batch_size < 1 or self.learning_rate <= 0:
            raise InvalidArgumentError(
                "expected steps or epochs, batch_size and learning_rate above 0, got "
                f"{self.steps or self.epochs}, {self.batch_size}, {self.learning_rate}"
            )

        if not 0 <= self.soft_share <= 1 or self.soft_temperature <= 0:
            raise InvalidArgumentError(
                f"got soft_share {self.soft_share} and soft_temperature {self.soft_temperature}, "
                "expected a share from 0 to 1 and a temperature above 0"
            )

    def total_steps(self, examples: int) -> int:
        """Returns the number of optimizer steps over `examples` training examples."""
        if self.steps is not None:
            return self.steps
        epochs = self.epochs or 0.0
        return max(1, math.ceil(epochs * examples / min(self.batch_size, examples)))

    def learning_rate_at(self, step: int, total: int) -> float:
        """Returns the learning rate of a step, counted from 0: warm-up, then linear decay."""
        warmup = max(self.warmup_steps, round(self.warmup_share * total))
        warm = min(1.0, (step + 1) / warmup) if warmup else 1.0
        decay = 1.0 - (1.0 - self.final_learning_rate_share) * step / max(1, total)
        return self.learning_rate * warm * decay


def present_modules(wanted: Collection[str], base_modules: Collection[str]) -> tuple[str, ...]:
    """Returns those of `wanted` that a base has, else all linear layers.

    Args:
        wanted: Target modules of the source adapter, by last name (`q_proj`).
        base_modules: Full module names of the next base.
    """
    last = {name.rpartition(".")[2] for name in base_modules}
    found = tuple(sorted(name for name in set(wanted) if name.rpartition(".")[2] in last))
    return found or ALL_LINEAR
