"""The demo's promises, each checked against what was found. Pure."""

from collections import Counter
from dataclasses import dataclass

from .facts import AdapterFacts, DemoFacts
from .settings import DemoSettings

TEXT_AGREEMENT = 0.99
"""Greedy answers repeat except where two tokens tie within rounding, which batching can turn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One promise."""

    name: str
    ok: bool
    detail: str


def check_all(facts: DemoFacts, settings: DemoSettings) -> list[Check]:
    """Returns every check, passed or not, in the order in which a reader wants them."""
    return [
        _upgrade_completed(facts),
        _no_failures(facts),
        _no_wrong_versions(facts),
        _texts_agree(facts),
        _enough_promotions(facts, settings),
        *_final_answers(facts),
        *_operator_moves(facts, settings),
    ]


def _upgrade_completed(facts: DemoFacts) -> Check:
    unfinished = [a.name for a in facts.adapters if a.decision not in {"promoted", "rejected"}]
    ok = facts.upgrade_state in {"completed", "finished"} and not unfinished
    detail = f"state {facts.upgrade_state}"
    if facts.upgrade_error:
        detail += f": {facts.upgrade_error}"
    if unfinished:
        states = ", ".join(f"{a.name} {a.state}" for a in facts.adapters if a.name in unfinished)
        detail += f"; neither promoted nor rejected: {states}"
    return Check(name="Every migration ended in a decision", ok=ok, detail=detail)


def _no_failures(facts: DemoFacts) -> Check:
    sent, failed = len(facts.records), facts.failed
    detail = f"{len(failed)} of {sent:,} requests failed"
    if failed:
        codes = Counter(record.code for record in failed).most_common(4)
        detail += " (" + ", ".join(f"{code} {count}" for code, count in codes) + ")"
        detail += f"; first: {failed[0].model}: {failed[0].error}"
    return Check(name="No request failed", ok=sent > 0 and not failed, detail=detail)


def _no_wrong_versions(facts: DemoFacts) -> Check:
    answered = len(facts.records) - len(facts.failed)
    detail = f"{len(facts.wrong)} of {answered:,} answers by a version not named at admission"
    if facts.wrong:
        record, why = facts.wrong[0]
        detail += f"; first: {record.model}: {why}"
    ok = answered > 0 and not facts.wrong
    return Check(name="No answer by a wrong version", ok=ok, detail=detail)


def _texts_agree(facts: DemoFacts) -> Check:
    found = facts.text_check
    share = found.as_pinned / found.compared if found.compared else 0.0
    return Check(
        name="Live answers are those of the version they name",
        ok=share >= TEXT_AGREEMENT,
        detail=f"{found.as_pinned:,} of {found.compared:,} texts equal the pinned version's "
        f"answer; {found.of_other_version} equal the other version's instead",
    )


def within_margin(adapter: AdapterFacts, settings: DemoSettings) -> bool:
    """Returns whether a promoted adapter holds before the outside judge."""
    source, shadow = adapter.scores.get("source"), adapter.scores.get("shadow")
    return (
        adapter.promoted
        and adapter.n >= settings.required_examples
        and source is not None
        and shadow is not None
        # A thousandth of a point for the floats; accuracies are multiples of 1/n.
        and shadow.value >= source.value - settings.margin - 1e-5
    )


def _enough_promotions(facts: DemoFacts, settings: DemoSettings) -> Check:
    tiny = [adapter for adapter in facts.adapters if not adapter.benchmark]
    good = [adapter for adapter in tiny if within_margin(adapter, settings)]
    short = [a for a in tiny if a.promoted and a not in good]
    detail = (
        f"{len(good)} of {len(tiny)} tiny adapters promoted with shadow >= source - "
        f"{settings.margin * 100:g} points on >= {settings.required_examples} held-out examples "
        f"(needed {settings.required_promotions})"
    )
    if short:
        detail += "; promoted but below: " + ", ".join(a.name for a in short)
    return Check(
        name="Enough adapters arrived with their skill",
        ok=len(good) >= settings.required_promotions,
        detail=detail,
    )


def _final_answers(facts: DemoFacts) -> list[Check]:
    promoted = [a for a in facts.adapters if a.promoted]
    stayed = [a for a in facts.adapters if not a.promoted]
    checks = []
    for group, base, name in (
        (promoted, facts.next_base, "Every promoted adapter answers from the next base"),
        (stayed, facts.old_base, "Every other adapter still answers from the old base"),
    ):
        off = [a for a in group if a.answers_from != base]
        detail = f"{len(group) - len(off)} of {len(group)} answer from {base}"
        if off:
            detail += ": not " + ", ".join(f"{a.name} ({a.answers_from or 'none'})" for a in off)
        checks.append(Check(name=name, ok=not off, detail=detail))
    return checks


def _operator_moves(facts: DemoFacts, settings: DemoSettings) -> list[Check]:
    if not settings.rollback:
        return []
    done = {move.action for move in facts.moves}
    detail = "; ".join(
        f"{m.action} of {m.adapter}: call {m.call_s:.2f} s, seen by a client after {m.seen_s:.2f} s"
        for m in facts.moves
    )
    return [
        Check(
            name="One adapter was rolled back and promoted again under load",
            ok={"rollback", "promote"} <= done,
            detail=detail or "no adapter was promoted, so none could be rolled back",
        )
    ]
