"""Closed-loop clients over real gRPC: the only file here that does I/O."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import grpc

from lorebase.v1 import inference_pb2 as pb
from lorebase.v1.inference_pb2_grpc import InferenceServiceStub

from .records import OK, RequestRecord, Workload, is_correct

if TYPE_CHECKING:
    from lorebase.v1.inference_pb2_grpc import InferenceServiceAsyncStub

CHANNEL_OPTIONS = (
    # One connection for each channel: with SO_REUSEPORT the kernel spreads connections, not
    # calls, over the gateways.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.max_receive_message_length", 16 << 20),
    ("grpc.enable_http_proxy", 0),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadPlan:
    """Shape of closed-loop traffic."""

    clients: int = 6
    """Concurrent clients; each has one request in flight at most."""
    think_s: tuple[float, float] = (0.2, 0.5)
    """Pause between answer and next request, drawn evenly from this range."""
    deadline_s: float = 60.0
    """gRPC deadline of each request."""
    seed: int = 0


def channel_to(target: str) -> grpc.aio.Channel:
    """Returns an insecure channel with a connection of its own."""
    return grpc.aio.insecure_channel(target, options=list(CHANNEL_OPTIONS))


@dataclass(slots=True)
class _Progress:
    """What came so far of one answer."""

    begin: float
    ttft_s: float | None = None
    last: float = 0.0
    gaps: list[float] = field(default_factory=list)
    parts: list[str] = field(default_factory=list)
    tokens: int = 0
    finished: bool = False
    served: pb.ServedBy = field(default_factory=pb.ServedBy)

    def add(self, message: pb.GenerateStreamResponse, now: float) -> None:
        """Takes in one message of the stream."""
        if self.ttft_s is None and (message.text or message.token_ids):
            self.ttft_s = now - self.begin
        elif self.ttft_s is not None:
            self.gaps.append(now - self.last)
        self.last = now
        self.parts.append(message.text)
        self.tokens += len(message.token_ids)
        if message.finish_reason:
            self.finished = True
        if message.HasField("served_by"):
            self.served = message.served_by


async def send(
    stub: InferenceServiceAsyncStub,
    workload: Workload,
    example: int,
    *,
    kind: str,
    client: int = 0,
    deadline_s: float = 60.0,
) -> RequestRecord:
    """Sends one request and returns what happened; errors become records, never exceptions."""
    request = pb.GenerateRequest(
        model=workload.model,
        prompt=workload.prompts[example],
        sampling=pb.SamplingParams(
            max_tokens=workload.max_tokens, temperature=0.0, stop=list(workload.stop)
        ),
    )
    start, progress = time.time(), _Progress(time.perf_counter())
    code, error = OK, ""
    try:
        # wait_for_ready stays off: a refused connection is a failed request, not a slow one.
        async for message in stub.GenerateStream(request, timeout=deadline_s):
            progress.add(message, time.perf_counter())
        if not progress.finished:
            code, error = "INCOMPLETE", "the stream ended without a finish reason"
    except grpc.aio.AioRpcError as failure:
        code, error = failure.code().name, (failure.details() or "")[:500]
    text = "".join(progress.parts)
    served = progress.served
    return RequestRecord(
        kind=kind,
        client=client,
        model=workload.model,
        adapter=workload.adapter,
        example=example,
        start=start,
        latency_s=time.perf_counter() - progress.begin,
        code=code,
        ttft_s=progress.ttft_s,
        gaps_s=tuple(progress.gaps),
        tokens=progress.tokens,
        base=served.base,
        version=served.adapter_version,
        revision=served.route_revision,
        track=pb.Track.Name(served.track).removeprefix("TRACK_").lower(),
        text=text,
        correct=code == OK and is_correct(text, workload.examples[example][1]),
        error=error,
    )


class ClosedLoop:
    """N clients that ask, wait for the answer, think, and ask again until stopped.

    Every client walks through all adapters in its own random order, so each adapter gets an
    equal share of the traffic.
    """

    def __init__(
        self,
        target: str,
        workloads: Sequence[Workload],
        plan: LoadPlan,
        *,
        on_record: Callable[[RequestRecord], None] | None = None,
    ) -> None:
        """Prepares clients of the gRPC address `target`; `start` sends the first request."""
        if not workloads:
            raise ValueError("closed-loop load needs at least one workload, got none")
        self.records: list[RequestRecord] = []
        self._target = target
        self._workloads = tuple(workloads)
        self._plan = plan
        self._on_record = on_record
        self._stop = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Starts all clients on the running event loop."""
        if self._tasks:
            raise RuntimeError("the load runs already")
        self._tasks = [
            asyncio.create_task(self._run(index), name=f"load-client-{index}")
            for index in range(self._plan.clients)
        ]

    async def stop(self) -> list[RequestRecord]:
        """Lets requests in flight finish, stops all clients, returns all records.

        Raises:
            Exception: whatever ended a client early; a load generator that broke must not look
                like one that found nothing.
        """
        self._stop.set()
        results = await asyncio.gather(*self._tasks, return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result
        return self.records

    def check(self) -> None:
        """Raises what ended a client early, if any did."""
        for task in self._tasks:
            if task.done() and not self._stop.is_set():
                task.result()
                raise RuntimeError(f"{task.get_name()} ended before it was stopped")

    async def _run(self, index: int) -> None:
        rng = random.Random(f"{self._plan.seed}/{index}")
        async with channel_to(self._target) as channel:
            stub = InferenceServiceStub(channel)
            # Spread the first requests over one think time.
            await self._think(rng.uniform(0.0, self._plan.think_s[1]))
            while not self._stop.is_set():
                for workload in rng.sample(self._workloads, len(self._workloads)):
                    if self._stop.is_set():
                        return
                    record = await send(
                        stub,
                        workload,
                        rng.randrange(len(workload.examples)),
                        kind="foreground",
                        client=index,
                        deadline_s=self._plan.deadline_s,
                    )
                    self.records.append(record)
                    if self._on_record is not None:
                        self._on_record(record)
                    await self._think(rng.uniform(*self._plan.think_s))

    async def _think(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self._stop.wait(), timeout=seconds)
        except TimeoutError:
            return


async def measure(
    target: str,
    workloads: Sequence[Workload],
    *,
    kind: str = "judge",
    concurrency: int = 16,
    deadline_s: float = 120.0,
    on_record: Callable[[RequestRecord], None] | None = None,
) -> list[list[RequestRecord]]:
    """Asks every example of every workload once.

    Returns:
        One list for each workload, in the order of its examples.
    """
    jobs = [(w, i) for w in range(len(workloads)) for i in range(len(workloads[w].examples))]
    results: dict[tuple[int, int], RequestRecord] = {}
    pending = iter(jobs)

    async def worker(index: int) -> None:
        async with channel_to(target) as channel:
            stub = InferenceServiceStub(channel)
            for which, example in pending:
                record = await send(
                    stub,
                    workloads[which],
                    example,
                    kind=kind,
                    client=index,
                    deadline_s=deadline_s,
                )
                results[which, example] = record
                if on_record is not None:
                    on_record(record)

    async with asyncio.TaskGroup() as group:
        for index in range(min(concurrency, len(jobs))):
            group.create_task(worker(index))
    return [
        [results[which, example] for example in range(len(workload.examples))]
        for which, workload in enumerate(workloads)
    ]
