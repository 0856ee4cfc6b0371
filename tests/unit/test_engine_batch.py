"""Many requests in one call."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from lorebase.serving.engine.batch import complete, complete_many
from lorebase.serving.engine.protocol import (
    Chunk,
    EngineStats,
    GenerationRequest,
    VersionRef,
)
from lorebase.serving.errors import EngineDeadError, InvalidArgumentError


class EchoEngine:
    """Answers with the prompt, one chunk per character; fails and hangs on command."""

    def __init__(self) -> None:
        self.active = 0
        self.most = 0
        self.aborted: list[str] = []
        self.started: list[str] = []

    async def generate(self, request: GenerationRequest) -> AsyncIterator[Chunk]:
        prompt = request.prompt or ""
        self.started.append(request.request_id)
        if prompt == "bad":
            raise InvalidArgumentError("the prompt is bad", reason="BAD")
        if prompt == "kill":
            raise EngineDeadError("gone")
        self.active += 1
        self.most = max(self.most, self.active)
        finished = False
        try:
            for number, char in enumerate(prompt):
                await asyncio.sleep(60 if prompt == "hang" else 0)
                last = number == len(prompt) - 1
                yield Chunk(
                    text=char,
                    token_ids=(number,),
                    finish_reason="length" if last else None,
                    prompt_tokens=len(prompt),
                    choice_logprobs=(-1.0, -2.0) if last else (),
                )
            finished = True
        finally:
            self.active -= 1
            if not finished:
                self.aborted.append(request.request_id)

    def prefetch_adapter(self, version: VersionRef) -> None: ...

    async def ensure_adapter(self, version: VersionRef) -> None: ...
    async def drop_adapter(self, version_id: str) -> bool:
        return False

    async def stats(self) -> EngineStats:
        raise NotImplementedError

    async def check_health(self) -> None: ...
    async def shutdown(self) -> None: ...


def requests(*prompts: str) -> list[GenerationRequest]:
    return [GenerationRequest(request_id=f"r{i}", prompt=p) for i, p in enumerate(prompts)]


async def test_answers_come_in_order_and_whole() -> None:
    completions = await complete_many(EchoEngine(), requests("abcde", "x", "yz"))
    assert [c.text for c in completions] == ["abcde", "x", "yz"]
    assert completions[0].token_ids == (0, 1, 2, 3, 4)
    assert completions[0].finish_reason == "length"
    assert completions[0].prompt_tokens == 5
    assert completions[0].choice_logprobs == (-1.0, -2.0)


async def test_a_bad_request_fails_alone() -> None:
    completions = await complete_many(EchoEngine(), requests("ab", "bad", "cd"))
    assert [c.text for c in completions] == ["ab", "", "cd"]
    assert [c.error for c in completions] == [None, "BAD: the prompt is bad", None]


async def test_a_dead_engine_fails_the_batch_and_aborts_the_rest() -> None:
    engine = EchoEngine()
    with pytest.raises(EngineDeadError, match="gone"):
        await complete_many(engine, requests("hang", "kill", "hang"))
    assert engine.active == 0
    assert sorted(engine.aborted) == ["r0", "r2"]


async def test_cancelling_aborts_all() -> None:
    engine = EchoEngine()
    task = asyncio.create_task(complete_many(engine, requests("hang", "hang", "hang")))
    while engine.active < 3:
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert engine.active == 0
    assert len(engine.aborted) == 3


async def test_no_more_than_the_given_number_run_at_a_time() -> None:
    engine = EchoEngine()
    completions = await complete_many(engine, requests(*["abc"] * 20), concurrency=4)
    assert engine.most == 4
    assert [c.text for c in completions] == ["abc"] * 20


async def test_an_empty_batch_is_an_empty_answer() -> None:
    assert await complete_many(EchoEngine(), []) == []


async def test_one_request_raises_its_error() -> None:
    with pytest.raises(InvalidArgumentError):
        await complete(EchoEngine(), requests("bad")[0])
