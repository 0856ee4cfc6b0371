"""One request through the core: what is pinned, what is counted, what is aborted."""

import asyncio
import itertools
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest

from lorebase.serving.engine.protocol import Sampling
from lorebase.serving.errors import (
    DeadlineExceededError,
    EngineDeadError,
    NotFoundError,
    ResourceExhaustedError,
    UnavailableError,
)
from lorebase.serving.gateway.admission import Admission
from lorebase.serving.gateway.calls import Call, Message, Piece
from lorebase.serving.gateway.core import Core
from lorebase.serving.gateway.metrics import GatewayMetrics
from lorebase.serving.gateway.resuming import ResumingEngines
from lorebase.serving.routing.table import RouteTable

from .gateway_fakes import LetterTokenizers, SpellingEngines, table


@dataclass
class Bench:
    engines: SpellingEngines = field(default_factory=SpellingEngines)
    table: RouteTable | None = field(default_factory=table)
    max_concurrency: int = 4
    max_queue: int = 4
    attempts: int = 3
    max_request_s: float = 60.0
    metrics: GatewayMetrics = field(default_factory=GatewayMetrics)

    def core(self) -> Core:
        clock = asyncio.get_running_loop().time
        ids = itertools.count()
        self.admission = Admission(
            max_concurrency=self.max_concurrency, max_queue=self.max_queue, clock=clock
        )
        return Core(
            table=lambda: self.table,
            engines=ResumingEngines(
                engines=self.engines,
                tokenizers=LetterTokenizers(),
                metrics=self.metrics,
                clock=clock,
                new_id=lambda: str(next(ids)),
                attempts=self.attempts,
            ),
            tokenizers=LetterTokenizers(),
            admission=self.admission,
            metrics=self.metrics,
            clock=clock,
            rng=random.Random(0),
            max_request_s=self.max_request_s,
            stream_wait_s=0.25,
        )

    def metric(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(name, labels) or 0.0


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lorebase.serving.gateway.resuming.PAUSE_STEP_S", 0.0)


def call(model: str = "acme/x", **fields: object) -> Call:
    return Call(model=model, request_id="r", **{"prompt": "say ", **fields})


async def collect(pieces: AsyncIterator[Piece]) -> list[Piece]:
    return [piece async for piece in pieces]


async def test_answer_says_what_the_engine_says_answered() -> None:
    bench = Bench()
    answer = await bench.core().answer(call())
    assert answer.text == "hello"
    assert answer.token_ids == tuple(map(ord, "hello"))
    assert answer.finish_reason == "stop"
    served = answer.served_by
    assert (served.base_id, served.adapter, served.version_id) == ("base-a", "acme/x", "v-1")
    assert (served.revision, served.track) == (1, "stable")
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (4, 5)


async def test_bare_base_has_no_adapter() -> None:
    answer = await Bench().core().answer(call("base-b"))
    assert (answer.served_by.base_id, answer.served_by.adapter) == ("base-b", "")
    assert answer.served_by.track == "pinned"


async def test_request_in_flight_keeps_its_version_across_a_swap() -> None:
    step = asyncio.Event()

    async def gate() -> None:
        await step.wait()

    bench = Bench(engines=SpellingEngines(gate=gate))  # type: ignore[arg-type]
    core = bench.core()
    old = asyncio.create_task(core.answer(call()))
    while not bench.engines.requests:
        await asyncio.sleep(0)
    bench.table = table(2, stable="v-2")
    new = asyncio.create_task(core.answer(call()))
    step.set()
    assert (await old).served_by.version_id == "v-1"
    assert (await old).served_by.revision == 1
    assert (await new).served_by.version_id == "v-2"
    assert (await new).served_by.revision == 2


async def test_a_queued_requests_adapter_is_hinted_at_while_it_waits() -> None:
    step = asyncio.Event()

    async def gate() -> None:
        await step.wait()

    bench = Bench(engines=SpellingEngines(gate=gate), max_concurrency=1)  # type: ignore[arg-type]
    core = bench.core()
    first = asyncio.create_task(core.answer(call()))
    while not bench.engines.requests:
        await asyncio.sleep(0)
    assert bench.engines.hinted == []  # it did not wait
    queued = [asyncio.create_task(core.answer(call(model))) for model in ("acme/x", "base-a")]
    while bench.admission.waiting < 2:
        await asyncio.sleep(0)
    assert bench.engines.hinted == ["v-1"]  # the bare base has nothing to load
    step.set()
    assert {one.text for one in await asyncio.gather(first, *queued)} == {"hello"}
    assert bench.engines.hinted == ["v-1"]


async def test_queued_request_is_resolved_when_admitted_not_when_it_came() -> None:
    step = asyncio.Event()

    async def gate() -> None:
        await step.wait()

    bench = Bench(engines=SpellingEngines(gate=gate), max_concurrency=1)  # type: ignore[arg-type]
    core = bench.core()
    first = asyncio.create_task(core.answer(call()))
    queued = asyncio.create_task(core.answer(call()))
    while not bench.admission.waiting:
        await asyncio.sleep(0)
    bench.table = table(2, stable="v-2")
    step.set()
    assert (await first).served_by.revision == 1
    assert (await queued).served_by.version_id == "v-2"


async def test_unknown_model_fails_before_it_queues() -> None:
    bench = Bench(max_concurrency=1, max_queue=0)
    core = bench.core()
    async with bench.admission.slot():
        with pytest.raises(NotFoundError):
            await core.answer(call("acme/unknown"))
    assert bench.metric("lorebase_requests_total", base="none", track="none", code="NOT_FOUND") == 1


async def test_without_a_table_nothing_is_served() -> None:
    with pytest.raises(UnavailableError, match="route table"):
        await Bench(table=None).core().answer(call())


async def test_full_queue_is_refused() -> None:
    bench = Bench(max_concurrency=1, max_queue=0)
    core = bench.core()
    async with bench.admission.slot():
        with pytest.raises(ResourceExhaustedError):
            await core.answer(call())


async def test_deadline_aborts_at_the_engine_and_frees_the_slot() -> None:
    async def gate() -> None:
        await asyncio.sleep(3600)

    bench = Bench(engines=SpellingEngines(gate=gate))  # type: ignore[arg-type]
    with pytest.raises(DeadlineExceededError):
        await bench.core().answer(call(timeout_s=0.02))
    assert (bench.engines.running, bench.engines.aborted) == (0, 1)
    assert bench.admission.running == 0


async def test_request_without_deadline_is_bounded_by_the_server() -> None:
    async def gate() -> None:
        await asyncio.sleep(3600)

    engines = SpellingEngines(gate=gate)  # type: ignore[arg-type]
    for timeout_s in (None, 3600.0):
        with pytest.raises(DeadlineExceededError):
            await (
                Bench(engines=engines, max_request_s=0.02).core().answer(call(timeout_s=timeout_s))
            )
    assert engines.running == 0


async def test_deadline_holds_in_the_queue_too() -> None:
    bench = Bench(max_concurrency=1)
    core = bench.core()
    async with bench.admission.slot():
        with pytest.raises(DeadlineExceededError, match="admission"):
            await core.answer(call(timeout_s=0.02))
    assert bench.engines.requests == []


async def test_client_that_goes_away_aborts_at_the_engine() -> None:
    bench = Bench()
    pieces = bench.core().run(call())
    assert (await anext(pieces)).text == "h"
    assert bench.engines.running == 1
    await pieces.aclose()
    assert (bench.engines.running, bench.engines.aborted, bench.admission.running) == (0, 1, 0)
    labels = {"base": "base-a", "track": "stable"}
    assert bench.metric("lorebase_requests_total", code="CANCELLED", **labels) == 1
    assert bench.metric("lorebase_requests_in_flight", **labels) == 0


async def test_cancelled_task_aborts_at_the_engine() -> None:
    async def gate() -> None:
        await asyncio.sleep(3600)

    bench = Bench(engines=SpellingEngines(gate=gate))  # type: ignore[arg-type]
    task = asyncio.create_task(bench.core().answer(call()))
    while not bench.engines.running:
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (bench.engines.running, bench.admission.running) == (0, 0)


async def test_answer_goes_on_at_another_engine_from_the_tokens_sent() -> None:
    bench = Bench(engines=SpellingEngines(die_after=[2, 0, 1]))
    answer = await bench.core().answer(call())
    assert answer.text == "hello"
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (4, 5)
    second = bench.engines.requests[1][1]
    assert second.prompt_token_ids == tuple(map(ord, "say he"))
    ids = [request.request_id for _, request in bench.engines.requests]
    assert len(set(ids)) == 4, "an engine may still hold the id of the last attempt"
    assert bench.metric("lorebase_resumes_total", base="base-a") == 3


async def test_text_held_back_by_a_dying_engine_is_not_lost() -> None:
    bench = Bench(engines=SpellingEngines(die_after=[4], held_back=2))
    answer = await bench.core().answer(call())
    assert (answer.text, answer.token_ids) == ("hello", tuple(map(ord, "hello")))


async def test_engines_that_keep_dying_are_given_up() -> None:
    bench = Bench(engines=SpellingEngines(die_after=[0] * 9), attempts=3)
    with pytest.raises(EngineDeadError):
        await bench.core().answer(call())
    assert len(bench.engines.requests) == 4


async def test_engine_that_dies_after_the_last_token_needs_no_other_one() -> None:
    bench = Bench(engines=SpellingEngines(answer="hello", die_after=[3]))
    answer = await bench.core().answer(call(sampling=Sampling(max_tokens=3)))
    assert answer.finish_reason == "stop"
    assert answer.text == "hel"


async def test_answer_by_another_base_is_counted_and_reported_as_it_is() -> None:
    bench = Bench(engines=SpellingEngines(lie="base-z"))
    answer = await bench.core().answer(call())
    assert answer.served_by.base_id == "base-z"
    assert bench.metric("lorebase_version_mismatches_total", base="base-a") == 5


async def test_chat_is_rendered_for_the_base_that_answers() -> None:
    bench = Bench()
    messages = (Message(role="user", content="a"), Message(role="user", content="b"))
    await bench.core().answer(Call(model="acme/x", request_id="r", messages=messages))
    assert bench.engines.requests[0][1].prompt == "a|b"


async def test_streams_come_in_small_pieces_and_whole_answers_in_few() -> None:
    bench = Bench()
    core = bench.core()
    await collect(core.run(call()))
    await core.answer(call())
    assert bench.engines.waits == [0.25, 0.5]


async def test_whole_answers_count_as_answered() -> None:
    bench = Bench()
    await bench.core().answer(call())
    labels = {"base": "base-a", "track": "stable"}
    assert bench.metric("lorebase_requests_total", code="OK", **labels) == 1
    assert bench.metric("lorebase_requests_total", code="CANCELLED", **labels) == 0
    assert bench.engines.aborted == 0


async def test_reader_that_stops_after_the_last_piece_was_answered() -> None:
    bench = Bench()
    pieces = bench.core().run(call())
    async for piece in pieces:
        if piece.finish_reason is not None:
            break
    await pieces.aclose()
    labels = {"base": "base-a", "track": "stable"}
    assert bench.metric("lorebase_requests_total", code="OK", **labels) == 1


async def test_latencies_and_tokens_are_counted_by_base_and_track() -> None:
    bench = Bench()
    core = bench.core()
    for _ in range(2):
        await collect(core.run(call()))
    labels = {"base": "base-a", "track": "stable"}
    assert bench.metric("lorebase_requests_total", code="OK", **labels) == 2
    assert bench.metric("lorebase_prompt_tokens_total", **labels) == 8
    assert bench.metric("lorebase_completion_tokens_total", **labels) == 10
    assert bench.metric("lorebase_time_to_first_token_seconds_count", **labels) == 2
    assert bench.metric("lorebase_inter_token_seconds_count", **labels) == 8
    assert bench.metric("lorebase_request_seconds_count", **labels) == 2
    assert bench.metric("lorebase_queue_depth") == 0
