"""The gate: may the shadow take over? Pure; the statistics are in `paired`."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from .paired import (
    Paired,
    difference_interval,
    mcnemar_p_value,
    paired,
    promotion_power,
    rate_upper_bound,
    required_n,
)

EvidenceKind = Literal["entrusted", "label-free"]
Verdict = Literal["promote", "retry", "reject"]


@dataclass(frozen=True, slots=True, kw_only=True)
class GatePolicy:
    """What a promotion takes.

    A shadow that is truly worse by the margin is promoted with probability at most about
    (1 - confidence) / 2 a decision, so at most twice that over two attempts.
    """

    margin: float = 0.05
    """Largest tolerated loss of accuracy on true answers (0 to 1)."""
    label_free_margin: float = 0.10
    """Largest tolerated disagreement with the source where true answers are unknown. Twice the
    margin: an equally good adapter differs to the better as often as to the worse, and without
    answers both look alike."""
    confidence: float = 0.95
    """Of the two-sided interval of the difference."""
    negative_flip_budget: float = 0.05
    """Largest share of inputs that the source had right and the shadow has wrong, as seen (its
    upper bound is reported). What the sample may hide is bounded by the margin already; bounding
    it here again would refuse equal adapters, because a retraining that changes nothing on
    average still flips 1 to 5 %. Without true answers the label-free margin takes its place."""
    min_examples: int = 100
    """Fewer inputs decide nothing."""
    hopeless_loss: float = 0.60
    """A shadow that is surely worse by this is rejected at once, to save background time. Smaller
    gaps are worth another attempt: twice the data and steps has closed one of 0.31."""

    def __post_init__(self) -> None:
        """Checks the bounds."""
        for name in ("margin", "label_free_margin", "hopeless_loss"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"got {name}={getattr(self, name)}, expected between 0 and 1")
        if not 0.5 < self.confidence < 1 or not 0 <= self.negative_flip_budget < 1:
            raise ValueError(
                f"got confidence {self.confidence} and flip budget {self.negative_flip_budget}, "
                "expected 0.5 < confidence < 1 and 0 <= budget < 1"
            )
        if self.min_examples < 1:
            raise ValueError(f"got min_examples={self.min_examples}, expected at least 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """Judgements of the systems on the same inputs, in the same order.

    `entrusted`: whether each answer is right. `label-free`: whether it equals the source's, so
    `source_correct` is all True.
    """

    kind: EvidenceKind
    source_correct: tuple[bool, ...]
    """Old base with the old adapter."""
    shadow_correct: tuple[bool, ...]
    """Next base with the new adapter."""
    bare_correct: tuple[bool, ...]
    """Next base alone."""
    few_shot_correct: tuple[bool, ...] = ()
    """Next base with the seeds in its prompt; reported only. Empty if it was not asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What the gate saw and said: the fields of lorebase.v1.Decision."""

    verdict: Verdict
    evidence: EvidenceKind
    n: int
    source_score: float
    shadow_score: float
    bare_score: float
    few_shot_score: float
    difference: float
    """Shadow minus source."""
    interval_low: float
    interval_high: float
    margin: float
    negative_flip_rate: float
    negative_flip_bound: float
    """Exact upper bound at the policy's confidence."""
    negative_flip_budget: float
    reason: str

    def as_dict(self) -> dict[str, Any]:
        """Returns plain data for the catalog."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Finding:
    """One criterion's outcome."""

    passed: bool
    text: str
    retry_may_help: bool = True


def entrusted_evidence(
    targets: Sequence[str],
    source: Sequence[str],
    shadow: Sequence[str],
    bare: Sequence[str],
    few_shot: Sequence[str] = (),
) -> Evidence:
    """Compares answers with true ones; every sequence holds one answer an input."""
    return Evidence(
        kind="entrusted",
        source_correct=matches(source, targets),
        shadow_correct=matches(shadow, targets),
        bare_correct=matches(bare, targets),
        few_shot_correct=matches(few_shot, targets) if few_shot else (),
    )


def label_free_evidence(
    source: Sequence[str],
    shadow: Sequence[str],
    bare: Sequence[str],
    few_shot: Sequence[str] = (),
) -> Evidence:
    """Compares answers with the source's; every sequence holds one answer an input."""
    return Evidence(
        kind="label-free",
        source_correct=(True,) * len(source),
        shadow_correct=matches(shadow, source),
        bare_correct=matches(bare, source),
        few_shot_correct=matches(few_shot, source) if few_shot else (),
    )


def matches(answers: Sequence[str], wanted: Sequence[str]) -> tuple[bool, ...]:
    """Returns for each answer whether it equals the wanted one, spaces around it aside."""
    return tuple(a.strip() == b.strip() for a, b in zip(answers, wanted, strict=True))


