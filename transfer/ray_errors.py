"""Errors of other processes, as lorebase's own."""

from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import RayServeException

from lorebase.serving.errors import LorebaseError, UnavailableError


def own_error(error: Exception, what: str) -> Exception:
    """Returns what to raise for an error of a Ray call.

    Args:
        error: what Ray raised.
        what: what was called, for people.

    Returns:
        The error that the other process raised, if it is lorebase's; `UnavailableError` if Ray
        itself failed (dead actor, no replica); else the cause.
    """
    cause = error.cause if isinstance(error, RayTaskError) else error
    if isinstance(cause, LorebaseError):
        return cause
    if isinstance(cause, RayError | RayServeException | TimeoutError):
        return UnavailableError(f"{what}: {type(cause).__name__}: {cause}", retry_after_s=1.0)
    return cause if isinstance(cause, Exception) else error
