"""Safe extraction of an untrusted, uncompressed tar archive from a stream.

Not `tarfile.open`: that reads extended headers of any declared size into memory and knows
links, devices and sparse files, none of which has a place in an artifact. Here the standard
library only parses the 512-byte header blocks (with their checksums); everything else is
refused unless it is plainly a directory or a regular file with a plain relative name.
"""

import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ..errors import InvalidArgumentError
from .files import check_component

_BLOCK = tarfile.BLOCKSIZE
_PIECE = 1 << 16
_ZEROS = bytes(_BLOCK)
_KINDS = {
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.LNKTYPE: "a hard link",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a named pipe",
    tarfile.CONTTYPE: "a contiguous file",
    tarfile.GNUTYPE_SPARSE: "a sparse file",
    tarfile.GNUTYPE_LONGLINK: "a link",
}
_PAX_IGNORED = frozenset(
    {"mtime", "atime", "ctime", "uid", "gid", "uname", "gname", "comment", "charset"}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TarLimits:
    """What an archive may hold."""

    max_bytes: int
    """Sum of all files' sizes."""
    max_files: int = 256
    """Files and directories together."""
    max_depth: int = 2
    """Parts of a relative name: 2 allows one level of directories."""
    max_extended_bytes: int = 16 << 10
    """Size of one extended header (long name, times): read into memory, so kept small."""
    max_trailing_bytes: int = 1 << 20
    """Zero padding after the end; tar pads to its blocking factor, 10 KiB by default."""


def extract(stream: BinaryIO | Iterable[bytes], into: Path, limits: TarLimits) -> int:
    """Extracts an archive into an empty directory; returns the bytes of all files.

    The caller removes the directory when this raises.

    Raises:
        InvalidArgumentError: not a tar archive, truncated, over a limit, or with an entry
            that is not allowed. The message names the entry.
    """
    source = _Source(stream)
    names: set[str] = set()
    total = 0
    # Each entry may have one extended header; a global one and the end come on top.
    for _ in range(2 * limits.max_files + 8):
        entry = _next_entry(source, limits)
        if entry is None:
            source.expect_zeros(limits.max_trailing_bytes)
            if not names:
                raise InvalidArgumentError("the archive holds no files", reason="BAD_ARCHIVE")
            return total
        parts = _safe_parts(entry.name, limits)
        if not parts:
            if not entry.isdir():
                raise _bad(f"entry {entry.name!r} has no name")
            continue
        name = "/".join(parts)
        if name in names:
            raise _bad(f"entry {name!r} is there twice")
        names.add(name)
        if len(names) > limits.max_files:
            raise _bad(f"more than {limits.max_files} entries")
        total += entry.size
        if total > limits.max_bytes:
            raise InvalidArgumentError(
                f"the archive declares more than {limits.max_bytes} bytes (at {name!r}); expected "
                "at most that",
                reason="ARCHIVE_TOO_LARGE",
            )
        _write(source, entry, into.joinpath(*parts), name)
    raise _bad("too many headers")


def _next_entry(source: "_Source", limits: TarLimits) -> tarfile.TarInfo | None:
    """Returns the next file or directory with its extended header applied, None at the end."""
    extended: dict[str, str] = {}
    for _ in range(4):
        block = source.exactly(_BLOCK, "a header")
        if block == _ZEROS:
            if extended:
                raise _bad("an extended header has no entry")
            return None
        try:
            entry = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            raise InvalidArgumentError(
                f"the upload is not an uncompressed tar archive or is damaged ({error}); make it "
                "with `tar --create` without compression",
                reason="BAD_ARCHIVE",
            ) from error
        if entry.size < 0:
            raise _bad(f"entry {entry.name!r} declares {entry.size} bytes")
        if entry.type in (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME):
            found = _extended(source, entry, limits)
            # A global header applies to all entries: nothing in it may name or size one.
            if entry.type == tarfile.XGLTYPE and found:
                raise _bad(f"a global header sets {', '.join(sorted(found))}")
            extended |= found
            continue
        if entry.type not in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE):
            what = _KINDS.get(entry.type, f"of unknown type {entry.type!r}")
            raise _bad(f"entry {entry.name!r} is {what}: only files and directories are allowed")
        entry.name = extended.get("path", entry.name)
        entry.size = _int(extended.get("size"), entry.size)
        return entry
    raise _bad("too many extended headers in a row")


