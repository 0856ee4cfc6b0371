"""Names that users choose and ids that follow from content. Pure functions.

An adapter name always holds exactly one `/` and a base id never does, so that one model string
can never mean both. Neither may hold `@`, which separates a name from its pin.
"""

import hashlib
import re

from ..errors import InvalidArgumentError

MAX_ADAPTER_NAME_CHARS = 128
MAX_BASE_ID_CHARS = 63
"""Base ids become part of Serve application names and metric labels."""

_SEGMENT = re.compile(r"[a-z0-9][a-z0-9._-]*\Z")
_VERSION_ID = re.compile(r"v-[0-9a-f]{12}\Z")
_RULE = "lower-case letters, digits, '.', '_' and '-', starting with a letter or digit"


def split_adapter_name(name: str) -> tuple[str, str]:
    """Checks an adapter name and returns (tenant, name within the tenant).

    Raises:
        InvalidArgumentError: not `tenant/name`, a character that is not allowed, or too long.
    """
    if len(name) > MAX_ADAPTER_NAME_CHARS:
        raise InvalidArgumentError(
            f"adapter name of {len(name)} characters ({name[:32]!r}...): expected at most "
            f"{MAX_ADAPTER_NAME_CHARS}; shorten it",
            reason="BAD_ADAPTER_NAME",
        )
    tenant, slash, rest = name.partition("/")
    if not (slash and _SEGMENT.match(tenant) and _SEGMENT.match(rest)):
        raise InvalidArgumentError(
            f"adapter name {name!r}: expected 'tenant/name', each part of {_RULE}",
            reason="BAD_ADAPTER_NAME",
        )
    return tenant, rest


def check_base_id(base_id: str) -> str:
    """Checks a base id and returns it.

    Raises:
        InvalidArgumentError: a character that is not allowed, too long, or like a version id.
    """
    if len(base_id) > MAX_BASE_ID_CHARS or not _SEGMENT.match(base_id):
        raise InvalidArgumentError(
            f"base id {base_id[:80]!r}: expected 1 to {MAX_BASE_ID_CHARS} characters of {_RULE} "
            "(no '/' and no '@')",
            reason="BAD_BASE_ID",
        )
    if _VERSION_ID.match(base_id):
        raise InvalidArgumentError(
            f"base id {base_id!r} looks like an adapter version id, so 'adapter@{base_id}' would "
            "be ambiguous; choose another id",
            reason="BAD_BASE_ID",
        )
    return base_id


def version_id(adapter: str, base_id: str, digest: str) -> str:
    """Returns the immutable id of an adapter version: it follows from what it is made of.

    Engines cache weights by this id, so the same id must always mean the same weights.
    """
    content = "\0".join((adapter, base_id, digest)).encode()
    return "v-" + hashlib.sha256(content).hexdigest()[:12]
