"""Which running requests must make room for more important waiting ones; pure."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Seat:
    """One request, as far as the choice of victims is concerned."""

    id: str
    priority: int
    """Lower is more important."""
    arrival: float
    """Seconds; among equals the latest comer gives way first."""
    adapter: int | None
    """Integer id of its adapter; None for the bare base."""
    blocks: int
    """KV blocks: held if it is running, needed to start if it is waiting."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """What the engine has left."""

    seats: int
    """Requests that may still join the running ones."""
    adapters: int | None
    """Different adapters that may run in one step; None without LoRA."""
    blocks: int
    """Free KV blocks."""


def choose_victims(waiting: Iterable[Seat], running: Sequence[Seat], room: Room) -> list[Seat]:
    """Chooses the fewest running requests to preempt, so that more important ones can start.

    A request only ever gives way to a strictly more important one, and only if that one can
    start then. Least important and latest go first.

    Args:
        waiting: requests in the order in which the scheduler will admit them.
        running: requests that hold seats.
        room: what is free now.

    Returns:
        Victims in the order of preemption; empty if nobody has to go.
    """
    staying = sorted(running, key=lambda s: (s.priority, s.arrival))
    victims: list[Seat] = []
    seats, blocks = room.seats, room.blocks
    for newcomer in waiting:
        yielding = [s for s in staying if s.priority > newcomer.priority]
        in_use = {s.adapter for s in staying if s.adapter is not None}
        chosen = _victims_for(newcomer, yielding, staying, in_use, Room(
            seats=seats, adapters=room.adapters, blocks=blocks
        ))  # fmt: skip
        if chosen is None:
            continue
        victims += chosen
        seats += len(chosen) - 1
        blocks += sum(s.blocks for s in chosen) - newcomer.blocks
        gone = {s.id for s in chosen}
        staying = [s for s in staying if s.id not in gone]
        staying.append(newcomer)
        staying.sort(key=lambda s: (s.priority, s.arrival))
    return [v for v in victims if any(v is r for r in running)]


def _victims_for(
    newcomer: Seat, yielding: list[Seat], staying: list[Seat], in_use: set[int], room: Room
) -> list[Seat] | None:
    """Returns who must go for one newcomer, [] if nobody, None if it can't start anyway."""
    chosen: list[Seat] = []
    if _needs_slot(newcomer, in_use, room.adapters):
        group = _cheapest_adapter(yielding, staying)
        if group is None:
            return None
        chosen += group
    rest = [s for s in reversed(yielding) if s not in chosen]
    seats = room.seats + len(chosen)
    blocks = room.blocks + sum(s.blocks for s in chosen)
    while seats < 1 or blocks < newcomer.blocks:
        if not rest:
            return None
        victim = rest.pop(0)
        chosen.append(victim)
        seats += 1
        blocks += victim.blocks
    return chosen


def _needs_slot(newcomer: Seat, in_use: set[int], adapters: int | None) -> bool:
    return (
        adapters is not None
        and newcomer.adapter is not None
        and newcomer.adapter not in in_use
        and len(in_use) >= adapters
    )


def _cheapest_adapter(yielding: list[Seat], staying: list[Seat]) -> list[Seat] | None:
    """Returns the requests of the adapter whose leaving costs least, if one can leave wholly."""
    groups: dict[int, list[Seat]] = {}
    for seat in staying:
        if seat.adapter is not None:
            groups.setdefault(seat.adapter, []).append(seat)
    may_go = {s.id for s in yielding}
    whole = [group for group in groups.values() if all(s.id in may_go for s in group)]
    if not whole:
        return None
    return min(whole, key=lambda g: (len(g), -max(s.priority for s in g), -g[-1].arrival))
