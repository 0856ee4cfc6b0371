"""A thin typed client of lorebase's gRPC API, for the CLI, the demo, the benchmarks and users.

Every method is one call and raises the same errors as the server (lorebase.serving.errors).
Lists are read page by page and returned whole. The client is thread-safe, as gRPC channels are.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from lorebase.v1 import inference_pb2, inference_pb2_grpc

from ..errors import DeadlineExceededError, InvalidArgumentError, UnavailableError
from . import DEFAULT_ENDPOINT
from .adapters import ADAPTER, EVALUATION_SET, KIT, PAGE_SIZE, AdapterCalls
from .failures import error_of
from .upgrades import UpgradeCalls

__all__ = [
    "ADAPTER",
    "DEFAULT_ENDPOINT",
    "EVALUATION_SET",
    "KIT",
    "LorebaseClient",
    "generate_request",
    "tls_credentials",
]

MAX_RECONNECT_MS = 1000


class LorebaseClient(AdapterCalls, UpgradeCalls):
    """One connection to a lorebase gateway.

    Args:
        endpoint: `host:port` of the gateway's gRPC port.
        timeout_s: deadline of every call that names none, in seconds; watching has none.
        credentials: TLS credentials; None connects in clear text.
    """

    def __init__(
        self,
        endpoint: str = DEFAULT_ENDPOINT,
        *,
        timeout_s: float = 30.0,
        credentials: grpc.ChannelCredentials | None = None,
    ) -> None:
        self.endpoint = endpoint
        self.timeout_s = timeout_s
        # Several gateways share one port, a connection belongs to one of them: without its own
        # subchannel pool every client of a process would share one connection.
        # Somebody waits for a gateway that starts or restarts: gRPC would try ever more seldom,
        # every two minutes at last.
        options = (
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.max_reconnect_backoff_ms", MAX_RECONNECT_MS),
        )
        if credentials is None:
            self.channel = grpc.insecure_channel(endpoint, options=options)
        else:
            self.channel = grpc.secure_channel(endpoint, credentials, options=options)
        self._inference = inference_pb2_grpc.InferenceServiceStub(self.channel)
        self._health = health_pb2_grpc.HealthStub(self.channel)
        super().__init__()

    def __enter__(self) -> Self:
        """Returns itself; leaving the block closes the connection."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connection; calls in flight are cancelled."""
        self.channel.close()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except grpc.RpcError as error:
            raise error_of(error, self.endpoint) from error

    # -- health ------------------------------------------------------------------------------

    def health(self, service: str = "") -> str:
        """Returns `SERVING`, `NOT_SERVING` or `SERVICE_UNKNOWN`."""
        request = health_pb2.HealthCheckRequest(service=service)
        with self._errors():
            response = self._health.Check(request, timeout=self.timeout_s)
        return str(health_pb2.HealthCheckResponse.ServingStatus.Name(response.status))

    def wait_ready(self, timeout_s: float = 120.0, *, poll_s: float = 0.25) -> None:
        """Waits until the gateway says SERVING and the engine of every served base answers.

        Gateways are up half a minute before engines: they can wait, and hold what they are asked.

        Raises:
            UnavailableError: it was not so within `timeout_s` seconds.
        """
        deadline = time.monotonic() + timeout_s
        seen = "nothing answered"
        while (left_s := deadline - time.monotonic()) > 0:
            try:
                seen = self.health()
                if seen == "SERVING":
                    self._ask_bases(min(left_s, self.timeout_s))
                    return
            except (UnavailableError, DeadlineExceededError) as error:
                seen = error.message
            time.sleep(poll_s)
        raise UnavailableError(
            f"{self.endpoint} was not ready within {timeout_s:g} s; last seen: {seen}"
        )

    def _ask_bases(self, timeout_s: float) -> None:
        for model in self.list_models():
            if model.kind == inference_pb2.Model.KIND_BASE:
                self.generate(generate_request(model.id, "a", max_tokens=1), timeout_s=timeout_s)

    # -- inference ---------------------------------------------------------------------------

    def generate(
        self, request: inference_pb2.GenerateRequest, *, timeout_s: float | None = None
    ) -> inference_pb2.GenerateResponse:
        """Generates one completion; `generate_request` builds the request."""
        with self._errors():
            return self._inference.Generate(request, timeout=timeout_s or self.timeout_s)

    def generate_stream(
        self, request: inference_pb2.GenerateRequest, *, timeout_s: float | None = None
    ) -> Iterator[inference_pb2.GenerateStreamResponse]:
        """Generates token by token; closing the iterator aborts the request in the engine."""
        with self._errors():
            call = self._inference.GenerateStream(request, timeout=timeout_s or self.timeout_s)
            try:
                yield from call
            finally:
                call.cancel()  # type: ignore[no-untyped-call]

    def list_models(self) -> list[inference_pb2.Model]:
        """Lists every name that `model` accepts: adapters and bases."""
        models: list[inference_pb2.Model] = []
        token = ""
        while True:
            request = inference_pb2.ListModelsRequest(page_size=PAGE_SIZE, page_token=token)
            with self._errors():
                response = self._inference.ListModels(request, timeout=self.timeout_s)
            models += response.models
            token = response.next_page_token
            if not token:
                return models


def tls_credentials(ca: Path) -> grpc.ChannelCredentials:
    """Returns credentials that trust the PEM certificates in a file.

    Raises:
        InvalidArgumentError: the file can't be read or holds no certificate.
    """
    try:
        pem = ca.read_bytes()
    except OSError as error:
        raise InvalidArgumentError(f"can't read the certificates in {ca}: {error}") from error
    if b"-----BEGIN CERTIFICATE-----" not in pem:
        raise InvalidArgumentError(f"{ca} holds no PEM certificate: expected -----BEGIN CERTI...")
    return grpc.ssl_channel_credentials(root_certificates=pem)


def generate_request(
    model: str,
    prompt: str | Sequence[int],
    *,
    max_tokens: int | None = None,
    temperature: float | None = None,
    top_p: float | None = None,
    top_k: int | None = None,
    stop: Sequence[str] = (),
    seed: int | None = None,
    ignore_eos: bool = False,
    request_id: str = "",
    deadline_ms: int = 0,
) -> inference_pb2.GenerateRequest:
    """Builds a request; what is None takes the server's default. `prompt` is text or token ids."""
    sampling = inference_pb2.SamplingParams(
        max_tokens=max_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        stop=stop,
        seed=seed,
        ignore_eos=ignore_eos,
    )
    request = inference_pb2.GenerateRequest(
        model=model, sampling=sampling, request_id=request_id, deadline_ms=deadline_ms
    )
    if isinstance(prompt, str):
        request.prompt = prompt
    else:
        request.prompt_token_ids.ids.extend(prompt)
    return request
