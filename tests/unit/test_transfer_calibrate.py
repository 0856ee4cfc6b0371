import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorebase.transfer.kit.calibrate import QUANTILES, auc, calibrate

SCORES = st.lists(st.floats(-20, 20, width=32), min_size=1, max_size=60)


def test_auc_counts_ordered_pairs_and_half_of_ties() -> None:
    assert auc([2.0, 3.0], [0.0, 1.0]) == 1.0
    assert auc([0.0, 1.0], [2.0, 3.0]) == 0.0
    assert auc([1.0, 2.0], [1.0, 0.0]) == pytest.approx(3.5 / 4)


@given(SCORES, SCORES)
def test_auc_is_the_share_of_ordered_pairs(real: list[float], fake: list[float]) -> None:
    pairs = sum((r > f) + 0.5 * (r == f) for r in real for f in fake)
    assert auc(real, fake) == pytest.approx(pairs / (len(real) * len(fake)))


@given(SCORES, SCORES, st.floats(0.5, 1.0))
def test_the_threshold_lets_enough_real_inputs_pass(
    real: list[float], fake: list[float], rate: float
) -> None:
    result = calibrate(real, fake, real_pass_rate=rate)
    assert result.threshold <= 0.0
    assert result.real_pass_rate >= rate - 1e-9
    assert result.real_pass_rate == sum(score > result.threshold for score in real) / len(real)
    assert result.fake_pass_rate == sum(score > result.threshold for score in fake) / len(fake)


def test_the_threshold_is_the_papers_when_enough_real_inputs_are_above_it() -> None:
    result = calibrate([1.0] * 9 + [-1.0], [-3.0, 2.0], real_pass_rate=0.88)
    assert result.threshold == 0.0
    assert (result.real_pass_rate, result.fake_pass_rate) == (0.9, 0.5)


def test_the_threshold_is_lowered_when_the_paper_would_reject_real_inputs() -> None:
    real = [float(score) for score in range(-10, 0)]
    result = calibrate(real, [-20.0, -1.0], real_pass_rate=0.8)
    assert result.real_pass_rate == 0.8
    assert -9.0 < result.threshold < -8.0


@given(SCORES)
def test_the_quantiles_stand_for_the_real_scores(real: list[float]) -> None:
    quantiles = calibrate(real, [0.0]).real_quantiles
    assert len(quantiles) == QUANTILES
    assert list(quantiles) == sorted(quantiles)
    assert min(real) - 1e-3 <= quantiles[0] <= quantiles[-1] <= max(real) + 1e-3


def test_an_auc_against_the_quantiles_is_the_auc_against_the_scores() -> None:
    rng = np.random.default_rng(0)
    real, fake = rng.normal(1, 1, 75).tolist(), rng.normal(0, 1, 300).tolist()
    assert auc(calibrate(real, fake).real_quantiles, fake) == pytest.approx(
        auc(real, fake), abs=0.01
    )


@pytest.mark.parametrize(("real", "fake"), [([], [1.0]), ([1.0], [])])
def test_nothing_to_calibrate_on_is_an_error(real: list[float], fake: list[float]) -> None:
    with pytest.raises(ValueError, match="expected some of both"):
        calibrate(real, fake)


def test_scores_of_a_diverged_discriminator_are_an_error() -> None:
    with pytest.raises(ValueError, match="not finite"):
        calibrate([1.0, math.nan], [0.0])
