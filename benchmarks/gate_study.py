"""The simulated part of suite `gate`: error rates, power, and safe label-free bounds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np

from lorebase.transfer.evaluate import EvidenceKind, GatePolicy, promotion_power

from .gate_simulation import (
    check_against_gate,
    equal_adapters,
    largest_safe_bound,
    losses_beyond,
    promoted,
    worse_adapters,
)

Item = TypeVar("Item")

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
                _false_promotions(found, shape, kind, n, attempts)
            _power(found, shape, kind, n, policy)
    _bounds(found, shape, policy)
    return found


def _rng(shape: StudyShape, *what: object) -> np.random.Generator:
    return np.random.default_rng([shape.seed, *"|".join(map(str, what)).encode()])


def _false_promotions(
    found: Study, shape: StudyShape, kind: EvidenceKind, n: int, policy: GatePolicy
) -> None:
    rng = _rng(shape, "false", kind, n, policy.attempts)
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
        rate = float(promoted(adapters, kind, n, policy, rng).mean())
        found.adapters += count
        found.rows.append(
            {
                "what": "false promotions",
                "evidence": kind,
                "n": n,
                "attempts": policy.attempts,
                "adapters": count,
                "population": name,
                "rate": round(rate, 5),
            }
        )
        if rate > LIMIT + 3.0 * float(np.sqrt(LIMIT * (1.0 - LIMIT) / count)):
            found.failures.append(
                f"{rate:.2%} false promotions of {name!r}, {kind}, n = {n}, expected at most "
                f"{LIMIT:.0%}"
            )


def _power(found: Study, shape: StudyShape, kind: EvidenceKind, n: int, policy: GatePolicy) -> None:
    rng = _rng(shape, "power", kind, n)
    free = kind == "label-free"
    for flips in shape.flips:
        adapters = equal_adapters(shape.adapters, flips)
        rate = float(promoted(adapters, kind, n, policy, rng).mean())
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
        found.adapters += shape.adapters
        found.rows.append(
            {
                "what": "power",
                "evidence": kind,
                "n": n,
                "flips": flips,
                "adapters": shape.adapters,
                "rate": round(rate, 5),
                "stated": round(stated, 5),
            }
        )
        if abs(rate - stated) > 0.002 + 4.0 / (2.0 * float(np.sqrt(shape.adapters))):
            found.failures.append(
                f"power of {kind} evidence at n = {n} and {flips:.1%} flips is {rate:.1%}, stated "
                f"{stated:.1%}"
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


def spread(items: Sequence[Item], count: int) -> list[Item]:
    """Returns about `count` items evenly over their order, first and last among them."""
    last, count = len(items) - 1, min(count, len(items))
    if count < 2:
        return list(items[:count])
    return [items[round(place * last / (count - 1))] for place in range(count)]
