"""Simulated adapters of known quality before the real gate: how often is it wrong?

An adapter is four rates over a task's inputs: answers that turn right, that turn wrong, that
change from one wrong answer to another, and that stay. An evaluation draws n inputs from them.
Everything is vectorised over adapters; `check_against_gate` makes sure that this is the gate's own
criterion.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lorebase.transfer.evaluate import Evidence, EvidenceKind, GatePolicy, decide
from lorebase.transfer.evaluate.paired import non_inferior

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapters:
    """Simulated shadows; one entry each, rates between 0 and 1."""

    gains: Floats
    losses: Floats
    changed: Floats
    """Wrong before and after, but differently: label-free evidence sees it, accuracy does not."""

    def __len__(self) -> int:
        return len(self.gains)

    @property
    def loss(self) -> Floats:
        """True loss of accuracy."""
        return self.losses - self.gains

    @property
    def disagreement(self) -> Floats:
        """True share of inputs whose answer is not the source's."""
        return self.gains + self.losses + self.changed

    def scaled(self, factor: float) -> Adapters:
        """Returns the same adapters where changes are `factor` times as frequent."""
        return Adapters(
            gains=self.gains * factor, losses=self.losses * factor, changed=self.changed * factor
        )


def equal_adapters(count: int, flip_rate: float, *, changed: float = 0.0) -> Adapters:
    """Returns adapters that are exactly as good as their source and flip both ways alike."""
    return Adapters(
        gains=np.full(count, flip_rate),
        losses=np.full(count, flip_rate),
        changed=np.full(count, changed),
    )


def worse_adapters(
    count: int,
    rng: np.random.Generator,
    *,
    loss: Floats,
    share: tuple[float, float] = (0.0, 1.0),
    max_gain: float = 0.10,
) -> Adapters:
    """Returns adapters that lose `loss` of accuracy, with whatever else changes beside.

    Args:
        count: how many.
        rng: where they come from.
        loss: true loss of each.
        share: gains and changes among wrong answers are, together, this share of what they may
            be at most, drawn evenly between the two; (0, 0) are pure losses.
        max_gain: most of each, a rate.
    """
    extra = rng.uniform(*share, size=(2, count)) * max_gain
    return Adapters(gains=extra[0], losses=loss + extra[0], changed=extra[1])


def promoted(
    adapters: Adapters,
    kind: EvidenceKind,
    n: int,
    policy: GatePolicy,
    rng: np.random.Generator,
) -> npt.NDArray[np.bool_]:
    """Returns whether each adapter is promoted in one of the policy's attempts.

    Every attempt is judged on inputs of its own, and the retrained shadow is no better: the worst
    case for a gate that must not let it through. The bare next base is right nowhere, so it never
    stands in the way of a bad adapter.
    """
    passed = np.zeros(len(adapters), dtype=np.bool_)
    for _ in range(policy.attempts):
        passed |= passed_once(adapters, kind, n, policy, rng)
    return passed


def passed_once(
    adapters: Adapters,
    kind: EvidenceKind,
    n: int,
    policy: GatePolicy,
    rng: np.random.Generator,
) -> npt.NDArray[np.bool_]:
    """Returns whether each adapter is promoted by one decision: a single attempt of the policy's.

    More attempts make each decision stricter, so this is below what attempts of one have.
    """
    gains, losses = _evaluations(adapters, kind, n, rng)
    return passes(kind, n, gains, losses, policy)


def _evaluations(
    adapters: Adapters, kind: EvidenceKind, n: int, rng: np.random.Generator
) -> tuple[Counts, Counts]:
    rates = np.stack([adapters.gains, adapters.losses, adapters.changed], axis=1)
    rest = 1.0 - rates.sum(axis=1, keepdims=True)
    counts = rng.multinomial(n, np.concatenate([rates, rest], axis=1))
    if kind == "label-free":
        changed = counts[:, :3].sum(axis=1)
        return np.zeros_like(changed), changed
    return counts[:, 0], counts[:, 1]


def passes(
    kind: EvidenceKind, n: int, gains: Counts, losses: Counts, policy: GatePolicy
) -> npt.NDArray[np.bool_]:
    """Returns what the gate says of tables of counts; `check_against_gate` holds it to that."""
    free = kind == "label-free"
    shown = non_inferior(gains, losses, n, policy.margin_for(free), policy.alpha)
    return np.asarray(shown & (losses <= policy.flip_budget_for(free) * n + 1e-9))


def check_against_gate(kind: EvidenceKind, n: int, policy: GatePolicy) -> list[str]:
    """Compares `passes` with the gate's own decisions around its border; returns differences."""
    differences = []
    for gains in (0,) if kind == "label-free" else (0, 3, 8):
        tables = [(gains, losses) for losses in range(gains + n // 12)]
        ours = [bool(passes(kind, n, np.array([g]), np.array([x]), policy)[0]) for g, x in tables]
        border = ours.index(False) if False in ours else len(ours)
        for place in range(max(0, border - 1), min(len(ours), border + 2)):
            if ours[place] != _gate_promotes(kind, n, *tables[place], policy):
                differences.append(f"{kind}, n = {n}, (gains, losses) = {tables[place]}")
    return differences


def _gate_promotes(kind: EvidenceKind, n: int, gains: int, losses: int, policy: GatePolicy) -> bool:
    stay = n - gains - losses
    # Who is right on what stays does not matter to the comparison.
    evidence = Evidence(
        kind=kind,
        source_correct=(True,) * (stay + losses) + (False,) * gains,
        shadow_correct=(True,) * stay + (False,) * losses + (True,) * gains,
        bare_correct=(False,) * n,
    )
    return decide(evidence, policy).verdict == "promote"


def losses_beyond(count: int, margin: float, spread: float, rng: np.random.Generator) -> Floats:
    """Returns true losses from the margin up to `spread` times it; a third of them exactly there.

    Exactly at the margin is where a gate errs most.
    """
    loss = margin * rng.uniform(1.0, spread, size=count)
    loss[: count // 3] = margin
    return loss


def largest_safe_bound(
    adapters: Adapters,
    n: int,
    policy_at: Callable[[float], GatePolicy],
    bounds: Floats,
    limit: float,
    rng: np.random.Generator,
) -> tuple[float, list[float]]:
    """Finds how wide a label-free bound may be for adapters that must not pass.

    Args:
        adapters: all worse than the margin.
        n: inputs.
        policy_at: the policy with a bound.
        bounds: bounds to try, ascending.
        limit: largest share of false promotions.
        rng: for the evaluations.

    Returns:
        The largest bound up to which no rate exceeds the limit (0 if none), and the rate at each.
    """
    rates = [
        float(promoted(adapters, "label-free", n, policy_at(float(bound)), rng).mean())
        for bound in bounds
    ]
    safe = 0.0
    for bound, rate in zip(bounds, rates, strict=True):
        if rate > limit:
            break
        safe = float(bound)
    return safe, rates
