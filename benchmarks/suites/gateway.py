"""Suite `gateway`: what do gateways cost against the engine itself?

The same streams go, in turn, to a vLLM engine in this process (no Ray, no network) and through
`lorebase serve`: over gRPC and over OpenAI HTTP with server-sent events. Both have engines with
equal settings, the client's own work is part of every figure, and nothing else runs meanwhile.
Two models: `tiny` makes a token in a millisecond or two and shows the overhead at its worst;
`medium` (random weights, 100M parameters) is nearer to what people serve on a CPU.

Correctness gate: all ways give the same tokens.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import yaml

from benchmarks.cluster import ServedCluster
from benchmarks.load import channel_to
from benchmarks.suite import SuiteContext, SuiteResult
from examples.tinyworld.demo.settings import WORLD
from lorebase.serving.config import load_settings
from lorebase.serving.engine.factory import create_engine
from lorebase.serving.engine.protocol import Engine, GenerationRequest, Sampling
from lorebase.v1 import inference_pb2 as pb
from lorebase.v1.inference_pb2_grpc import InferenceServiceStub

BASE = "base"
AGREEMENT = 0.97
"""Share of streams with the same text as the engine's; rounding may decide between two tokens."""
ENGINE = {
    "max_num_seqs": 32,
    "max_model_len": 512,
    "max_loras": 2,
    "kv_cache_bytes": 512 << 20,
}
WAYS = ("engine", "grpc", "http")


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """How much is measured."""

    streams: int
    tokens: int
    rounds: int
    """Of every way, in an order drawn anew each time; one more before them warms up."""


