"""A swap is visible from outside: its revision, and when all gateways had it."""

from lorebase.serving.catalog.records import Event
from lorebase.transfer.upgrade.history import SWAP_ACKED, stage_records


def event(at: float, **data: object) -> Event:
    return Event(id=1, upgrade_id="u", adapter="a/x", at=at, kind=SWAP_ACKED, data=data)


def test_an_acknowledged_swap_is_a_finished_promote_stage() -> None:
    [record] = stage_records([event(100.5, attempt=2, revision=7, seconds=0.5, acked=True)])["a/x"]
    assert (record.stage, record.attempt) == ("promote", 2)
    assert (record.started_at, record.ended_at) == (100.0, 100.5)
    assert record.summary == {"revision": 7, "seconds": 0.5, "acked": True}


def test_the_newest_swap_of_an_attempt_is_the_one_shown() -> None:
    events = [
        event(100.5, attempt=1, revision=7, seconds=0.5, acked=True),
        event(200.5, attempt=1, revision=9, seconds=0.5, acked=False),
    ]
    [record] = stage_records(events)["a/x"]
    assert record.summary["revision"] == 9
