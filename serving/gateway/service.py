"""InferenceService over grpc.aio."""

from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any

import grpc
import grpc.aio

from lorebase.v1 import inference_pb2, inference_pb2_grpc

from ..config_sections import LimitsSection
from .convert import (
    call_of,
    last_of,
    models_of,
    page_size_of,
    page_token_of,
    response_of,
    stream_response_of,
)
from .core import Core

_Context = grpc.aio.ServicerContext[Any, Any]


class InferenceServicer(inference_pb2_grpc.InferenceServiceServicer):
    """Generates. A cancelled call cancels the coroutine here, which aborts at the engine."""

    def __init__(self, core: Core, limits: LimitsSection, new_id: Callable[[], str]) -> None:
        self._core = core
        self._limits = limits
        self._new_id = new_id

    async def Generate(
        self, request: inference_pb2.GenerateRequest, context: _Context
    ) -> inference_pb2.GenerateResponse:
        """Answers as a whole."""
        call = call_of(
            request, self._limits, new_id=self._new_id(), remaining_s=context.time_remaining()
        )
        return response_of(await self._core.answer(call), call.request_id)

    async def GenerateStream(
        self, request: inference_pb2.GenerateRequest, context: _Context
    ) -> AsyncIterator[inference_pb2.GenerateStreamResponse]:
        """Answers token by token."""
        call = call_of(
            request, self._limits, new_id=self._new_id(), remaining_s=context.time_remaining()
        )
        async with aclosing(self._core.run(call)) as pieces:
            async for piece in pieces:
                yield stream_response_of(piece, call.request_id)

    async def ListModels(
        self, request: inference_pb2.ListModelsRequest, context: _Context
    ) -> inference_pb2.ListModelsResponse:
        """Lists the names of the present route table."""
        size = page_size_of(request.page_size, default=100, most=1000)
        after = last_of(request.page_token)
        models = models_of(self._core.table())
        if after is not None:
            # Kind first, so that a page token stays right when names come and go.
            models = [model for model in models if _key(model) > after]
        page = models[:size]
        more = len(models) > size
        return inference_pb2.ListModelsResponse(
            models=page, next_page_token=page_token_of(_key(page[-1])) if more else ""
        )


def _key(model: inference_pb2.Model) -> str:
    return f"{0 if model.kind == inference_pb2.Model.KIND_BASE else 1}{model.id}"
