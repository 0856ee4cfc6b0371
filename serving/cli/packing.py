"""Packs what is uploaded: a deterministic tar, produced in bounded pieces.

The same files always give the same bytes: entries sorted by name, no times, owners or modes of
this machine. So a repeated upload is the same upload.
"""

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..errors import InvalidArgumentError, NotFoundError

CHUNK_BYTES = 512 * 1024
"""Well below the server's limit of 1 MiB a message."""

MAX_FILES = 1000
"""An adapter has two files; a folder with more than this is the wrong folder."""

_BLOCK = tarfile.BLOCKSIZE


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedFile:
    """One file of an upload."""

    name: str
    """Relative POSIX path inside the archive."""
    path: Path
    size_bytes: int


def files_of(source: Path, *, single_name: str | None = None) -> tuple[PackedFile, ...]:
    """Lists what to pack, sorted by name in the archive.

    Args:
        source: a directory (all regular files below it), or one file.
        single_name: name in the archive if `source` is a file; None keeps its own.

    Raises:
        NotFoundError: `source` does not exist.
        InvalidArgumentError: a link or a special file, no file at all, or too many.
    """
    if source.is_file():
        name = single_name or source.name
        return (PackedFile(name=name, path=source, size_bytes=source.stat().st_size),)
    if not source.is_dir():
        raise NotFoundError(f"{source} does not exist: expected a directory or a file to upload")
    found = []
    for path in source.rglob("*"):
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise InvalidArgumentError(
                f"{path} is a link or a special file: copy what it points to into {source}"
            )
        if path.is_file():
            name = path.relative_to(source).as_posix()
            found.append(PackedFile(name=name, path=path, size_bytes=path.stat().st_size))
        if len(found) > MAX_FILES:
            raise InvalidArgumentError(
                f"{source} holds over {MAX_FILES} files; is it the right one?"
            )
    if not found:
        raise InvalidArgumentError(f"{source} is empty: nothing to upload")
    return tuple(sorted(found, key=lambda file: file.name))


def tar_chunks(files: tuple[PackedFile, ...], chunk_bytes: int = CHUNK_BYTES) -> Iterator[bytes]:
    """Yields an uncompressed tar archive of `files` in pieces of at most `chunk_bytes`.

    Raises:
        InvalidArgumentError: a file changed its size while it was read.
    """
    buffer = bytearray()
    for piece in _tar_pieces(files, chunk_bytes):
        buffer += piece
        while len(buffer) >= chunk_bytes:
            yield bytes(buffer[:chunk_bytes])
            del buffer[:chunk_bytes]
    if buffer:
        yield bytes(buffer)


def _tar_pieces(files: tuple[PackedFile, ...], read_bytes: int) -> Iterator[bytes]:
    for file in files:
        info = tarfile.TarInfo(file.name)
        info.size = file.size_bytes
        info.mode = 0o644
        # TarInfo's defaults are the rest: time 0, owner 0, no names.
        yield info.tobuf(format=tarfile.PAX_FORMAT)
        left = file.size_bytes
        with file.path.open("rb") as stream:
            while left:
                data = stream.read(min(left, read_bytes))
                if not data:
                    break
                left -= len(data)
                yield data
            if left or stream.read(1):
                raise InvalidArgumentError(
                    f"{file.path} changed while it was uploaded; upload again when it is at rest"
                )
        yield bytes(-file.size_bytes % _BLOCK)
    yield bytes(2 * _BLOCK)
