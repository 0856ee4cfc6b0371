"""Serving on real parts: vLLM's AsyncLLM, Ray Serve, gRPC, HTTP, and processes shot on the way.

One instance serves all tests, in the order of this file, because starting it is what takes the
time; the last test stops it and starts it again.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import openai
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from benchmarks.cluster import free_ports
from lorebase.serving import launch
from lorebase.serving.catalog import Catalog
from lorebase.serving.config import Settings, settings_of
from lorebase.serving.engine.protocol import EngineStats
from lorebase.serving.errors import FailedPreconditionError
from lorebase.v1 import adapter_pb2, adapter_pb2_grpc, inference_pb2, inference_pb2_grpc
from tests.integration.gateway_harness import archive, reason_of, retry_s_of, upload
from tests.integration.tiny_models import make_tiny_adapter, make_tiny_base

pytestmark = [
    # Ray's own threads and sockets outlive its shutdown.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

BASE, OTHER = "base-a", "base-b"
CONCURRENCY, QUEUE = 8, 8
LONG = 400
"""Tokens that take long enough to act while they are made."""


class Instance:
    """The running cluster and how to reach it."""

    def __init__(self, settings: Settings) -> None:
        # Other tests of this session may have left helpers (multiprocessing's resource tracker).
        self._before = {child.pid for child in psutil.Process().children(recursive=True)}
        self.cluster = launch.up(settings)

    def pids(self) -> list[int]:
        """Processes that the instance started."""
        children = psutil.Process().children(recursive=True)
        return [child.pid for child in children if child.pid not in self._before]

    def channel(self) -> grpc.aio.Channel:
        return grpc.aio.insecure_channel(
            self.cluster.grpc_target, options=[("grpc.use_local_subchannel_pool", 1)]
        )

    def stats(self, base_id: str = BASE) -> EngineStats:
        from lorebase.serving.app import engine_handle

        (stats,) = engine_handle(base_id).broadcast("stats").results(timeout_s=30)
        assert isinstance(stats, EngineStats)
        return stats

    def busy(self) -> int:
        stats = self.stats()
        return stats.running_foreground + stats.waiting_foreground

    def restart(self) -> None:
        settings = self.cluster.settings
        self.cluster.down()
        self.cluster = launch.up(settings)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate((BASE, OTHER)):
        make_tiny_base(folder / name, seed=seed)
    for index in range(3):
        make_tiny_adapter(folder / f"adapter-{index}", folder / BASE, seed=index + 1)
    return folder


@pytest.fixture(scope="module")
def instance(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Instance]:
    settings = settings_of(
        {
            "cluster": {"state_dir": str(tmp_path_factory.mktemp("state")), "num_cpus": 4},
            "bases": [{"id": name, "path": str(models / name)} for name in (BASE, OTHER)],
            "serving": {
                "gateways": 2,
                "grpc_port": 0,
                "http_port": 0,
                "max_concurrency": CONCURRENCY,
                "max_queue": QUEUE,
                "drain_s": 20,
            },
            "engine": {
                "max_model_len": 512,
                "max_num_seqs": 16,
                "max_loras": 4,
                "max_cpu_loras": 8,
                "max_lora_rank": 16,
                "kv_cache_bytes": 64 << 20,
            },
            "limits": {"max_adapter_rank": 16},
            "gateway": {"extra_servicers": [], "kit_check": None},
            "background_plugin": None,
        },
        folder=models,
    )
    running = Instance(settings)
    try:
        yield running
    finally:
        running.cluster.down()


@pytest.fixture
async def inference(instance: Instance) -> AsyncIterator[Any]:
    async with instance.channel() as channel:
        yield inference_pb2_grpc.InferenceServiceStub(channel)


@pytest.fixture
async def adapters(instance: Instance) -> AsyncIterator[Any]:
    async with instance.channel() as channel:
        yield adapter_pb2_grpc.AdapterServiceStub(channel)


def ask(model: str = BASE, tokens: int = 8, **fields: Any) -> inference_pb2.GenerateRequest:
    sampling = inference_pb2.SamplingParams(max_tokens=tokens, ignore_eos=True)
    return inference_pb2.GenerateRequest(
        model=model, prompt="one two three", sampling=sampling, **fields
    )


async def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    async with asyncio.timeout(seconds):
        while not await asyncio.to_thread(condition):
            await asyncio.sleep(0.05)


async def end_of(call: Any) -> grpc.StatusCode:
    """Reads a stream to its end and returns its status."""
    try:
        while (await call.read()) is not grpc.aio.EOF:
            pass
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


def replicas(app: str) -> list[psutil.Process]:
    """Processes of a Serve application's replicas."""
    children = psutil.Process().children(recursive=True)
    return [child for child in children if _title(child).startswith(f"ray::ServeReplica:{app}:")]


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


