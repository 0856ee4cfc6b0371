"""Fakes behind the gateway's Protocols: an engine that spells, a table, a tokenizer of letters."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field

from lorebase.serving.engine.protocol import Chunk, GenerationRequest, VersionRef
from lorebase.serving.errors import EngineDeadError
from lorebase.serving.gateway.calls import Message
from lorebase.serving.routing.table import Route, RouteTable


def version(name: str, base_id: str = "base-a") -> VersionRef:
    return VersionRef(id=name, base_id=base_id, digest="sha256:00", path="/nowhere", rank=4)


def table(revision: int = 1, *, stable: str = "v-1") -> RouteTable:
    """One adapter `acme/x` with a version on each of two served bases."""
    versions = {"v-1": version("v-1"), "v-2": version("v-2", "base-b")}
    return RouteTable(
        revision=revision,
        current_base="base-a",
        serving_bases=("base-a", "base-b"),
        routes={"acme/x": Route(adapter="acme/x", stable=stable)},
        versions=versions,
        versions_of={"acme/x": tuple(versions)},
    )


class LetterCodec:
    """One token a character: its code point."""

    def encode(self, text: str) -> tuple[int, ...]:
        return tuple(ord(character) for character in text)

    def decode(self, token_ids: tuple[int, ...]) -> str:
        return "".join(chr(token) for token in token_ids)


class LetterTokenizers:
    async def codec(self, base_id: str) -> LetterCodec:
        return LetterCodec()

    async def render_chat(self, base_id: str, messages: tuple[Message, ...]) -> str:
        return "|".join(message.content for message in messages)


@dataclass
class SpellingEngines:
    """Answers every request by spelling `answer`, from wherever its prompt already ends in it."""

    answer: str = "hello"
    die_after: list[int] = field(default_factory=list)
    """Tokens after which each of the next attempts dies."""
    lie: str | None = None
    """Base to claim instead of the right one."""
    gate: Callable[[], "asyncio.Future[None]"] | None = None
    """Awaited before every token."""
    held_back: int = 0
    """Characters by which text lags behind tokens until the end, as with stop strings."""
    requests: list[tuple[str, GenerationRequest]] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)
    running: int = 0
    aborted: int = 0
    hinted: list[str] = field(default_factory=list)
    loaded: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)

    async def generate(
        self, base_id: str, request: GenerationRequest, wait_s: float
    ) -> AsyncGenerator[Chunk, None]:
        self.requests.append((base_id, request))
        self.waits.append(wait_s)
        self.running += 1
        finished = False
        try:
            letters = self._rest(request)[: request.sampling.max_tokens]
            lives = self.die_after.pop(0) if self.die_after else None
            sent = 0
            for index, letter in enumerate(letters):
                if self.gate is not None:
                    await self.gate()
                await asyncio.sleep(0)
                if lives is not None and index >= lives:
                    finished = True
                    raise EngineDeadError("killed by the test")
                last = index == len(letters) - 1
                ready = index + 1 if last else max(sent, index + 1 - self.held_back)
                finished = last
                yield Chunk(
                    text=letters[sent:ready],
                    token_ids=(ord(letter),),
                    finish_reason="stop" if last else None,
                    prompt_tokens=len(request.prompt_token_ids or request.prompt or ""),
                    base_id=self.lie or base_id,
                    version_id="" if request.version is None else request.version.id,
                )
                sent = ready
        finally:
            self.running -= 1
            self.aborted += not finished

    def _rest(self, request: GenerationRequest) -> str:
        prompt = request.prompt or LetterCodec().decode(request.prompt_token_ids or ())
        for already in range(len(self.answer), 0, -1):
            if prompt.endswith(self.answer[:already]):
                return self.answer[already:]
        return self.answer

    def prefetch(self, version: VersionRef) -> None:
        self.hinted.append(version.id)

    async def ensure_adapter(self, version: VersionRef) -> None:
        self.loaded.append(version.id)

    async def drop_adapter(self, version: VersionRef) -> None:
        self.dropped.append(version.id)
