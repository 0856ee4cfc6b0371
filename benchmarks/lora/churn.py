"""The load of the lora-churn suite: a skewed trace, and clients that play it. No vLLM."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lorebase.serving.engine.protocol import GenerationRequest, Sampling, VersionRef

from .world import BaseShape, make_adapter

if TYPE_CHECKING:
    from lorebase.serving.engine.protocol import Engine

ALPHA = 0.3
"""Exponent of the popularity: the first hundredth of the adapters gets a quarter of the load."""
CV = 2.0
"""Coefficient of variation of the gaps; 1 would be Poisson, more comes in bursts."""
BASE_ID = "bench"
_CYCLE = (8, 16, 8, 8, 64, 16, 8, 8, 8, 16, 8, 8, 8, 8, 8, 8)
"""Ranks by adapter. Arranged so that 5 adapters, too, get tokens of rank 13 on average."""
FILES = 48


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """One request of a trace."""

    at_s: float
    """Seconds since the trace began."""
    adapter: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """What became of a request."""

    registered: int
    """Adapters that the load was spread over."""
    adapter: int
    first: bool
    """Whether no request had named the adapter before."""
    ttft_s: float
    tokens: int
    error: str = ""


def rank_of(adapter: int) -> int:
    """Returns an adapter's rank."""
    return _CYCLE[adapter % len(_CYCLE)]


def trace(
    requests: int, adapters: int, *, rate: float, seed: int, alpha: float = ALPHA, cv: float = CV
) -> list[Arrival]:
    """Draws a trace as S-LoRA's generator does: power-law popularity, Gamma gaps.

    Equal seeds give the same moments and the same popularities, spread over more or fewer
    adapters: adapter = floor(adapters * power(alpha)).

    Args:
        requests: how many.
        adapters: registered ones.
        rate: requests per second on average.
        seed: of everything.
        alpha: 1 is uniform; the smaller, the more skewed.
        cv: of the gaps.
    """
    rng = np.random.default_rng(seed)
    chosen = np.floor(adapters * rng.power(alpha, requests)).astype(int)
    gaps = rng.gamma(1 / cv**2, cv**2 / rate, requests)
    return [
        Arrival(at_s=float(at), adapter=int(min(adapter, adapters - 1)))
        for at, adapter in zip(np.cumsum(gaps), chosen, strict=True)
    ]


class Registered:
    """Adapters that exist: 48 different files, under as many ids as wanted.

    Every id is an adapter of its own to the engine: read, held and thrown out for itself.
    """

    def __init__(self, folder: Path, shape: BaseShape) -> None:
        self._paths = [
            make_adapter(folder / str(number), shape, rank_of(number), seed=number)
            for number in range(FILES)
        ]
        self._touched: set[str] = set()

    def path(self, adapter: int) -> Path:
        """Returns the files of an adapter."""
        return self._paths[adapter % FILES]

    def version(self, registered: int, adapter: int) -> VersionRef:
        """Returns a reference to one of `registered` adapters."""
        return VersionRef(
            id=f"of-{registered}-{adapter}",
            base_id=BASE_ID,
            digest=f"sha256:{adapter}",
            path=str(self.path(adapter)),
            rank=rank_of(adapter),
        )

    def touch(self, version: VersionRef) -> bool:
        """Returns whether it is named for the first time."""
        first = version.id not in self._touched
        self._touched.add(version.id)
        return first


class Client:
    """Plays traces against an engine."""

    def __init__(
        self, engine: Engine, adapters: Registered, *, vocab: int, prompt: int, answer: int
    ) -> None:
        self._engine, self._adapters = engine, adapters
        self._vocab, self._prompt = vocab, prompt
        self._sampling = Sampling(max_tokens=answer, ignore_eos=True)
        self._numbers = itertools.count()

    async def saturate(
        self, arrivals: Sequence[Arrival], registered: int, *, concurrency: int
    ) -> tuple[list[Served], float]:
        """Sends requests in order, so many at a time; returns what became of them, and seconds."""
        places = asyncio.Semaphore(concurrency)

        async def one(arrival: Arrival) -> Served:
            async with places:
                return await self._request(arrival, registered)

        began = time.perf_counter()
        served = await asyncio.gather(*(one(arrival) for arrival in arrivals))
        return served, time.perf_counter() - began

    async def load(self, adapters: Sequence[int], registered: int, *, at_once: int = 16) -> None:
        """Has the engine load adapters in this order; those that it holds count as used."""
        places = asyncio.Semaphore(at_once)

        async def one(adapter: int) -> None:
            async with places:
                version = self._adapters.version(registered, adapter)
                self._adapters.touch(version)
                await self._engine.ensure_adapter(version)

        await asyncio.gather(*(one(adapter) for adapter in adapters))

    async def play(self, arrivals: Sequence[Arrival], registered: int) -> list[Served]:
        """Sends each request at its moment, whatever became of those before."""
        began = time.perf_counter()

        async def one(arrival: Arrival) -> Served:
            await asyncio.sleep(max(0.0, began + arrival.at_s - time.perf_counter()))
            return await self._request(arrival, registered)

        return await asyncio.gather(*(one(arrival) for arrival in arrivals))

    async def tokens(self, prompt: Sequence[int], version: VersionRef | None) -> list[int]:
        """Returns the greedy answer to a prompt."""
        request = GenerationRequest(
            request_id=str(next(self._numbers)),
            prompt_token_ids=tuple(prompt),
            version=version,
            sampling=self._sampling,
        )
        return [
            token async for chunk in self._engine.generate(request) for token in chunk.token_ids
        ]

    async def _request(self, arrival: Arrival, registered: int) -> Served:
        number = next(self._numbers)
        rng = np.random.default_rng(number)
        version = self._adapters.version(registered, arrival.adapter)
        first = self._adapters.touch(version)
        request = GenerationRequest(
            request_id=str(number),
            prompt_token_ids=tuple(rng.integers(3, self._vocab, self._prompt).tolist()),
            version=version,
            sampling=self._sampling,
        )
        began = time.perf_counter()
        ttft_s, tokens, error = 0.0, 0, ""
        try:
            async for chunk in self._engine.generate(request):
                if not tokens:
                    ttft_s = time.perf_counter() - began
                tokens += len(chunk.token_ids)
        except Exception as failure:
            error = f"{type(failure).__name__}: {failure}"
        return Served(
            registered=registered,
            adapter=arrival.adapter,
            first=first,
            ttft_s=ttft_s,
            tokens=tokens,
            error=error,
        )
