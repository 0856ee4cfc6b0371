"""The step plan: every token with an adapter is in exactly one tile of its slot."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorebase.kernels.lora.metadata import StepPlan

SLOTS = 5
token_slots = st.lists(st.integers(-1, SLOTS - 1), max_size=70)


def _plan(tile_tokens: int = 16, max_tokens: int = 70, wide: int = 0) -> StepPlan:
    return StepPlan(
        max_tokens=max_tokens, slots=SLOTS, tile_tokens=tile_tokens, wide_tile_tokens=wide
    )


@given(slots=token_slots, tile_tokens=st.integers(1, 20))
def test_tiles_cover_each_adapted_token_once_and_nothing_else(
    slots: list[int], tile_tokens: int
) -> None:
    plan = _plan(tile_tokens)
    plan.fill(slots)

    seen = []
    for slot, first, length in plan.tiles[: plan.num_tiles].tolist():
        assert 1 <= length <= tile_tokens
        rows = plan.order[first : first + length].tolist()
        assert [slots[row] for row in rows] == [slot] * length
        seen += rows
    assert sorted(seen) == [row for row, slot in enumerate(slots) if slot >= 0]
    assert plan.counts[1] == len(seen)
    assert plan.tokens == len(slots)
    assert plan.num_tiles <= plan.tiles_bound(len(slots)) <= plan.max_tiles


@settings(max_examples=40)
@given(steps=st.lists(token_slots, min_size=1, max_size=3), wide=st.integers(1, 80))
def test_wide_tiles_are_what_a_plan_of_that_size_alone_has(
    steps: list[list[int]], wide: int
) -> None:
    both, alone = _plan(4, wide=wide), _plan(wide)
    for slots in steps:
        both.fill(slots)
        alone.fill(slots)
    assert both.wide_tiles.tolist() == alone.tiles.tolist()
    assert both.counts[3] == alone.num_tiles
    assert both.host_counts.tolist() == both.counts.tolist()
    assert both.num_tiles >= alone.num_tiles or wide < 4


def test_a_plan_without_wide_tiles_takes_no_memory_for_them() -> None:
    assert _plan().wide_tiles.shape == (0, 3)
    assert _plan(wide=64).block.numel() - _plan().block.numel() == 3 * _plan(64).max_tiles


@settings(max_examples=40)
@given(slots=token_slots)
def test_groups_are_ascending_slots_with_their_tokens_in_order(slots: list[int]) -> None:
    plan = _plan()
    plan.fill(slots)
    expected = {
        slot: [row for row, its in enumerate(slots) if its == slot]
        for slot in sorted(set(slots) - {-1})
    }
    assert {slot: rows.tolist() for slot, rows in plan.groups()} == expected
    assert [slot for slot, _ in plan.groups()] == list(expected)


@settings(max_examples=40)
@given(steps=st.lists(token_slots, min_size=2, max_size=4))
def test_refilling_keeps_addresses_and_forgets_the_step_before(steps: list[list[int]]) -> None:
    plan, fresh = _plan(4), _plan(4)
    addresses = [t.data_ptr() for t in (plan.block, plan.order, plan.tiles, plan.counts)]
    for slots in steps:
        plan.fill(slots)
    fresh.fill(steps[-1])

    assert [t.data_ptr() for t in (plan.block, plan.order, plan.tiles, plan.counts)] == addresses
    assert plan.counts.tolist() == fresh.counts.tolist()
    # Also the tail: a kernel whose grid is larger than the step finds tiles of length 0.
    assert plan.tiles.tolist() == fresh.tiles.tolist()
    for (slot, rows), (its_slot, its_rows) in zip(plan.groups(), fresh.groups(), strict=True):
        assert slot == its_slot
        assert rows.tolist() == its_rows.tolist()


@settings(max_examples=30)
@given(tokens=st.integers(0, 200), slots=st.integers(1, 9), tile=st.integers(1, 9))
def test_the_bound_on_tiles_is_what_the_worst_batch_makes(
    tokens: int, slots: int, tile: int
) -> None:
    plan = StepPlan(max_tokens=max(tokens, 1), slots=slots, tile_tokens=tile)
    plan.fill(np.arange(tokens) % slots)
    assert plan.num_tiles <= plan.tiles_bound(tokens)
    plan.fill(np.minimum(np.arange(tokens), slots - 1))  # one token each, and the rest in a group
    assert plan.num_tiles == plan.tiles_bound(tokens)


@pytest.mark.parametrize(
    ("slots", "message"),
    [([0] * 71, "at most 70"), ([0, SLOTS], "to 4"), ([-2], "-1")],
)
def test_a_refused_step_leaves_the_plan_before_it(slots: list[int], message: str) -> None:
    plan = _plan()
    plan.fill([1, -1, 1])
    before = plan.block.clone()
    with pytest.raises(ValueError, match=message):
        plan.fill(slots)
    assert plan.block.equal(before)
    assert plan.tokens == 3


@pytest.mark.parametrize("bad", ["max_tokens", "slots", "tile_tokens", "wide_tile_tokens"])
def test_sizes_that_are_none_are_refused(bad: str) -> None:
    with pytest.raises(ValueError, match=bad):
        StepPlan(**{"max_tokens": 4, "slots": 2, "tile_tokens": 2, bad: -1})
    if bad != "wide_tile_tokens":
        with pytest.raises(ValueError, match=bad):
            StepPlan(**{"max_tokens": 4, "slots": 2, "tile_tokens": 2, bad: 0})
