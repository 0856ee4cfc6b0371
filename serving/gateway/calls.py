"""What goes in and out of the gateway's core, whatever the transport. Plain data."""

from dataclasses import dataclass, field

from ..engine.protocol import FinishReason, Sampling
from ..routing.table import Track


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One turn of a chat."""

    role: str
    content: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """What a client asked, checked. Exactly one of prompt, token ids and messages is set."""

    model: str
    request_id: str
    prompt: str | None = None
    prompt_token_ids: tuple[int, ...] | None = None
    messages: tuple[Message, ...] = ()
    sampling: Sampling = field(default_factory=Sampling)
    timeout_s: float | None = None
    """Seconds from arrival; None means the server's own bound."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedBy:
    """What answered, as the engine reports it."""

    base_id: str
    adapter: str
    """Empty when a bare base answered."""
    version_id: str
    """Empty when a bare base answered."""
    revision: int
    """Route table with which the request was admitted."""
    track: Track


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Tokens of one request."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    """Prompt tokens that came from the prefix cache."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """What one step added; the last piece has a finish reason and the usage."""

    text: str
    token_ids: tuple[int, ...]
    served_by: ServedBy
    finish_reason: FinishReason | None = None
    usage: Usage | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """All pieces of a call together."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    usage: Usage
    served_by: ServedBy
