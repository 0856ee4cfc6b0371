from dataclasses import replace
from statistics import NormalDist

import numpy as np
import pytest

from lorebase.transfer.evaluate import (
    Decision,
    Evidence,
    GatePolicy,
    decide,
    entrusted_evidence,
    label_free_evidence,
    matches,
    promotion_power,
)
from lorebase.transfer.evaluate.paired import score_statistic

POLICY = GatePolicy()


def judged(right: int, wrong: int) -> tuple[bool, ...]:
    return (True,) * right + (False,) * wrong


def evidence(n: int = 200, *, losses: int = 0, gains: int = 0, source_wrong: int = 10) -> Evidence:
    """Source wrong on the last `source_wrong` inputs, of which the shadow gains some."""
    source = judged(n - source_wrong, source_wrong)
    shadow = list(source)
    shadow[:losses] = [False] * losses
    shadow[n - source_wrong : n - source_wrong + gains] = [True] * gains
    return Evidence(
        kind="entrusted",
        source_correct=source,
        shadow_correct=tuple(shadow),
        bare_correct=(False,) * n,
    )


def test_an_equal_shadow_is_promoted() -> None:
    decision = decide(evidence(losses=2, gains=2), POLICY)
    assert decision.verdict == "promote"
    assert decision.n == 200
    assert decision.source_score == decision.shadow_score == 0.95
    assert decision.interval_low > -0.05
    assert decision.negative_flip_rate == 0.01
    assert decision.negative_flip_bound > 0.01


def test_an_identical_shadow_with_a_perfect_source_is_promoted() -> None:
    decision = decide(evidence(source_wrong=0), POLICY)
    assert decision.verdict == "promote"
    assert decision.interval_low < 0.0


def test_inconclusive_is_retried_while_attempts_are_left_and_never_passes() -> None:
    unclear = evidence(losses=8, gains=2)
    decision = decide(unclear, POLICY, attempts_left=1)
    assert decision.verdict == "retry"
    assert "inconclusive" in decision.reason
    assert "inputs would make that 90%" in decision.reason
    assert decide(unclear, POLICY).verdict == "reject"


def test_surely_worse_is_retried_once_but_hopeless_is_not() -> None:
    worse = decide(evidence(losses=30), POLICY, attempts_left=1)
    assert (worse.verdict, "surely worse" in worse.reason) == ("retry", True)
    hopeless = decide(evidence(losses=150), POLICY, attempts_left=1)
    assert (hopeless.verdict, "won't help" in hopeless.reason) == ("reject", True)


def test_too_few_inputs_decide_nothing_however_good_they_look() -> None:
    few = evidence(n=99, source_wrong=0)
    assert decide(few, POLICY, attempts_left=1).verdict == "reject"
    # Label-free evidence can be drawn again, a tenant's set can't.
    assert decide(replace(few, kind="label-free"), POLICY, attempts_left=1).verdict == "retry"


def test_flips_beyond_the_budget_block_even_when_as_many_are_gained() -> None:
    decision = decide(evidence(n=1000, losses=60, gains=60, source_wrong=100), POLICY)
    assert decision.interval_low > -0.05
    assert decision.verdict == "reject"
    assert "0.060 of the inputs got worse, the budget is 0.050" in decision.reason


def test_a_shadow_that_is_worse_than_the_bare_next_base_is_rejected_for_good() -> None:
    n = 200
    clever = replace(
        evidence(n, source_wrong=80), bare_correct=judged(180, 20), few_shot_correct=judged(190, 10)
    )
    decision = decide(clever, POLICY, attempts_left=1)
    assert decision.verdict == "reject"
    assert "worse than no adapter" in decision.reason
    assert (decision.bare_score, decision.few_shot_score) == (0.9, 0.95)


def test_label_free_evidence_is_agreement_with_the_source_at_its_own_margin() -> None:
    source = [f"answer {n}" for n in range(200)]
    shadow = [f"{text} " if n >= 6 else "other" for n, text in enumerate(source)]
    seen = label_free_evidence(source, shadow, ["x"] * 200)
    decision = decide(seen, POLICY)
    assert decision.verdict == "promote"
    assert decision.evidence == "label-free"
    assert (decision.source_score, decision.shadow_score) == (1.0, 0.97)
    assert decision.margin == decision.negative_flip_budget == POLICY.label_free_margin
    assert decision.interval_low > -POLICY.label_free_margin


