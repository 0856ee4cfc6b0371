"""The governor never grants under saturation, always grants when idle, and does not swing."""

import itertools
import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorebase.transfer.governor import GovernorPolicy, LoadSample, capacity, start, step
from lorebase.transfer.governor.policy import top_level

TICK_S = 0.5


def sample(
    at: float, *, waiting: int = 0, running: int = 0, probe_s: float = 0.01, cpu_free: float = 1.0
) -> LoadSample:
    return LoadSample(
        at=at,
        waiting_foreground=waiting,
        running_foreground=running,
        probe_s=probe_s,
        cpu_free=cpu_free,
    )


def levels(
    policy: GovernorPolicy, seconds: float, load: Callable[[float, int], LoadSample]
) -> list[int]:
    """Runs the policy against a load that sees the present level; returns it tick by tick."""
    state, found = start(policy), []
    for tick in range(int(seconds / TICK_S)):
        state = step(state, load(tick * TICK_S, state.level), policy)
        found.append(state.level)
    return found


def changes(found: list[int]) -> int:
    return sum(a != b for a, b in itertools.pairwise(found))


def test_idle_foreground_is_granted_everything_within_seconds() -> None:
    policy = GovernorPolicy(max_workers=2, max_batches=4)
    found = levels(policy, 30, lambda at, level: sample(at))
    assert found[-1] == top_level(policy)
    assert found.index(1) * TICK_S <= policy.calm_s + TICK_S


def test_saturation_takes_everything_back_and_keeps_it() -> None:
    policy = GovernorPolicy(max_workers=4, max_batches=4)

    def load(at: float, level: int) -> LoadSample:
        return sample(at, waiting=20 if at >= 60 else 0, running=8)

    found = levels(policy, 180, load)
    assert found[119] == top_level(policy)
    after = found[120 + int((policy.patience_s + 3) / TICK_S) :]
    assert set(after) == {0}


def test_a_saturated_start_is_never_granted_anything() -> None:
    found = levels(GovernorPolicy(), 60, lambda at, level: sample(at, waiting=1, running=64))
    assert set(found) == {0}


def test_a_slow_probe_counts_as_pressure() -> None:
    policy = GovernorPolicy()
    found = levels(policy, 60, lambda at, level: sample(at, probe_s=5.0 if at > 30 else 0.01))
    assert found[50] > 0
    assert found[-1] == 0


def test_one_waiting_request_now_and_then_changes_nothing() -> None:
    policy = GovernorPolicy()

    def load(at: float, level: int) -> LoadSample:
        return sample(at, waiting=1 if int(at / TICK_S) % 7 == 0 else 0, running=4)

    found = levels(policy, 300, load)
    assert found[-1] >= 1
    assert all(b >= a for a, b in itertools.pairwise(found))


def test_steady_moderate_load_is_granted_everything_and_stays_so() -> None:
    policy = GovernorPolicy(max_workers=2, max_batches=2)
    found = levels(policy, 120, lambda at, level: sample(at, running=12, cpu_free=0.0))
    assert found[-1] == top_level(policy)
    assert changes(found) == top_level(policy)


def test_pressure_that_the_background_itself_causes_does_not_make_it_swing() -> None:
    policy = GovernorPolicy(max_workers=1, max_batches=1)

    def load(at: float, level: int) -> LoadSample:
        return sample(at, waiting=3 if level else 0, running=32)

    found = levels(policy, 600, load)
    # Without the cooldown it would change every (calm + patience) = 3 s: 400 times.
    assert changes(found) <= 2 * 600 / policy.max_cooldown_s + 12


def test_old_pressure_is_forgiven_after_a_long_calm() -> None:
    policy = GovernorPolicy(max_workers=1, max_batches=1)

    def load(at: float, level: int) -> LoadSample:
        return sample(at, waiting=5 if 20 <= at < 30 or 300 <= at < 310 else 0, running=4)

    found = levels(policy, 400, load)
    back_first = next(t for t in range(60, 800) if found[t] == 1) * TICK_S - 30
    back_second = next(t for t in range(620, 800) if found[t] == 1) * TICK_S - 310
    assert back_second <= back_first + TICK_S


def test_min_cpu_free_holds_growth_back_while_clients_run() -> None:
    policy = GovernorPolicy(min_cpu_free=0.2)
    busy = levels(policy, 60, lambda at, level: sample(at, running=4, cpu_free=0.05))
    idle = levels(policy, 60, lambda at, level: sample(at, running=0, cpu_free=0.05))
    assert set(busy) == {0}
    assert idle[-1] == top_level(policy)


@settings(max_examples=25)
@given(seed=st.integers(0, 2**16), workers=st.integers(1, 8), batches=st.integers(1, 8))
def test_capacity_is_always_within_its_bounds(seed: int, workers: int, batches: int) -> None:
    rng = random.Random(seed)
    policy = GovernorPolicy(max_workers=workers, max_batches=batches)
    state = start(policy)
    at = 0.0
    for _ in range(200):
        at += rng.choice((0.1, 0.5, 5.0))
        one = sample(
            at,
            waiting=rng.choice((0, 0, 0, 1, 50)),
            running=rng.choice((0, 3, 64)),
            probe_s=rng.choice((0.01, 0.7, 3.0)),
        )
        state = step(state, one, policy)
        granted = capacity(state, policy)
        assert 0 <= granted.workers <= workers
        assert 0 <= granted.batches <= batches
        assert 1 <= granted.batch_size <= policy.max_batch_size
        assert (granted.workers == 0) == (granted.batches == 0) == (state.level == 0)
        assert policy.calm_s <= state.cooldown_s <= policy.max_cooldown_s


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_workers": 0},
        {"max_batches": 0},
        {"min_batch_size": 9, "max_batch_size": 8},
        {"calm_probe_s": 2.0, "slow_probe_s": 1.0},
        {"calm_s": 60.0, "max_cooldown_s": 30.0},
    ],
)
def test_policies_that_make_no_sense_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="got"):
        GovernorPolicy(**wrong)  # type: ignore[arg-type]
