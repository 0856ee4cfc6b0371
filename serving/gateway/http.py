"""OpenAI's HTTP API on the same core as gRPC, with /health and /metrics."""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse

from ..config_sections import LimitsSection
from ..errors import NotFoundError, status_of
from .calls import Answer, Call, Piece
from .convert import models_of
from .core import Core
from .errors import http_headers, openai_body
from .http_io import ClientGoneError, body_of, until_gone
from .metrics import CONTENT_TYPE, GatewayMetrics
from .openai_schema import (
    ChatRequest,
    CompletionRequest,
    chat_delta,
    parse,
    served_body,
    usage_body,
)

CLIENT_CLOSED = 499
"""Nobody sees it: the client has gone. It keeps such requests apart in access logs."""


class OpenAiHttp:
    """Handlers of the HTTP API."""

    def __init__(
        self,
        *,
        core: Core,
        limits: LimitsSection,
        metrics: GatewayMetrics,
        serving: Callable[[], bool],
        new_id: Callable[[], str],
        clock: Callable[[], float],
    ) -> None:
        """See Core; `serving` says whether health is good, `clock` is seconds since the epoch."""
        self._core = core
        self._limits = limits
        self._metrics = metrics
        self._serving = serving
        self._new_id = new_id
        self._clock = clock

    def app(self) -> FastAPI:
        """Returns the ASGI application."""
        app = FastAPI(title="lorebase", openapi_url=None, docs_url=None, redoc_url=None)
        app.add_exception_handler(Exception, _on_error)
        app.add_exception_handler(404, _on_unknown_path)
        app.get("/v1/models")(self.models)
        app.get("/v1/models/{name:path}")(self.model)
        app.post("/v1/completions")(self.completions)
        app.post("/v1/chat/completions")(self.chat)
        app.get("/health")(self.health)
        app.get("/metrics")(self.metrics)
        return app

    async def health(self) -> Response:
        """200 while the gateway has a route table and is not draining, else 503."""
        ready = self._serving()
        return JSONResponse(
            {"status": "serving" if ready else "not_serving"}, status_code=200 if ready else 503
        )

    async def metrics(self) -> Response:
        """Prometheus exposition of all processes of this node."""
        text = await asyncio.to_thread(self._metrics.render)
        return PlainTextResponse(text, media_type=CONTENT_TYPE)

    async def models(self) -> Response:
        """Lists bases and adapters."""
        return await self._guarded(self._models())

    async def model(self, name: str) -> Response:
        """Returns one model."""
        return await self._guarded(self._model(name))

    async def completions(self, request: Request) -> Response:
        """Completes prompts."""
        return await self._guarded(self._completions(request))

    async def chat(self, request: Request) -> Response:
        """Answers a chat."""
        return await self._guarded(self._chat(request))

    async def _guarded(self, work: Awaitable[Response]) -> Response:
        try:
            return await work
        except Exception as error:
            return _error_response(error)

    async def _models(self) -> Response:
        return JSONResponse({"object": "list", "data": self._model_list()})

    async def _model(self, name: str) -> Response:
        for model in self._model_list():
            if model["id"] == name:
                return JSONResponse(model)
        raise NotFoundError(f"unknown model {name!r}; GET /v1/models lists all", reason="NOT_FOUND")

    def _model_list(self) -> list[dict[str, Any]]:
        return [
            {
                "id": model.id,
                "object": "model",
                "created": 0,
                "owned_by": model.id.partition("/")[0] if "/" in model.id else "lorebase",
                "root": model.base,
                "adapter_version": model.adapter_version or None,
            }
            for model in models_of(self._core.table())
        ]

    async def _completions(self, request: Request) -> Response:
        body = parse(CompletionRequest, await body_of(request, self._limits))
        calls = body.calls(self._limits, self._request_id(request))
        frame = self._frame(f"cmpl-{calls[0].request_id}", "text_completion", body.model)
        if body.stream:

            def choice(piece: Piece, first: bool) -> dict[str, Any]:
                return {"index": 0, "text": piece.text, "logprobs": None}

            return await self._stream(request, calls[0], frame, choice, body.include_usage)
        answers = await until_gone(request, _all(self._core, calls))
        choices = [
            {
                "index": index,
                "text": answer.text,
                "logprobs": None,
                "finish_reason": answer.finish_reason,
            }
            for index, answer in enumerate(answers)
        ]
        return self._whole(calls[0], frame, choices, answers)

    async def _chat(self, request: Request) -> Response:
        body = parse(ChatRequest, await body_of(request, self._limits))
        call = body.call(self._limits, self._request_id(request))
        name = f"chatcmpl-{call.request_id}"
        if body.stream:

            def choice(piece: Piece, first: bool) -> dict[str, Any]:
                return {"index": 0, "delta": chat_delta(piece, first), "logprobs": None}

            frame = self._frame(name, "chat.completion.chunk", body.model)
            return await self._stream(request, call, frame, choice, body.include_usage)
        answers = await until_gone(request, _all(self._core, [call]))
        message = {"role": "assistant", "content": answers[0].text, "refusal": None}
        choices = [
            {
                "index": 0,
                "message": message,
                "logprobs": None,
                "finish_reason": answers[0].finish_reason,
            }
        ]
        frame = self._frame(name, "chat.completion", body.model)
        return self._whole(call, frame, choices, answers)

    def _whole(
        self,
        call: Call,
        frame: dict[str, Any],
        choices: list[dict[str, Any]],
        answers: list[Answer],
    ) -> Response:
        served_by = answers[0].served_by
        content = {
            **frame,
            "choices": choices,
            "usage": usage_body([answer.usage for answer in answers]),
            "lorebase": served_body(served_by),
        }
        return JSONResponse(content, headers={"x-request-id": call.request_id})

    async def _stream(
        self,
        request: Request,
        call: Call,
        frame: dict[str, Any],
        choice: Callable[[Piece, bool], dict[str, Any]],
        include_usage: bool,
    ) -> Response:
        pieces = self._core.run(call)
        # The first piece decides the status: errors before it are plain HTTP errors.
        try:
            first = await until_gone(request, anext(pieces))
        except BaseException:
            await pieces.aclose()
            raise
        events = _events(first, pieces, frame, choice, include_usage)
        return StreamingResponse(
            events, media_type="text/event-stream", headers={"x-request-id": call.request_id}
        )

    def _frame(self, name: str, kind: str, model: str) -> dict[str, Any]:
        return {"id": name, "object": kind, "created": int(self._clock()), "model": model}

    def _request_id(self, request: Request) -> str:
        return request.headers.get("x-request-id") or self._new_id()


