"""The simulated part of suite `gate`: error rates, power, and safe label-free bounds."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from lorebase.transfer.evaluate import EvidenceKind, GatePolicy, promotion_power

from .gate_rivals import Beside, check_beside, promoted_beside
from .gate_simulation import (
    check_against_gate,
    equal_adapters,
    largest_safe_bound,
    losses_beyond,
    passed_once,
    promoted,
    worse_adapters,
)

LIMIT = 0.02
"""Share of adapters worse than the margin that may be promoted."""
KINDS: tuple[EvidenceKind, ...] = ("entrusted", "label-free")


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyShape:
    """How much is simulated."""

    adapters: int
    """Of each population, at each n and kind of evidence."""
    sizes: tuple[int, ...]
    """Evaluation inputs."""
    flips: tuple[float, ...]
    """Shares of right answers that turn wrong, of equal adapters."""
    bounds: tuple[float, ...]
    """Label-free bounds to try."""
    seed: int = 0


STUDY_FULL = StudyShape(
    adapters=20_000,
    sizes=(100, 150, 205, 240, 350, 500),
    flips=(0.0, 0.005, 0.01, 0.02, 0.03, 0.04),
    bounds=tuple(round(0.01 * step, 2) for step in range(1, 21)),
)
STUDY_QUICK = StudyShape(
    adapters=2_000, sizes=(100, 205), flips=(0.0, 0.01, 0.03), bounds=(0.03, 0.05, 0.1)
)

WAYS: dict[str, tuple[float, float, float]] = {
    "losses only": (1.0, 0.0, 0.0),
    "1 gained for 3 lost": (1.5, 0.5, 0.0),
    "1 gained for 2 lost": (2.0, 1.0, 0.0),
    "1 gained for 3 lost, 1 changed": (1.5, 0.5, 0.5),
    "source right half of the time": (2.0, 1.0, 2.0),
}
"""Ways in which answers change: losses, gains and changes among wrong answers, in units of the
loss of accuracy."""
SHIFTS = (1.0, 1.5, 2.0)
"""How much more often a real input's answer changes than a synthetic one's."""
BARE = (-0.10, -0.05, 0.0, 0.05, 0.10)
"""Accuracy of the bare next base minus the source's."""


