import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

from lorebase.transfer.evaluate import promotion_power, required_n
from lorebase.transfer.evaluate.paired import (
    MAX_EXACT,
    Paired,
    critical_value,
    difference_interval,
    is_non_inferior,
    mcnemar_p_value,
    paired,
    rate_upper_bound,
    score_statistic,
)


def table(n: int, gains: int, losses: int) -> Paired:
    both = n - gains - losses
    return Paired(n=n, old_right=both + losses, new_right=both + gains, gains=gains, losses=losses)


def reference_statistic(gains: int, losses: int, n: int, difference: float) -> float:
    """The score statistic with its nuisance parameter found by numerical maximisation."""

    def unlikely(loss_rate: float) -> float:
        gain_rate = loss_rate + difference
        rest = 1.0 - loss_rate - gain_rate
        counts = np.array([gains, losses, n - gains - losses])
        rates = np.array([gain_rate, loss_rate, rest])
        return -float(np.sum(counts * np.log(np.maximum(rates, 1e-300))))

    low, high = max(0.0, -difference), (1.0 - difference) / 2
    q = minimize_scalar(unlikely, bounds=(low, high), method="bounded", options={"xatol": 1e-12}).x
    variance = n * (2 * q + difference - difference**2)
    return float((gains - losses - n * difference) / np.sqrt(variance))


@pytest.mark.parametrize(
    ("gains", "losses", "n", "difference"),
    [(5, 9, 100, -0.05), (0, 3, 200, -0.05), (12, 1, 44, 0.1), (3, 3, 60, 0.0), (0, 0, 80, -0.1)],
)
def test_the_score_statistic_is_the_constrained_likelihoods(
    gains: int, losses: int, n: int, difference: float
) -> None:
    assert float(score_statistic(gains, losses, n, difference)) == pytest.approx(
        reference_statistic(gains, losses, n, difference), abs=2e-3
    )


def test_at_no_difference_the_statistic_is_mcnemars() -> None:
    assert float(score_statistic(12, 5, 100, 0.0)) == pytest.approx(7 / np.sqrt(17))


@settings(max_examples=40)
@given(st.integers(1, 400), st.data())
def test_the_interval_holds_what_was_seen_and_mirrors(n: int, data: st.DataObject) -> None:
    gains = data.draw(st.integers(0, n))
    losses = data.draw(st.integers(0, n - gains))
    low, high = difference_interval(table(n, gains, losses), 0.95)
    assert -1.0 <= low <= (gains - losses) / n <= high <= 1.0
    other_low, other_high = difference_interval(table(n, losses, gains), 0.95)
    assert (other_low, other_high) == (
        pytest.approx(-high, abs=1e-6),
        pytest.approx(-low, abs=1e-6),
    )


def test_no_disagreement_still_leaves_doubt() -> None:
    low, high = difference_interval(table(200, 0, 0), 0.95)
    assert -0.025 < low < -0.015
    assert high == pytest.approx(-low)
    assert difference_interval(table(20, 0, 0), 0.95)[0] < -0.1


@pytest.mark.parametrize(("n", "p_gain", "p_loss"), [(100, 0.02, 0.03), (200, 0.05, 0.05)])
def test_the_interval_covers_the_truth_as_often_as_promised(
    n: int, p_gain: float, p_loss: float
) -> None:
    rng = np.random.default_rng(0)
    counts = rng.multinomial(n, [p_gain, p_loss, 1 - p_gain - p_loss], size=20_000)
    z = score_statistic(counts[:, 0], counts[:, 1], n, p_gain - p_loss)
    assert 0.93 < float((np.abs(z) <= 1.96).mean()) < 0.975


def test_pairs_are_counted_by_who_was_right() -> None:
    old = [True, True, False, False, True]
    new = [True, False, True, False, False]
    assert paired(old, new) == Paired(n=5, old_right=3, new_right=2, gains=1, losses=2)
    assert paired(old, new).loss_rate == 0.4


@pytest.mark.parametrize(("old", "new"), [([], []), ([True], [True, False])])
def test_nothing_or_uneven_judgements_are_refused(old: list[bool], new: list[bool]) -> None:
    with pytest.raises(ValueError, match="equally many"):
        paired(old, new)


