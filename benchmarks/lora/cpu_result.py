"""What a run of the lora-cpu suite says: rows, figures and plot. Pure."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ..charts import Bar, BarPanel, bar_chart
from ..load.statistics import percentile, significant, spread
from ..suite import SuiteResult

COLOURS = {"stock vLLM": "#b8bfca", "lorebase": "#2f6fb5", "no LoRA": "#4b9b6e"}
NAMES = {"stock": "stock vLLM", "ours": "lorebase", "none": "no LoRA"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One timed piece of work of one arm."""

    workload: str
    """decode or prefill."""
    ranks: str
    """r8 or mixed."""
    adapters: int
    arm: str
    """stock, ours or none."""
    round: int
    """Samples of one round were taken right after each other."""
    tokens: int
    wall_s: float
    cpu_s: float

    @property
    def cell(self) -> tuple[str, str, int]:
        """What was measured, whoever did it."""
        return self.workload, self.ranks, self.adapters


REQUESTS = 64
"""At a time, in every batch."""
Rate = Callable[[Sample], float]


def per_wall(sample: Sample) -> float:
    """Tokens per second."""
    return sample.tokens / sample.wall_s


def per_cpu(sample: Sample) -> float:
    """Tokens per CPU second, over all threads."""
    return sample.tokens / sample.cpu_s


def ratios(
    samples: Sequence[Sample],
    cell: tuple[str, str, int],
    over: str,
    rate: Rate,
    *,
    of: str = "ours",
) -> list[float]:
    """Returns one arm over another, round by round."""
    return [mine / other for mine, other in _neighbours(samples, cell, of, over, rate)]


def extra_ms(samples: Sequence[Sample], cell: tuple[str, str, int]) -> list[float]:
    """Returns how much longer a decode step takes with our adapters than without any, by round."""
    neighbours = _neighbours(samples, cell, "ours", "none", per_wall)
    return [1e3 * REQUESTS * (1 / ours - 1 / none) for ours, none in neighbours]


def _neighbours(
    samples: Sequence[Sample], cell: tuple[str, str, int], one: str, other: str, rate: Rate
) -> list[tuple[float, float]]:
    """Rates of two arms in the rounds that both have."""
    by = {(s.arm, s.round): rate(s) for s in samples if s.cell == cell}
    rounds = sorted({r for arm, r in by if arm == one} & {r for arm, r in by if arm == other})
    return [(by[one, r], by[other, r]) for r in rounds]


def summarise(
    samples: Sequence[Sample],
    facts: dict[str, Any],
    failures: list[str],
    alone: Sequence[dict[str, Any]] = (),
) -> SuiteResult:
    """Returns rows, summary and plot.

    Args:
        samples: sorted as the plot's panels are.
        facts: for the summary.
        failures: of the correctness gate.
        alone: rows of `alone.measure`.
    """
    cells = list(dict.fromkeys(sample.cell for sample in samples))
    summary: dict[str, Any] = {}
    for workload, ranks, adapters in cells:
        for arm, name in (("stock", "stock"), ("none", "nolora")):
            found = ratios(samples, (workload, ranks, adapters), arm, per_wall)
            if found and adapters == max(n for _, _, n in cells):
                key = f"{workload}_{ranks}_{adapters}"
                summary[f"{key}_vs_{name}"] = significant(percentile(found, 50))
                if arm == "none" and workload == "decode":
                    extra = extra_ms(samples, (workload, ranks, adapters))
                    summary[f"{key}_ms_over_nolora"] = significant(percentile(extra, 50))
    return SuiteResult(
        rows=[*(row for cell in cells for row in _rows(samples, cell)), *alone],
        summary={**summary, **facts},
        figure_svg=_figure(samples),
        failures=failures,
    )


def _rows(samples: Sequence[Sample], cell: tuple[str, str, int]) -> list[dict[str, Any]]:
    workload, ranks, adapters = cell
    head = {"workload": workload, "ranks": ranks, "adapters": adapters}
    rows: list[dict[str, Any]] = []
    mine = [sample for sample in samples if sample.cell == cell]
    for arm in dict.fromkeys(sample.arm for sample in mine):
        of = sorted((s for s in mine if s.arm == arm), key=lambda s: s.round)
        rows.append(
            {
                "kind": "rate",
                **head,
                "arm": arm,
                "tokens_per_sample": of[0].tokens,
                "tokens_per_s": spread([per_wall(s) for s in of]),
                "tokens_per_cpu_s": spread([per_cpu(s) for s in of]),
                "wall_s": [round(s.wall_s, 4) for s in of],
                "cpu_s": [round(s.cpu_s, 4) for s in of],
            }
        )
    for of, over in (("ours", "stock"), ("ours", "none"), ("none", "stock")):
        walls = ratios(samples, cell, over, per_wall, of=of)
        if walls:
            rows.append(
                {
                    "kind": "ratio",
                    **head,
                    "of": of,
                    "over": over,
                    "rounds": [round(one, 3) for one in walls],
                    "wall": spread(walls),
                    "cpu": spread(ratios(samples, cell, over, per_cpu, of=of)),
                }
            )
    return rows


def _figure(samples: Sequence[Sample]) -> str:
    panels = []
    for (workload, ranks), group in itertools.groupby(samples, key=lambda s: (s.workload, s.ranks)):
        of = list(group)
        bars = []
        for adapters in dict.fromkeys(s.adapters for s in of):
            for arm, name in NAMES.items():
                rates = [per_wall(s) for s in of if s.adapters == adapters and s.arm == arm]
                if rates:
                    bars.append(
                        Bar(
                            group=f"{adapters} adapter{'s' if adapters > 1 else ''}",
                            series=name,
                            value=percentile(rates, 50),
                            low=percentile(rates, 20),
                            high=percentile(rates, 80),
                        )
                    )
        kind = "all rank 8" if ranks == "r8" else "ranks 8, 16, 64"
        panels.append(
            BarPanel(
                title=f"{workload}, {kind}: tokens per second",
                bars=tuple(bars),
                logarithmic=True,
            )
        )
    return bar_chart(panels, COLOURS, label="Tokens per second by LoRA implementation")
