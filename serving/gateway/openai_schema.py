"""OpenAI's request bodies as far as this gateway answers them, and its response bodies.

Fields that would change the answer but that no engine here supports are refused, not ignored:
a client must not believe it got what it asked for. Fields without effect on the answer are ignored.
"""

from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..config_sections import LimitsSection
from ..engine.protocol import Sampling
from ..errors import InvalidArgumentError
from .calls import Call, Message, Piece, ServedBy, Usage
from .checks import (
    check_model,
    check_prompt,
    check_request_id,
    check_token_ids,
    sampling_of,
)

DEFAULT_TEMPERATURE = 1.0
"""OpenAI's; gRPC's default is 0."""
MAX_PROMPTS = 32
"""In one completions request without streaming."""
MAX_MESSAGES = 1000

Body = TypeVar("Body", bound=BaseModel)

_REFUSED: dict[str, tuple[Any, ...]] = {
    "n": (None, 1),
    "best_of": (None, 1),
    "logprobs": (None, False),
    "top_logprobs": (None, 0),
    "echo": (None, False),
    "suffix": (None, ""),
    "presence_penalty": (None, 0),
    "frequency_penalty": (None, 0),
    "logit_bias": (None, {}),
    "tools": (None, []),
    "functions": (None, []),
    "tool_choice": (None, "none", "auto"),
    "response_format": (None, {"type": "text"}),
    "modalities": (None, ["text"]),
}
"""Field name to the values that mean "not used"."""


class StreamOptions(BaseModel):
    """What else a stream carries."""

    include_usage: bool = False


class _Common(BaseModel):
    model_config = ConfigDict(extra="allow")

    model: str
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    ignore_eos: bool = False
    stream: bool = False
    stream_options: StreamOptions | None = None

    def sampling(self, limits: LimitsSection, max_tokens: int | None) -> Sampling:
        """Returns checked sampling parameters with OpenAI's defaults."""
        for name, unused in _REFUSED.items():
            value = (self.model_extra or {}).get(name)
            if value not in unused:
                raise InvalidArgumentError(
                    f"{name} is {value!r}, which this service does not support; leave it out"
                )
        stop = self.stop or []
        return sampling_of(
            limits,
            max_tokens=max_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            stop=[stop] if isinstance(stop, str) else stop,
            seed=self.seed,
            ignore_eos=self.ignore_eos,
            default_temperature=DEFAULT_TEMPERATURE,
        )

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with a usage message."""
        return self.stream_options is not None and self.stream_options.include_usage


class CompletionRequest(_Common):
    """Body of POST /v1/completions."""

    prompt: str | list[str] | list[int] | list[list[int]]
    max_tokens: int | None = None

    def calls(self, limits: LimitsSection, request_id: str) -> list[Call]:
        """Returns one call for each prompt, in order.

        Raises:
            InvalidArgumentError: a value is out of range or not supported.
        """
        prompts = self._prompts()
        if not 1 <= len(prompts) <= MAX_PROMPTS:
            raise InvalidArgumentError(
                f"got {len(prompts)} prompts, expected 1 to {MAX_PROMPTS}; send several requests"
            )
        if self.stream and len(prompts) > 1:
            raise InvalidArgumentError("a stream takes one prompt; send several requests")
        model = check_model(self.model)
        sampling = self.sampling(limits, self.max_tokens)
        calls = []
        for prompt in prompts:
            text = check_prompt(prompt, limits) if isinstance(prompt, str) else None
            ids = None if isinstance(prompt, str) else check_token_ids(prompt, limits)
            calls.append(
                Call(
                    model=model,
                    request_id=check_request_id(request_id),
                    prompt=text,
                    prompt_token_ids=ids,
                    sampling=sampling,
                )
            )
        return calls

    def _prompts(self) -> list[str | list[int]]:
        if isinstance(self.prompt, str):
            return [self.prompt]
        ids = [item for item in self.prompt if isinstance(item, int)]
        if ids:
            return [ids]
        return [item for item in self.prompt if not isinstance(item, int)]


class TextPart(BaseModel):
    """A piece of a message's content; only text is understood."""

    type: Literal["text"]
    text: str


class ChatMessage(BaseModel):
    """One turn."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]

    def message(self) -> Message:
        """Returns the turn with its parts joined."""
        if isinstance(self.content, str):
            return Message(role=self.role, content=self.content)
        return Message(role=self.role, content="".join(part.text for part in self.content))


class ChatRequest(_Common):
    """Body of POST /v1/chat/completions."""

    messages: list[ChatMessage] = Field(min_length=1, max_length=MAX_MESSAGES)
    max_tokens: int | None = None
    max_completion_tokens: int | None = None

    def call(self, limits: LimitsSection, request_id: str) -> Call:
        """Returns the call.

        Raises:
            InvalidArgumentError: a value is out of range or not supported.
        """
        messages = tuple(message.message() for message in self.messages)
        check_prompt("".join(message.content for message in messages), limits)
        most = self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens
        return Call(
            model=check_model(self.model),
            request_id=check_request_id(request_id),
            messages=messages,
            sampling=self.sampling(limits, most),
        )


def parse(kind: type[Body], body: bytes) -> Body:
    """Returns a checked body.

    Raises:
        InvalidArgumentError: not JSON, or a field is missing or of the wrong type.
    """
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        where = "; ".join(
            f"{'.'.join(str(part) for part in item['loc']) or 'body'}: {item['msg']}"
            for item in error.errors()[:3]
        )
        raise InvalidArgumentError(f"the request body is not valid: {where}") from error


def usage_body(usages: list[Usage]) -> dict[str, Any]:
    """Returns the sum of several usages as OpenAI writes it."""
    prompt = sum(usage.prompt_tokens for usage in usages)
    completion = sum(usage.completion_tokens for usage in usages)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": sum(usage.cached_tokens for usage in usages)},
    }


def served_body(served_by: ServedBy) -> dict[str, Any]:
    """Returns what answered; an extension that OpenAI's clients ignore."""
    return {
        "base": served_by.base_id,
        "adapter": served_by.adapter,
        "adapter_version": served_by.version_id,
        "route_revision": served_by.revision,
        "track": served_by.track,
    }


def chat_delta(piece: Piece, first: bool) -> dict[str, Any]:
    """Returns the delta of one chat stream message."""
    delta: dict[str, Any] = {"content": piece.text}
    return {"role": "assistant", **delta} if first else delta
