"""The gate: may the shadow take over? Pure; the statistics are in `paired`."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from .evidence import Evidence, EvidenceKind
from .paired import (
    Paired,
    difference_interval,
    is_non_inferior,
    mcnemar_p_value,
    paired,
    promotion_power,
    rate_upper_bound,
    required_n,
)
from .policy import GatePolicy

Verdict = Literal["promote", "retry", "reject"]

POWER_FLIPS = (0.005, 0.01, 0.02, 0.04)
"""Shares of answers that change, at which every decision states its power."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What the gate saw and said: the fields of lorebase.v1.Decision, and its power."""

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
    alpha: float
    """Largest probability with which this decision promotes a shadow worse by the margin."""
    power: float
    """Probability that a shadow as good as the source passes with so many inputs, if it changes
    as many answers as this one."""
    power_at: tuple[tuple[float, float], ...]
    """The same for other shares of changed answers: pairs of share and power."""
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


def decide(evidence: Evidence, policy: GatePolicy, *, attempts_left: int = 0) -> Decision:
    """Decides whether the shadow is promoted.

    Promote if and only if, on enough inputs, (1) shadow - source is surely above -margin, (2)
    negative flips are within budget, and (3) shadow - bare is surely above -margin. Otherwise
    retry while attempts are left, unless another attempt can't help; inconclusive is never a
    pass.

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
    label_free = evidence.label_free
    margin, budget = policy.margin_for(label_free), policy.flip_budget_for(label_free)
    interval = difference_interval(source, policy.interval_confidence)
    findings = [
        _size(source.n, policy, label_free),
        _against_source(source, interval, margin, policy, label_free),
        _flips(source, budget),
        _against_bare(bare, margin, policy),
    ]
    failed = [finding for finding in findings if not finding.passed]
    verdict: Verdict = "promote"
    if failed:
        may_help = all(finding.retry_may_help for finding in failed)
        verdict = "retry" if attempts_left > 0 and may_help else "reject"
    power = _Power(source.n, margin, budget, policy.alpha, label_free)
    notes = [power.text(), *_few_shot_note(few_shot, evidence, policy)]
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
        negative_flip_bound=rate_upper_bound(source.losses, source.n, policy.interval_confidence),
        negative_flip_budget=budget,
        alpha=policy.alpha,
        power=power.at(_seen_flips(source, label_free)),
        power_at=tuple((share, power.at(share)) for share in POWER_FLIPS),
        reason="; ".join([*(finding.text for finding in failed or findings), *notes]),
    )


@dataclass(frozen=True, slots=True)
class _Power:
    """What a good shadow's chances are with this evidence."""

    n: int
    margin: float
    budget: float
    alpha: float
    label_free: bool

    def at(self, flips: float) -> float:
        """Returns the power where a share `flips` of the right answers turns wrong.

        With true answers as many turn right. Without, every change counts as a loss, and what
        the number says is how often a shadow that changes so many answers passes.
        """
        # Beyond this no table is possible.
        flips = min(flips, 1.0 if self.label_free else 0.5)
        return promotion_power(
            self.n,
            margin=self.margin,
            flip_rate=flips,
            alpha=self.alpha,
            difference=-flips if self.label_free else 0.0,
            max_losses=int(self.budget * self.n + 1e-9),
        )

    def text(self) -> str:
        """Returns one clause for people."""
        figures = ", ".join(f"{self.at(share):.0%} at {share:.1%}" for share in POWER_FLIPS)
        who = "a shadow" if self.label_free else "an equally good shadow"
        return (
            f"with {self.n} inputs {who} passes in {figures} of changed answers, one that is worse "
            f"by the margin in at most {self.alpha:.1%} of cases"
        )


def _seen_flips(table: Paired, label_free: bool) -> float:
    """Returns the share of changes that was seen, at least half an input: none is never sure."""
    changes = float(table.losses) if label_free else (table.losses + table.gains) / 2.0
    return max(changes, 0.5) / table.n


def _size(n: int, policy: GatePolicy, label_free: bool) -> _Finding:
    if n >= policy.min_examples:
        return _Finding(passed=True, text=f"{n} inputs")
    # Synthetic inputs can be made, entrusted ones can't.
    text = f"{n} inputs decide nothing, at least {policy.min_examples} are needed"
    return _Finding(passed=False, text=text, retry_may_help=label_free)


def _against_source(
    table: Paired,
    interval: tuple[float, float],
    margin: float,
    policy: GatePolicy,
    label_free: bool,
) -> _Finding:
    low, high = interval
    seen = (
        f"shadow minus source is {table.difference:+.3f} (interval {low:+.3f} to {high:+.3f}, "
        f"{table.losses} inputs lost, {table.gains} gained, McNemar p = "
        f"{mcnemar_p_value(table):.2g})"
    )
    if is_non_inferior(table, margin, policy.alpha):
        return _Finding(passed=True, text=f"{seen}: surely within the margin of {margin:.3f}")
    if high < -policy.hopeless_loss:
        text = f"{seen}: so far below the source that another attempt won't help"
        return _Finding(passed=False, text=text, retry_may_help=False)
    if high < -margin:
        return _Finding(passed=False, text=f"{seen}: surely worse than the margin of {margin:.3f}")
    advice = "" if label_free else _advice(table, margin, policy)
    return _Finding(passed=False, text=f"{seen}: inconclusive at a margin of {margin:.3f}{advice}")


def _advice(table: Paired, margin: float, policy: GatePolicy) -> str:
    """Says how many inputs would settle it for an equal shadow that flips as much as this one."""
    try:
        needed = required_n(margin, _seen_flips(table, False), policy.alpha)
    except ValueError:
        return ""
    return (
        f" (with about {needed} inputs an equal shadow with as many flips passes in 90% of cases)"
    )


def _flips(table: Paired, budget: float) -> _Finding:
    text = f"{table.loss_rate:.3f} of the inputs got worse, the budget is {budget:.3f}"
    return _Finding(passed=table.losses <= budget * table.n + 1e-9, text=text)


def _against_bare(table: Paired, margin: float, policy: GatePolicy) -> _Finding:
    low, high = difference_interval(table, policy.interval_confidence)
    text = (
        f"shadow minus bare next base is {table.difference:+.3f} (interval {low:+.3f} to "
        f"{high:+.3f})"
    )
    if is_non_inferior(table, margin, policy.alpha):
        return _Finding(passed=True, text=text)
    # The shadow imitates the source: if the bare base is surely better, no attempt changes that.
    text += ": it may be worse than no adapter at all"
    return _Finding(passed=False, text=text, retry_may_help=high >= -margin)


def _few_shot_note(few_shot: tuple[bool, ...], evidence: Evidence, policy: GatePolicy) -> list[str]:
    """Says when a prompt alone does better: no reason to refuse, but one to rethink the adapter."""
    if not few_shot or evidence.label_free:
        return []
    table = paired(few_shot, evidence.shadow_correct)
    _, high = difference_interval(table, policy.interval_confidence)
    if high >= 0.0:
        return []
    return [
        f"the next base with the seeds in its prompt is surely better (by {-table.difference:.3f})"
    ]
