"""Checks of generation requests that all transports share, so that their limits are the same."""

import math
from collections.abc import Sequence

from ..config_sections import LimitsSection
from ..engine.protocol import Sampling
from ..errors import InvalidArgumentError

MAX_STOP = 8
MAX_STOP_CHARS = 256
MAX_MODEL_CHARS = 512
MAX_REQUEST_ID_CHARS = 128
DEFAULT_MAX_TOKENS = 128


def check_model(model: str) -> str:
    """Returns the model name if it can be one at all."""
    if not model or len(model) > MAX_MODEL_CHARS:
        raise InvalidArgumentError(
            f"model has {len(model)} characters, expected 1 to {MAX_MODEL_CHARS}; ListModels "
            "shows the names"
        )
    return model


def check_request_id(request_id: str) -> str:
    """Returns the client's request id if it can go into logs and headers."""
    if len(request_id) > MAX_REQUEST_ID_CHARS or not request_id.isprintable():
        raise InvalidArgumentError(
            f"request_id has {len(request_id)} characters, expected at most "
            f"{MAX_REQUEST_ID_CHARS} printable ones"
        )
    return request_id


def check_prompt(prompt: str, limits: LimitsSection) -> str:
    """Returns the prompt if it is not empty and not too long."""
    if not prompt:
        raise InvalidArgumentError("the prompt is empty; give text or token ids")
    if len(prompt) > limits.max_prompt_chars:
        raise InvalidArgumentError(
            f"the prompt has {len(prompt)} characters, expected at most {limits.max_prompt_chars}"
        )
    return prompt


def check_token_ids(ids: Sequence[int], limits: LimitsSection) -> tuple[int, ...]:
    """Returns the token ids if there are some, not too many, none negative."""
    if not ids:
        raise InvalidArgumentError("the prompt is empty; give text or token ids")
    # A token is at least one character in any real text, so the same bound holds.
    if len(ids) > limits.max_prompt_chars:
        raise InvalidArgumentError(
            f"the prompt has {len(ids)} tokens, expected at most {limits.max_prompt_chars}"
        )
    if min(ids) < 0:
        raise InvalidArgumentError(f"token id {min(ids)} is negative")
    return tuple(ids)


def sampling_of(
    limits: LimitsSection,
    *,
    max_tokens: int | None,
    temperature: float | None,
    top_p: float | None,
    top_k: int | None,
    stop: Sequence[str],
    seed: int | None,
    ignore_eos: bool,
    default_temperature: float = 0.0,
) -> Sampling:
    """Returns checked sampling parameters; None takes the default.

    Raises:
        InvalidArgumentError: a value is out of range; the message names it.
    """
    if max_tokens is None:
        max_tokens = min(DEFAULT_MAX_TOKENS, limits.max_new_tokens)
    temperature = default_temperature if temperature is None else temperature
    top_p = 1.0 if top_p is None else top_p
    top_k = 0 if top_k is None else top_k
    if not 1 <= max_tokens <= limits.max_new_tokens:
        raise _out_of_range("max_tokens", max_tokens, f"1 to {limits.max_new_tokens}")
    if not (math.isfinite(temperature) and 0 <= temperature <= 10):
        raise _out_of_range("temperature", temperature, "0 (greedy) to 10")
    if not 0 < top_p <= 1:
        raise _out_of_range("top_p", top_p, "above 0 and at most 1")
    if top_k < 0:
        raise _out_of_range("top_k", top_k, "0 (all tokens) or more")
    if len(stop) > MAX_STOP:
        raise _out_of_range("stop", f"{len(stop)} strings", f"at most {MAX_STOP}")
    for text in stop:
        if not 1 <= len(text) <= MAX_STOP_CHARS:
            raise _out_of_range(
                "stop", f"a string of {len(text)} characters", f"1 to {MAX_STOP_CHARS}"
            )
    if seed is not None and not 0 <= seed < 2**63:
        raise _out_of_range("seed", seed, "0 to 2^63 - 1")
    return Sampling(
        max_tokens=max_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        stop=tuple(stop),
        seed=seed,
        ignore_eos=ignore_eos,
    )


def _out_of_range(name: str, got: object, expected: str) -> InvalidArgumentError:
    return InvalidArgumentError(f"{name} is {got}, expected {expected}")