async def _all(core: Core, calls: list[Call]) -> list[Answer]:
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(core.answer(call)) for call in calls]
    return [task.result() for task in tasks]


async def _events(
    first: Piece,
    pieces: AsyncGenerator[Piece, None],
    frame: dict[str, Any],
    choice: Callable[[Piece, bool], dict[str, Any]],
    include_usage: bool,
) -> AsyncIterator[str]:
    """Yields server-sent events; an error after the first token is an event of its own."""
    async with aclosing(pieces):
        try:
            piece: Piece | None = first
            while piece is not None:
                made = choice(piece, piece is first) | {"finish_reason": piece.finish_reason}
                message = {**frame, "choices": [made], "lorebase": served_body(piece.served_by)}
                if include_usage:
                    message["usage"] = None
                yield _event(message)
                if include_usage and piece.usage is not None:
                    yield _event({**frame, "choices": [], "usage": usage_body([piece.usage])})
                piece = await anext(pieces, None)
        except Exception as error:
            yield _event(openai_body(error))
            return
        yield "data: [DONE]\n\n"


def _event(message: dict[str, Any]) -> str:
    return f"data: {json.dumps(message, ensure_ascii=False)}\n\n"


def _error_response(error: BaseException) -> Response:
    if isinstance(error, BaseExceptionGroup):
        # One of several prompts failed, which cancelled the others.
        return _error_response(error.exceptions[0])
    if isinstance(error, ClientGoneError):
        return Response(status_code=CLIENT_CLOSED)
    return JSONResponse(
        openai_body(error),
        status_code=status_of(error).http_status,
        headers=http_headers(error),
    )


async def _on_error(request: Request, error: Exception) -> Response:
    return _error_response(error)


async def _on_unknown_path(request: Request, error: Exception) -> Response:
    return _error_response(
        NotFoundError(f"no endpoint {request.method} {request.url.path}", reason="UNKNOWN_PATH")
    )
