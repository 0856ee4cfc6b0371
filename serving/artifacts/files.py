"""What may lie in an artifact at all: regular files, plain names, no pickles, strict JSON."""

import json
import os
import re
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..errors import InvalidArgumentError

_COMPONENT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}\Z")
_PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".npy", ".npz", ".joblib")
_PICKLE_PROTOCOLS = frozenset({2, 3, 4, 5})


def check_component(component: str) -> str:
    """Checks one part of a relative file name and returns it.

    Raises:
        InvalidArgumentError: empty, hidden, `..`, or with a character that is not allowed.
    """
    if not _COMPONENT.match(component):
        raise InvalidArgumentError(
            f"file name {component[:80]!r}: expected 1 to 128 letters, digits, '.', '_' and '-', "
            "starting with a letter, digit or '_'",
            reason="BAD_FILE_NAME",
        )
    return component


def list_files(root: Path) -> dict[str, Path]:
    """Returns the regular files under a directory by relative name, sorted.

    Raises:
        InvalidArgumentError: not a directory, a link, a device or a name that is not allowed.
    """
    if not root.is_dir():
        raise InvalidArgumentError(f"{root.name!r} is no directory: expected one with files")
    found: dict[str, Path] = {}
    pending = [(root, "")]
    while pending:
        directory, prefix = pending.pop()
        with os.scandir(directory) as entries:
            for entry in entries:
                name = prefix + check_component(entry.name)
                mode = entry.stat(follow_symlinks=False).st_mode
                if stat.S_ISDIR(mode):
                    pending.append((Path(entry.path), name + "/"))
                elif stat.S_ISREG(mode):
                    found[name] = Path(entry.path)
                else:
                    raise InvalidArgumentError(
                        f"{name!r} is a link or device: only regular files are allowed",
                        reason="NOT_A_FILE",
                    )
    return dict(sorted(found.items()))


def check_names(
    files: Mapping[str, Path], *, required: Iterable[str], optional: Iterable[str] = ()
) -> None:
    """Checks that exactly the expected files are there.

    Raises:
        InvalidArgumentError: a file is missing, unknown, or a pickle by its name.
    """
    needed = set(required)
    for name in files:
        refuse_pickle_name(name)
    missing = sorted(needed - set(files))
    if missing:
        raise InvalidArgumentError(
            f"file {missing[0]!r} is missing; found {', '.join(files) or 'nothing'}",
            reason="FILE_MISSING",
        )
    unknown = sorted(set(files) - needed - set(optional))
    if unknown:
        allowed = ", ".join(sorted(needed | set(optional)))
        raise InvalidArgumentError(
            f"unknown file {unknown[0]!r}: allowed are {allowed}; remove it",
            reason="FILE_UNKNOWN",
        )


def refuse_pickle_name(name: str) -> None:
    """Refuses a file that by its name is a pickle or could hold one.

    Raises:
        InvalidArgumentError: such a name.
    """
    if name.lower().endswith(_PICKLE_SUFFIXES):
        raise InvalidArgumentError(
            f"{name!r} may hold a pickle, which runs code when loaded: only safetensors are "
            "accepted; save with model.save_pretrained(path, safe_serialization=True)",
            reason="PICKLE_REFUSED",
        )


def refuse_pickle_content(name: str, head: bytes) -> None:
    """Refuses content that starts like a pickle or like the zip that torch.save writes.

    Not for a valid safetensors file, whose length field may start with the same bytes.

    Raises:
        InvalidArgumentError: such content.
    """
    is_zip = head[:4] in (b"PK\x03\x04", b"PK\x05\x06")
    is_pickle = len(head) > 1 and head[0] == 0x80 and head[1] in _PICKLE_PROTOCOLS
    if is_zip or is_pickle:
        what = "a zip archive, as torch.save writes it" if is_zip else "a pickle"
        raise InvalidArgumentError(
            f"{name!r} is {what}: only safetensors and JSON are accepted; save with "
            "model.save_pretrained(path, safe_serialization=True)",
            reason="PICKLE_REFUSED",
        )


def read_json(path: Path, *, max_bytes: int) -> Any:
    """Reads one JSON document strictly: UTF-8, no duplicate keys, no NaN.

    Raises:
        InvalidArgumentError: too large or not such JSON.
    """
    size = path.stat().st_size
    if size > max_bytes:
        raise InvalidArgumentError(
            f"{path.name!r} has {size} bytes: expected at most {max_bytes}", reason="FILE_TOO_LARGE"
        )
    return parse_json(path.read_bytes(), what=repr(path.name))


def parse_json(data: bytes, *, what: str) -> Any:
    """Parses JSON strictly; `what` names the source in errors.

    Raises:
        InvalidArgumentError: not UTF-8, not JSON, duplicate keys, NaN or nested too deeply.
    """
    try:
        return json.loads(
            data.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_refuse_constant
        )
    except (ValueError, RecursionError) as error:
        raise InvalidArgumentError(
            f"{what} is not valid JSON: {str(error)[:200]}", reason="BAD_JSON"
        ) from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("an object has the same key twice")
    return result


def _refuse_constant(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON number")