async def test_base_answers_and_stream_gives_the_same(inference: Any) -> None:
    whole = await inference.Generate(ask())
    assert len(whole.token_ids) == 8
    assert (whole.served_by.base, whole.served_by.adapter_version) == (BASE, "")
    pieces = [piece async for piece in inference.GenerateStream(ask())]
    assert [token for piece in pieces for token in piece.token_ids] == list(whole.token_ids)
    assert "".join(piece.text for piece in pieces) == whole.text
    assert pieces[-1].usage == whole.usage


async def test_adapters_answer_as_soon_as_they_are_created(
    inference: Any, adapters: Any, models: Path
) -> None:
    bare = await inference.Generate(ask())
    answers = []
    for index in range(3):
        name = f"acme/a{index}"
        uploaded = await adapters.UploadArtifact(upload(archive(models / f"adapter-{index}")))
        created = await adapters.CreateAdapter(
            adapter_pb2.CreateAdapterRequest(name=name, base=BASE, adapter_digest=uploaded.digest)
        )
        answer = await inference.Generate(ask(name))
        assert answer.served_by.adapter_version == created.adapter.stable_version
        answers.append(tuple(answer.token_ids))
    assert len({*answers, tuple(bare.token_ids)}) == 4, "every adapter must change the answer"
    listed = await inference.ListModels(inference_pb2.ListModelsRequest())
    assert [model.id for model in listed.models] == [BASE, "acme/a0", "acme/a1", "acme/a2"]


async def test_every_gateway_knows_a_new_adapter_at_once(
    instance: Instance, adapters: Any, models: Path
) -> None:
    uploaded = await adapters.UploadArtifact(upload(archive(models / "adapter-0")))
    channels = [instance.channel() for _ in range(8)]  # connections land on either gateway
    stubs = [inference_pb2_grpc.InferenceServiceStub(channel) for channel in channels]
    for stub in stubs:
        await stub.ListModels(inference_pb2.ListModelsRequest())
    await adapters.CreateAdapter(
        adapter_pb2.CreateAdapterRequest(name="zeta/new", base=BASE, adapter_digest=uploaded.digest)
    )
    for stub in stubs:
        assert (await stub.Generate(ask("zeta/new", 1))).served_by.adapter == "zeta/new"
    await adapters.DeleteAdapter(adapter_pb2.DeleteAdapterRequest(name="zeta/new"))
    for stub, channel in zip(stubs, channels, strict=True):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Generate(ask("zeta/new", 1))
        assert caught.value.code() == grpc.StatusCode.NOT_FOUND
        await channel.close()


async def test_malformed_adapter_is_refused(adapters: Any, models: Path, tmp_path: Path) -> None:
    make_tiny_adapter(tmp_path / "wide", models / BASE, rank=32)
    with pytest.raises(grpc.aio.AioRpcError, match="rank") as caught:
        await adapters.UploadArtifact(upload(archive(tmp_path / "wide")))
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


