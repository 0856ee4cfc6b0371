"""Scores systems on the same inputs and decides whether one may replace the other."""

from .gate import (
    Decision,
    Evidence,
    GatePolicy,
    decide,
    entrusted_evidence,
    label_free_evidence,
    matches,
)
from .paired import promotion_power, required_n
from .score import score

__all__ = [
    "Decision",
    "Evidence",
    "GatePolicy",
    "decide",
    "entrusted_evidence",
    "label_free_evidence",
    "matches",
    "promotion_power",
    "required_n",
    "score",
]
