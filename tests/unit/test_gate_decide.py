import json
from dataclasses import replace

import pytest

from lorebase.transfer.evaluate import (
    Decision,
    Evidence,
    GatePolicy,
    decide,
    entrusted_evidence,
    label_free_evidence,
    matches,
)
from lorebase.v1 import upgrade_pb2

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
    assert "inputs an equal shadow with as many flips passes in 90% of cases" in decision.reason
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
    narrow = replace(POLICY, negative_flip_budget=0.02)
    decision = decide(evidence(n=400, losses=10, gains=10, source_wrong=100), narrow)
    assert decision.interval_low > -0.05
    assert decision.verdict == "reject"
    assert "0.025 of the inputs got worse, the budget is 0.020" in decision.reason


def test_a_shadow_that_is_worse_than_the_bare_next_base_is_rejected_for_good() -> None:
    n = 200
    clever = replace(
        evidence(n, source_wrong=80), bare_correct=judged(180, 20), few_shot_correct=judged(190, 10)
    )
    decision = decide(clever, POLICY, attempts_left=1)
    assert decision.verdict == "reject"
    assert "worse than no adapter" in decision.reason
    assert (decision.bare_score, decision.few_shot_score) == (0.9, 0.95)


def test_label_free_evidence_is_agreement_with_the_source_at_the_margin() -> None:
    source = [f"answer {n}" for n in range(205)]
    shadow = [f"{text} " if n >= 3 else "other" for n, text in enumerate(source)]
    seen = label_free_evidence(source, shadow, ["x"] * 205)
    decision = decide(seen, POLICY)
    assert decision.verdict == "promote"
    assert decision.evidence == "label-free"
    assert (decision.source_score, decision.shadow_score) == (1.0, 202 / 205)
    assert decision.margin == decision.negative_flip_budget == POLICY.label_free_margin
    assert decision.interval_low > -POLICY.label_free_margin


def test_label_free_disagreement_is_held_to_the_margin_since_all_of_it_may_be_losses() -> None:
    source = [f"answer {n}" for n in range(205)]
    shadow = [text if n >= 12 else "other" for n, text in enumerate(source)]
    decision = decide(label_free_evidence(source, shadow, ["x"] * 205), POLICY, attempts_left=1)
    assert decision.verdict == "retry"
    assert "inconclusive" in decision.reason


def test_every_decision_states_its_power_and_its_risk() -> None:
    decision = decide(evidence(n=240, losses=2, gains=2), POLICY)
    assert decision.alpha == pytest.approx(0.02)
    powers = dict(decision.power_at)
    assert list(powers) == sorted(powers)
    assert powers[0.005] > powers[0.02] > powers[0.04]
    assert powers[0.005] > decision.power > powers[0.01]  # it changed 4 of 480
    for text in ("with 240 inputs", "98% at 1.0%", "worse by the margin in at most 2.0%"):
        assert text in decision.reason


def test_the_power_of_label_free_evidence_counts_every_change_as_a_loss() -> None:
    source = [f"answer {n}" for n in range(240)]
    decision = decide(label_free_evidence(source, source, ["x"] * 240), POLICY)
    entrusted = decide(evidence(n=240), POLICY)
    assert dict(decision.power_at)[0.02] < dict(entrusted.power_at)[0.02]
    assert dict(decision.power_at)[0.04] < 0.2


def test_several_attempts_share_the_risk() -> None:
    twice = replace(POLICY, attempts=2)
    assert twice.alpha == pytest.approx(0.01)
    border = evidence(n=205, losses=3, gains=0, source_wrong=20)
    assert decide(border, POLICY).verdict == "promote"
    stricter = decide(border, twice)
    assert stricter.verdict == "reject"
    assert stricter.interval_low < decide(border, POLICY).interval_low


def test_the_tenants_own_verdict_is_judged_like_entrusted_answers() -> None:
    targets = ["a"] * 200
    seen = entrusted_evidence(targets, targets, targets, ["x"] * 200, kind="tenant")
    decision = decide(seen, POLICY)
    assert (decision.verdict, decision.evidence) == ("promote", "tenant")
    assert decision.margin == POLICY.margin


def test_a_prompt_that_beats_the_adapter_is_told_but_refuses_nothing() -> None:
    weak = replace(evidence(source_wrong=80), few_shot_correct=judged(190, 10))
    decision = decide(weak, POLICY)
    assert decision.verdict == "promote"
    assert "seeds in its prompt is surely better (by 0.350)" in decision.reason
    assert "seeds in its prompt" not in decide(evidence(), POLICY).reason


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
    contract = set(upgrade_pb2.Decision.DESCRIPTOR.fields_by_name)
    assert contract <= set(value)
    assert json.loads(json.dumps(value))["power_at"][0][0] == 0.005
    assert all(isinstance(value[name], str | int | float) for name in contract)


@pytest.mark.parametrize(
    "broken",
    [
        {"margin": 0.0},
        {"confidence": 1.0},
        {"negative_flip_budget": 1.0},
        {"min_examples": 0},
        {"attempts": 0},
    ],
)
def test_senseless_policies_are_refused(broken: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="expected"):
        GatePolicy(**broken)  # type: ignore[arg-type]
