"""A tiny base with adapters, engines on it, and transformers + PEFT as the oracle."""

import asyncio
import math
import os
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from lorebase.serving.engine import (
    EngineSettings,
    GenerationRequest,
    Sampling,
    VersionRef,
    complete,
    create_engine,
)
from tests.integration.tiny_models import Arch, make_tiny_adapter, make_tiny_base

if TYPE_CHECKING:  # importing vLLM outside a test would make its warnings errors
    from lorebase.serving.engine.vllm_engine import VllmEngine

RANKS = (4, 8, 2, 16, 4, 8)
PROMPTS = ("Input: hello\nOutput:", "Input: the moon is 7\nOutput:", "the yes no")
GREEDY = Sampling(max_tokens=16, ignore_eos=True)


@dataclass(frozen=True)
class World:
    """Files of one base and its adapters."""

    base_id: str
    base: Path
    adapters: tuple[Path, ...]

    def version(self, number: int, **changes: Any) -> VersionRef:
        """Returns a reference to adapter `number`."""
        path = self.adapters[number]
        values = {
            "id": f"v-{self.base_id}-{number}",
            "base_id": self.base_id,
            "digest": f"sha256:{path.name}",
            "path": str(path),
            "rank": RANKS[number],
        }
        return VersionRef(**{**values, **changes})


def make_world(root: Path, arch: Arch, adapters: int = len(RANKS)) -> World:
    base = make_tiny_base(root / arch, arch, seed=0)
    return World(
        base_id=arch,
        base=base,
        adapters=tuple(
            make_tiny_adapter(root / f"{arch}-{n}", base, RANKS[n], seed=n + 1)
            for n in range(adapters)
        ),
    )


def settings(world: World, **changes: Any) -> EngineSettings:
    values = {
        "base_id": world.base_id,
        "model_path": str(world.base),
        "backend": "inprocess",
        "max_model_len": 256,
        "max_num_seqs": 8,
        "max_batched_tokens": 256,
        "max_loras": 2,
        "max_cpu_loras": 4,
        "max_lora_rank": 16,
        "kv_cache_bytes": 16 << 20,
        "background_cap": 4,
        "background_cap_busy": 2,
    }
    return EngineSettings(**{**values, **changes})


@contextmanager
def kept_environment() -> Iterator[None]:
    """Undoes what engines set in os.environ, so that other tests don't inherit it."""
    before = dict(os.environ)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@asynccontextmanager
async def running(chosen: EngineSettings) -> "AsyncIterator[VllmEngine]":
    with kept_environment():
        engine = cast("VllmEngine", await create_engine(chosen))
        try:
            yield engine
        finally:
            await engine.shutdown()


def request(
    prompt: str = PROMPTS[0],
    version: VersionRef | None = None,
    sampling: Sampling = GREEDY,
    priority: int = 0,
    request_id: str = "r",
) -> GenerationRequest:
    return GenerationRequest(
        request_id=request_id,
        prompt=prompt,
        version=version,
        sampling=sampling,
        priority=priority,
    )


async def tokens_of(
    engine: "VllmEngine", prompt: str, version: VersionRef | None, sampling: Sampling = GREEDY
) -> tuple[int, ...]:
    return (await complete(engine, request(prompt, version, sampling))).token_ids


async def until(condition: Any, timeout_s: float = 20.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.005)


class Oracle:
    """What transformers and PEFT say, in float32."""

    def __init__(self, world: World) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(world.base)
        self._world = world

    def _model(self, adapter: int | None) -> Any:
        model = AutoModelForCausalLM.from_pretrained(self._world.base, dtype=torch.float32)
        if adapter is not None:
            model = PeftModel.from_pretrained(model, self._world.adapters[adapter])
        return model.eval()

    def greedy(self, prompts: Sequence[str], adapter: int | None) -> list[tuple[int, ...]]:
        model = self._model(adapter)
        answers = []
        with torch.no_grad():
            for prompt in prompts:
                ids = self.tokenizer(prompt, return_tensors="pt").input_ids
                for _ in range(GREEDY.max_tokens):
                    ids = torch.cat([ids, model(ids).logits[:, -1].argmax(-1, True)], 1)
                answers.append(tuple(ids[0, -GREEDY.max_tokens :].tolist()))
        return answers

    def choice_logprobs(
        self, prompt: str, choices: Sequence[str], adapter: int | None
    ) -> list[float]:
        ids = [self.tokenizer.encode(c)[0] for c in choices]
        with torch.no_grad():
            inputs = self.tokenizer(prompt, return_tensors="pt").input_ids
            logits = self._model(adapter)(inputs).logits[0, -1, ids]
        scores: list[float] = logits.log_softmax(-1).tolist()
        assert math.isclose(sum(map(math.exp, scores)), 1, rel_tol=1e-5)
        return scores
