"""Lets the gate judge the table's adapters and checks its promotions against the truth. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lorebase.transfer.evaluate import Evidence, GatePolicy, decide

from .arms import ARMS
from .rows import Row, from_hex

ENTRUSTED_SHARE = 0.4
"""Of the test inputs stand for the set that a tenant entrusts to the gate; the rest is hidden."""
POLICY = GatePolicy()
KINDS = ("entrusted", "label_free")


def gate_record(rows: Sequence[Row]) -> dict[str, dict[str, int]]:
    """Decides about every adapter of the next base, once by each kind of evidence.

    `entrusted`: on a part of the test inputs; the truth is the loss on the others. `label_free`: on
    synthetic inputs without true answers; the truth is the loss on all test inputs. Evidence of
    fewer inputs than the gate's least is not judged at all.

    Returns:
        By kind: gated, adapters judged; promoted; worse, adapters that truly lose more than the
        margin; false_promotions, those of them that were promoted.
    """
    kept = {
        kind: dict.fromkeys(("gated", "promoted", "worse", "false_promotions"), 0) for kind in KINDS
    }
    ends = _ends(rows)
    for row in rows:
        at = ends.get((row["task"], row["seed"]), {})
        if "train" not in row or not at.keys() >= {"source", "zero-shot"}:
            continue
        if row["arm"] in ARMS and ARMS[row["arm"]].hops > 1:
            continue
        for kind, (evidence, loss) in _evidence(row, at["source"], at["zero-shot"]).items():
            if len(evidence.source_correct) < POLICY.min_examples:
                continue
            promoted, worse = decide(evidence, POLICY).verdict == "promote", loss > POLICY.margin
            counts = kept[kind]
            counts["gated"] += 1
            counts["promoted"] += promoted
            counts["worse"] += worse
            counts["false_promotions"] += promoted and worse
    return kept


def gate_summary(rows: Sequence[Row]) -> dict[str, Any]:
    """Returns the record as summary figures: of each kind, and of both together."""
    record = gate_record(rows)
    told: dict[str, Any] = {
        "false_promotions": sum(one["false_promotions"] for one in record.values())
    }
    for kind, counts in record.items():
        told |= {
            f"false_promotions_{kind}": counts["false_promotions"],
            f"gated_{kind}": counts["gated"],
            f"gated_{kind}_worse_than_margin": counts["worse"],
            f"promoted_{kind}": counts["promoted"],
        }
    return told


def _ends(rows: Sequence[Row]) -> Mapping[tuple[str, int], dict[str, Row]]:
    """Returns the rows of source and bare next base by task and seed."""
    found: dict[tuple[str, int], dict[str, Row]] = {}
    for row in rows:
        if row["arm"] in ("source", "zero-shot"):
            found.setdefault((row["task"], row["seed"]), {})[row["arm"]] = row
    return found


def _evidence(row: Row, source_row: Row, bare_row: Row) -> dict[str, tuple[Evidence, float]]:
    """Returns each kind's evidence and the loss of accuracy that it did not see."""
    source, bare, shadow = (from_hex(one["right"], one["n"]) for one in (source_row, bare_row, row))
    cut = round(len(source) * ENTRUSTED_SHARE)
    seen = Evidence(
        kind="entrusted",
        source_correct=tuple(source[:cut]),
        shadow_correct=tuple(shadow[:cut]),
        bare_correct=tuple(bare[:cut]),
    )
    found = {"entrusted": (seen, _loss(source[cut:], shadow[cut:]))}
    told = row.get("label_free")
    if told:
        agreed = Evidence(
            kind="label-free",
            source_correct=(True,) * told["n"],
            shadow_correct=tuple(from_hex(told["shadow"], told["n"])),
            bare_correct=tuple(from_hex(told["bare"], told["n"])),
        )
        found["label_free"] = (agreed, _loss(source, shadow))
    return found


def _loss(source: Sequence[bool], shadow: Sequence[bool]) -> float:
    return (sum(source) - sum(shadow)) / len(source) if source else 0.0
