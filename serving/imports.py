"""Import strings of the configuration: where planes that must not import each other meet."""

from importlib import import_module
from typing import Any

from .errors import FailedPreconditionError


def load(import_string: str) -> Any:
    """Returns the attribute named by `package.module:attribute`.

    Raises:
        FailedPreconditionError: no such module or attribute.
    """
    module, _, attribute = import_string.partition(":")
    try:
        return getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise FailedPreconditionError(
            f"the configuration names {import_string!r}, which can't be imported: {error}",
            reason="BAD_IMPORT_STRING",
        ) from error
