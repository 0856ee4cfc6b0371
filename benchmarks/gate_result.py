"""Summary, failures and plot of suite `gate`."""

from __future__ import annotations

from typing import Any

import numpy as np

from lorebase.transfer.evaluate import GatePolicy

from .charts.curves import Curve, Panel, curves_chart
from .gate_simulation import passes
from .gate_study import LIMIT, WAYS, Study
from .suite import SuiteResult

Rows = list[dict[str, Any]]
COLOURS = ("#1d4ed8", "#c2410c", "#15803d", "#7c3aed", "#0e7490", "#b91c1c")


def summarise(study: Study, live: Rows) -> SuiteResult:
    """Returns the suite's result."""
    margin = GatePolicy().margin
    summary: dict[str, Any] = {
        "simulated_adapters": study.adapters,
        "margin": margin,
        "false_promotion_rate_entrusted_max": _worst(study.rows, "entrusted"),
        "false_promotion_rate_label_free_max": _worst(study.rows, "label-free"),
        **_power_figures(study.rows),
        **_bound_figures(study.rows),
        **_live_figures(live, margin),
    }
    return SuiteResult(
        rows=[*study.rows, *live],
        summary=summary,
        figure_svg=_figure(study.rows, live, margin),
        failures=list(study.failures),
    )


def _worst(rows: Rows, kind: str) -> float:
    """Returns the highest rate over all sizes and populations: a guarantee, not an average."""
    return max(
        row["rate"] for row in rows if row["what"] == "false promotions" and row["evidence"] == kind
    )


def _power_figures(rows: Rows) -> dict[str, float]:
    found = {}
    for row in rows:
        if row["what"] == "power" and row["n"] in (205, 240) and row["flips"] in (0.01, 0.02):
            kind = row["evidence"].replace("-", "_")
            found[f"power_{kind}_n{row['n']}_flips_{100 * row['flips']:.0f}pct"] = row["rate"]
    return found


def _bound_figures(rows: Rows) -> dict[str, float]:
    """Returns the safe bounds where answers change as often on real inputs, and twice as often."""
    found = {}
    for row in rows:
        if row["what"] == "label-free bound" and row["shift"] in (1.0, 2.0):
            name = row["way"].replace(", ", "_").replace(" ", "_")
            found[f"safe_bound_{name}_shift_{row['shift']:.0f}"] = row["largest_safe_bound"]
    return found


def _live_figures(live: Rows, margin: float) -> dict[str, Any]:
    """Returns how well changes that were seen foretell the true loss."""
    if not live:
        return {}
    seen = np.array([row["disagreement_seen"] for row in live])
    loss = np.array([row["loss"] for row in live])
    true = np.array([row["disagreement_true"] for row in live])
    bad = loss > margin
    passed = np.array([row["promoted"] for row in live])
    wide = np.array([_passes_at(row, 2 * margin) for row in live])
    varied = bool(seen.std() > 0 and loss.std() > 0)
    return {
        "live_shadows": len(live),
        "live_worse_than_margin": int(bad.sum()),
        "live_false_promotions": int((bad & passed).sum()),
        "live_good_promoted": int((~bad & passed).sum()),
        "live_good": int((~bad).sum()),
        "live_false_promotions_at_twice_the_margin": int((bad & wide).sum()),
        "live_good_promoted_at_twice_the_margin": int((~bad & wide).sum()),
        "live_correlation_seen_and_loss": round(float(np.corrcoef(seen, loss)[0, 1]), 3)
        if varied
        else 0.0,
        "live_loss_beyond_seen_changes_max": round(float((loss - seen).max()), 4),
        "live_changes_real_minus_seen_mean": round(float((true - seen).mean()), 4),
    }


def _passes_at(row: dict[str, Any], bound: float) -> bool:
    """Returns whether a live shadow would pass at another label-free bound."""
    changed = np.array([round(row["disagreement_seen"] * row["n_seen"])])
    policy = GatePolicy(label_free_margin=bound)
    return bool(passes("label-free", row["n_seen"], np.zeros_like(changed), changed, policy)[0])


def _figure(rows: Rows, live: Rows, margin: float) -> str:
    panels = [_power_panel(rows, "entrusted"), _power_panel(rows, "label-free"), _bounds(rows)]
    if live:
        panels.append(_live_panel(live, margin))
    return curves_chart(panels, label="Error rates and power of the gate")


def _power_panel(rows: Rows, kind: str) -> Panel:
    mine = [row for row in rows if row["what"] == "power" and row["evidence"] == kind]
    sizes = sorted({row["n"] for row in mine})
    curves = [
        Curve(
            label=f"n = {n}",
            colour=COLOURS[index % len(COLOURS)],
            points=tuple((row["flips"], row["rate"]) for row in mine if row["n"] == n),
        )
        for index, n in enumerate(sizes)
    ]
    return Panel(
        title=f"Promotions of equally good adapters, {kind} evidence",
        x_label="right answers that turn wrong (as many turn right)",
        curves=tuple(curves),
    )


def _bounds(rows: Rows) -> Panel:
    mine = [row for row in rows if row["what"] == "label-free bound" and row["shift"] == 1.0]
    curves = [
        Curve(
            label=row["way"],
            colour=COLOURS[index % len(COLOURS)],
            points=tuple(zip(row["bounds"], row["false_promotions"], strict=True)),
        )
        for index, row in enumerate(mine)
    ]
    widest = max(bound for row in mine for bound in row["bounds"])
    curves.append(
        Curve(label="limit", colour="#6b7280", kind="dashed", points=((0, LIMIT), (widest, LIMIT)))
    )
    assert len(mine) == len(WAYS)
    return Panel(
        title="False promotions by label-free bound and by the way in which answers change",
        x_label="label-free bound on changed answers",
        curves=tuple(curves),
    )


def _live_panel(live: Rows, margin: float) -> Panel:
    points = [(row["disagreement_seen"], max(0.0, row["loss"])) for row in live]
    tips = [f"{row['task']}, {row['steps']} steps: loss {row['loss']:+.3f}" for row in live]
    groups = []
    for promoted, colour, name in ((True, "#15803d", "promoted"), (False, "#b91c1c", "refused")):
        chosen = [index for index, row in enumerate(live) if row["promoted"] is promoted]
        groups.append(
            Curve(
                label=name,
                colour=colour,
                kind="points",
                points=tuple(points[index] for index in chosen),
                tips=tuple(tips[index] for index in chosen),
            )
        )
    widest = max(x for x, _ in points)
    line = Curve(
        label="margin", colour="#6b7280", kind="dashed", points=((0, margin), (widest, margin))
    )
    return Panel(
        title="Real shadows: changes seen on synthetic inputs, true loss on hidden data",
        x_label="changed answers on held-out synthetic inputs",
        curves=(*groups, line),
    )
