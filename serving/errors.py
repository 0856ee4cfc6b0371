"""One exception tree and one table from exceptions to gRPC and HTTP codes.

Every message says what was got, what was expected and what to do. Servicers never choose a
status code by hand: they let these errors through and `status_of` maps them.
"""

from dataclasses import dataclass
from enum import Enum

import grpc


class LorebaseError(Exception):
    """Root of all errors that a user may see.

    Attributes:
        reason: machine-readable cause, UPPER_SNAKE_CASE (google.rpc.ErrorInfo.reason).
        retry_after_s: seconds after which a retry may help, or None.
    """

    reason = "INTERNAL"

    def __init__(
        self, message: str, *, reason: str | None = None, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        if reason is not None:
            self.reason = reason
        self.retry_after_s = retry_after_s

    def __reduce__(self) -> tuple[object, ...]:
        # Exceptions cross Ray process borders; the default pickling drops keyword arguments.
        return (_rebuild, (type(self), self.message, self.reason, self.retry_after_s))


def _rebuild(
    kind: type[LorebaseError], message: str, reason: str, retry_after_s: float | None
) -> LorebaseError:
    return kind(message, reason=reason, retry_after_s=retry_after_s)


class InvalidArgumentError(LorebaseError):
    """The request can never succeed as it is."""

    reason = "INVALID_ARGUMENT"


class NotFoundError(LorebaseError):
    """A named thing does not exist."""

    reason = "NOT_FOUND"


class AlreadyExistsError(LorebaseError):
    """A thing of that name exists already."""

    reason = "ALREADY_EXISTS"


class FailedPreconditionError(LorebaseError):
    """The system's state forbids the call; another call must come first."""

    reason = "FAILED_PRECONDITION"


class ConflictError(LorebaseError):
    """A compare-and-set lost against a concurrent writer; read again and retry."""

    reason = "CONFLICT"


class ResourceExhaustedError(LorebaseError):
    """A queue or quota is full; retry after `retry_after_s`."""

    reason = "QUEUE_FULL"


class UnavailableError(LorebaseError):
    """Draining, starting or broken for the moment; retry."""

    reason = "UNAVAILABLE"


class DeadlineExceededError(LorebaseError):
    """The caller's deadline passed before the work was done."""

    reason = "DEADLINE_EXCEEDED"


class EngineDeadError(UnavailableError):
    """The engine under a request died; another replica may answer."""

    reason = "ENGINE_DEAD"


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """What a client sees: gRPC code and HTTP status."""

    grpc_code: grpc.StatusCode
    http_status: int


class _Row(Enum):
    """Most specific first: the first class that matches wins."""

    INVALID = (InvalidArgumentError, grpc.StatusCode.INVALID_ARGUMENT, 400)
    NOT_FOUND = (NotFoundError, grpc.StatusCode.NOT_FOUND, 404)
    EXISTS = (AlreadyExistsError, grpc.StatusCode.ALREADY_EXISTS, 409)
    PRECONDITION = (FailedPreconditionError, grpc.StatusCode.FAILED_PRECONDITION, 412)
    CONFLICT = (ConflictError, grpc.StatusCode.ABORTED, 409)
    EXHAUSTED = (ResourceExhaustedError, grpc.StatusCode.RESOURCE_EXHAUSTED, 429)
    UNAVAILABLE = (UnavailableError, grpc.StatusCode.UNAVAILABLE, 503)
    DEADLINE = (DeadlineExceededError, grpc.StatusCode.DEADLINE_EXCEEDED, 504)
    INTERNAL = (BaseException, grpc.StatusCode.INTERNAL, 500)


def status_of(error: BaseException) -> Status:
    """Returns the status a client sees for `error`; anything unknown is INTERNAL."""
    for row in _Row:
        kind, code, http = row.value
        if isinstance(error, kind):
            return Status(grpc_code=code, http_status=http)
    raise AssertionError("the last row matches everything")
