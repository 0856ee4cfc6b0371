"""Synthesize, filter, label: training data for the next base without the client's data."""

from .dedupe import DuplicateIndex
from .draw import DrawSettings, SynthesisResult, draw_inputs
from .filter import FilterPolicy, FilterResult, filter_inputs, score_inputs
from .label import LabelResult, hold_out, label_inputs
from .synthesize import inputs_to_draw, synthesize

__all__ = [
    "DrawSettings",
    "DuplicateIndex",
    "FilterPolicy",
    "FilterResult",
    "LabelResult",
    "SynthesisResult",
    "draw_inputs",
    "filter_inputs",
    "hold_out",
    "inputs_to_draw",
    "label_inputs",
    "score_inputs",
    "synthesize",
]
