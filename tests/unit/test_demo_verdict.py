"""The demo passes only when every promise holds."""

from typing import Any

import pytest

from benchmarks.load.statistics import wilson
from examples.tinyworld.demo.facts import TextCheck
from examples.tinyworld.demo.settings import DemoSettings
from examples.tinyworld.demo.verdict import check_all
from tests.unit.demo_samples import NAMES, OLD, adapter, facts, record, rejected

SETTINGS = DemoSettings()


def failing(**changes: Any) -> list[str]:
    return [check.name for check in check_all(facts(**changes), SETTINGS) if not check.ok]


def test_a_good_run_passes_every_check() -> None:
    assert failing() == []


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"records": []}, ["No request failed", "No answer by a wrong version"]),
        (
            {"records": [record(0.0), record(1.0, code="UNAVAILABLE")]},
            ["No request failed"],
        ),
        ({"wrong": [(record(0.0), "names v-2")]}, ["No answer by a wrong version"]),
        (
            {"text_check": TextCheck(compared=100, as_pinned=98, of_other_version=2)},
            ["Live answers are those of the version they name"],
        ),
        (
            {"text_check": TextCheck(compared=0, as_pinned=0, of_other_version=0)},
            ["Live answers are those of the version they name"],
        ),
        ({"upgrade_state": "failed"}, ["Every migration ended in a decision"]),
        ({"moves": []}, ["One adapter was rolled back and promoted again under load"]),
    ],
)
def test_each_broken_promise_is_named(changes: dict[str, Any], expected: list[str]) -> None:
    assert failing(**changes) == expected


def test_five_good_promotions_are_too_few_and_six_are_enough() -> None:
    good = [adapter(name) for name in NAMES]
    assert failing(adapters=[*good[:6], rejected("x/a"), rejected("x/b")]) == []
    assert failing(adapters=[*good[:5], rejected("x/a"), rejected("x/b")]) == [
        "Enough adapters arrived with their skill"
    ]


def test_a_promotion_below_the_margin_on_too_few_examples_or_of_a_benchmark_does_not_count() -> (
    None
):
    good = [adapter(name) for name in NAMES[:5]]
    exact = adapter("x/exact", right_old=200, right_new=194)  # 3 points below: still within
    assert failing(adapters=[*good, exact]) == []
    for short in (
        adapter("x/below", right_old=200, right_new=193),
        adapter("x/few", n=199),
        adapter("bbh/task", benchmark=True),
        adapter("x/unmeasured", scores={"source": wilson(199, 200)}),
    ):
        assert failing(adapters=[*good, short]) == ["Enough adapters arrived with their skill"]


def test_adapters_must_answer_from_where_the_gate_left_them() -> None:
    strayed = [adapter(name) for name in NAMES[:7]] + [rejected(NAMES[7], answers_from="next")]
    assert failing(adapters=strayed) == ["Every other adapter still answers from the old base"]
    lost = [adapter(name) for name in NAMES[:7]] + [adapter(NAMES[7], answers_from=OLD)]
    assert failing(adapters=lost) == ["Every promoted adapter answers from the next base"]


def test_a_failed_migration_is_no_decision() -> None:
    broken = [adapter(name) for name in NAMES[:7]] + [rejected(NAMES[7], state="failed")]
    assert failing(adapters=broken) == ["Every migration ended in a decision"]
