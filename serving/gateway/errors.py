"""What clients see of an error: google.rpc.Status over gRPC, OpenAI's JSON over HTTP."""

import math
from typing import Any

import structlog
from google.protobuf import any_pb2
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from ..errors import LorebaseError, status_of

DOMAIN = "lorebase"

_INTERNAL = "internal error; the gateway's log has the details under this request's time"

_HTTP_TYPES = {
    400: "invalid_request_error",
    404: "not_found_error",
    409: "conflict_error",
    412: "invalid_request_error",
    429: "rate_limit_error",
    503: "service_unavailable_error",
    504: "timeout_error",
}

_log = structlog.get_logger(__name__)


def describe(error: BaseException) -> LorebaseError:
    """Returns the error that may be shown; anything unforeseen is logged and hidden."""
    if isinstance(error, LorebaseError):
        return error
    _log.error("unforeseen_error", exc_info=error)
    return LorebaseError(_INTERNAL)


def grpc_status(error: BaseException) -> status_pb2.Status:
    """Returns code, message, ErrorInfo and, where a retry helps, RetryInfo."""
    shown = describe(error)
    details: list[Message] = [
        error_details_pb2.ErrorInfo(reason=shown.reason, domain=DOMAIN),
    ]
    if shown.retry_after_s is not None:
        seconds = math.floor(shown.retry_after_s)
        nanos = int((shown.retry_after_s - seconds) * 1e9)
        delay = Duration(seconds=seconds, nanos=nanos)
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    status = status_pb2.Status(
        code=status_of(shown).grpc_code.value[0],
        message=shown.message,
    )
    for detail in details:
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    return status


def openai_body(error: BaseException) -> dict[str, Any]:
    """Returns the body of an HTTP error as OpenAI's clients expect it."""
    shown = describe(error)
    status = status_of(shown).http_status
    return {
        "error": {
            "message": shown.message,
            "type": _HTTP_TYPES.get(status, "server_error"),
            "param": None,
            "code": shown.reason.lower(),
        }
    }


def http_headers(error: BaseException) -> dict[str, str]:
    """Returns Retry-After where a retry helps; whole seconds, as HTTP has it."""
    seconds = getattr(error, "retry_after_s", None)
    return {} if seconds is None else {"retry-after": str(max(1, math.ceil(seconds)))}
