"""Paired statistics of two systems judged on the same inputs. Pure.

Notation: n inputs; `gains` of them are right under the new system only, `losses` right under the
old one only. The difference of the two accuracies is (gains - losses) / n; inputs on which both
agree carry no information about its sign, only about its size.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq
from scipy.special import gammaln, xlogy
from scipy.stats import norm
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.proportion import proportion_confint

MAX_REQUIRED = 20_000
"""More inputs than anybody will run."""
MAX_EXACT = 1_000
"""Up to so many inputs the level is exact. Beyond, the score statistic's normal law exceeds it by
less than a hundredth of itself, and enumerating the tables would take seconds."""
_NUISANCE_POINTS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Paired:
    """The 2x2 table of two systems on the same inputs."""

    n: int
    old_right: int
    new_right: int
    gains: int
    losses: int

    @property
    def difference(self) -> float:
        """New accuracy minus old accuracy."""
        return (self.gains - self.losses) / self.n

    @property
    def loss_rate(self) -> float:
        """Share of all inputs that the old system had right and the new one has not."""
        return self.losses / self.n


def paired(old: Sequence[bool], new: Sequence[bool]) -> Paired:
    """Counts agreements and disagreements.

    Raises:
        ValueError: nothing to compare, or sequences of different lengths.
    """
    if not old or len(old) != len(new):
        raise ValueError(
            f"got {len(old)} and {len(new)} judgements, expected equally many, at least one"
        )
    return Paired(
        n=len(old),
        old_right=sum(old),
        new_right=sum(new),
        gains=sum(b and not a for a, b in zip(old, new, strict=True)),
        losses=sum(a and not b for a, b in zip(old, new, strict=True)),
    )


def score_statistic(
    gains: npt.ArrayLike, losses: npt.ArrayLike, n: int, difference: float
) -> npt.NDArray[np.float64]:
    """Returns Tango's score statistic for H0: new - old accuracy = `difference`.

    z = (gains - losses - n d) / sqrt(n (2 q + d (1 - d))), where q is the maximum-likelihood
    estimate of the probability of a loss under H0 (Tango, Stat. Med. 1998, 17:891-908). Unlike
    Wald's, it holds its level at few or no disagreements. Vectorised over gains and losses.
    """
    b = np.asarray(gains, dtype=np.float64)
    c = np.asarray(losses, dtype=np.float64)
    linear = -b - c + (2.0 * n - b + c) * difference
    constant = -c * difference * (1.0 - difference)
    root = np.sqrt(np.maximum(linear**2 - 8.0 * n * constant, 0.0))
    q = np.maximum((root - linear) / (4.0 * n), max(0.0, -difference))
    variance = n * (2.0 * q + difference * (1.0 - difference))
    distance = b - c - n * difference
    with np.errstate(divide="ignore", invalid="ignore"):
        z = distance / np.sqrt(np.maximum(variance, 0.0))
    # No variance: H0 is either exactly what was seen or impossible.
    return np.where(distance == 0.0, 0.0, z)


def difference_interval(table: Paired, confidence: float) -> tuple[float, float]:
    """Returns the two-sided score interval of new - old accuracy.

    Each end leaves (1 - confidence) / 2 outside.
    """
    critical = float(norm.ppf(0.5 + confidence / 2.0))

    def excess(difference: float, target: float) -> float:
        return float(score_statistic(table.gains, table.losses, table.n, difference)) - target

    edge = 1.0 - 1e-9
    seen = table.difference
    # scipy types brentq by its rarest form, which also returns a report.
    low: Any = -1.0 if seen <= -edge else brentq(excess, -edge, seen, args=(critical,))
    high: Any = 1.0 if seen >= edge else brentq(excess, seen, edge, args=(-critical,))
    return float(low), float(high)


def rate_upper_bound(events: int, n: int, confidence: float) -> float:
    """Returns the exact (Clopper-Pearson) upper end of the two-sided interval of a rate."""
    bounds: Any = proportion_confint(events, n, alpha=1.0 - confidence, method="beta")
    return float(bounds[1])


def mcnemar_p_value(table: Paired) -> float:
    """Returns the exact two-sided p-value of "both systems are equally accurate"."""
    both = table.new_right - table.gains
    neither = table.n - both - table.gains - table.losses
    result: Any = mcnemar([[both, table.losses], [table.gains, neither]], exact=True)
    return float(result.pvalue)


@lru_cache(maxsize=512)
def critical_value(n: int, margin: float, alpha: float) -> float:
    """Returns what the score statistic must exceed to show "not worse by `margin`" at level alpha.

    Exact and unconditional: of systems that are worse by exactly the margin, at most a share
    alpha exceeds it, however many inputs they gain and lose (the largest over a grid of loss
    rates). The normal quantile alone does not promise that for some n.

    Args:
        n: inputs.
        margin: non-inferiority margin, above 0.
        alpha: one-sided level.
    """
    if n > MAX_EXACT:
        return float(norm.isf(alpha))
    # From losses only to no input that stays: dense at both ends, where tables are lumpy.
    share = (1.0 - np.cos(np.linspace(0.0, math.pi, _NUISANCE_POINTS))) / 2.0
    gain_rates = (1.0 - margin) / 2.0 * share
    return max(_largest_excluded(n, margin, float(rate), alpha) for rate in gain_rates)


def _largest_excluded(n: int, margin: float, gain_rate: float, alpha: float) -> float:
    """Returns the largest z such that values from z up have a probability above alpha."""
    gains, losses, p = _tables(n, gain_rate, gain_rate + margin)
    z = np.round(score_statistic(gains, losses, n, -margin), 9)
    order = np.argsort(-z)
    z, tail = z[order], np.cumsum(p[order])
    # Equal values stand and fall together: look at the last of each run.
    last = np.append(z[1:] != z[:-1], True)
    return float(z[last][np.searchsorted(tail[last], alpha, side="right")])


def is_non_inferior(table: Paired, margin: float, alpha: float) -> bool:
    """Returns whether "the new system is not worse by `margin`" is shown at level alpha."""
    return bool(non_inferior(table.gains, table.losses, table.n, margin, alpha))


def non_inferior(
    gains: npt.ArrayLike, losses: npt.ArrayLike, n: int, margin: float, alpha: float
) -> npt.NDArray[np.bool_]:
    """Returns the same for many tables of n inputs at once."""
    # Rounded, so that tables which tie in exact arithmetic tie here.
    z = np.round(score_statistic(gains, losses, n, -margin), 9)
    return np.asarray(z > critical_value(n, margin, alpha))


def promotion_power(
    n: int,
    *,
    margin: float,
    flip_rate: float,
    alpha: float,
    difference: float = 0.0,
    max_losses: int | None = None,
) -> float:
    """Returns the exact probability that non-inferiority is shown.

    Args:
        n: inputs.
        margin: non-inferiority margin.
        flip_rate: share of inputs that the new system loses; it gains that + `difference`.
        alpha: one-sided level, see `critical_value`.
        difference: true accuracy difference; -margin gives the rate of false promotions.
        max_losses: more losses than this are no pass either; None sets no bound.

    Raises:
        ValueError: rates that no system has.
    """
    critical = critical_value(n, margin, alpha)
    return _power(
        n, margin, flip_rate, difference, critical, n if max_losses is None else max_losses
    )


def _power(
    n: int, margin: float, flip_rate: float, difference: float, critical: float, max_losses: int
) -> float:
    gain_rate = flip_rate + difference
    if gain_rate < 0 or flip_rate < 0 or gain_rate + flip_rate > 1 + 1e-12:
        raise ValueError(
            f"got flip_rate {flip_rate} and difference {difference}, expected rates of gains "
            "and losses that are not negative and at most 1 together"
        )
    gains, losses, p = _tables(n, gain_rate, flip_rate)
    shown = np.round(score_statistic(gains, losses, n, -margin), 9) > critical
    return float(min(1.0, p[shown & (losses <= max_losses)].sum()))


@lru_cache(maxsize=512)
def required_n(margin: float, flip_rate: float, alpha: float, power: float = 0.9) -> int:
    """Returns about how many inputs show that an equal adapter is not worse by `margin`.

    By the normal law of the score: the exact level may cost a point of power more.

    Args:
        margin: non-inferiority margin, above 0.
        flip_rate: share of inputs expected to turn from right to wrong (and as many back).
        alpha: one-sided level, see `critical_value`.
        power: wanted probability of a promotion.

    Raises:
        ValueError: no number of inputs up to `MAX_REQUIRED` is enough.
    """
    normal = float(norm.isf(alpha))

    def enough(n: int) -> bool:
        return _power(n, margin, flip_rate, 0.0, normal, n) >= power

    high = 8
    while not enough(high):
        high *= 2
        if high > MAX_REQUIRED:
            raise ValueError(
                f"margin {margin} at flip rate {flip_rate} needs more than {MAX_REQUIRED} inputs: "
                "choose a wider margin"
            )
    low = high // 2
    # Power is not quite monotone in n; bisection finds a crossing, which is near the first.
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def _tables(
    n: int, gain_rate: float, loss_rate: float
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Returns gains, losses and probability of every table that has weight."""
    gains, losses = np.meshgrid(*(_likely_counts(n, rate) for rate in (gain_rate, loss_rate)))
    possible = gains + losses <= n
    gains, losses = gains[possible], losses[possible]
    rest = max(0.0, 1.0 - gain_rate - loss_rate)
    log_factorial = gammaln(np.arange(n + 1) + 1.0)
    log_p = (
        log_factorial[n]
        - log_factorial[gains]
        - log_factorial[losses]
        - log_factorial[n - gains - losses]
        + _times_log(gains, gain_rate)
        + _times_log(losses, loss_rate)
        + _times_log(n - gains - losses, rest)
    )
    return gains, losses, np.exp(log_p)


def _likely_counts(n: int, rate: float) -> npt.NDArray[np.int64]:
    """Counts within 5 standard deviations of the mean: the rest has no weight."""
    spread = 5.0 * math.sqrt(n * rate * (1.0 - rate)) + 6.0 * (rate > 0)
    low, high = max(0, int(n * rate - spread)), min(n, math.ceil(n * rate + spread))
    return np.arange(low, high + 1, dtype=np.int64)


def _times_log(counts: npt.NDArray[np.int64], rate: float) -> npt.NDArray[np.float64]:
    """Returns counts * log(rate), with 0 log 0 = 0."""
    return np.asarray(xlogy(counts, rate), dtype=np.float64)
