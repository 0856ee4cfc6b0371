"""Pure statistics over request records and paired answers."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from .records import RequestRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class Bin:
    """One slice of the timeline; latencies are of requests that ended in it."""

    start_s: float
    """Seconds since the timeline's origin."""
    finished: int
    failed: int
    tokens: int
    p50_s: float | None
    p99_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Around:
    """Latency near some moments against latency elsewhere."""

    near_n: int
    far_n: int
    near_p50_s: float | None
    far_p50_s: float | None
    near_p99_s: float | None
    far_p99_s: float | None
    p99_ratio: float | None
    """near_p99_s / far_p99_s; None where a side has no answers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A point estimate with its two-sided confidence interval."""

    value: float
    low: float
    high: float


def percentile(values: Sequence[float], q: float) -> float | None:
    """Returns the q-th percentile (0 to 100), linearly interpolated; None without values."""
    return float(np.percentile(values, q)) if len(values) else None


def significant(value: float | None) -> float | None:
    """Returns a figure with four significant digits, as result files keep them."""
    return None if value is None else float(f"{value:.4g}")


def spread(
    values: Sequence[float], percents: Sequence[int] = (20, 50, 80)
) -> dict[str, float | None]:
    """Returns percentiles by name, as result files keep them."""
    return {f"p{q}": significant(percentile(values, q)) for q in percents}


def timeline(records: Sequence[RequestRecord], origin: float, *, bin_s: float = 1.0) -> list[Bin]:
    """Cuts the time after `origin` (epoch seconds) into bins of `bin_s` seconds.

    Bins without requests are present: silence is a finding too.
    """
    ended = [r for r in records if r.end >= origin]
    if not ended:
        return []
    count = int((max(r.end for r in ended) - origin) / bin_s) + 1
    buckets: list[list[RequestRecord]] = [[] for _ in range(count)]
    for record in ended:
        buckets[int((record.end - origin) / bin_s)].append(record)
    bins = []
    for index, bucket in enumerate(buckets):
        latencies = [r.latency_s for r in bucket if r.ok]
        bins.append(
            Bin(
                start_s=index * bin_s,
                finished=len(latencies),
                failed=len(bucket) - len(latencies),
                tokens=sum(r.tokens for r in bucket),
                p50_s=percentile(latencies, 50),
                p99_s=percentile(latencies, 99),
            )
        )
    return bins


def around(
    records: Sequence[RequestRecord], moments: Sequence[float], *, radius_s: float = 1.0
) -> Around:
    """Compares requests in flight within `radius_s` of any moment with all others.

    Args:
        records: requests; failed ones are left out.
        moments: epoch seconds, such as those of route flips.
        radius_s: half the width of the window around each moment.
    """
    times = np.sort(np.asarray(moments, dtype=np.float64))
    near: list[float] = []
    far: list[float] = []
    for record in records:
        if not record.ok:
            continue
        # In flight near a moment: [start - radius, end + radius] holds one.
        first = np.searchsorted(times, record.start - radius_s, side="left")
        last = np.searchsorted(times, record.end + radius_s, side="right")
        (near if last > first else far).append(record.latency_s)
    near_p99, far_p99 = percentile(near, 99), percentile(far, 99)
    ratio = near_p99 / far_p99 if near_p99 is not None and far_p99 else None
    return Around(
        near_n=len(near),
        far_n=len(far),
        near_p50_s=percentile(near, 50),
        far_p50_s=percentile(far, 50),
        near_p99_s=near_p99,
        far_p99_s=far_p99,
        p99_ratio=ratio,
    )


def wilson(right: int, n: int, *, confidence: float = 0.95) -> Interval:
    """Returns an accuracy with its Wilson score interval.

    Raises:
        ValueError: n is not positive or `right` is outside 0..n.
    """
    if n <= 0 or not 0 <= right <= n:
        raise ValueError(f"got {right} right of {n}, expected 0 <= right <= n and n > 0")
    # Here and not above: it takes seconds to load, and clients don't need it.
    from statsmodels.stats.proportion import proportion_confint

    low, high = proportion_confint(right, n, alpha=1 - confidence, method="wilson")
    return Interval(value=right / n, low=float(low), high=float(high))


def paired_difference(
    new: Sequence[bool], old: Sequence[bool], *, confidence: float = 0.95
) -> Interval:
    """Returns accuracy(new) - accuracy(old) on the same examples with its interval.

    The interval is Bonett and Price's (2012) adjusted Wald interval for paired proportions,
    which keeps its coverage where few or no answers differ.

    Raises:
        ValueError: no examples, or not as many on both sides.
    """
    n = len(new)
    if n == 0 or n != len(old):
        raise ValueError(f"got {n} and {len(old)} paired answers, expected equally many, > 0")
    won = sum(a and not b for a, b in zip(new, old, strict=True))
    lost = sum(b and not a for a, b in zip(new, old, strict=True))
    p_won, p_lost = (won + 1) / (n + 2), (lost + 1) / (n + 2)
    centre = p_won - p_lost
    half = NormalDist().inv_cdf(0.5 + confidence / 2) * math.sqrt(
        (p_won + p_lost - centre**2) / (n + 2)
    )
    return Interval(
        value=(won - lost) / n, low=max(-1.0, centre - half), high=min(1.0, centre + half)
    )


def throughput(records: Sequence[RequestRecord], start: float, end: float) -> float:
    """Returns whole answers a second that ended within [start, end)."""
    if end <= start:
        return 0.0
    return sum(r.ok and start <= r.end < end for r in records) / (end - start)
