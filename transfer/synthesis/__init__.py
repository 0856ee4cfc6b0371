"""Synthesize, filter, label: training data for the next base without the client's data."""

from .dedupe import DuplicateIndex
from .draw import DrawSettings, SynthesisResult, draw_inputs
from .filter import FilterPolicy, FilterResult, filter_by_scores, filter_inputs, score_inputs
from .gather import MAX_ROUNDS, GatheredInputs, Gatherers, gather_inputs, to_write
from .label import LabelResult, cap_answers, hold_out, label_inputs
from .synthesize import inputs_to_draw, synthesize

__all__ = [
    "MAX_ROUNDS",
    "DrawSettings",
    "DuplicateIndex",
    "FilterPolicy",
    "FilterResult",
    "GatheredInputs",
    "Gatherers",
    "LabelResult",
    "SynthesisResult",
    "cap_answers",
    "draw_inputs",
    "filter_by_scores",
    "filter_inputs",
    "gather_inputs",
    "hold_out",
    "inputs_to_draw",
    "label_inputs",
    "score_inputs",
    "synthesize",
    "to_write",
]
