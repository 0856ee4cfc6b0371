"""Simulated adapters beside a bare next base that is strong itself, before the real gate.

Where the next base alone is nearly as good as the old adapter, or better, the gate's third
criterion matters: a shadow that is surely as good as its source may still be worse than no adapter
at all. Judgements of all three on one input belong together, so whole inputs are drawn: one of
eight cells, (source, shadow, bare) right or wrong.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lorebase.transfer.evaluate import Evidence, GatePolicy, decide
from lorebase.transfer.evaluate.paired import non_inferior

from .gate_simulation import Counts, Floats, passes

CELLS = tuple(itertools.product((True, False), repeat=3))
"""(source right, shadow right, bare right)."""
_SOURCE, _SHADOW, _BARE = np.array(CELLS).T
CHECKED = 40
"""Random tables that are compared with the gate itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Beside:
    """Shadows that are exactly as good as their source, and the bare base beside them."""

    bare_minus_source: float
    """True accuracy of the bare base minus the source's (and the shadow's)."""
    source_right: float = 0.85
    flips: float = 0.01
    """Share of inputs that the shadow gets newly wrong; it gets as many newly right."""

    def cells(self) -> Floats:
        """Returns the probability of each cell; the bare base errs independently of the others."""
        right, flips = self.source_right, self.flips
        pairs = {
            (True, True): right - flips,
            (True, False): flips,
            (False, True): flips,
            (False, False): 1.0 - right - flips,
        }
        bare = right + self.bare_minus_source
        return np.array([pairs[s, t] * (bare if b else 1.0 - bare) for s, t, b in CELLS])


def promoted_beside(
    beside: Beside, count: int, n: int, policy: GatePolicy, rng: np.random.Generator
) -> npt.NDArray[np.bool_]:
    """Returns for `count` shadows whether one of the policy's attempts is promoted.

    Entrusted evidence of `n` inputs, drawn anew for every attempt.
    """
    passed = np.zeros(count, dtype=np.bool_)
    for _ in range(policy.attempts):
        passed |= _passes(rng.multinomial(n, beside.cells(), size=count), n, policy)
    return passed


def _passes(tables: Counts, n: int, policy: GatePolicy) -> npt.NDArray[np.bool_]:
    """Returns what the gate says of tables of counts, [adapters, cells]."""

    def count(cells: npt.NDArray[np.bool_]) -> Counts:
        return np.asarray(tables[:, cells].sum(axis=1))

    kept = passes("entrusted", n, count(~_SOURCE & _SHADOW), count(_SOURCE & ~_SHADOW), policy)
    gains, losses = count(~_BARE & _SHADOW), count(_BARE & ~_SHADOW)
    return np.asarray(kept & non_inferior(gains, losses, n, policy.margin, policy.alpha))


def check_beside(n: int, policy: GatePolicy, rng: np.random.Generator) -> list[str]:
    """Compares `promoted_beside`'s judgement with the gate's own on random tables.

    Half of the tables are drawn where the bare base decides. Returns the differences.
    """
    differences = []
    for number in range(CHECKED):
        cells = Beside(bare_minus_source=0.02 * (number % 4), flips=0.005).cells()
        table = rng.multinomial(n, cells)
        ours = bool(_passes(table[None], n, policy)[0])
        inputs = [cell for cell, times in zip(CELLS, table, strict=True) for _ in range(times)]
        evidence = Evidence(
            kind="entrusted",
            source_correct=tuple(one[0] for one in inputs),
            shadow_correct=tuple(one[1] for one in inputs),
            bare_correct=tuple(one[2] for one in inputs),
        )
        if ours != (decide(evidence, policy).verdict == "promote"):
            differences.append(f"n = {n}, (source, shadow, bare) table {table.tolist()}")
    return differences
