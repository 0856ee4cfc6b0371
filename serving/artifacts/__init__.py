"""Content-addressed artifacts, and the checks that stand before them."""

from .adapter import AdapterLimits, AdapterManifest, check_adapter
from .base import BaseShapes, base_revision, base_shapes
from .evaluation import EvaluationLimits, EvaluationManifest, check_evaluation_set
from .files import check_names, list_files, parse_json, read_json, refuse_pickle_content
from .store import ArtifactStore

__all__ = [
    "AdapterLimits",
    "AdapterManifest",
    "ArtifactStore",
    "BaseShapes",
    "EvaluationLimits",
    "EvaluationManifest",
    "base_revision",
    "base_shapes",
    "check_adapter",
    "check_evaluation_set",
    "check_names",
    "list_files",
    "parse_json",
    "read_json",
    "refuse_pickle_content",
]
