"""How an adapter is converted, and what became of it, as data."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from lorebase.serving.errors import InvalidArgumentError

from ..evaluate import GatePolicy
from .compare import Likeness


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvertSettings:
    """How an adapter is converted."""

    max_rank: int = 64
    """Largest rank of the result: what engines reserve memory for."""
    min_kept_energy: float = 0.99
    """Least share of the change (squared norm, over all layers) that the result must hold."""
    tolerance: float = 1e-9
    """Share that may be lost where the rank would allow more: below it is fp32 rounding."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the saved weights. fp32 keeps an exact conversion exact."""

    def __post_init__(self) -> None:
        """Checks the bounds."""
        if self.max_rank < 1 or not 0 <= self.min_kept_energy <= 1:
            raise InvalidArgumentError(
                f"got max_rank={self.max_rank} and min_kept_energy={self.min_kept_energy}, "
                "expected at least 1 and a share from 0 to 1"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversionReport:
    """What became of an adapter."""

    peft_type: str
    path: str
    """`keep`, `convert` or `distill`."""
    source_sha256: str
    """Of the original's files."""
    base_revision: str
    exact: bool
    """Whether nothing but rounding was lost."""
    kept_energy: float
    """Share of the change that the result holds, over all layers."""
    kept_energy_least: float
    """The same of the layer that lost most."""
    ranks: Mapping[str, int]
    """Rank by kind of layer."""
    parameters: int
    likeness: Likeness | None
    """How alike original and result answer; None for a plain LoRA."""

    def as_dict(self) -> dict[str, Any]:
        """Returns plain data."""
        return asdict(self)

    def page(self) -> str:
        """Returns a README that says where the adapter comes from; it travels with the weights."""
        return _page(self.as_dict())


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillSettings:
    """How a LoRA learns an adapter's answers; the defaults are the paper's, for large bases."""

    rank: int = 16
    samples: int = 250
    """Synthetic inputs to train on."""
    evaluation_samples: int = 200
    """Further ones, held out for the gate."""
    steps: int = 625
    """20 passes over 250 inputs in batches of 8."""
    batch_size: int = 8
    learning_rate: float = 2e-4
    margin: float = GatePolicy().label_free_margin
    """Share of held-out answers that may change."""
    accept_loss: bool = False
    """Whether the result is wanted although the gate refuses it."""
    seed: int = 0

    def __post_init__(self) -> None:
        """Checks the bounds."""
        counts = (self.rank, self.samples, self.evaluation_samples, self.steps, self.batch_size)
        if min(counts) < 1 or self.learning_rate <= 0:
            raise InvalidArgumentError(
                f"got {counts} as rank, samples, evaluation samples, steps and batch size and "
                f"learning rate {self.learning_rate}, expected at least 1 each and a rate above 0"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class DistilledReport:
    """What was trained and how well it imitates."""

    peft_type: str
    path: str
    source_sha256: str
    base_revision: str
    """Of the result's base."""
    inputs: int
    """Trained on."""
    training: Mapping[str, Any]
    rank: int
    parameters: int
    decision: Mapping[str, Any]
    """The gate's, label-free: agreement with the original on held-out inputs."""

    def as_dict(self) -> dict[str, Any]:
        """Returns plain data."""
        return asdict(self)

    def page(self) -> str:
        """Returns a README that says where the adapter comes from."""
        return _page(self.as_dict())


def _page(values: Mapping[str, Any]) -> str:
    text = json.dumps(values, indent=2, sort_keys=True)
    return f"# Converted adapter\n\nMade by `lorebase adapter convert`.\n\n```json\n{text}\n```\n"
