"""The one place where exceptions of servicers become gRPC statuses. Covers plugged-in services."""

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeAlias

import grpc
import grpc.aio
from grpc_status import rpc_status

from ..errors import status_of
from .errors import grpc_status
from .metrics import GatewayMetrics

_Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
_Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class ErrorInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]
    """Maps errors to google.rpc.Status and counts calls by method and code."""

    def __init__(self, metrics: GatewayMetrics) -> None:
        self._metrics = metrics

    async def intercept_service(
        self,
        continuation: "Callable[[grpc.HandlerCallDetails], Awaitable[_Handler | None]]",
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Wraps the method's handler."""
        handler: Any = await continuation(handler_call_details)
        if handler is None:
            return None
        name = handler_call_details.method.rpartition("/")[2]
        if handler.response_streaming:
            kind = "stream_stream" if handler.request_streaming else "unary_stream"
            inner = getattr(handler, kind)
            # A streaming method is a generator, or a coroutine that writes to the context.
            written = inspect.iscoroutinefunction(inner)
            wrapped = self._unary(inner, name) if written else self._streaming(inner, name)
        else:
            kind = "stream_unary" if handler.request_streaming else "unary_unary"
            wrapped = self._unary(getattr(handler, kind), name)
        replaced: _Handler = handler._replace(**{kind: wrapped})
        return replaced

    def _unary(self, inner: Any, name: str) -> Any:
        async def call(request: Any, context: _Context) -> Any:
            try:
                response = await inner(request, context)
            except BaseException as error:
                await self._end(error, name, context)
                raise
            self._metrics.calls.labels(name, "OK").inc()
            return response

        return call

    def _streaming(self, inner: Any, name: str) -> Any:
        async def call(request: Any, context: _Context) -> AsyncIterator[Any]:
            responses = inner(request, context)
            try:
                async for response in responses:
                    yield response
            except BaseException as error:
                await self._end(error, name, context)
                raise
            finally:
                # Not left to the garbage collector: this is what aborts the engine's request.
                await responses.aclose()
            self._metrics.calls.labels(name, "OK").inc()

        return call

    async def _end(self, error: BaseException, name: str, context: _Context) -> None:
        """Ends the call with the error's status; returns only for what gRPC handles itself."""
        if isinstance(error, grpc.aio.AbortError):
            return
        if not isinstance(error, Exception):  # cancelled by the client, or shutting down
            self._metrics.calls.labels(name, "CANCELLED").inc()
            return
        self._metrics.calls.labels(name, status_of(error).grpc_code.name).inc()
        status: Any = rpc_status.to_status(grpc_status(error))
        await context.abort(status.code, status.details, status.trailing_metadata)
