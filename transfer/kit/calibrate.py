"""How well a discriminator separates, and where to cut. Pure."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import rankdata

REAL_PASS_RATE = 0.88
"""Share of real inputs that shall pass: losing one good input in eight costs little, letting many
bad ones in costs more."""

QUANTILES = 21
"""Scores of real inputs that a kit keeps: enough for an AUC to within a hundredth."""
RANKS = (np.arange(QUANTILES) + 0.5) / QUANTILES
"""Middles of as many equal parts, so that each score stands for one of them."""

LETS_ALL_PASS: dict[str, Any] = {
    "threshold": 0.0,
    "discriminator_auc": 0.5,
    "real_pass_rate": 1.0,
    "fake_pass_rate": 1.0,
}
"""A kit's figures where there is nothing that could filter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """A threshold and the figures it was chosen by."""

    threshold: float
    auc: float
    real_pass_rate: float
    fake_pass_rate: float
    real_quantiles: tuple[float, ...]
    """Real scores at `QUANTILES` evenly spaced ranks, lowest first."""


def auc(positives: Sequence[float], negatives: Sequence[float]) -> float:
    """Returns the area under the ROC curve (Mann-Whitney, ties count half).

    Raises:
        ValueError: one of the two is empty.
    """
    if not positives or not negatives:
        raise ValueError(
            f"got {len(positives)} positives and {len(negatives)} negatives, expected some of both"
        )
    ranks = rankdata([*positives, *negatives])
    count = len(positives)
    above = float(ranks[:count].sum()) - count * (count + 1) / 2
    return above / (count * len(negatives))


def calibrate(
    real_scores: Sequence[float],
    fake_scores: Sequence[float],
    *,
    real_pass_rate: float = REAL_PASS_RATE,
) -> Calibration:
    """Chooses the threshold: 0 as in the paper, or lower if too few real inputs would pass.

    0 means "rather real than not". A discriminator that separates well has most real inputs far
    above it; cutting there would only make the survivors alike.

    Args:
        real_scores: log p(real) - log p(not real) of held-out real inputs.
        fake_scores: the same of held-out synthetic inputs.
        real_pass_rate: least share of real inputs above the threshold, in (0, 1].

    Raises:
        ValueError: no scores, or scores that are not finite.
    """
    area = auc(real_scores, fake_scores)
    real = np.sort(np.asarray(real_scores, dtype=np.float64))
    fake = np.asarray(fake_scores, dtype=np.float64)
    if not (np.isfinite(real).all() and np.isfinite(fake).all()):
        raise ValueError("got scores that are not finite: the discriminator diverged")
    # At most this many real inputs may fall at or below the threshold.
    may_fail = math.floor(len(real) * (1 - real_pass_rate) + 1e-9)
    lowest_passing = real[may_fail]
    below = real[real < lowest_passing]
    # Halfway to the next lower score, so that rounding elsewhere does not turn a pass around.
    strictest = (lowest_passing + below[-1]) / 2 if len(below) else lowest_passing - 1e-6
    threshold = min(0.0, float(strictest))
    return Calibration(
        threshold=threshold,
        auc=area,
        real_pass_rate=float((real > threshold).mean()),
        fake_pass_rate=float((fake > threshold).mean()),
        real_quantiles=tuple(np.quantile(real, RANKS).round(4).tolist()),
    )
