"""One base with many adapters: the Protocol, its vLLM engines, and what protects them.

Importing this package imports neither vLLM nor torch; `create_engine` does when it is called.
"""

from .batch import complete, complete_many
from .factory import create_engine
from .protocol import (
    BACKGROUND_PRIORITY,
    FOREGROUND_PRIORITY,
    Chunk,
    Completion,
    Engine,
    EngineStats,
    FinishReason,
    GenerationRequest,
    Sampling,
    VersionRef,
)
from .sampling import check_request, check_sampling
from .settings import EngineSettings, apply_environment, cpu_environment, resolve_dtype

__all__ = [
    "BACKGROUND_PRIORITY",
    "FOREGROUND_PRIORITY",
    "Chunk",
    "Completion",
    "Engine",
    "EngineSettings",
    "EngineStats",
    "FinishReason",
    "GenerationRequest",
    "Sampling",
    "VersionRef",
    "apply_environment",
    "check_request",
    "check_sampling",
    "complete",
    "complete_many",
    "cpu_environment",
    "create_engine",
    "resolve_dtype",
]
