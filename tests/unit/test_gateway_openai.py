"""OpenAI bodies: what is understood, what is refused rather than ignored."""

import json

import pytest

from lorebase.serving.config_sections import LimitsSection
from lorebase.serving.errors import InvalidArgumentError
from lorebase.serving.gateway.openai_schema import ChatRequest, CompletionRequest, parse

LIMITS = LimitsSection(max_prompt_chars=100)


def completion(**fields: object) -> CompletionRequest:
    body = {"model": "acme/x", "prompt": "hi", **fields}
    return parse(CompletionRequest, json.dumps(body).encode())


def chat(**fields: object) -> ChatRequest:
    body = {"model": "acme/x", "messages": [{"role": "user", "content": "hi"}], **fields}
    return parse(ChatRequest, json.dumps(body).encode())


def test_defaults_are_openais() -> None:
    (call,) = completion().calls(LIMITS, "r")
    assert (call.prompt, call.sampling.temperature, call.sampling.top_p) == ("hi", 1.0, 1.0)


def test_stop_may_be_a_string_or_a_list() -> None:
    assert completion(stop="x").calls(LIMITS, "r")[0].sampling.stop == ("x",)
    assert completion(stop=["x", "y"]).calls(LIMITS, "r")[0].sampling.stop == ("x", "y")


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a", [("a", None)]),
        (["a", "b"], [("a", None), ("b", None)]),
        ([1, 2], [(None, (1, 2))]),
        ([[1], [2, 3]], [(None, (1,)), (None, (2, 3))]),
    ],
)
def test_all_four_shapes_of_a_prompt(prompt: object, expected: list[object]) -> None:
    calls = completion(prompt=prompt).calls(LIMITS, "r")
    assert [(call.prompt, call.prompt_token_ids) for call in calls] == expected


@pytest.mark.parametrize(
    "fields",
    [
        {"n": 2},
        {"best_of": 3},
        {"logprobs": 5},
        {"echo": True},
        {"suffix": "x"},
        {"presence_penalty": 0.5},
        {"logit_bias": {"1": 2}},
        {"tools": [{"type": "function"}]},
        {"response_format": {"type": "json_object"}},
    ],
)
def test_fields_that_would_change_the_answer_are_refused(fields: dict[str, object]) -> None:
    with pytest.raises(InvalidArgumentError, match=next(iter(fields))):
        completion(**fields).calls(LIMITS, "r")


def test_their_neutral_values_and_harmless_fields_are_accepted() -> None:
    completion(
        n=1, logprobs=None, echo=False, presence_penalty=0.0, logit_bias={}, user="u", metadata={}
    ).calls(LIMITS, "r")


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": []},
        {"prompt": ["x"] * 33},
        {"prompt": ["a", "b"], "stream": True},
        {"prompt": ""},
        {"prompt": "x" * 101},
        {"max_tokens": 0},
        {"temperature": -1},
        {"model": ""},
    ],
)
def test_bad_values_are_refused(fields: dict[str, object]) -> None:
    with pytest.raises(InvalidArgumentError):
        completion(**fields).calls(LIMITS, "r")


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"model": "x"}', b'{"prompt": 3}'])
def test_bodies_that_are_no_requests_are_refused(body: bytes) -> None:
    with pytest.raises(InvalidArgumentError, match="request body"):
        parse(CompletionRequest, body)


def test_chat_messages_arrive_with_their_parts_joined() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    call = chat(
        messages=[{"role": "system", "content": "s"}, {"role": "user", "content": parts}]
    ).call(LIMITS, "r")
    assert [(m.role, m.content) for m in call.messages] == [("system", "s"), ("user", "ab")]


def test_newer_name_of_the_length_limit_wins() -> None:
    call = chat(max_tokens=5, max_completion_tokens=7).call(LIMITS, "r")
    assert call.sampling.max_tokens == 7


@pytest.mark.parametrize(
    "messages",
    [[], [{"role": "tool", "content": "x"}], [{"role": "user", "content": [{"type": "image"}]}]],
)
def test_chats_that_can_not_be_answered_are_refused(messages: list[object]) -> None:
    with pytest.raises(InvalidArgumentError):
        chat(messages=messages)


def test_chat_is_bounded_as_a_whole() -> None:
    with pytest.raises(InvalidArgumentError, match="120 characters"):
        chat(messages=[{"role": "user", "content": "x" * 60}] * 2).call(LIMITS, "r")
