"""Statistics over recorded requests."""

import math

import pytest

# Loaded while tests are collected: inside the first test that needs it, its seconds would count.
import statsmodels.stats.proportion  # noqa: F401

from benchmarks.load.records import RequestRecord
from benchmarks.load.statistics import (
    around,
    paired_difference,
    percentile,
    throughput,
    timeline,
    wilson,
)


def record(start: float, latency_s: float, code: str = "OK", tokens: int = 4) -> RequestRecord:
    return RequestRecord(
        kind="foreground",
        client=0,
        model="a/b",
        adapter="a/b",
        example=0,
        start=start,
        latency_s=latency_s,
        code=code,
        tokens=tokens,
    )


def test_percentile_of_nothing_is_none() -> None:
    assert percentile([], 99) is None
    assert percentile([3.0], 99) == 3.0


def test_timeline_keeps_empty_bins_and_counts_failures_apart() -> None:
    bins = timeline([record(10.0, 0.5), record(10.1, 0.2, "UNAVAILABLE"), record(12.0, 0.9)], 10.0)
    assert [b.finished for b in bins] == [1, 0, 1]
    assert [b.failed for b in bins] == [1, 0, 0]
    assert bins[1].p99_s is None
    assert bins[0].p50_s == pytest.approx(0.5)


def test_timeline_leaves_out_what_ended_before_the_origin() -> None:
    assert timeline([record(1.0, 0.5)], 10.0) == []
    assert [b.finished for b in timeline([record(9.8, 0.5)], 10.0)] == [1]


def test_around_takes_requests_in_flight_near_a_moment() -> None:
    records = [
        record(0.0, 0.1),  # ends 1.9 s before the flip: far
        record(0.5, 0.6),  # ends 0.9 s before: near
        record(1.0, 5.0),  # spans the flip: near
        record(2.9, 0.1),  # starts 0.9 s after: near
        record(3.1, 0.1),  # starts 1.1 s after: far
        record(2.0, 9.0, "INTERNAL"),  # failed: left out
    ]
    found = around(records, [2.0])
    assert (found.near_n, found.far_n) == (3, 2)
    assert found.far_p50_s == pytest.approx(0.1)
    assert found.near_p99_s is not None
    assert found.p99_ratio == pytest.approx(found.near_p99_s / 0.1)


def test_around_without_moments_has_no_ratio() -> None:
    found = around([record(0.0, 0.1)], [])
    assert found.near_n == 0
    assert found.p99_ratio is None


def test_wilson_agrees_with_the_published_formula() -> None:
    n, right, z = 200, 190, 1.959963984540054
    p = right / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    found = wilson(right, n)
    assert found.value == p
    assert found.low == pytest.approx(centre - half)
    assert found.high == pytest.approx(centre + half)


@pytest.mark.parametrize(("right", "n"), [(0, 0), (5, 4), (-1, 4)])
def test_wilson_refuses_impossible_counts(right: int, n: int) -> None:
    with pytest.raises(ValueError, match="expected 0 <= right <= n"):
        wilson(right, n)


def test_paired_difference_is_signed_and_wider_with_more_flips() -> None:
    new = [True] * 90 + [False] * 10
    worse = paired_difference(new, [True] * 100)
    assert worse.value == pytest.approx(-0.1)
    assert worse.high < 0
    quiet = paired_difference([True] * 100, [True] * 100)
    assert quiet.value == 0
    assert quiet.low < 0 < quiet.high
    swapped = paired_difference([True] * 50 + [False] * 50, [False] * 50 + [True] * 50)
    assert swapped.high - swapped.low > quiet.high - quiet.low


def test_paired_difference_refuses_unpaired_answers() -> None:
    with pytest.raises(ValueError, match="equally many"):
        paired_difference([True], [True, False])
    with pytest.raises(ValueError, match="equally many"):
        paired_difference([], [])


def test_throughput_counts_whole_answers_in_the_window() -> None:
    records = [record(0.0, 0.5), record(0.6, 0.6), record(0.1, 0.2, "INTERNAL")]
    assert throughput(records, 0.0, 1.0) == 1.0
    assert throughput(records, 1.0, 1.0) == 0.0
