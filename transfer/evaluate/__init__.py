"""Scores systems on the same inputs and decides whether one may replace the other."""

from .evidence import (
    Evidence,
    EvidenceKind,
    entrusted_evidence,
    label_free_evidence,
    matches,
)
from .gate import Decision, decide
from .paired import promotion_power, required_n
from .policy import GatePolicy
from .score import score

__all__ = [
    "Decision",
    "Evidence",
    "EvidenceKind",
    "GatePolicy",
    "decide",
    "entrusted_evidence",
    "label_free_evidence",
    "matches",
    "promotion_power",
    "required_n",
    "score",
]
