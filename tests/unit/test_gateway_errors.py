"""What clients see of an error."""

import grpc
import pytest
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2

from lorebase.serving.errors import (
    AlreadyExistsError,
    ConflictError,
    DeadlineExceededError,
    FailedPreconditionError,
    InvalidArgumentError,
    LorebaseError,
    NotFoundError,
    ResourceExhaustedError,
    UnavailableError,
)
from lorebase.serving.gateway.errors import grpc_status, http_headers, openai_body


def details(error: BaseException) -> dict[str, Message]:
    found: dict[str, Message] = {}
    for packed in grpc_status(error).details:
        for kind in (error_details_pb2.ErrorInfo, error_details_pb2.RetryInfo):
            message = kind()
            if packed.Unpack(message):
                found[kind.DESCRIPTOR.name] = message
    return found


@pytest.mark.parametrize(
    ("kind", "code", "http_type"),
    [
        (InvalidArgumentError, code_pb2.INVALID_ARGUMENT, "invalid_request_error"),
        (NotFoundError, code_pb2.NOT_FOUND, "not_found_error"),
        (AlreadyExistsError, code_pb2.ALREADY_EXISTS, "conflict_error"),
        (FailedPreconditionError, code_pb2.FAILED_PRECONDITION, "invalid_request_error"),
        (ConflictError, code_pb2.ABORTED, "conflict_error"),
        (ResourceExhaustedError, code_pb2.RESOURCE_EXHAUSTED, "rate_limit_error"),
        (UnavailableError, code_pb2.UNAVAILABLE, "service_unavailable_error"),
        (DeadlineExceededError, code_pb2.DEADLINE_EXCEEDED, "timeout_error"),
        (LorebaseError, code_pb2.INTERNAL, "server_error"),
    ],
)
def test_every_error_has_code_reason_and_type(
    kind: type[LorebaseError], code: int, http_type: str
) -> None:
    error = kind("what happened", reason="WHY")
    status = grpc_status(error)
    assert (status.code, status.message) == (code, "what happened")
    info = details(error)["ErrorInfo"]
    assert isinstance(info, error_details_pb2.ErrorInfo)
    assert (info.reason, info.domain) == ("WHY", "lorebase")
    body = openai_body(error)["error"]
    assert (body["type"], body["code"], body["message"]) == (http_type, "why", "what happened")


def test_retry_hint_travels_both_ways() -> None:
    error = ResourceExhaustedError("full", retry_after_s=1.25)
    retry = details(error)["RetryInfo"]
    assert isinstance(retry, error_details_pb2.RetryInfo)
    assert retry.retry_delay.ToMilliseconds() == 1250
    assert http_headers(error) == {"retry-after": "2"}


def test_without_hint_there_is_no_retry_info() -> None:
    assert "RetryInfo" not in details(NotFoundError("no"))
    assert http_headers(NotFoundError("no")) == {}


def test_unforeseen_errors_do_not_leak() -> None:
    error = RuntimeError("secret path /etc/x")
    assert grpc_status(error).code == grpc.StatusCode.INTERNAL.value[0]
    assert "secret" not in grpc_status(error).message
    assert "secret" not in str(openai_body(error))
