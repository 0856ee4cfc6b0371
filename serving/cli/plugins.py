"""Code that the CLI runs but must not import: the server's start-up and the transfer commands.

Both are named by strings, so the CLI starts fast and the layers stay one way.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..errors import FailedPreconditionError


def attribute(import_string: str) -> Any:
    """Returns what `package.module:name` names.

    Raises:
        FailedPreconditionError: this installation does not have it.
    """
    module_name, _, name = import_string.partition(":")
    try:
        return getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError) as error:
        raise _not_installed(f"{import_string} can't be loaded ({error})") from error


def entry_point(group: str, name: str) -> Any:
    """Returns what an installed package registered under `name` in an entry point group.

    Raises:
        FailedPreconditionError: no package registered it, or it can't be imported.
    """
    from importlib.metadata import entry_points

    for point in entry_points(group=group, name=name):
        return attribute(f"{point.module}:{point.attr}")
    raise _not_installed(f"no installed package offers {name!r} in {group!r}")


def _not_installed(what: str) -> "FailedPreconditionError":
    # The error tree imports gRPC, which local commands and --help must not pay for.
    from ..errors import FailedPreconditionError

    return FailedPreconditionError(
        f"{what}: this command needs a full installation of lorebase; run `make setup`",
        reason="NOT_INSTALLED",
    )
