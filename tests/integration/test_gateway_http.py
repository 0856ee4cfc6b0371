"""OpenAI HTTP on the real gateway: httpx as curl would, and the unmodified openai client."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.unit.gateway_fakes import SpellingEngines

from .gateway_harness import BASE, Gateway, gateway, gateway_settings
from .tiny_models import make_tiny_base


@pytest.fixture(scope="module")
def base_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_base(tmp_path_factory.mktemp("models") / "base")


@pytest.fixture
async def served(tmp_path: Path, base_dir: Path) -> AsyncIterator[Gateway]:
    async with gateway(gateway_settings(tmp_path, base_dir), time.monotonic) as running:
        yield running


@pytest.fixture
async def client(served: Gateway) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(
        base_url=served.url + "/v1", api_key="unused", max_retries=0
    ) as made:
        yield made


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


def stuck() -> SpellingEngines:
    async def gate() -> None:
        await asyncio.sleep(3600)

    return SpellingEngines(gate=gate)  # type: ignore[arg-type]


async def test_openai_client_completes(client: openai.AsyncOpenAI) -> None:
    answer = await client.completions.create(model=BASE, prompt="say ", temperature=0)
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == ("hello", "stop")
    assert answer.usage is not None
    assert (answer.usage.completion_tokens, answer.usage.total_tokens) == (5, 9)
    assert answer.model_extra is not None
    assert answer.model_extra["lorebase"]["base"] == BASE


async def test_openai_client_completes_several_prompts_in_order(
    client: openai.AsyncOpenAI,
) -> None:
    answer = await client.completions.create(model=BASE, prompt=["say ", "say hel"])
    assert [(choice.index, choice.text) for choice in answer.choices] == [(0, "hello"), (1, "lo")]
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 7


async def test_openai_client_streams_completions_with_usage(client: openai.AsyncOpenAI) -> None:
    stream = await client.completions.create(
        model=BASE, prompt="say ", stream=True, stream_options={"include_usage": True}
    )
    events = [event async for event in stream]
    assert "".join(event.choices[0].text for event in events[:-1]) == "hello"
    assert [event.choices[0].finish_reason for event in events[:-1]] == [None] * 4 + ["stop"]
    assert events[-1].choices == []
    assert events[-1].usage is not None
    assert events[-1].usage.prompt_tokens == 4


async def test_openai_client_chats(client: openai.AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(
        model=BASE, messages=[{"role": "user", "content": "say "}]
    )
    assert answer.choices[0].message.content == "hello"
    assert answer.choices[0].message.role == "assistant"


async def test_openai_client_streams_chats(client: openai.AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(
        model=BASE, messages=[{"role": "user", "content": "say "}], stream=True
    )
    events = [event async for event in stream]
    assert "".join(event.choices[0].delta.content or "" for event in events) == "hello"
    assert events[0].choices[0].delta.role == "assistant"
    assert events[-1].choices[0].finish_reason == "stop"


async def test_openai_client_lists_models(client: openai.AsyncOpenAI) -> None:
    assert [model.id async for model in client.models.list()] == [BASE]
    assert (await client.models.retrieve(BASE)).id == BASE
    with pytest.raises(openai.NotFoundError):
        await client.models.retrieve("acme/nobody")


async def test_openai_client_understands_our_errors(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as unknown:
        await client.completions.create(model="acme/nobody", prompt="x")
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError, match="max_tokens"):
        await client.completions.create(model=BASE, prompt="x", max_tokens=10**6)
    with pytest.raises(openai.NotFoundError):
        await client.completions.create(model="acme/nobody", prompt="x", stream=True)


async def test_full_queue_is_429_with_retry_after(tmp_path: Path, base_dir: Path) -> None:
    engines = stuck()
    settings = gateway_settings(tmp_path, base_dir, serving={"max_concurrency": 1, "max_queue": 0})
    async with (
        gateway(settings, time.monotonic, engines) as served,
        httpx.AsyncClient(base_url=served.url, timeout=20) as http,
    ):
        body = {"model": BASE, "prompt": "x"}
        first = asyncio.create_task(http.post("/v1/completions", json=body))
        await until(lambda: engines.running == 1)
        refused = await http.post("/v1/completions", json=body)
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) >= 1
        assert refused.json()["error"]["type"] == "rate_limit_error"
        first.cancel()
        await until(lambda: engines.running == 0)


@pytest.mark.parametrize(("stream", "begun"), [(False, False), (True, True), (True, False)])
async def test_client_that_hangs_up_aborts_at_the_engine(
    tmp_path: Path, base_dir: Path, stream: bool, begun: bool
) -> None:
    step = asyncio.Event()

    async def gate() -> None:
        # The first token comes at once where a stream has begun; then nothing more.
        if step.is_set() or not begun:
            await asyncio.sleep(3600)
        step.set()

    engines = SpellingEngines(gate=gate)  # type: ignore[arg-type]
    settings = gateway_settings(tmp_path, base_dir)
    async with gateway(settings, time.monotonic, engines) as served:
        reader, writer = await asyncio.open_connection("127.0.0.1", settings.serving.http_port)
        body = json.dumps({"model": BASE, "prompt": "say ", "stream": stream}).encode()
        writer.write(
            b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            + f"Content-Length: {len(body)}\r\n\r\n".encode()
            + body
        )
        await writer.drain()
        if begun:
            await reader.readuntil(b"data: ")
        await until(lambda: engines.running == 1)
        writer.close()
        await writer.wait_closed()
        await until(lambda: engines.running == 0)
        assert engines.aborted == 1
        assert served.server is not None


async def test_curl_gets_json_errors_everywhere(served: Gateway) -> None:
    async with httpx.AsyncClient(base_url=served.url) as http:
        for method, path, body, status in (
            ("POST", "/v1/completions", b"not json", 400),
            ("POST", "/v1/chat/completions", b'{"model": "x"}', 400),
            ("GET", "/v1/nowhere", b"", 404),
            ("GET", "/v1/models/acme/nobody", b"", 404),
        ):
            answer = await http.request(method, path, content=body)
            assert answer.status_code == status, path
            assert answer.json()["error"]["message"]


async def test_error_after_the_first_token_ends_the_stream_without_done(
    tmp_path: Path, base_dir: Path
) -> None:
    engines = SpellingEngines(die_after=[2])
    settings = gateway_settings(tmp_path, base_dir, serving={"resume_attempts": 0})
    async with (
        gateway(settings, time.monotonic, engines) as served,
        httpx.AsyncClient(base_url=served.url) as http,
    ):
        body = {"model": BASE, "prompt": "say ", "stream": True}
        answer = await http.post("/v1/completions", json=body)
    assert answer.status_code == 200
    assert "[DONE]" not in answer.text
    last: dict[str, Any] = json.loads(answer.text.strip().splitlines()[-1].removeprefix("data: "))
    assert last["error"]["code"] == "engine_dead"


async def test_health_and_metrics(served: Gateway) -> None:
    async with httpx.AsyncClient(base_url=served.url) as http:
        assert (await http.get("/health")).status_code == 200
        await http.post("/v1/completions", json={"model": BASE, "prompt": "say "})
        text = (await http.get("/metrics")).text
        samples = {
            (sample.name, *sorted(sample.labels.values())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }
        assert samples["lorebase_requests_total", "OK", BASE, "pinned"] == 1
        assert samples[("lorebase_route_revision",)] >= 1


async def test_request_id_of_the_client_comes_back(served: Gateway) -> None:
    async with httpx.AsyncClient(base_url=served.url) as http:
        answer = await http.post(
            "/v1/completions",
            json={"model": BASE, "prompt": "say "},
            headers={"x-request-id": "mine"},
        )
        assert answer.headers["x-request-id"] == "mine"
        assert answer.json()["id"] == "cmpl-mine"
