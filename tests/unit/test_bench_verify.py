"""Which version may answer, judged from route changes and acknowledgements."""

from typing import Any

import pytest

from benchmarks.load.records import RequestRecord
from benchmarks.load.verify import Acknowledgement, RouteHistory, RouteStep, wrong_version

HISTORY = RouteHistory(
    [
        RouteStep(revision=5, adapter="a/x", version="v-2", base="new", at=100.0, reason="promote"),
        RouteStep(revision=2, adapter="a/x", version="v-1", base="old", at=10.0, reason="create"),
        RouteStep(revision=3, adapter="a/y", version="v-9", base="old", at=11.0, reason="create"),
        RouteStep(revision=7, adapter="a/y", version="", base="", at=150.0, reason="delete"),
    ],
    [Acknowledgement(revision=5, at=100.5), Acknowledgement(revision=3, at=12.0)],
)


def answer(**changes: Any) -> RequestRecord:
    fields: dict[str, Any] = {
        "kind": "foreground",
        "client": 0,
        "model": "a/x",
        "adapter": "a/x",
        "example": 0,
        "start": 50.0,
        "latency_s": 0.2,
        "code": "OK",
        "base": "old",
        "version": "v-1",
        "revision": 4,
    }
    return RequestRecord(**{**fields, **changes})


def test_the_version_named_at_the_admitted_revision_is_right() -> None:
    assert wrong_version(answer(), HISTORY) is None
    new = answer(start=101.0, revision=6, version="v-2", base="new")
    assert wrong_version(new, HISTORY) is None


def test_another_version_or_base_than_named_is_wrong() -> None:
    assert "names v-1 on old" in str(wrong_version(answer(version="v-2"), HISTORY))
    assert "answered by v-1 on new" in str(wrong_version(answer(base="new"), HISTORY))
    assert "no adapter" in str(wrong_version(answer(version=""), HISTORY))


def test_an_old_revision_is_right_until_the_swap_is_acknowledged_and_wrong_after() -> None:
    assert wrong_version(answer(start=100.2, revision=4), HISTORY) is None
    late = answer(start=100.6, revision=4)
    assert "had acknowledged 5" in str(wrong_version(late, HISTORY))


def test_a_request_admitted_before_the_swap_may_end_long_after_it() -> None:
    assert wrong_version(answer(start=100.4, latency_s=30.0, revision=4), HISTORY) is None


def test_an_answer_from_a_revision_not_yet_written_is_wrong() -> None:
    early = answer(start=90.0, revision=5, version="v-2", base="new")
    assert "before route revision 5" in str(wrong_version(early, HISTORY))


def test_an_adapter_without_a_route_can_not_answer() -> None:
    unknown = answer(model="a/z", adapter="a/z")
    assert "names no version" in str(wrong_version(unknown, HISTORY))
    deleted = answer(model="a/y", adapter="a/y", start=151.0, revision=7, version="v-9", base="old")
    assert "names no version" in str(wrong_version(deleted, HISTORY))


def test_failed_requests_are_not_judged_and_missing_provenance_is_wrong() -> None:
    assert wrong_version(answer(code="UNAVAILABLE", base="", revision=0), HISTORY) is None
    assert "does not say" in str(wrong_version(answer(base=""), HISTORY))
    assert "does not say" in str(wrong_version(answer(revision=0), HISTORY))


@pytest.mark.parametrize(
    ("model", "version", "base", "right"),
    [
        ("a/x@v-2", "v-2", "new", True),
        ("a/x@new", "v-2", "new", True),
        ("a/x@v-2", "v-1", "old", False),
        ("a/x@new", "v-1", "old", False),
        ("a/x@new", "", "new", False),
    ],
)
def test_a_pinned_request_is_answered_by_its_pin(
    model: str, version: str, base: str, right: bool
) -> None:
    found = answer(model=model, version=version, base=base, start=101.0, revision=5)
    assert (wrong_version(found, HISTORY) is None) == right


def test_a_bare_base_answers_without_an_adapter() -> None:
    bare = answer(model="new", adapter="", version="", base="new")
    assert wrong_version(bare, HISTORY) is None
    assert wrong_version(answer(model="new", adapter="", base="new"), HISTORY) is not None
    assert (
        wrong_version(answer(model="new", adapter="", version="", base="old"), HISTORY) is not None
    )


def test_acknowledgements_out_of_order_never_lower_the_floor() -> None:
    history = RouteHistory(
        [], [Acknowledgement(revision=9, at=1.0), Acknowledgement(revision=4, at=2.0)]
    )
    assert history.floor(3.0) == 9
    assert history.floor(0.5) == 0


def test_swaps_are_promotions_and_rollbacks_in_order() -> None:
    assert [step.revision for step in HISTORY.swaps()] == [5]