async def test_many_adapters_at_once_each_give_their_own_answer(inference: Any) -> None:
    names = [BASE, "acme/a0", "acme/a1", "acme/a2"]
    alone = {name: tuple((await inference.Generate(ask(name))).token_ids) for name in names}
    together = await asyncio.gather(*(inference.Generate(ask(name)) for name in names * 2))
    for name, answer in zip(names * 2, together, strict=True):
        assert tuple(answer.token_ids) == alone[name], name


@pytest.mark.parametrize("how", ["cancel", "deadline"])
async def test_ended_call_leaves_nothing_running_in_the_engine(
    instance: Instance, inference: Any, how: str
) -> None:
    request = ask("acme/a0", LONG, deadline_ms=300 if how == "deadline" else 0)
    calls = [inference.GenerateStream(request) for _ in range(4)]
    for call in calls:
        await call.read()
    if how == "cancel":
        for call in calls:
            call.cancel()
    else:
        for call in calls:
            assert await end_of(call) == grpc.StatusCode.DEADLINE_EXCEEDED
    await until(lambda: instance.busy() == 0, 10)


async def test_full_queue_is_resource_exhausted(inference: Any, instance: Instance) -> None:
    # One connection is one gateway: its slots and its queue take all but two of these.
    calls = [inference.GenerateStream(ask(BASE, LONG)) for _ in range(CONCURRENCY + QUEUE + 2)]
    reads = {asyncio.ensure_future(call.read()): call for call in calls}
    errors: list[BaseException] = []
    async with asyncio.timeout(60):
        while len(errors) < 2:
            done, _ = await asyncio.wait(reads, return_when=asyncio.FIRST_COMPLETED)
            errors += [error for read in done if (error := read.exception()) is not None]
            for read in done:
                del reads[read]
    for error in errors:
        assert isinstance(error, grpc.aio.AioRpcError)
        assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert reason_of(error) == "QUEUE_FULL"
        assert retry_s_of(error) > 0
    for call in calls:
        call.cancel()
    await asyncio.gather(*reads, return_exceptions=True)
    await until(lambda: instance.busy() == 0, 10)


async def test_curl_and_the_openai_client_are_answered(instance: Instance, inference: Any) -> None:
    url = instance.cluster.http_url
    expected = (await inference.Generate(ask("acme/a1"))).text
    body = {"model": "acme/a1", "prompt": "one two three", "temperature": 0, "max_tokens": 8}
    async with httpx.AsyncClient(base_url=url, timeout=60) as http:
        answer = (await http.post("/v1/completions", json={**body, "ignore_eos": True})).json()
        assert answer["choices"][0]["text"] == expected
        assert answer["lorebase"]["base"] == BASE
        assert (await http.get("/health")).json() == {"status": "serving"}
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="unused") as client:
        stream = await client.chat.completions.create(
            model="acme/a1",
            messages=[{"role": "user", "content": "one two three"}],
            temperature=0,
            max_tokens=8,
            stream=True,
            extra_body={"ignore_eos": True},
        )
        text = "".join([event.choices[0].delta.content or "" async for event in stream])
        assert text == expected, "a base without chat template gets the message as it is"


async def test_metrics_of_all_gateways_come_from_any(instance: Instance) -> None:
    async with httpx.AsyncClient(base_url=instance.cluster.http_url, timeout=60) as http:
        text = (await http.get("/metrics")).text
    ok = [
        line
        for line in text.splitlines()
        if line.startswith("lorebase_requests_total{") and 'code="OK"' in line
    ]
    assert ok
    assert all(float(line.rsplit(" ", 1)[1]) > 0 for line in ok)
    assert "lorebase_version_mismatches_total{" not in text
    for name in ("time_to_first_token_seconds", "inter_token_seconds", "queue_wait_seconds"):
        assert f"lorebase_{name}_bucket" in text
    assert "acme/" not in text, "adapter names must never be labels"


