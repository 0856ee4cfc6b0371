"""The gate before thousands of simulated adapters: false promotions and power as promised."""

import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from benchmarks.gate_result import summarise
from benchmarks.gate_rivals import CELLS, Beside, check_beside, promoted_beside
from benchmarks.gate_shapes import LIVE_FULL, spread
from benchmarks.gate_simulation import (
    Adapters,
    check_against_gate,
    equal_adapters,
    largest_safe_bound,
    losses_beyond,
    passed_once,
    promoted,
    worse_adapters,
)
from benchmarks.gate_study import StudyShape, study
from benchmarks.suites.gate import COMMITTED, kept_live
from lorebase.transfer.evaluate import EvidenceKind, GatePolicy, promotion_power

POLICY = GatePolicy()
LIMIT = 0.02
COUNT = 2_000


def at_most(limit: float, count: int) -> float:
    """Three standard errors of a simulated rate above its true limit."""
    return limit + 3.0 * float(np.sqrt(limit * (1.0 - limit) / count))


def rate(adapters: Adapters, kind: EvidenceKind, n: int, policy: GatePolicy = POLICY) -> float:
    return float(promoted(adapters, kind, n, policy, np.random.default_rng(n)).mean())


@pytest.mark.parametrize("kind", ["entrusted", "label-free"])
def test_two_thousand_adapters_beyond_the_margin_give_at_most_two_per_cent_promotions(
    kind: EvidenceKind,
) -> None:
    rng = np.random.default_rng(4)
    loss = losses_beyond(COUNT, POLICY.margin, 3.0, rng)
    assert rate(worse_adapters(COUNT, rng, loss=loss), kind, 205) <= LIMIT


@pytest.mark.parametrize("kind", ["entrusted", "label-free"])
def test_the_simulation_judges_as_the_gate_does(kind: EvidenceKind) -> None:
    assert check_against_gate(kind, 205, POLICY) == []


@pytest.mark.parametrize("share", [(0.0, 0.0), (0.2, 0.2)])
@pytest.mark.parametrize("kind", ["entrusted", "label-free"])
def test_even_exactly_at_the_margin_the_limit_holds(
    kind: EvidenceKind, share: tuple[float, float]
) -> None:
    rng = np.random.default_rng(5)
    adapters = worse_adapters(COUNT, rng, loss=np.full(COUNT, POLICY.margin), share=share)
    assert rate(adapters, kind, 150) <= at_most(LIMIT, COUNT)


def test_a_second_attempt_does_not_double_the_risk() -> None:
    rng = np.random.default_rng(6)
    twice = GatePolicy(attempts=2)
    adapters = worse_adapters(COUNT, rng, loss=np.full(COUNT, 0.05), share=(0.1, 0.1))
    assert rate(adapters, "entrusted", 205, twice) <= at_most(LIMIT, COUNT)


@pytest.mark.parametrize("flips", [0.005, 0.02])
def test_equal_adapters_pass_as_often_as_the_stated_power_says(flips: float) -> None:
    stated = promotion_power(
        205, margin=0.05, flip_rate=flips, alpha=POLICY.alpha, max_losses=int(0.05 * 205)
    )
    assert rate(equal_adapters(COUNT, flips), "entrusted", 205) == pytest.approx(stated, abs=0.03)


@pytest.mark.parametrize("flips", [0.005, 0.02])
def test_one_decision_of_two_has_its_stated_power_and_two_together_more(flips: float) -> None:
    twice = GatePolicy(attempts=2)
    stated = promotion_power(
        205, margin=0.05, flip_rate=flips, alpha=twice.alpha, max_losses=int(0.05 * 205)
    )
    adapters, rng = equal_adapters(COUNT, flips), np.random.default_rng(8)
    once = passed_once(adapters, "entrusted", 205, twice, rng).mean()
    assert once == pytest.approx(stated, abs=0.03)
    both = rate(adapters, "entrusted", 205, twice)
    assert both == pytest.approx(1.0 - (1.0 - stated) ** 2, abs=0.03)


def test_real_inputs_that_change_more_often_cost_the_promise_unless_the_bound_is_narrower() -> None:
    rng = np.random.default_rng(9)
    real = worse_adapters(COUNT, rng, loss=np.full(COUNT, 0.05), share=(0.0, 0.0))
    seen = real.scaled(1.0 / 1.5)
    assert rate(seen, "label-free", 205) > at_most(LIMIT, COUNT)
    assert rate(seen, "label-free", 205, GatePolicy(label_free_margin=0.03)) <= LIMIT


