"""The choice of victims: only when it helps, only the less important, as few as can be."""

from hypothesis import given
from hypothesis import strategies as st

from lorebase.serving.engine.preemption import Room, Seat, choose_victims

FULL = Room(seats=0, adapters=None, blocks=100)


def seat(
    name: str, priority: int = 10, arrival: float = 0.0, adapter: int | None = None, blocks: int = 1
) -> Seat:
    return Seat(id=name, priority=priority, arrival=arrival, adapter=adapter, blocks=blocks)


def names(victims: list[Seat]) -> list[str]:
    return [victim.id for victim in victims]


def test_nobody_goes_while_there_is_room() -> None:
    room = Room(seats=1, adapters=2, blocks=1)
    assert choose_victims([seat("new", 0, adapter=2)], [seat("a", adapter=1)], room) == []


def test_the_least_important_and_latest_gives_its_seat() -> None:
    running = [seat("a", 10, 1), seat("b", 20, 2), seat("c", 20, 3), seat("d", 10, 4)]
    assert names(choose_victims([seat("new", 0)], running, FULL)) == ["c"]
    assert names(choose_victims([seat("x", 0), seat("y", 0)], running, FULL)) == ["c", "b"]


def test_equals_and_betters_never_go() -> None:
    assert choose_victims([seat("new", 10)], [seat("a", 10), seat("b", 0)], FULL) == []


def test_a_new_adapter_takes_the_slot_of_the_cheapest_background_adapter() -> None:
    running = [
        seat("a1", adapter=1), seat("a2", adapter=1), seat("b", adapter=2), seat("c"),
    ]  # fmt: skip
    room = Room(seats=5, adapters=2, blocks=100)
    assert names(choose_victims([seat("new", 0, adapter=3)], running, room)) == ["b"]


def test_an_adapter_shared_with_the_foreground_keeps_its_slot() -> None:
    running = [seat("a", adapter=1), seat("fg", 0, adapter=1)]
    room = Room(seats=5, adapters=1, blocks=100)
    assert choose_victims([seat("new", 0, adapter=2)], running, room) == []


def test_a_running_adapter_needs_no_new_slot() -> None:
    running = [seat("a", adapter=1), seat("b", adapter=2)]
    room = Room(seats=5, adapters=2, blocks=100)
    assert choose_victims([seat("new", 0, adapter=2)], running, room) == []


def test_kv_blocks_are_taken_until_the_newcomer_fits() -> None:
    running = [seat("a", arrival=1, blocks=4), seat("b", arrival=2, blocks=3)]
    room = Room(seats=5, adapters=None, blocks=2)
    assert names(choose_victims([seat("new", 0, blocks=5)], running, room)) == ["b"]
    assert names(choose_victims([seat("new", 0, blocks=6)], running, room)) == ["b", "a"]


def test_nobody_goes_in_vain_for_a_newcomer_that_would_not_fit_anyway() -> None:
    room = Room(seats=5, adapters=None, blocks=2)
    assert choose_victims([seat("new", 0, blocks=8)], [seat("a", blocks=4)], room) == []


def test_one_that_cannot_start_does_not_stop_the_next() -> None:
    running = [seat("a", adapter=1), seat("fg", 0, adapter=2)]
    room = Room(seats=0, adapters=2, blocks=100)
    waiting = [seat("x", 0, adapter=3, blocks=1000), seat("y", 0)]
    assert names(choose_victims(waiting, running, room)) == ["a"]


SEATS = st.builds(
    seat,
    name=st.uuids().map(str),
    priority=st.sampled_from([0, 10, 20]),
    arrival=st.floats(0, 100),
    adapter=st.none() | st.integers(1, 5),
    blocks=st.integers(1, 5),
)


@given(
    waiting=st.lists(SEATS, max_size=6),
    running=st.lists(SEATS, max_size=8),
    seats=st.integers(0, 3),
    adapters=st.none() | st.integers(5, 6),
    blocks=st.integers(0, 5),
)
def test_victims_are_distinct_running_and_less_important_than_some_newcomer(
    waiting: list[Seat], running: list[Seat], seats: int, adapters: int | None, blocks: int
) -> None:
    waiting.sort(key=lambda s: (s.priority, s.arrival))
    victims = choose_victims(waiting, running, Room(seats=seats, adapters=adapters, blocks=blocks))
    assert len({v.id for v in victims}) == len(victims)
    assert all(v in running for v in victims)
    assert all(any(v.priority > w.priority for w in waiting) for v in victims)
    survivors = [r for r in running if r not in victims]
    if victims:
        # Whoever made room can start: a seat and blocks are there for at least one newcomer.
        assert seats + len(victims) >= 1
        assert any(
            w.blocks <= blocks + sum(v.blocks for v in victims)
            for w in waiting
            if any(v.priority > w.priority for v in victims)
        )
    assert len(survivors) + len(victims) == len(running)
