"""What the lora-churn suite makes of its runs, and the load that it plays."""

from typing import Any

import pytest

from benchmarks.lora.churn import rank_of, trace
from benchmarks.lora.churn_result import Churn, Saturated, Stall, against_fewest, summarise
from benchmarks.suites.lora_churn import FULL, QUICK, shape_of


def _run(registered: int, number: int, seconds: float, *, warm: bool) -> Saturated:
    return Saturated(
        registered=registered,
        round=number,
        warm=warm,
        tokens=100,
        seconds=seconds,
        first_touches=3,
    )


@pytest.fixture
def done() -> Churn:
    made = Churn()
    for number, (few, many) in enumerate([(1.0, 2.0)]):
        made.saturated += [_run(5, number, few, warm=False), _run(2000, number, many, warm=False)]
    for number, (few, many) in enumerate([(1.0, 1.0), (1.0, 1.25), (2.0, 2.5)], start=1):
        made.saturated += [_run(2000, number, many, warm=True), _run(5, number, few, warm=True)]
    made.stalls = [
        Stall(rank=8, asked=True, load_s=0.001, slot_s=0.002),
        Stall(rank=8, asked=False, load_s=2, slot_s=2),
        Stall(rank=64, asked=True, load_s=1, slot_s=1),
    ]
    return made


def test_only_what_a_request_brought_in_is_a_first_touch(done: Churn) -> None:
    result = summarise(done)
    assert result.summary["first_touch_p99_ms_r8"] == 3.0
    stalls = [(r["kind"], r["rank"]) for r in result.rows if "stall" in r["kind"]]
    assert stalls == [
        ("first touch stall", 64),
        ("first touch stall", 8),
        ("first step's stall, of some loaded before", 8),
    ]


def test_throughputs_are_compared_within_a_round_and_a_phase(done: Churn) -> None:
    assert against_fewest(done.saturated, 2000) == [1.0, 0.8, 0.8]
    assert against_fewest(done.saturated, 2000, warm=False) == [0.5]
    assert against_fewest([], 2000) == []


def test_the_summary_tells_warm_from_cold(done: Churn) -> None:
    result = summarise(done)
    assert result.summary["throughput_2000_vs_5"] == 0.8
    assert result.summary["throughput_2000_vs_5_cold"] == 0.5
    assert result.summary["first_touch_p99_ms_r8"] == 3.0
    kinds: dict[str, list[Any]] = {}
    for row in result.rows:
        kinds.setdefault(row["kind"], []).append(row.get("registered"))
    assert kinds["throughput"] == kinds["throughput, cold"] == [5, 2000]


def test_without_cold_rounds_nothing_is_said_of_them(done: Churn) -> None:
    done.saturated = [run for run in done.saturated if run.warm]
    assert "throughput_2000_vs_5_cold" not in summarise(done).summary


def test_a_trace_is_skewed_alike_over_more_or_fewer_adapters() -> None:
    few, many = (trace(400, count, rate=2.0, seed=3) for count in (100, 2000))
    assert [one.at_s for one in few] == [one.at_s for one in many]
    assert [one.adapter for one in few] == [one.adapter // 20 for one in many]
    first = sum(one.adapter < 20 for one in many) / len(many)
    assert 0.18 < first < 0.32  # 0.01 ** 0.3
    assert {rank_of(number) for number in range(48)} == {8, 16, 64}


def test_rounds_can_be_others() -> None:
    assert shape_of([], quick=False) == FULL
    assert shape_of([], quick=True) == QUICK
    changed = shape_of(["--rounds", "3", "--played-rounds", "1"], quick=False)
    assert (changed.rounds, changed.played_rounds) == (3, 1)
    assert (changed.cold_rounds, changed.counts) == (FULL.cold_rounds, FULL.counts)
