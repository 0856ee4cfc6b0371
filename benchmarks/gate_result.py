"""Summary, failures and plot of suite `gate`."""

from __future__ import annotations

from typing import Any

import numpy as np

from lorebase.transfer.evaluate import GatePolicy

from .charts.curves import Curve, Panel, curves_chart
from .gate_simulation import passes
from .gate_study import LIMIT, SHIFTS, WAYS, Study
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
        **{
            f"false_promotion_rate_label_free_max_shift_{shift:g}_bound_{bound:.3f}": _worst(
                study.rows, "label-free", shift, bound
            )
            for shift in SHIFTS
            if shift != 1.0
            for bound in (margin, margin / shift)
        },
        **_beside_figures(study.rows, margin),
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


def _worst(rows: Rows, kind: str, shift: float = 1.0, bound: float | None = None) -> float:
    """Returns the highest rate over all sizes and populations: a guarantee, not an average."""
    return max(
        row["rate"]
        for row in rows
        if row["what"] == "false promotions"
        and (row["evidence"], row["shift"]) == (kind, shift)
        and (bound is None or abs(row["bound"] - bound) < 1e-3)
    )


def _beside_figures(rows: Rows, margin: float) -> dict[str, float]:
    """Returns promotions beside a bare base that is better by the margin, or as good, at one n."""
    mine = [row for row in rows if row["what"] == "beside a strong bare base"]
    better = [row["rate"] for row in mine if row["bare_minus_source"] >= margin]
    found = {"promotion_rate_where_bare_is_better_by_margin_max": max(better)}
    for row in mine:
        if row["bare_minus_source"] == 0.0 and row["n"] in (240, 500):
            key = f"power_entrusted_n{row['n']}_beside_equal_bare{_attempts(row)}"
            found[key] = row["rate"]
    return found


def _attempts(row: dict[str, Any]) -> str:
    return "" if row["attempts"] == 1 else f"_attempts_{row['attempts']}"


def _power_figures(rows: Rows) -> dict[str, float]:
    found = {}
    for row in rows:
        if row["what"] == "power" and row["n"] in (205, 240) and row["flips"] in (0.01, 0.02):
            kind = row["evidence"].replace("-", "_")
            name = f"power_{kind}_n{row['n']}_flips_{100 * row['flips']:.0f}pct{_attempts(row)}"
            found[name] = row["rate_in_all_attempts"]
    return found


def _bound_figures(rows: Rows) -> dict[str, float]:
    """Returns the safe bounds by how much more often answers change on real inputs."""
    found = {}
    for row in rows:
        if row["what"] == "label-free bound":
            name = row["way"].replace(", ", "_").replace(" ", "_")
            found[f"safe_bound_{name}_shift_{row['shift']:g}"] = row["largest_safe_bound"]
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
    mine = [
        row
        for row in rows
        if row["what"] == "power" and (row["evidence"], row["attempts"]) == (kind, 1)
    ]
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