async def test_second_instance_on_the_same_state_is_refused(instance: Instance) -> None:
    with pytest.raises(FailedPreconditionError, match="another instance"):
        launch.up(instance.cluster.settings)


async def test_another_base_is_deployed_and_retired_at_run_time(
    instance: Instance, inference: Any
) -> None:
    from lorebase.serving.app import deploy_engine, retire_engine

    settings = instance.cluster.settings
    catalog = Catalog.open(settings.catalog_url)
    try:
        await asyncio.to_thread(deploy_engine, settings, OTHER)
        await asyncio.to_thread(deploy_engine, settings, OTHER)  # twice is once
        catalog.set_serving(OTHER, True)

        async def answers() -> bool:
            try:
                return (await inference.Generate(ask(OTHER, 2))).served_by.base == OTHER
            except grpc.aio.AioRpcError as error:
                if error.code() != grpc.StatusCode.NOT_FOUND:
                    raise
                return False

        async with asyncio.timeout(10):  # nobody told the hub: it looks every second
            while not await answers():
                await asyncio.sleep(0.1)
        catalog.set_serving(OTHER, False)
        async with asyncio.timeout(10):
            while await answers():
                await asyncio.sleep(0.1)
        await asyncio.to_thread(retire_engine, OTHER)
        await asyncio.to_thread(retire_engine, OTHER)
    finally:
        catalog.close()
    assert (await inference.Generate(ask())).served_by.base == BASE


async def test_answer_goes_on_when_the_engine_is_shot(instance: Instance, inference: Any) -> None:
    expected = await inference.Generate(ask("acme/a2", LONG))
    call = inference.GenerateStream(ask("acme/a2", LONG))
    got = list((await call.read()).token_ids)
    for process in replicas(f"engine-{BASE}"):
        process.kill()
    while (message := await call.read()) is not grpc.aio.EOF:
        got += message.token_ids
    assert got == list(expected.token_ids)


async def test_dead_gateway_is_replaced_and_the_other_answers(instance: Instance) -> None:
    before = replicas("gateway")
    assert len(before) == 2
    before[0].kill()
    deadline = time.monotonic() + 30
    answered = 0
    while answered < 20:
        async with instance.channel() as channel:
            stub = inference_pb2_grpc.InferenceServiceStub(channel)
            try:
                await stub.Generate(ask(BASE, 1), timeout=10)
                answered += 1
            except grpc.aio.AioRpcError as error:
                # Only what was on its way to the dead one, and not for long.
                if error.code() != grpc.StatusCode.UNAVAILABLE or time.monotonic() > deadline:
                    raise
    await until(lambda: len(replicas("gateway")) == 2)


async def test_everything_is_back_after_a_restart(instance: Instance, inference: Any) -> None:
    expected = tuple((await inference.Generate(ask("acme/a0"))).token_ids)
    orphans = instance.pids()
    # On this thread although it blocks: Ray's processes die with the thread that started them.
    instance.restart()
    left = [pid for pid in orphans if psutil.pid_exists(pid) and _title(psutil.Process(pid))]
    assert left == [], "the first run's processes must all be gone"
    async with instance.channel() as channel:
        health = health_pb2_grpc.HealthStub(channel)
        answer = await health.Check(health_pb2.HealthCheckRequest())
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        again = await inference_pb2_grpc.InferenceServiceStub(channel).Generate(ask("acme/a0"))
    assert tuple(again.token_ids) == expected


def test_taken_port_is_refused_before_anything_starts(models: Path, tmp_path: Path) -> None:
    import socket

    [port] = free_ports(0)
    settings = settings_of(
        {
            "cluster": {"state_dir": str(tmp_path)},
            "bases": [{"id": BASE, "path": str(models / BASE)}],
            "serving": {"grpc_port": port, "http_port": 0},
        },
        folder=tmp_path,
    )
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("127.0.0.1", port))
        other.listen()
        with pytest.raises(FailedPreconditionError, match="grpc_port"):
            launch.up(settings)
