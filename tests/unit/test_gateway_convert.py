"""Protos in and out: every field arrives, bad values are named, pages are stable."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorebase.serving.catalog import records
from lorebase.serving.config_sections import LimitsSection
from lorebase.serving.engine.protocol import Sampling
from lorebase.serving.errors import InvalidArgumentError
from lorebase.serving.gateway.calls import Answer, Piece, ServedBy, Usage
from lorebase.serving.gateway.convert import (
    adapter_of,
    call_of,
    etag_of,
    last_of,
    models_of,
    page_size_of,
    page_token_of,
    record_version_of,
    response_of,
    stream_response_of,
)
from lorebase.v1 import inference_pb2

from .gateway_fakes import table

LIMITS = LimitsSection(max_prompt_chars=100, max_new_tokens=200)
SERVED = ServedBy(base_id="b", adapter="acme/x", version_id="v-1", revision=7, track="canary")
USAGE = Usage(prompt_tokens=1, completion_tokens=2, cached_tokens=3)


def request(**fields: object) -> inference_pb2.GenerateRequest:
    return inference_pb2.GenerateRequest(**{"model": "acme/x", "prompt": "hi", **fields})


def sampled(**fields: object) -> inference_pb2.GenerateRequest:
    return request(sampling=inference_pb2.SamplingParams(**fields))


def convert(message: inference_pb2.GenerateRequest, remaining_s: float | None = None) -> object:
    return call_of(message, LIMITS, new_id="made-up", remaining_s=remaining_s)


def test_unset_fields_take_the_documented_defaults() -> None:
    call = call_of(request(), LIMITS, new_id="made-up", remaining_s=None)
    assert call.sampling == Sampling(max_tokens=128, temperature=0.0, top_p=1.0)
    assert (call.request_id, call.timeout_s) == ("made-up", None)


def test_every_field_arrives() -> None:
    message = sampled(
        max_tokens=9, temperature=0.5, top_p=0.25, top_k=3, stop=["a", "b"], seed=0, ignore_eos=True
    )
    message.prompt_token_ids.ids.extend([4, 5])
    message.request_id = "mine"
    call = call_of(message, LIMITS, new_id="", remaining_s=None)
    assert call.sampling == Sampling(
        max_tokens=9,
        temperature=0.5,
        top_p=0.25,
        top_k=3,
        stop=("a", "b"),
        seed=0,
        ignore_eos=True,
    )
    assert (call.prompt, call.prompt_token_ids) == (None, (4, 5))
    assert call.request_id == "mine"


def test_default_length_respects_a_smaller_limit() -> None:
    call = call_of(request(), LimitsSection(max_new_tokens=16), new_id="", remaining_s=None)
    assert call.sampling.max_tokens == 16


@pytest.mark.parametrize(
    ("deadline_ms", "remaining_s", "expected"),
    [(0, None, None), (500, None, 0.5), (0, 2.0, 2.0), (500, 2.0, 0.5), (5000, 2.0, 2.0)],
)
def test_nearer_deadline_holds(
    deadline_ms: int, remaining_s: float | None, expected: float | None
) -> None:
    call = call_of(request(deadline_ms=deadline_ms), LIMITS, new_id="", remaining_s=remaining_s)
    assert call.timeout_s == expected


@pytest.mark.parametrize(
    ("message", "names"),
    [
        (request(model=""), "model"),
        (request(model="m" * 513), "model"),
        (request(prompt=""), "prompt"),
        (request(prompt="x" * 101), "101 characters"),
        (request(prompt_token_ids=inference_pb2.TokenIds(ids=[])), "prompt"),
        (request(prompt_token_ids=inference_pb2.TokenIds(ids=[1, -2])), "-2"),
        (request(prompt_token_ids=inference_pb2.TokenIds(ids=[1] * 101)), "101 tokens"),
        (request(request_id="x" * 129), "request_id"),
        (request(request_id="a\nb"), "request_id"),
        (request(deadline_ms=-1), "deadline_ms"),
        (sampled(max_tokens=0), "max_tokens"),
        (sampled(max_tokens=201), "max_tokens"),
        (sampled(temperature=-0.1), "temperature"),
        (sampled(temperature=math.nan), "temperature"),
        (sampled(temperature=math.inf), "temperature"),
        (sampled(top_p=0.0), "top_p"),
        (sampled(top_p=1.1), "top_p"),
        (sampled(top_p=math.nan), "top_p"),
        (sampled(top_k=-1), "top_k"),
        (sampled(stop=["x"] * 9), "stop"),
        (sampled(stop=[""]), "stop"),
        (sampled(stop=["x" * 257]), "stop"),
        (sampled(seed=-1), "seed"),
    ],
)
def test_bad_values_are_refused_by_name(message: inference_pb2.GenerateRequest, names: str) -> None:
    with pytest.raises(InvalidArgumentError, match=names):
        convert(message)


def test_answer_goes_out_whole() -> None:
    answer = Answer(
        text="t", token_ids=(1, 2), finish_reason="length", usage=USAGE, served_by=SERVED
    )
    message = response_of(answer, "r")
    assert (message.text, list(message.token_ids), message.request_id) == ("t", [1, 2], "r")
    assert message.finish_reason == inference_pb2.FINISH_REASON_LENGTH
    assert message.usage.cached_tokens == 3
    assert (message.served_by.adapter_version, message.served_by.route_revision) == ("v-1", 7)
    assert message.served_by.track == inference_pb2.TRACK_CANARY


def test_only_the_last_message_of_a_stream_has_reason_and_usage() -> None:
    middle = stream_response_of(Piece(text="a", token_ids=(1,), served_by=SERVED), "r")
    assert middle.finish_reason == inference_pb2.FINISH_REASON_UNSPECIFIED
    assert not middle.HasField("usage")
    last = stream_response_of(
        Piece(text="", token_ids=(), served_by=SERVED, finish_reason="stop", usage=USAGE), "r"
    )
    assert last.finish_reason == inference_pb2.FINISH_REASON_STOP
    assert last.usage.completion_tokens == 2


def test_models_are_bases_then_adapters() -> None:
    models = models_of(table())
    assert [model.id for model in models] == ["base-a", "base-b", "acme/x"]
    assert (models[2].base, models[2].adapter_version) == ("base-a", "v-1")


@given(st.text(min_size=1))
def test_page_token_leads_back(name: str) -> None:
    assert last_of(page_token_of(name)) == name


def test_foreign_page_token_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="page_token"):
        last_of("é")


def test_page_size_is_capped_not_refused() -> None:
    assert page_size_of(0, default=100, most=1000) == 100
    assert page_size_of(5000, default=100, most=1000) == 1000
    with pytest.raises(InvalidArgumentError):
        page_size_of(-1, default=100, most=1000)


def test_adapter_shows_the_base_of_its_stable_version() -> None:
    adapter = records.Adapter(name="acme/x", tenant="acme", created_at=1.5, record_version=3)
    versions = [
        records.AdapterVersion(
            id=version_id,
            adapter="acme/x",
            base_id=base_id,
            digest="sha256:1",
            peft_type="LORA",
            rank=8,
            target_modules=("q_proj",),
            origin="upload",
            created_at=2.0,
        )
        for version_id, base_id in (("v-1", "a"), ("v-2", "b"))
    ]
    message = adapter_of(adapter, versions, "v-2")
    assert (message.base, message.stable_version, len(message.versions)) == ("b", "v-2", 2)
    assert message.create_time.ToNanoseconds() == 1_500_000_000
    assert record_version_of(message.etag) == 3
    assert etag_of(adapter) == message.etag


@pytest.mark.parametrize("etag", ["3", "r", "rx", "r-1"])
def test_foreign_etag_is_refused(etag: str) -> None:
    with pytest.raises(InvalidArgumentError, match="etag"):
        record_version_of(etag)


def test_empty_etag_skips_the_check() -> None:
    assert record_version_of("") is None