@dataclass(slots=True)
class Study:
    """What was simulated."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    adapters: int = 0


def study(shape: StudyShape, policy: GatePolicy | None = None) -> Study:
    """Simulates everything; some minutes of one CPU at most."""
    policy = policy or GatePolicy()
    found = Study()
    twice = replace(policy, attempts=2)
    for kind in KINDS:
        for n in shape.sizes:
            found.failures += check_against_gate(kind, n, policy)
            for attempts in (policy, twice):
                # Entrusted inputs are real ones: nothing shifts.
                for shift in SHIFTS if kind == "label-free" else (1.0,):
                    _false_promotions(found, shape, kind, n, attempts, shift)
                    if shift != 1.0:
                        bound = policy.label_free_margin / shift
                        narrow = replace(attempts, label_free_margin=bound)
                        _false_promotions(found, shape, kind, n, narrow, shift)
                _power(found, shape, kind, n, attempts)
    for n in shape.sizes:
        found.failures += check_beside(n, policy, _rng(shape, "check beside", n))
        for attempts in (policy, twice):
            _beside_bare(found, shape, n, attempts)
    _bounds(found, shape, policy)
    return found


def _rng(shape: StudyShape, *what: object) -> np.random.Generator:
    return np.random.default_rng([shape.seed, *"|".join(map(str, what)).encode()])


def _false_promotions(
    found: Study, shape: StudyShape, kind: EvidenceKind, n: int, policy: GatePolicy, shift: float
) -> None:
    """Adapters worse than the margin on real inputs, judged on inputs that change less often.

    The limit is promised where they change alike, and with a bound that is narrower by the shift.
    What a shift does to the default bound is told, too.
    """
    bound = round(policy.margin_for(kind == "label-free"), 4)
    shifted = [] if shift == 1.0 else [shift, bound]
    rng = _rng(shape, "false", kind, n, policy.attempts, *shifted)
    count, margin = shape.adapters, policy.margin
    populations = {
        "losses only, at the margin": worse_adapters(
            count, rng, loss=np.full(count, margin), share=(0.0, 0.0)
        ),
        "flips both ways, at the margin": worse_adapters(
            count, rng, loss=np.full(count, margin), share=(0.0, 0.5)
        ),
        "one to three margins": worse_adapters(
            count, rng, loss=losses_beyond(count, margin, 3.0, rng), share=(0.0, 0.5)
        ),
    }
    for name, adapters in populations.items():
        rate = float(promoted(adapters.scaled(1.0 / shift), kind, n, policy, rng).mean())
        found.adapters += count
        found.rows.append(
            {
                "what": "false promotions",
                "evidence": kind,
                "n": n,
                "attempts": policy.attempts,
                "shift": shift,
                "bound": bound,
                "adapters": count,
                "population": name,
                "rate": round(rate, 5),
            }
        )
        if bound * shift <= margin + 1e-3 and rate > _limit(count):
            found.failures.append(
                f"{rate:.2%} false promotions of {name!r}, {kind}, n = {n}, expected at most "
                f"{LIMIT:.0%}"
            )


def _limit(count: int) -> float:
    """Returns the limit and three standard errors of a rate at it."""
    return LIMIT + 3.0 * float(np.sqrt(LIMIT * (1.0 - LIMIT) / count))


def _power(found: Study, shape: StudyShape, kind: EvidenceKind, n: int, policy: GatePolicy) -> None:
    """Equally good adapters: one decision as stated, and what all attempts together come to."""
    rng = _rng(shape, "power", kind, n, *([policy.attempts] if policy.attempts > 1 else []))
    free = kind == "label-free"
    for flips in shape.flips:
        adapters = equal_adapters(shape.adapters, flips)
        rate = float(passed_once(adapters, kind, n, policy, rng).mean())
        again = policy.attempts > 1
        whole = float(promoted(adapters, kind, n, policy, rng).mean()) if again else rate
        # Without labels an equal adapter's gains and losses both count as changes.
        changes = 2.0 * flips if free else flips
        stated = promotion_power(
            n,
            margin=policy.margin_for(free),
            flip_rate=changes,
            alpha=policy.alpha,
            difference=-changes if free else 0.0,
            max_losses=int(policy.flip_budget_for(free) * n + 1e-9),
        )
        found.adapters += shape.adapters * (1 + again)
        found.rows.append(
            {
                "what": "power",
                "evidence": kind,
                "n": n,
                "attempts": policy.attempts,
                "flips": flips,
                "adapters": shape.adapters,
                "rate": round(rate, 5),
                "rate_in_all_attempts": round(whole, 5),
                "stated": round(stated, 5),
            }
        )
        if abs(rate - stated) > 0.002 + 4.0 / (2.0 * float(np.sqrt(shape.adapters))):
            found.failures.append(
                f"power of {kind} evidence at n = {n} and {flips:.1%} flips is {rate:.1%}, stated "
                f"{stated:.1%}"
            )


def _beside_bare(found: Study, shape: StudyShape, n: int, policy: GatePolicy) -> None:
    """Shadows as good as their source beside a bare base that is nearly so, as good, or better."""
    rng = _rng(shape, "bare", n, policy.attempts)
    for gap in BARE:
        beside = Beside(bare_minus_source=gap)
        rate = float(promoted_beside(beside, shape.adapters, n, policy, rng).mean())
        found.adapters += shape.adapters
        found.rows.append(
            {
                "what": "beside a strong bare base",
                "evidence": "entrusted",
                "n": n,
                "attempts": policy.attempts,
                "bare_minus_source": gap,
                "source_accuracy": beside.source_right,
                "flips": beside.flips,
                "adapters": shape.adapters,
                "rate": round(rate, 5),
            }
        )
        if gap >= policy.margin and rate > _limit(shape.adapters):
            found.failures.append(
                f"{rate:.2%} promotions of shadows that are {gap:.2f} worse than the bare next "
                f"base, n = {n}, expected at most {LIMIT:.0%}"
            )


def _bounds(found: Study, shape: StudyShape, policy: GatePolicy) -> None:
    """How wide the label-free bound may be, by the way in which answers change."""
    n = max(size for size in shape.sizes if size <= 205)
    for way, (lost, gained, changed) in WAYS.items():
        for shift in SHIFTS:
            rng = _rng(shape, "bound", way, shift)
            count = shape.adapters
            loss = losses_beyond(count, policy.margin, 3.0, rng)
            real = replace(
                worse_adapters(count, rng, loss=loss, share=(0.0, 0.0)),
                gains=loss * gained,
                losses=loss * lost,
                changed=loss * changed,
            )
            seen = real.scaled(1.0 / shift)
            safe, rates = largest_safe_bound(
                seen,
                n,
                lambda bound: replace(policy, label_free_margin=bound),
                np.array(shape.bounds),
                LIMIT,
                rng,
            )
            found.adapters += count
            found.rows.append(
                {
                    "what": "label-free bound",
                    "n": n,
                    "way": way,
                    "shift": shift,
                    "changes_per_loss": lost + gained + changed,
                    "adapters": count,
                    "largest_safe_bound": safe,
                    "bounds": list(shape.bounds),
                    "false_promotions": [round(rate, 5) for rate in rates],
                }
            )