def _extended(source: "_Source", entry: tarfile.TarInfo, limits: TarLimits) -> dict[str, str]:
    if entry.size > limits.max_extended_bytes:
        raise _bad(f"an extended header declares {entry.size} bytes")
    data = source.exactly(entry.size, "an extended header")
    source.exactly(-entry.size % _BLOCK, "padding")
    if entry.type == tarfile.GNUTYPE_LONGNAME:
        return {"path": data.rstrip(b"\0").decode("utf-8", "surrogateescape")}
    found: dict[str, str] = {}
    while data:
        digits, _, rest = data.partition(b" ")
        length = int(digits) if digits.isdigit() and len(digits) < 6 else 0
        record = rest[: length - len(digits) - 1]
        key, equals, value = record.rstrip(b"\n").partition(b"=")
        if (
            length < len(digits) + 4
            or length > len(data)
            or not equals
            or not record.endswith(b"\n")
        ):
            raise _bad("an extended header is malformed")
        name = key.decode("utf-8", "replace")
        if name in ("path", "size"):
            found[name] = value.decode("utf-8", "surrogateescape")
        elif name not in _PAX_IGNORED and not name.startswith(("SCHILY.", "LIBARCHIVE.")):
            raise _bad(f"the extended header {name[:40]!r} is not allowed")
        data = data[length:]
    return found


def _int(text: str | None, default: int) -> int:
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise _bad(f"an extended header declares a size of {text[:20]!r}")
    return int(text)


def _safe_parts(name: str, limits: TarLimits) -> list[str]:
    if name.startswith("/") or "\\" in name:
        raise InvalidArgumentError(
            f"entry {name[:80]!r} has an absolute or foreign path: expected relative names",
            reason="UNSAFE_PATH",
        )
    parts = name.rstrip("/").split("/") if name.rstrip("/") else []
    while parts and parts[0] == ".":
        parts = parts[1:]
    if ".." in parts:
        raise InvalidArgumentError(
            f"entry {name[:80]!r} leads out of the archive ('..'): expected relative names inside",
            reason="UNSAFE_PATH",
        )
    if len(parts) > limits.max_depth:
        raise _bad(f"entry {name[:80]!r} is more than {limits.max_depth} levels deep")
    return [check_component(part) for part in parts]


def _write(source: "_Source", entry: tarfile.TarInfo, path: Path, name: str) -> None:
    if entry.isdir():
        if entry.size:
            raise _bad(f"directory {name!r} declares {entry.size} bytes")
        # Made when a file needs it: empty directories are not part of an artifact.
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("xb") as file:
            for piece in source.pieces(entry.size, repr(name)):
                file.write(piece)
    except (FileExistsError, NotADirectoryError) as error:
        raise _bad(f"entry {name!r} is a file and a directory") from error
    source.exactly(-entry.size % _BLOCK, "padding")


def _bad(message: str) -> InvalidArgumentError:
    return InvalidArgumentError(f"bad archive: {message}", reason="BAD_ARCHIVE")


class _Source:
    """Reads exact amounts from a file or from an iterable of byte strings."""

    def __init__(self, stream: BinaryIO | Iterable[bytes]) -> None:
        self._pieces = _read_pieces(stream)
        self._left = memoryview(b"")

    def pieces(self, size: int, what: str) -> Iterator[memoryview]:
        """Yields `size` bytes in pieces; `what` names them in the error at an early end."""
        while size > 0:
            piece = self._some(size)
            if not piece:
                raise InvalidArgumentError(
                    f"the archive ends in the middle of {what} ({size} bytes missing): the upload "
                    "is truncated; send it again",
                    reason="BAD_ARCHIVE",
                )
            size -= len(piece)
            yield piece

    def exactly(self, size: int, what: str) -> bytes:
        """Returns `size` bytes."""
        return b"".join(self.pieces(size, what))

    def expect_zeros(self, limit: int) -> None:
        """Reads to the end of the stream, which must hold nothing but padding."""
        read = 0
        while piece := self._some(_PIECE):
            read += len(piece)
            if read > limit or any(piece):
                raise _bad("there is data after its end")

    def _some(self, most: int) -> memoryview:
        while not self._left:
            piece = next(self._pieces, None)
            if piece is None:
                return memoryview(b"")
            self._left = memoryview(piece)
        taken, self._left = self._left[:most], self._left[most:]
        return taken


def _read_pieces(stream: BinaryIO | Iterable[bytes]) -> Iterator[bytes]:
    read = getattr(stream, "read", None)
    if read is None:
        yield from stream
        return
    while piece := read(_PIECE):
        yield piece
