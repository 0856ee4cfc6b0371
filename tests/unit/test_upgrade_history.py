"""What events tell: stage records, progress, tries and the time left."""

from typing import Any

import pytest

from lorebase.serving.catalog.records import Event
from lorebase.transfer.upgrade.history import (
    engine_failures,
    eta_seconds,
    progress_of,
    stage_records,
    tries,
)

from .upgrade_samples import sample_migration


def events(*rows: tuple[float, str, str | None, dict[str, Any]]) -> list[Event]:
    return [
        Event(id=number, upgrade_id="u-1", adapter=adapter, at=at, kind=kind, data=data)
        for number, (at, kind, adapter, data) in enumerate(rows, 1)
    ]


def stage(
    at: float, what: str, adapter: str = "a", name: str = "label", attempt: int = 1, **data: Any
) -> tuple[float, str, str, dict[str, Any]]:
    return at, f"stage_{what}", adapter, {"stage": name, "attempt": attempt, **data}


def test_a_stage_that_was_started_again_counts_from_its_last_start() -> None:
    found = stage_records(
        events(
            stage(1, "started"),
            stage(5, "progress", progress=0.7),
            stage(10, "started"),
            stage(12, "finished", artifact="sha256:1", summary={"labelled": 3}),
        )
    )
    [record] = found["a"]
    assert (record.started_at, record.ended_at) == (10, 12)
    assert (record.artifact, record.summary, record.progress) == ("sha256:1", {"labelled": 3}, 1.0)


def test_attempts_are_apart_and_in_order() -> None:
    found = stage_records(events(stage(1, "started"), stage(2, "started", attempt=2)))
    assert [(one.stage, one.attempt) for one in found["a"]] == [("label", 1), ("label", 2)]


def test_progress_is_that_of_the_running_stage() -> None:
    migration = sample_migration(adapter="a", state="labeling")
    log = [stage(1, "started"), stage(5, "progress", progress=0.7)]
    assert progress_of(migration, stage_records(events(*log))["a"]) == 0.7
    later = sample_migration(adapter="a", state="distilling")
    assert progress_of(later, stage_records(events(*log))["a"]) == 0.0
    ended = sample_migration(adapter="a", state="promoted")
    assert progress_of(ended, []) == 1.0


def test_tries_count_from_the_last_resume() -> None:
    log = [
        stage(1, "started"),
        stage(2, "failed"),
        stage(3, "started"),
        stage(3, "started", name="filter"),
        stage(3, "started", attempt=2),
        stage(3, "started", adapter="b"),
    ]
    counted = tries(events(*log), "a", "label", 1)
    assert (counted.starts, counted.failures) == (2, 1)
    resumed = [*log, (4.0, "resumed", None, {}), stage(5, "started")]
    counted = tries(events(*resumed), "a", "label", 1)
    assert (counted.starts, counted.failures) == (1, 0)


def test_engine_failures_count_from_the_last_resume() -> None:
    failed = (1.0, "engine_failed", None, {})
    assert engine_failures(events(failed, failed)) == 2
    assert engine_failures(events(failed, (2.0, "resumed", None, {}), failed)) == 1


ALL = ("synthesize", "filter", "label", "distill", "evaluate", "shadow", "promote")


def finished(adapter: str, begin: float, seconds: float) -> list[Any]:
    rows = []
    for number, name in enumerate(ALL):
        at = begin + number * seconds
        rows += [
            stage(at, "started", adapter, name),
            stage(at + seconds, "finished", adapter, name),
        ]
    return rows


def test_the_time_left_is_unknown_before_every_stage_was_seen_once() -> None:
    migrations = [sample_migration(adapter="a", state="labeling")]
    records = stage_records(events(stage(1, "started")))
    assert eta_seconds(migrations, records, now=2, parallel=1) == 0.0


@pytest.mark.parametrize(("parallel", "expected"), [(1, 70 + 45), (2, 70)])
def test_the_time_left_is_what_is_still_to_come(parallel: int, expected: float) -> None:
    log = [*finished("done", 0, 10), stage(100, "started", "b", "label")]
    migrations = [
        sample_migration(adapter="done", state="promoted"),
        sample_migration(adapter="b", state="labeling"),
        sample_migration(adapter="c", state="planned"),
    ]
    records = stage_records(events(*log))
    # b: 5 stages of 10 s less the 5 s it is at; c: all 7.
    assert eta_seconds(migrations, records, now=105, parallel=parallel) == expected


def test_nothing_is_left_when_all_have_ended() -> None:
    migrations = [sample_migration(adapter="done", state="promoted")]
    assert eta_seconds(migrations, {}, now=0, parallel=1) == 0.0
