"""The gateway over real gRPC: generation, deadlines, cancellation, errors, health, draining."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from lorebase.serving.errors import ConflictError
from lorebase.serving.gateway.ports import GatewayContext
from lorebase.v1 import inference_pb2, upgrade_pb2, upgrade_pb2_grpc
from tests.unit.gateway_fakes import SpellingEngines

from .gateway_harness import (
    BASE,
    Gateway,
    gateway,
    gateway_settings,
    reason_of,
    retry_s_of,
)
from .tiny_models import make_tiny_base


@pytest.fixture(scope="module")
def base_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_base(tmp_path_factory.mktemp("models") / "base")


@pytest.fixture
async def served(tmp_path: Path, base_dir: Path) -> AsyncIterator[Gateway]:
    async with gateway(gateway_settings(tmp_path, base_dir), time.monotonic) as running:
        yield running


def ask(prompt: str = "say ", model: str = BASE, **fields: Any) -> inference_pb2.GenerateRequest:
    return inference_pb2.GenerateRequest(model=model, prompt=prompt, **fields)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


def stuck() -> SpellingEngines:
    """Engines that never give a token."""

    async def gate() -> None:
        await asyncio.sleep(3600)

    return SpellingEngines(gate=gate)  # type: ignore[arg-type]


async def test_whole_answer_and_stream_agree_and_name_the_base(served: Gateway) -> None:
    whole = await served.inference.Generate(ask(request_id="mine"))
    assert (whole.text, whole.request_id, whole.served_by.base) == ("hello", "mine", BASE)
    assert whole.served_by.track == inference_pb2.TRACK_PINNED
    messages = [message async for message in served.inference.GenerateStream(ask())]
    assert "".join(message.text for message in messages) == "hello"
    assert len(messages) == 5
    assert messages[-1].finish_reason == inference_pb2.FINISH_REASON_STOP
    assert messages[-1].usage.completion_tokens == 5


async def test_unknown_model_is_not_found(served: Gateway) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await served.inference.Generate(ask(model="acme/nobody"))
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND
    assert reason_of(caught.value) == "MODEL_NOT_FOUND"
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        _ = [m async for m in served.inference.GenerateStream(ask(model="acme/nobody"))]
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND


async def test_bad_argument_is_named(served: Gateway) -> None:
    with pytest.raises(grpc.aio.AioRpcError, match="prompt") as caught:
        await served.inference.Generate(ask(prompt=""))
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("by", ["grpc deadline", "deadline_ms"])
async def test_deadline_ends_the_call_and_aborts_at_the_engine(
    tmp_path: Path, base_dir: Path, by: str
) -> None:
    engines = stuck()
    settings = gateway_settings(tmp_path, base_dir)
    async with gateway(settings, time.monotonic, engines) as served:
        if by == "deadline_ms":
            call = served.inference.Generate(ask(deadline_ms=200))
        else:
            call = served.inference.Generate(ask(), timeout=0.2)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        await until(lambda: engines.running == 0 and engines.aborted == 1)


@pytest.mark.parametrize("kind", ["unary", "stream"])
async def test_cancelled_call_aborts_at_the_engine(
    tmp_path: Path, base_dir: Path, kind: str
) -> None:
    engines = stuck()
    settings = gateway_settings(tmp_path, base_dir)
    async with gateway(settings, time.monotonic, engines) as served:
        stub = served.inference
        call = stub.Generate(ask()) if kind == "unary" else stub.GenerateStream(ask())
        await until(lambda: engines.running == 1)
        call.cancel()
        await until(lambda: engines.running == 0)
        assert engines.aborted == 1


async def test_full_queue_is_resource_exhausted_with_a_retry_hint(
    tmp_path: Path, base_dir: Path
) -> None:
    engines = stuck()
    settings = gateway_settings(tmp_path, base_dir, serving={"max_concurrency": 1, "max_queue": 1})
    async with gateway(settings, time.monotonic, engines) as served:
        stub = served.inference
        waiting = [stub.Generate(ask()) for _ in range(2)]
        await until(lambda: engines.running == 1)
        await asyncio.sleep(0.1)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Generate(ask())
        assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert reason_of(caught.value) == "QUEUE_FULL"
        assert 0.1 <= retry_s_of(caught.value) <= 30
        for call in waiting:
            call.cancel()
        await until(lambda: engines.running == 0)


async def test_answer_survives_the_engine_with_the_real_tokenizer(
    tmp_path: Path, base_dir: Path
) -> None:
    engines = SpellingEngines(die_after=[2])
    settings = gateway_settings(tmp_path, base_dir)
    async with gateway(settings, time.monotonic, engines) as served:
        answer = await served.inference.Generate(ask())
    assert answer.usage.completion_tokens >= 5
    assert len(engines.requests) == 2
    assert engines.requests[1][1].prompt_token_ids is not None


async def test_health_and_reflection_know_every_service(served: Gateway) -> None:
    channel = served.channel()
    health = health_pb2_grpc.HealthStub(channel)
    for name in ("", "lorebase.v1.InferenceService", "lorebase.v1.AdapterService"):
        answer = await health.Check(health_pb2.HealthCheckRequest(service=name))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    async for message in stub.ServerReflectionInfo(iter([request])):
        names = {service.name for service in message.list_services_response.service}
    assert {"lorebase.v1.InferenceService", "grpc.health.v1.Health"} <= names


async def test_draining_finishes_what_is_in_flight_and_refuses_the_rest(
    tmp_path: Path, base_dir: Path
) -> None:
    step = asyncio.Event()

    async def gate() -> None:
        await step.wait()

    engines = SpellingEngines(gate=gate)  # type: ignore[arg-type]
    settings = gateway_settings(tmp_path, base_dir)
    async with gateway(settings, time.monotonic, engines) as served:
        health = health_pb2_grpc.HealthStub(served.channel())
        call = served.inference.Generate(ask())
        await until(lambda: engines.running == 1)
        watch = health.Watch(health_pb2.HealthCheckRequest())
        states = [(await watch.read()).status]
        stopping = asyncio.create_task(served.server.stop())
        states.append((await watch.read()).status)
        watch.cancel()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await served.inference.Generate(ask(), timeout=2)
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
        step.set()
        assert (await call).text == "hello"
        await stopping
        serving = health_pb2.HealthCheckResponse
        assert states == [serving.SERVING, serving.NOT_SERVING]


async def test_gateways_share_ports_and_one_goes_on_without_the_other(
    tmp_path: Path, base_dir: Path
) -> None:
    settings = gateway_settings(tmp_path, base_dir)
    async with (
        gateway(settings, time.monotonic) as one,
        gateway(settings, time.monotonic) as two,
    ):
        for _ in range(32):
            await one.inference.ListModels(inference_pb2.ListModelsRequest())
            stub = one.inference
            assert (await stub.Generate(ask())).text == "hello"
        counts = [len(each.engines.requests) for each in (one, two)]
        assert min(counts) > 0, "the kernel gave all connections to one gateway"
        await two.server.stop()
        for _ in range(8):
            assert (await one.inference.Generate(ask())).text == "hello"


def install_failing_upgrades(server: grpc.aio.Server, context: GatewayContext) -> list[str]:
    """A plugged-in service whose calls lose a race."""

    class Servicer(upgrade_pb2_grpc.UpgradeServiceServicer):
        async def GetUpgrade(self, request: Any, context: Any) -> Any:
            raise ConflictError("somebody was faster", retry_after_s=0.5)

        async def WatchUpgrade(self, request: Any, context: Any) -> AsyncIterator[Any]:
            yield upgrade_pb2.WatchUpgradeResponse()
            raise RuntimeError("secret")

    assert context.table() is not None
    assert context.catalog.current_base() == BASE
    upgrade_pb2_grpc.add_UpgradeServiceServicer_to_server(Servicer(), server)
    return ["lorebase.v1.UpgradeService"]


async def test_plugged_in_services_are_served_and_their_errors_mapped(
    tmp_path: Path, base_dir: Path
) -> None:
    plugin = f"{__name__}:install_failing_upgrades"
    settings = gateway_settings(tmp_path, base_dir, gateway={"extra_servicers": [plugin]})
    async with gateway(settings, time.monotonic) as served:
        stub = upgrade_pb2_grpc.UpgradeServiceStub(served.channel())
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.GetUpgrade(upgrade_pb2.GetUpgradeRequest())
        assert caught.value.code() == grpc.StatusCode.ABORTED
        assert (reason_of(caught.value), retry_s_of(caught.value)) == ("CONFLICT", 0.5)
        watch = stub.WatchUpgrade(upgrade_pb2.WatchUpgradeRequest())
        assert await watch.read() == upgrade_pb2.WatchUpgradeResponse()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await watch.read()
        assert caught.value.code() == grpc.StatusCode.INTERNAL
        assert "secret" not in (caught.value.details() or "")
        health = health_pb2_grpc.HealthStub(served.channel())
        name = "lorebase.v1.UpgradeService"
        answer = await health.Check(health_pb2.HealthCheckRequest(service=name))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING


async def test_port_of_another_program_is_refused(tmp_path: Path, base_dir: Path) -> None:
    import socket

    from lorebase.serving.errors import FailedPreconditionError

    settings = gateway_settings(tmp_path, base_dir)
    with socket.socket() as other:
        other.bind(("127.0.0.1", settings.serving.http_port))
        other.listen()
        with pytest.raises(FailedPreconditionError, match="http_port"):
            async with gateway(settings, time.monotonic):
                pass
