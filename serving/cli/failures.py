"""From gRPC's errors back to lorebase's, and from those to exit codes and one clear line."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from ..errors import (
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
from .exits import (
    EXIT_BUSY,
    EXIT_DEADLINE,
    EXIT_FAILURE,
    EXIT_NOT_FOUND,
    EXIT_REFUSED,
    EXIT_UNAVAILABLE,
)

UNREACHABLE = "UNREACHABLE"
"""Reason of an UnavailableError that no lorebase server sent."""

_KIND_OF: dict[grpc.StatusCode, type[LorebaseError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidArgumentError,
    grpc.StatusCode.OUT_OF_RANGE: InvalidArgumentError,
    grpc.StatusCode.NOT_FOUND: NotFoundError,
    grpc.StatusCode.ALREADY_EXISTS: AlreadyExistsError,
    grpc.StatusCode.FAILED_PRECONDITION: FailedPreconditionError,
    grpc.StatusCode.ABORTED: ConflictError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: ResourceExhaustedError,
    grpc.StatusCode.UNAVAILABLE: UnavailableError,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceededError,
}

_EXIT_CODE_OF: tuple[tuple[type[LorebaseError], int], ...] = (
    (NotFoundError, EXIT_NOT_FOUND),
    (InvalidArgumentError, EXIT_REFUSED),
    (AlreadyExistsError, EXIT_REFUSED),
    (FailedPreconditionError, EXIT_REFUSED),
    (ConflictError, EXIT_REFUSED),
    (UnavailableError, EXIT_UNAVAILABLE),
    (DeadlineExceededError, EXIT_DEADLINE),
    (ResourceExhaustedError, EXIT_BUSY),
)

_HINT_OF_REASON = {
    "MODEL_NOT_FOUND": "`lorebase adapter list` and `lorebase status` show the names there are",
    "VERSION_NOT_FOUND": "`lorebase adapter get NAME` shows its versions",
    "ADAPTER_NOT_FOUND": "`lorebase adapter list` shows the names there are",
    "UPGRADE_NOT_FOUND": "`lorebase upgrade list` shows the ids there are",
    UNREACHABLE: "start it with `lorebase serve CONFIG`, or name another with --endpoint",
}

_HINT_OF_KIND: tuple[tuple[type[LorebaseError], str], ...] = (
    (AlreadyExistsError, "choose another name, or delete the old one first"),
    (ConflictError, "somebody else changed it meanwhile; run the command again"),
    (DeadlineExceededError, "give it longer with --timeout, or look at `lorebase status`"),
    (ResourceExhaustedError, "the queue is full; run the command again later"),
    (UnavailableError, "it may be starting or draining; `lorebase status` tells"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """What a user is told of an error."""

    line: str
    hint: str | None
    exit_code: int


def error_of(error: grpc.RpcError, endpoint: str) -> LorebaseError:
    """Turns a gRPC error into the member of lorebase's tree that the server raised.

    The reason and the retry delay come from google.rpc.ErrorInfo and RetryInfo.
    """
    code = error.code() if isinstance(error, grpc.Call) else grpc.StatusCode.UNKNOWN
    details = (error.details() if isinstance(error, grpc.Call) else None) or str(error)
    reason: str | None = None
    retry_after_s: float | None = None
    status = rpc_status.from_call(error) if isinstance(error, grpc.Call) else None
    details_sent: Iterable[Any] = status.details if status is not None else ()
    for detail in details_sent:
        if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
            info = error_details_pb2.ErrorInfo()
            detail.Unpack(info)
            reason = info.reason
        elif detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
            retry = error_details_pb2.RetryInfo()
            detail.Unpack(retry)
            retry_after_s = retry.retry_delay.ToTimedelta().total_seconds()
    if code == grpc.StatusCode.UNAVAILABLE and status is None:
        return UnavailableError(f"nothing answers at {endpoint} ({details})", reason=UNREACHABLE)
    if code == grpc.StatusCode.UNIMPLEMENTED:
        return FailedPreconditionError(
            f"the server at {endpoint} does not offer this call ({details}); is it a lorebase "
            "gateway of the same release, with its background plane switched on?",
            reason="UNIMPLEMENTED",
        )
    kind = _KIND_OF.get(code, LorebaseError)
    message = details if kind is not LorebaseError else f"{code.name}: {details}"
    return kind(message, reason=reason, retry_after_s=retry_after_s)


def failure_of(error: LorebaseError) -> Failure:
    """Returns what to print for an error and the exit code to end with."""
    codes = (code for kind, code in _EXIT_CODE_OF if isinstance(error, kind))
    hint = _HINT_OF_REASON.get(error.reason)
    if hint is None:
        hint = next((text for kind, text in _HINT_OF_KIND if isinstance(error, kind)), None)
    if error.retry_after_s is not None:
        hint = f"retry in {error.retry_after_s:g} s"
    line = f"{error.message} [{error.reason}]"
    return Failure(line=line, hint=hint, exit_code=next(codes, EXIT_FAILURE))
