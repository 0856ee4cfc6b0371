"""Checks of what a client asks for, before an engine sees it; pure."""

import math

from ..errors import InvalidArgumentError
from .protocol import GenerationRequest, Sampling

MAX_STOPS = 16
"""Stop strings per request; every new token is compared with all of them."""
MAX_STOP_CHARS = 256
"""Length of one stop string; the engine holds back as much text while streaming."""
MAX_CHOICES = 128
"""Choices per request, as many token ids as vLLM scores at once."""
MAX_TEMPERATURE = 100.0
"""Above, sampling is uniform for all practical purposes and float16 logits underflow."""


def check_request(request: GenerationRequest) -> None:
    """Checks everything about a request that does not depend on a base.

    Raises:
        InvalidArgumentError: says which field is wrong and what it may be.
    """
    if not request.request_id:
        raise InvalidArgumentError("request_id is empty; give every request an id")
    if (request.prompt is None) == (request.prompt_token_ids is None):
        raise InvalidArgumentError(
            "expected exactly one of prompt and prompt_token_ids, got "
            + ("none" if request.prompt is None else "both")
        )
    check_sampling(request.sampling)


def check_sampling(sampling: Sampling) -> None:
    """Checks decoding parameters.

    Raises:
        InvalidArgumentError: says which field is wrong and what it may be.
    """
    _expect(sampling.max_tokens >= 1, "max_tokens", sampling.max_tokens, "at least 1")
    _expect(
        math.isfinite(sampling.temperature) and 0 <= sampling.temperature <= MAX_TEMPERATURE,
        "temperature",
        sampling.temperature,
        f"0 (greedy) to {MAX_TEMPERATURE:g}",
    )
    _expect(0 < sampling.top_p <= 1, "top_p", sampling.top_p, "above 0 and at most 1")
    _expect(sampling.top_k >= 0, "top_k", sampling.top_k, "0 (all tokens) or more")
    _expect(
        sampling.seed is None or -(2**63) <= sampling.seed < 2**63,
        "seed",
        sampling.seed,
        "a 64 bit integer",
    )
    _expect(len(sampling.stop) <= MAX_STOPS, "stop", len(sampling.stop), f"up to {MAX_STOPS}")
    for stop in sampling.stop:
        _expect(0 < len(stop) <= MAX_STOP_CHARS, "stop", stop, f"1 to {MAX_STOP_CHARS} characters")
    choices = sampling.choices
    _expect(len(choices) <= MAX_CHOICES, "choices", len(choices), f"up to {MAX_CHOICES}")
    _expect(len(choices) != 1, "choices", choices, "none, or at least two to choose from")
    _expect(len(set(choices)) == len(choices), "choices", choices, "each choice once")


def check_prompt(prompt_tokens: int, max_model_len: int) -> None:
    """Checks that a prompt leaves room for at least one token of answer.

    Raises:
        InvalidArgumentError: empty or too long.
    """
    if prompt_tokens == 0:
        raise InvalidArgumentError("the prompt is empty, expected at least one token")
    if prompt_tokens >= max_model_len:
        raise InvalidArgumentError(
            f"the prompt has {prompt_tokens} tokens, expected at most {max_model_len - 1} (the "
            f"base's context of {max_model_len} less one token of answer); shorten it",
            reason="PROMPT_TOO_LONG",
        )


def _expect(holds: bool, field: str, got: object, expected: str) -> None:
    if not holds:
        raise InvalidArgumentError(f"{field} is {got!r}, expected {expected}")