def test_rates_have_exact_bounds_and_mcnemar_is_exact() -> None:
    assert rate_upper_bound(0, 100, 0.95) == pytest.approx(1 - 0.025 ** (1 / 100))
    assert rate_upper_bound(100, 100, 0.95) == 1.0
    assert mcnemar_p_value(table(50, 0, 5)) == pytest.approx(2 * 0.5**5)
    assert mcnemar_p_value(table(50, 0, 0)) == pytest.approx(1.0)


def test_power_is_what_simulation_finds() -> None:
    rng = np.random.default_rng(1)
    counts = rng.multinomial(200, [0.02, 0.02, 0.96], size=40_000)
    z = score_statistic(counts[:, 0], counts[:, 1], 200, -0.05)
    passed = z > critical_value(200, 0.05, 0.02)
    exact = promotion_power(200, margin=0.05, flip_rate=0.02, alpha=0.02)
    assert exact == pytest.approx(float(passed.mean()), abs=0.01)
    few = passed & (counts[:, 1] <= 4)
    bounded = promotion_power(200, margin=0.05, flip_rate=0.02, alpha=0.02, max_losses=4)
    assert bounded == pytest.approx(float(few.mean()), abs=0.01)
    assert bounded < exact - 0.05


@pytest.mark.parametrize("n", [20, 57, 100, 205])
@pytest.mark.parametrize("alpha", [0.02, 0.01])
def test_the_level_is_exact_whatever_the_flips(n: int, alpha: float) -> None:
    # Rates between the points of the grid on which the critical value was found.
    worst = max(
        promotion_power(
            n, margin=0.05, flip_rate=float(gains) + 0.05, alpha=alpha, difference=-0.05
        )
        for gains in np.linspace(0.0003, 0.4747, 37)
    )
    assert worst <= 1.005 * alpha


def test_an_adapter_worse_by_more_than_the_margin_passes_more_rarely() -> None:
    for gains in (0.0, 0.03):
        rates = [
            promotion_power(150, margin=0.05, flip_rate=gains + loss, alpha=0.02, difference=-loss)
            for loss in (0.05, 0.06, 0.08, 0.12)
        ]
        assert rates == sorted(rates, reverse=True)


def test_the_critical_value_is_near_the_normal_quantile_and_takes_it_for_many_inputs() -> None:
    assert critical_value(500, 0.05, 0.02) == pytest.approx(2.054, abs=0.03)
    assert critical_value(MAX_EXACT + 1, 0.05, 0.02) == pytest.approx(2.0537, abs=1e-4)


def test_the_interval_says_what_the_exact_test_says_but_for_one_loss() -> None:
    shown = [is_non_inferior(table(240, 0, losses), 0.05, 0.02) for losses in range(14)]
    inside = [difference_interval(table(240, 0, losses), 0.96)[0] > -0.05 for losses in range(14)]
    assert shown == sorted(shown, reverse=True)
    assert abs(sum(shown) - sum(inside)) <= 1
    assert 3 <= sum(shown) <= 8


def test_an_equal_adapter_passes_with_200_inputs() -> None:
    for flips, power in ((0.0, 0.999), (0.005, 0.98), (0.01, 0.94), (0.02, 0.79)):
        assert promotion_power(200, margin=0.05, flip_rate=flips, alpha=0.02) > power


def test_required_n_gives_the_power_that_was_asked_for() -> None:
    n = required_n(0.05, 0.02, 0.02, 0.9)
    assert 220 < n < 280
    assert promotion_power(n, margin=0.05, flip_rate=0.02, alpha=0.02) >= 0.885
    assert required_n(0.05, 0.05, 0.02, 0.9) > n
    assert required_n(0.10, 0.02, 0.02, 0.9) < n
    with pytest.raises(ValueError, match="wider margin"):
        required_n(0.0005, 0.2, 0.02)


def test_impossible_rates_are_refused() -> None:
    with pytest.raises(ValueError, match="not negative"):
        promotion_power(100, margin=0.05, flip_rate=0.01, alpha=0.02, difference=-0.05)
