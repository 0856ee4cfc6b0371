"""Requests are refused before an engine sees them."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorebase.serving.engine.protocol import GenerationRequest, Sampling
from lorebase.serving.engine.sampling import check_prompt, check_request, check_sampling
from lorebase.serving.errors import InvalidArgumentError


@pytest.mark.parametrize(
    "changes",
    [
        {"max_tokens": 0},
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"temperature": 101.0},
        {"top_p": 0.0},
        {"top_p": 1.01},
        {"top_p": float("nan")},
        {"top_k": -1},
        {"seed": 2**63},
        {"stop": ("",)},
        {"stop": ("x" * 257,)},
        {"stop": tuple("abcdefghijklmnopq")},
        {"choices": (" yes",)},
        {"choices": (" yes", " yes")},
        {"choices": tuple(str(i) for i in range(129))},
    ],
)
def test_bad_sampling_is_refused_by_field(changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgumentError, match=next(iter(changes))):
        check_sampling(Sampling(**changes))


@given(
    max_tokens=st.integers(1, 10_000),
    temperature=st.floats(0, 100),
    top_p=st.floats(0, 1, exclude_min=True),
    top_k=st.integers(0, 1000),
    seed=st.none() | st.integers(-(2**63), 2**63 - 1),
)
def test_everything_in_range_is_accepted(**values: Any) -> None:
    check_sampling(Sampling(**values))


@pytest.mark.parametrize(
    ("prompt", "ids"), [(None, None), ("x", (1,)), ("", (1,))], ids=["none", "both", "empty+ids"]
)
def test_exactly_one_kind_of_prompt(prompt: str | None, ids: tuple[int, ...] | None) -> None:
    request = GenerationRequest(request_id="r", prompt=prompt, prompt_token_ids=ids)
    with pytest.raises(InvalidArgumentError, match="exactly one of prompt"):
        check_request(request)


def test_a_request_needs_an_id() -> None:
    with pytest.raises(InvalidArgumentError, match="request_id is empty"):
        check_request(GenerationRequest(request_id="", prompt="x"))


@pytest.mark.parametrize("tokens", [1, 9])
def test_a_prompt_that_leaves_room_for_a_token_passes(tokens: int) -> None:
    check_prompt(tokens, 10)


@pytest.mark.parametrize(("tokens", "words"), [(0, "empty"), (10, "10 tokens"), (11, "11 tokens")])
def test_empty_and_too_long_prompts_are_refused(tokens: int, words: str) -> None:
    with pytest.raises(InvalidArgumentError, match=words):
        check_prompt(tokens, 10)
