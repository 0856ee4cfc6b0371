"""What the rest of lorebase knows of an engine: one Protocol and the data that crosses it.

An engine runs exactly one base. Adapter versions are immutable and are handed to it by
reference with every request, so that an engine replica that was just restarted needs nobody to
tell it what to load.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Literal, Protocol

FinishReason = Literal["stop", "length"]

FOREGROUND_PRIORITY = 0
"""Client requests. Lower runs first, as in vLLM's priority scheduling."""

BACKGROUND_PRIORITY = 10
"""Synthesis, labelling and evaluation: only what the foreground leaves over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionRef:
    """All that an engine needs to serve one adapter version."""

    id: str
    """Immutable version id. vLLM caches it as `<id>#<number of this load>`: see adapters.py."""
    base_id: str
    """Base that the weights fit."""
    digest: str
    """Content address `sha256:<hex>` in the artifact store."""
    path: str
    """Directory with adapter_config.json and adapter_model.safetensors."""
    rank: int
    """Largest rank of any target module."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """Decoding parameters of one request."""

    max_tokens: int = 128
    temperature: float = 0.0
    """0 is greedy."""
    top_p: float = 1.0
    top_k: int = 0
    """0 means all tokens."""
    stop: tuple[str, ...] = ()
    """Generation ends before any of these strings; they are not part of the text."""
    seed: int | None = None
    ignore_eos: bool = False
    choices: tuple[str, ...] = ()
    """If given, one token is generated, out of these; each must be one token of the base's
    tokenizer. `Chunk.choice_logprobs` then holds log p(choice), normalised over the choices."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """One prompt for one engine."""

    request_id: str
    prompt: str | None = None
    """Exactly one of prompt and prompt_token_ids is set."""
    prompt_token_ids: tuple[int, ...] | None = None
    version: VersionRef | None = None
    """None generates with the bare base."""
    sampling: Sampling = field(default_factory=Sampling)
    priority: int = FOREGROUND_PRIORITY


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """What a step added. The last chunk of a request has a finish reason."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    base_id: str = ""
    """Base of the engine that made the tokens, filled in by that engine."""
    version_id: str = ""
    """Adapter version whose weights made the tokens; empty for the bare base."""
    choice_logprobs: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """A whole answer, or the error of this one request in a batch."""

    text: str = ""
    token_ids: tuple[int, ...] = ()
    finish_reason: FinishReason | None = None
    prompt_tokens: int = 0
    choice_logprobs: tuple[float, ...] = ()
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStats:
    """Load of one engine replica, for the governor and for /metrics."""

    base_id: str
    running_foreground: int
    waiting_foreground: int
    running_background: int
    """Requests admitted and not finished at background priority."""
    loaded_versions: int
    rss_bytes: int


class Engine(Protocol):
    """One base model with many adapters."""

    def prefetch_adapter(self, version: VersionRef) -> None:
        """Begins to load a version that a queued request will use; a hint that never raises."""
        ...

    async def ensure_adapter(self, version: VersionRef) -> None:
        """Loads and checks an adapter version; a no-op if it is known already.

        Raises:
            InvalidArgumentError: the files are missing or don't fit this base.
        """
        ...

    async def drop_adapter(self, version_id: str) -> bool:
        """Unloads a version; returns whether it was loaded. Requests in flight finish first."""
        ...

    def generate(self, request: GenerationRequest) -> AsyncIterator[Chunk]:
        """Generates; closing the iterator aborts the request in the engine.

        Raises:
            InvalidArgumentError: prompt too long, bad sampling value, version of another base.
            EngineDeadError: the engine is gone.
        """
        ...

    async def stats(self) -> EngineStats:
        """Returns the current load."""
        ...

    async def check_health(self) -> None:
        """Raises EngineDeadError if the engine can't serve any more."""
        ...

    async def shutdown(self) -> None:
        """Stops the engine and frees its memory."""
        ...
