"""The load generator against a scripted server on a loopback port."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import pytest

from benchmarks.load import ClosedLoop, LoadPlan, Workload, measure
from lorebase.v1 import inference_pb2 as pb
from lorebase.v1 import inference_pb2_grpc

SERVED = pb.ServedBy(
    base="old", adapter="a/x", adapter_version="v-1", route_revision=3, track=pb.TRACK_STABLE
)


class Scripted(inference_pb2_grpc.InferenceServiceServicer):
    """Answers by prompt: `slow`, `fail`, `cut` and `never` misbehave as named."""

    def __init__(self) -> None:
        self.in_flight = 0
        self.most_in_flight = 0

    async def GenerateStream(
        self, request: pb.GenerateRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[pb.GenerateStreamResponse]:
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            if request.prompt == "fail":
                await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "queue full")
            if request.prompt == "never":
                await asyncio.sleep(60)
            yield pb.GenerateStreamResponse(text=" le", token_ids=[1])
            await asyncio.sleep(0.4 if request.prompt == "slow" else 0)
            yield pb.GenerateStreamResponse(text="ft", token_ids=[2, 3])
            if request.prompt == "cut":
                return
            yield pb.GenerateStreamResponse(finish_reason=pb.FINISH_REASON_STOP, served_by=SERVED)
        finally:
            self.in_flight -= 1


@asynccontextmanager
async def serving() -> AsyncIterator[tuple[str, Scripted]]:
    server, servicer = grpc.aio.server(), Scripted()
    inference_pb2_grpc.add_InferenceServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}", servicer
    finally:
        await server.stop(0)


def workload(*prompts: str) -> Workload:
    return Workload(
        model="a/x", adapter="a/x", examples=tuple((p, "left") for p in prompts), prompts=prompts
    )


async def test_an_answer_is_recorded_with_times_and_who_gave_it() -> None:
    before = time.time()
    async with serving() as (target, _):
        [[record]] = await measure(target, [workload("slow")])
    assert record.code == "OK"
    assert record.correct
    assert record.text == " left"
    assert (record.base, record.version, record.revision, record.track) == (
        "old",
        "v-1",
        3,
        "stable",
    )
    assert record.tokens == 3
    assert len(record.gaps_s) == 2
    # On a busy machine the client may see the first message late, never the last one early.
    assert record.gaps_s[0] >= 0.05
    assert record.latency_s >= 0.4
    assert record.ttft_s is not None
    assert 0 < record.ttft_s < record.latency_s
    assert before <= record.start <= record.end <= time.time() + 0.01


async def test_errors_deadlines_and_cut_streams_become_records() -> None:
    async with serving() as (target, _):
        [[fail, cut, never]] = await measure(
            target, [workload("fail", "cut", "never")], deadline_s=0.5
        )
    assert (fail.code, fail.error) == ("RESOURCE_EXHAUSTED", "queue full")
    assert cut.code == "INCOMPLETE"
    assert never.code == "DEADLINE_EXCEEDED"
    assert not any(r.ok or r.correct for r in (fail, cut, never))


async def test_nobody_listening_is_a_failed_request() -> None:
    async with serving() as (target, _):
        pass
    [[record]] = await measure(target, [workload("x")], deadline_s=5)
    assert record.code == "UNAVAILABLE"


async def test_measure_asks_every_example_once_within_its_concurrency() -> None:
    async with serving() as (target, servicer):
        first, second = await measure(
            target, [workload(*["slow"] * 9), workload("slow", "fail")], concurrency=3
        )
    assert [r.example for r in first] == list(range(9))
    assert [r.ok for r in second] == [True, False]
    assert servicer.most_in_flight <= 3


async def test_closed_loop_keeps_at_most_one_request_a_client_and_loses_none() -> None:
    seen = []
    async with serving() as (target, servicer):
        load = ClosedLoop(
            target,
            [workload("slow"), workload("x")],
            LoadPlan(clients=3, think_s=(0.0, 0.02)),
            on_record=seen.append,
        )
        load.start()
        await asyncio.sleep(0.6)
        load.check()
        records = await load.stop()
        assert servicer.in_flight == 0
    assert seen == records
    assert len(records) > 6
    assert all(r.ok for r in records)
    assert servicer.most_in_flight <= 3


async def test_a_broken_load_generator_is_loud() -> None:
    def broken(record: object) -> None:
        raise RuntimeError("disk full")

    async with serving() as (target, _):
        load = ClosedLoop(target, [workload("x")], LoadPlan(think_s=(0.0, 0.01)), on_record=broken)
        load.start()
        await asyncio.sleep(0.3)
        with pytest.raises(RuntimeError, match="disk full"):
            load.check()
        with pytest.raises(RuntimeError, match="disk full"):
            await load.stop()