def test_cells_beside_a_bare_base_are_what_they_say() -> None:
    beside = Beside(bare_minus_source=0.05, source_right=0.8, flips=0.01)
    cells = dict(zip(CELLS, beside.cells(), strict=True))
    assert sum(cells.values()) == pytest.approx(1.0)
    for place, right in enumerate((0.8, 0.8, 0.85)):
        assert sum(p for cell, p in cells.items() if cell[place]) == pytest.approx(right)


def test_beside_a_bare_base_the_simulation_judges_as_the_gate_does() -> None:
    assert check_beside(240, POLICY, np.random.default_rng(10)) == []


@pytest.mark.parametrize("attempts", [1, 2])
def test_a_shadow_as_good_as_its_source_but_worse_than_no_adapter_is_not_promoted(
    attempts: int,
) -> None:
    policy = GatePolicy(attempts=attempts)

    def share(gap: float) -> float:
        rng = np.random.default_rng(11)
        return float(promoted_beside(Beside(bare_minus_source=gap), COUNT, 500, policy, rng).mean())

    assert share(0.05) <= at_most(LIMIT, COUNT)
    assert share(0.10) == 0.0
    assert share(-0.10) > 0.9 > share(0.0), "an equal bare base costs power, a weak one none"


def test_without_labels_a_bound_wider_than_the_margin_lets_pure_losses_through() -> None:
    rng = np.random.default_rng(7)
    worse = worse_adapters(500, rng, loss=np.full(500, 0.055), share=(0.0, 0.0))
    safe, rates = largest_safe_bound(
        worse,
        205,
        lambda bound: GatePolicy(label_free_margin=bound),
        np.array([0.05, 0.10]),
        LIMIT,
        rng,
    )
    assert safe == 0.05
    assert rates[1] > 0.3


def test_the_suite_names_its_figures_and_fails_on_nothing() -> None:
    shape = StudyShape(adapters=500, sizes=(100, 205), flips=(0.0, 0.01), bounds=(0.04, 0.1))
    live = [
        {
            "task": "a/x",
            "steps": steps,
            "n_seen": 200,
            "disagreement_seen": seen,
            "disagreement_true": seen + 0.01,
            "loss": loss,
            "promoted": promoted,
        }
        for steps, seen, loss, promoted in ((8, 0.3, 0.25, False), (70, 0.005, 0.0, True))
    ]
    result = summarise(study(shape), live)
    assert result.failures == []
    summary = result.summary
    assert summary["false_promotion_rate_entrusted_max"] <= at_most(LIMIT, 500)
    assert summary["safe_bound_losses_only_shift_1"] == 0.04
    assert summary["safe_bound_losses_only_shift_1.5"] == 0.04
    shifted = "false_promotion_rate_label_free_max_shift_1.5_bound"
    assert summary[f"{shifted}_0.050"] > at_most(LIMIT, 500) >= summary[f"{shifted}_0.033"]
    assert summary["promotion_rate_where_bare_is_better_by_margin_max"] <= at_most(LIMIT, 500)
    assert (
        summary["power_entrusted_n205_flips_1pct_attempts_2"]
        >= summary["power_entrusted_n205_flips_1pct"] - 0.05
    )
    assert summary["live_false_promotions"] == 0
    assert (summary["live_good_promoted"], summary["live_good"]) == (1, 1)
    ElementTree.fromstring(result.figure_svg)


def test_shadows_of_an_earlier_result_say_which_commit_trained_them(tmp_path: Path) -> None:
    path = tmp_path / "gate.json"
    rows = [{"what": "live", "task": "a"}, {"what": "power"}, {"what": "live", "commit": "c0"}]
    path.write_text(json.dumps({"environment": {"commit": "c1"}, "rows": rows}))
    first, second = kept_live(path)
    assert (first["task"], first["commit"], second["commit"]) == ("a", "c1", "c0")


def test_the_committed_result_has_the_shadows_that_the_suite_trains() -> None:
    live = kept_live(COMMITTED)
    assert len(live) == LIVE_FULL.tasks * len(LIVE_FULL.steps)
    assert {row["steps"] for row in live} == set(LIVE_FULL.steps)


def test_live_tasks_are_spread_over_all_there_are() -> None:
    paths = list(range(19))
    chosen = spread(paths, 12)
    assert len(set(chosen)) == 12
    assert (chosen[0], chosen[-1]) == (paths[0], paths[-1])
    assert spread(paths, 1) == paths[:1]
    assert spread(paths[:3], 12) == paths[:3]
