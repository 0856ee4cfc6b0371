"""Going on after an engine died: what to ask the next engine, and what of its answer is new.

The prompt and the tokens already sent become the new prompt. Engines hold back text: the tail that
may become a stop string, and incomplete UTF-8. Tokens whose text was held back are therefore
generated again, so that the engine itself finds the stop string; what the client already has is
cut from the front of the new answer.
"""

from dataclasses import dataclass, replace
from typing import Protocol

from ..engine.protocol import Chunk, GenerationRequest


class TextCodec(Protocol):
    """A base's tokenizer."""

    def encode(self, text: str) -> tuple[int, ...]:
        """Tokenizes a prompt, with the special tokens that the engine adds to prompts."""
        ...

    def decode(self, token_ids: tuple[int, ...]) -> str:
        """Returns the text without special tokens."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Continuation:
    """How to go on."""

    request: GenerationRequest | None
    """For the engine; None if all tokens were sent and only the finish reason is missing."""
    skip_tokens: int = 0
    """Tokens at the front of the new answer that the client already has."""
    skip_chars: int = 0
    """The same of its text."""
    prompt_growth: int = 0
    """Tokens by which the new prompt is longer than the client's."""


def continuation(
    request: GenerationRequest, token_ids: tuple[int, ...], text: str, codec: TextCodec
) -> Continuation:
    """Returns how to go on after `token_ids` and `text` were sent to the client."""
    if not token_ids:
        return Continuation(request=request)
    if len(token_ids) >= request.sampling.max_tokens:
        return Continuation(request=None)
    prompt_ids = request.prompt_token_ids
    if prompt_ids is None:
        prompt_ids = codec.encode(request.prompt or "")
    kept, kept_text = _delivered(prompt_ids, token_ids, text, codec)
    return Continuation(
        request=replace(
            request,
            prompt=None,
            prompt_token_ids=prompt_ids + token_ids[:kept],
            sampling=replace(request.sampling, max_tokens=request.sampling.max_tokens - kept),
        ),
        skip_tokens=len(token_ids) - kept,
        skip_chars=len(text) - len(kept_text),
        prompt_growth=kept,
    )


def _delivered(
    prompt_ids: tuple[int, ...], token_ids: tuple[int, ...], text: str, codec: TextCodec
) -> tuple[int, str]:
    """Returns the longest run of tokens whose text was sent completely, and that text."""
    prompt_chars = len(codec.decode(prompt_ids))
    for kept in range(len(token_ids), 0, -1):
        # Decoded behind the prompt: some tokenizers treat the first token of a text specially.
        kept_text = codec.decode(prompt_ids + token_ids[:kept])[prompt_chars:]
        if text.startswith(kept_text):
            return kept, kept_text
    return 0, ""


class Trimmer:
    """Cuts what the client already has from the front of a continued answer."""

    def __init__(self, plan: Continuation) -> None:
        self._tokens = plan.skip_tokens
        self._chars = plan.skip_chars
        self._growth = plan.prompt_growth

    def trim(self, chunk: Chunk) -> Chunk:
        """Returns the chunk's new part, with the client's own count of prompt tokens."""
        token_ids = chunk.token_ids[self._tokens :]
        text = chunk.text[self._chars :]
        self._tokens -= len(chunk.token_ids) - len(token_ids)
        self._chars -= len(chunk.text) - len(text)
        return replace(
            chunk,
            token_ids=token_ids,
            text=text,
            prompt_tokens=max(0, chunk.prompt_tokens - self._growth),
        )