def decide(evidence: Evidence, policy: GatePolicy, *, attempts_left: int = 0) -> Decision:
    """Decides whether the shadow is promoted.

    Promote if and only if, on enough inputs, (1) the lower bound of shadow - source is above
    -margin, (2) negative flips are within budget, and (3) the lower bound of shadow - bare is
    above -margin. Otherwise retry while attempts are left, unless another attempt can't help;
    inconclusive is never a pass.

    Args:
        evidence: judgements on the same inputs.
        policy: what a promotion takes.
        attempts_left: further attempts that the migration may make.

    Raises:
        ValueError: no inputs, or sequences of different lengths.
    """
    source = paired(evidence.source_correct, evidence.shadow_correct)
    bare = paired(evidence.bare_correct, evidence.shadow_correct)
    few_shot = evidence.few_shot_correct
    label_free = evidence.kind == "label-free"
    margin = policy.label_free_margin if label_free else policy.margin
    budget = policy.label_free_margin if label_free else policy.negative_flip_budget
    interval = difference_interval(source, policy.confidence)
    findings = [
        _size(source.n, policy, label_free),
        _against_source(source, interval, margin, policy),
        _flips(source, budget),
        _against_bare(bare, margin, policy),
    ]
    failed = [finding for finding in findings if not finding.passed]
    verdict: Verdict = "promote"
    if failed:
        may_help = all(finding.retry_may_help for finding in failed)
        verdict = "retry" if attempts_left > 0 and may_help else "reject"
    return Decision(
        verdict=verdict,
        evidence=evidence.kind,
        n=source.n,
        source_score=source.old_right / source.n,
        shadow_score=source.new_right / source.n,
        bare_score=bare.old_right / bare.n,
        few_shot_score=sum(few_shot) / len(few_shot) if few_shot else 0.0,
        difference=source.difference,
        interval_low=interval[0],
        interval_high=interval[1],
        margin=margin,
        negative_flip_rate=source.loss_rate,
        negative_flip_bound=rate_upper_bound(source.losses, source.n, policy.confidence),
        negative_flip_budget=budget,
        reason="; ".join(finding.text for finding in failed or findings),
    )


def _size(n: int, policy: GatePolicy, label_free: bool) -> _Finding:
    if n >= policy.min_examples:
        return _Finding(passed=True, text=f"{n} inputs")
    # Synthetic inputs can be made, entrusted ones can't.
    text = f"{n} inputs decide nothing, at least {policy.min_examples} are needed"
    return _Finding(passed=False, text=text, retry_may_help=label_free)


def _against_source(
    table: Paired, interval: tuple[float, float], margin: float, policy: GatePolicy
) -> _Finding:
    low, high = interval
    seen = (
        f"shadow minus source is {table.difference:+.3f} (interval {low:+.3f} to {high:+.3f}, "
        f"{table.losses} inputs lost, {table.gains} gained, McNemar p = "
        f"{mcnemar_p_value(table):.2g})"
    )
    if low > -margin:
        return _Finding(passed=True, text=f"{seen}: surely within the margin of {margin:.3f}")
    if high < -policy.hopeless_loss:
        text = f"{seen}: so far below the source that another attempt won't help"
        return _Finding(passed=False, text=text, retry_may_help=False)
    if high < -margin:
        return _Finding(passed=False, text=f"{seen}: surely worse than the margin of {margin:.3f}")
    return _Finding(
        passed=False,
        text=f"{seen}: inconclusive at a margin of {margin:.3f}{_advice(table, margin, policy)}",
    )


def _advice(table: Paired, margin: float, policy: GatePolicy) -> str:
    """Says how many inputs would settle it for an adapter that flips as much as this one."""
    flips = max((table.losses + table.gains) / (2 * table.n), 1 / (2 * table.n))
    power = promotion_power(table.n, margin=margin, flip_rate=flips, confidence=policy.confidence)
    try:
        needed = required_n(margin, flips, policy.confidence)
    except ValueError:
        return ""
    return (
        f" (with {table.n} inputs and as many flips, an equal adapter passes in {power:.0%} of "
        f"cases; {needed} inputs would make that 90%)"
    )


def _flips(table: Paired, budget: float) -> _Finding:
    text = f"{table.loss_rate:.3f} of the inputs got worse, the budget is {budget:.3f}"
    return _Finding(passed=table.loss_rate <= budget, text=text)


def _against_bare(table: Paired, margin: float, policy: GatePolicy) -> _Finding:
    low, high = difference_interval(table, policy.confidence)
    text = (
        f"shadow minus bare next base is {table.difference:+.3f} (interval {low:+.3f} to "
        f"{high:+.3f})"
    )
    if low > -margin:
        return _Finding(passed=True, text=text)
    # The shadow imitates the source: if the bare base is surely better, no attempt changes that.
    text += ": it may be worse than no adapter at all"
    return _Finding(passed=False, text=text, retry_may_help=high >= -margin)