def test_label_free_disagreement_beyond_its_margin_is_not_promoted() -> None:
    source = [f"answer {n}" for n in range(200)]
    shadow = [text if n >= 16 else "other" for n, text in enumerate(source)]
    decision = decide(label_free_evidence(source, shadow, ["x"] * 200), POLICY, attempts_left=1)
    assert decision.verdict == "retry"


def test_entrusted_evidence_compares_with_the_true_answers() -> None:
    seen = entrusted_evidence(["a", "b"], [" a", "x"], ["a\n", "b"], ["", "b"], ["a", "a"])
    assert seen.source_correct == (True, False)
    assert seen.shadow_correct == (True, True)
    assert seen.bare_correct == (False, True)
    assert seen.few_shot_correct == (True, False)
    with pytest.raises(ValueError, match="argument"):
        matches(["a"], ["a", "b"])


def test_a_decision_is_plain_data_with_the_contracts_fields() -> None:
    value = decide(evidence(), POLICY).as_dict()
    assert set(value) == set(Decision.__dataclass_fields__)
    assert all(isinstance(item, str | int | float) for item in value.values())


def simulate(policy: GatePolicy, n: int, p_gain: float, p_loss: float, seed: int) -> float:
    """Share of promotions over 20,000 simulated evaluations.

    The gate itself judges the most frequent outcomes; the criterion that it must agree with
    there judges them all.
    """
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(n, [p_gain, p_loss, 1 - p_gain - p_loss], size=20_000)
    kinds, repeats = np.unique(counts[:, :2], axis=0, return_counts=True)
    critical = NormalDist().inv_cdf(0.5 + policy.confidence / 2)
    shown = score_statistic(kinds[:, 0], kinds[:, 1], n, -policy.margin) > critical
    promoted = shown & (kinds[:, 1] / n <= policy.negative_flip_budget)
    for at in np.argsort(-repeats)[:12]:
        gains, losses = kinds[at].tolist()
        seen = evidence(n, losses=losses, gains=gains, source_wrong=n // 5)
        assert (decide(seen, policy).verdict == "promote") == bool(promoted[at])
    return float(repeats[promoted].sum() / 20_000)


@pytest.mark.parametrize(
    ("n", "p_gain", "p_loss"),
    [(100, 0.0, 0.05), (200, 0.01, 0.06), (300, 0.02, 0.07), (400, 0.05, 0.1), (200, 0.0, 0.08)],
)
def test_an_adapter_worse_by_the_margin_is_promoted_at_most_as_often_as_designed(
    n: int, p_gain: float, p_loss: float
) -> None:
    assert simulate(POLICY, n, p_gain, p_loss, seed=n) <= 0.035


@pytest.mark.parametrize(("flips", "at_least"), [(0.0, 1.0), (0.01, 0.95), (0.02, 0.84)])
def test_an_equal_adapter_is_promoted_nearly_always_at_200_inputs(
    flips: float, at_least: float
) -> None:
    assert simulate(POLICY, 200, flips, flips, seed=1) >= at_least


@pytest.mark.parametrize("n", [100, 200, 500])
def test_the_level_holds_at_the_worst_loss_rate(n: int) -> None:
    # Exact, over every way to lose 5 points: pure losses up to as many gains as losses + 5%.
    for gains in np.linspace(0.0, 0.3, 13):
        false = promotion_power(
            n, margin=0.05, flip_rate=float(gains) + 0.05, confidence=0.95, difference=-0.05
        )
        assert false <= 0.035


@pytest.mark.parametrize(
    "broken",
    [{"margin": 0.0}, {"confidence": 1.0}, {"negative_flip_budget": 1.0}, {"min_examples": 0}],
)
def test_senseless_policies_are_refused(broken: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="expected"):
        GatePolicy(**broken)  # type: ignore[arg-type]