FULL = Shape(streams=32, tokens=64, rounds=9)
QUICK = Shape(streams=4, tokens=16, rounds=2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """One answer."""

    text: str
    ttft_s: float
    messages: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """All streams of one round, started together."""

    model: str
    way: str
    seconds: float
    streams: tuple[Stream, ...]


Send = Callable[[str, int], AsyncIterator[str]]
"""Prompt and number of tokens to pieces of text."""


async def run(context: SuiteContext) -> SuiteResult:
    """Runs the suite."""
    shape = QUICK if context.quick else FULL
    models = {"tiny": WORLD / "bases" / "old"}
    if not context.quick:
        models["medium"] = make_medium(context.work_dir / "medium")
    rounds: list[Round] = []
    for model, path in models.items():
        rounds += await _measure(model, path, shape, context)
    return _result(rounds, shape)


def make_medium(folder: Path) -> Path:
    """Writes a Llama of 100M random parameters with the tiny world's tokenizer."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(WORLD / "bases" / "old")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=1024,
        intermediate_size=2816,
        num_hidden_layers=8,
        num_attention_heads=16,
        num_key_value_heads=8,
        max_position_embeddings=2048,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=True,
        # Larger than usual: near-ties between tokens would blur the correctness gate.
        initializer_range=0.05,
    )
    model = LlamaForCausalLM(config)  # type: ignore[no-untyped-call]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


async def _measure(model: str, path: Path, shape: Shape, context: SuiteContext) -> list[Round]:
    """Runs all rounds on one model."""
    config = context.work_dir / f"{model}.yaml"
    values = {
        "cluster": {"state_dir": str(context.work_dir / f"state-{model}")},
        "bases": [{"id": BASE, "path": str(path)}],
        "serving": {"base": BASE, "gateways": 1},
        "engine": ENGINE,
        "background_plugin": None,
    }
    config.write_text(yaml.safe_dump(values))
    engine = await create_engine(load_settings(config).engine_settings(BASE))
    try:
        with ServedCluster(config, context.work_dir / f"state-{model}") as cluster:
            await cluster.wait_ready(600)
            context.say(f"{model}: engine and cluster are up")
            async with _ways(engine, cluster) as ways:
                return await _rounds(model, ways, shape, context)
    finally:
        await engine.shutdown()


async def _rounds(
    model: str, ways: dict[str, Send], shape: Shape, context: SuiteContext
) -> list[Round]:
    rng = random.Random(0)
    rounds = []
    for number in range(-1, shape.rounds):
        prompts = [
            f"Input: {rng.randrange(10**9)} {word}\nOutput:" for word in _words(rng, shape.streams)
        ]
        for way in rng.sample(WAYS, len(WAYS)):
            done = await _round(model, way, ways[way], prompts, shape.tokens)
            if number >= 0:
                rounds.append(done)
        context.say(f"{model}: round {number + 1} of {shape.rounds}")
    return rounds


def _words(rng: random.Random, count: int) -> list[str]:
    return ["".join(rng.choices("abcdefghij", k=12)) for _ in range(count)]


async def _round(model: str, way: str, send: Send, prompts: list[str], tokens: int) -> Round:
    began = time.perf_counter()
    streams = await asyncio.gather(*(_stream(send, prompt, tokens) for prompt in prompts))
    seconds = time.perf_counter() - began
    return Round(model=model, way=way, seconds=seconds, streams=tuple(streams))


async def _stream(send: Send, prompt: str, tokens: int) -> Stream:
    began, first, pieces = time.perf_counter(), 0.0, list[str]()
    async for piece in send(prompt, tokens):
        if piece and not first:
            first = time.perf_counter() - began
        pieces.append(piece)
    return Stream(text="".join(pieces), ttft_s=first, messages=len(pieces))


@asynccontextmanager
async def _ways(engine: Engine, cluster: ServedCluster) -> AsyncIterator[dict[str, Send]]:
    """Opens the connections and yields each way of sending a prompt."""
    serial = iter(range(1 << 30))

    async def direct(prompt: str, tokens: int) -> AsyncIterator[str]:
        sampling = Sampling(max_tokens=tokens, ignore_eos=True)
        request = GenerationRequest(request_id=f"r{next(serial)}", prompt=prompt, sampling=sampling)
        async for chunk in engine.generate(request):
            yield chunk.text

    async with (
        channel_to(cluster.grpc) as channel,
        httpx.AsyncClient(base_url=f"http://{cluster.http}", timeout=300, trust_env=False) as http,
    ):
        stub = InferenceServiceStub(channel)

        async def grpc(prompt: str, tokens: int) -> AsyncIterator[str]:
            sampling = pb.SamplingParams(max_tokens=tokens, temperature=0.0, ignore_eos=True)
            request = pb.GenerateRequest(model=BASE, prompt=prompt, sampling=sampling)
            async for message in stub.GenerateStream(request, timeout=300):
                yield message.text

        async def sse(prompt: str, tokens: int) -> AsyncIterator[str]:
            body = {
                "model": BASE,
                "prompt": prompt,
                "max_tokens": tokens,
                "temperature": 0,
                "ignore_eos": True,
                "stream": True,
            }
            async with http.stream("POST", "/v1/completions", json=body) as answer:
                answer.raise_for_status()
                async for line in answer.aiter_lines():
                    data = line.removeprefix("data: ")
                    if data != line and data != "[DONE]":
                        yield json.loads(data)["choices"][0]["text"]

        yield {"engine": direct, "grpc": grpc, "http": sse}


def _result(rounds: list[Round], shape: Shape) -> SuiteResult:
    """Rows for each model and way; ratios are between rounds of the same prompts."""
    rows: list[dict[str, Any]] = []
    summary: dict[str, Any] = {}
    failures = []
    for model in dict.fromkeys(one.model for one in rounds):
        of = {way: [r for r in rounds if (r.model, r.way) == (model, way)] for way in WAYS}
        for way in WAYS:
            ratios = [
                mine.seconds / base.seconds
                for mine, base in zip(of[way], of["engine"], strict=True)
            ]
            seconds = [one.seconds for one in of[way]]
            first = [stream.ttft_s for one in of[way] for stream in one.streams]
            rows.append(
                {
                    "model": model,
                    "way": way,
                    "rounds": len(seconds),
                    "streams": shape.streams,
                    "tokens": shape.tokens,
                    "seconds": _spread(seconds),
                    "ttft_s": _spread(first),
                    "ratio_to_engine": _spread(ratios),
                    "messages_per_stream": float(
                        np.mean([stream.messages for one in of[way] for stream in one.streams])
                    ),
                }
            )
            same = [
                a.text == b.text
                for mine, base in zip(of[way], of["engine"], strict=True)
                for a, b in zip(mine.streams, base.streams, strict=True)
            ]
            if np.mean(same) < AGREEMENT:
                failures.append(f"{model}: {sum(same)} of {len(same)} texts by {way} are right")
            if way != "engine":
                summary[f"{way}_vs_engine_{model}"] = rows[-1]["ratio_to_engine"]["p50"]
    return SuiteResult(rows=rows, summary=summary, failures=failures)


def _spread(values: list[float]) -> dict[str, float]:
    low, middle, high = np.percentile(values, [20, 50, 80])
    return {"p20": round(low, 4), "p50": round(middle, 4), "p80": round(high, 4)}
