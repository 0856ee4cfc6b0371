"""What the gate decides on: judgements of the rivals on the same inputs. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

EvidenceKind = Literal["entrusted", "tenant", "label-free"]
"""Strongest first where it says the same: who knew the true answers, if anybody did."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """Judgements of the systems on the same inputs, in the same order.

    `entrusted`: whether each answer is right, by an evaluation set that the tenant left.
    `tenant`: the same, judged by the tenant itself on data that never leaves it.
    `label-free`: whether each answer equals the source's, so `source_correct` is all True.
    """

    kind: EvidenceKind
    source_correct: tuple[bool, ...]
    """Old base with the old adapter."""
    shadow_correct: tuple[bool, ...]
    """Next base with the new adapter."""
    bare_correct: tuple[bool, ...]
    """Next base alone."""
    few_shot_correct: tuple[bool, ...] = ()
    """Next base with the seeds in its prompt; reported only. Empty if it was not asked."""

    @property
    def label_free(self) -> bool:
        """Whether nobody knew the true answers."""
        return self.kind == "label-free"


def entrusted_evidence(
    targets: Sequence[str],
    source: Sequence[str],
    shadow: Sequence[str],
    bare: Sequence[str],
    few_shot: Sequence[str] = (),
    *,
    kind: EvidenceKind = "entrusted",
) -> Evidence:
    """Compares answers with true ones; every sequence holds one answer an input."""
    return Evidence(
        kind=kind,
        source_correct=matches(source, targets),
        shadow_correct=matches(shadow, targets),
        bare_correct=matches(bare, targets),
        few_shot_correct=matches(few_shot, targets) if few_shot else (),
    )


def label_free_evidence(
    source: Sequence[str],
    shadow: Sequence[str],
    bare: Sequence[str],
    few_shot: Sequence[str] = (),
) -> Evidence:
    """Compares answers with the source's; every sequence holds one answer an input."""
    return Evidence(
        kind="label-free",
        source_correct=(True,) * len(source),
        shadow_correct=matches(shadow, source),
        bare_correct=matches(bare, source),
        few_shot_correct=matches(few_shot, source) if few_shot else (),
    )


def matches(answers: Sequence[str], wanted: Sequence[str]) -> tuple[bool, ...]:
    """Returns for each answer whether it equals the wanted one, spaces around it aside."""
    return tuple(a.strip() == b.strip() for a, b in zip(answers, wanted, strict=True))
