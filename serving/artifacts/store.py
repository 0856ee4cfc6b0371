"""Content-addressed storage of small directories (adapters, kits, stage results).

    root/objects/ab/ab12...   one artifact: a directory, never changed after it appeared
    root/staging/<random>     what is being written; same file system, so that a rename ends it

A digest is `sha256:<hex>` over the sorted (relative name, sha256 of content) of all files, so it
does not depend on times, owners or the order of an archive.
"""

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import InvalidArgumentError, NotFoundError, ResourceExhaustedError
from .files import check_component, list_files, parse_json
from .tar import TarLimits, extract

_DIGEST = re.compile(r"sha256:([0-9a-f]{64})\Z")
_DOMAIN = b"lorebase-artifact-1\n"
_PIECE = 1 << 20


class ArtifactStore:
    """Stores directories under the digest of their content.

    Safe for several threads and processes at once. An artifact appears whole or not at all.
    """

    def __init__(
        self,
        root: Path,
        *,
        max_bytes: int = 2 << 30,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Opens a store, creating its folders.

        Args:
            root: Local directory, on one file system.
            max_bytes: Largest artifact, in bytes over all its files.
            clock: Seconds since the epoch; ages for garbage collection are measured by it.
        """
        self._root = Path(root).absolute()
        self._objects = self._root / "objects"
        self._staging_root = self._root / "staging"
        self._max_bytes = max_bytes
        self._clock = clock
        for folder in (self._objects, self._staging_root):
            folder.mkdir(parents=True, exist_ok=True)

    @property
    def root(self) -> Path:
        """Absolute directory of the store, for opening it again in another process."""
        return self._root

    def put_bytes(self, data: bytes, name: str) -> str:
        """Stores one file; returns the digest of a directory that holds only it.

        Raises:
            InvalidArgumentError: a file name that is not allowed, or too large.
        """
        check_component(name)
        with self._staging() as staged:
            (staged / name).write_bytes(data)
            return self._commit(staged)[0]

    def put_json(self, value: Any, name: str = "data.json") -> str:
        """Stores a JSON value; equal values have equal digests.

        Raises:
            InvalidArgumentError: not JSON (NaN, foreign types).
        """
        try:
            text = json.dumps(value, sort_keys=True, allow_nan=False, ensure_ascii=False)
            data = text.encode("utf-8")
        except (TypeError, ValueError) as error:
            raise InvalidArgumentError(f"value for {name!r} is not JSON: {error}") from error
        return self.put_bytes(data, name)

    def get_json(self, digest: str, name: str = "data.json") -> Any:
        """Returns the value that `put_json` stored.

        Raises:
            NotFoundError: no such artifact or no such file in it.
        """
        path = self.path(digest) / check_component(name)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            raise NotFoundError(f"artifact {digest} has no file {name!r}") from None
        return parse_json(data, what=repr(name))

    def put_dir(self, path: Path) -> str:
        """Stores a copy of a directory; empty directories in it do not count.

        Raises:
            InvalidArgumentError: no files, links or devices, names that are not allowed, too
                large.
        """
        files = list_files(path)
        self._check_size(sum(file.stat().st_size for file in files.values()))
        with self._staging() as staged:
            for name, file in files.items():
                target = staged / name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, target, follow_symlinks=False)
            return self._commit(staged)[0]

    def import_tar(
        self, stream: BinaryIO | Iterable[bytes], check: Callable[[Path], object]
    ) -> tuple[str, int]:
        """Unpacks an untrusted tar archive, checks it and stores it.

        Nothing stays behind when the archive is bad, `check` raises or the stream breaks off.

        Args:
            stream: The uncompressed archive, as a file or in pieces.
            check: Called with the unpacked directory; raises to refuse it.

        Returns:
            Digest and size in bytes.

        Raises:
            InvalidArgumentError: an unsafe or malformed archive, besides what `check` raises.
        """
        with self._staging() as staged:
            extract(stream, staged, TarLimits(max_bytes=self._max_bytes))
            check(staged)
            return self._commit(staged)

    def locate(self, digest: str) -> Path:
        """Returns where an artifact is or would be, without looking.

        Raises:
            InvalidArgumentError: not a digest.
        """
        match = _DIGEST.match(digest)
        if match is None:
            raise InvalidArgumentError(
                f"digest {digest[:80]!r}: expected 'sha256:' and 64 hexadecimal digits",
                reason="BAD_DIGEST",
            )
        return self._objects / match[1][:2] / match[1]

    def path(self, digest: str) -> Path:
        """Returns the directory of an artifact; its content must not be changed.

        Raises:
            NotFoundError: no such artifact.
        """
        path = self.locate(digest)
        if not path.is_dir():
            raise NotFoundError(
                f"artifact {digest} is not in the store; upload it first",
                reason="ARTIFACT_NOT_FOUND",
            )
        return path

    def exists(self, digest: str) -> bool:
        """Returns whether an artifact is stored."""
        return self.locate(digest).is_dir()

    def delete(self, digest: str) -> None:
        """Removes an artifact at once; a no-op if it is absent."""
        with self._lock(fcntl.LOCK_EX):
            trash = self._move_to_trash(self.locate(digest))
        self._remove(trash)

    def collect_garbage(self, keep: set[str], older_than_s: float) -> list[str]:
        """Removes artifacts that nothing names, and what crashed writers left in staging.

        Args:
            keep: Digests to keep: `Catalog.referenced_digests()`, read before this call.
            older_than_s: Younger artifacts stay, since somebody may be about to name them;
                storing the same content again makes it young.

        Returns:
            The removed digests.
        """
        limit = self._clock() - older_than_s
        removed = []
        for path in sorted(self._objects.glob("??/*")):
            digest = f"sha256:{path.name}"
            if digest in keep:
                continue
            with self._lock(fcntl.LOCK_EX):
                old = path.exists() and path.stat().st_mtime < limit
                trash = self._move_to_trash(path) if old else None
            if trash is not None:
                self._remove(trash)
                removed.append(digest)
        for path in self._staging_root.iterdir():
            with suppress(FileNotFoundError):
                if path.stat().st_mtime < limit:
                    self._remove(path)
        return removed

    def _commit(self, staged: Path) -> tuple[str, int]:
        """Makes a staged directory an artifact; returns its digest and size."""
        files = list_files(staged)
        if not files:
            raise InvalidArgumentError("an artifact needs at least one file; got none")
        size = sum(file.stat().st_size for file in files.values())
        self._check_size(size)
        total = hashlib.sha256(_DOMAIN)
        for name, file in files.items():
            total.update(json.dumps([name, _seal(file)]).encode() + b"\n")
        for folder in [staged, *{file.parent for file in files.values()} - {staged}]:
            _fsync(folder)
        digest = f"sha256:{total.hexdigest()}"
        target = self.locate(digest)
        target.parent.mkdir(exist_ok=True)
        # Shared with other writers; garbage collection is kept out between look and rename.
        with self._lock(fcntl.LOCK_SH):
            try:
                staged.rename(target)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
            # By the injected clock; it also makes content young that was there already.
            now = self._clock()
            os.utime(target, (now, now))
        _fsync(target.parent)
        return digest, size

    def _check_size(self, size: int) -> None:
        if size > self._max_bytes:
            raise InvalidArgumentError(
                f"artifact of {size} bytes: expected at most {self._max_bytes}",
                reason="ARTIFACT_TOO_LARGE",
            )

    @contextmanager
    def _staging(self) -> Iterator[Path]:
        path = self._staging_root / uuid.uuid4().hex
        path.mkdir()
        try:
            yield path
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise ResourceExhaustedError(
                "the artifact store's disk is full; collect garbage or add space, then retry",
                reason="DISK_FULL",
            ) from error
        finally:
            self._remove(path)

    @contextmanager
    def _lock(self, kind: int) -> Iterator[None]:
        descriptor = os.open(self._root / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, kind)
            yield
        finally:
            os.close(descriptor)

    def _move_to_trash(self, path: Path) -> Path:
        trash = self._staging_root / uuid.uuid4().hex
        with suppress(FileNotFoundError):
            path.rename(trash)
        return trash

    @staticmethod
    def _remove(path: Path) -> None:
        with suppress(FileNotFoundError):
            shutil.rmtree(path)


def _seal(file: Path) -> str:
    """Hashes a file, makes it read-only and durable; returns the hex sha256."""
    content = hashlib.sha256()
    with file.open("rb") as opened:
        while piece := opened.read(_PIECE):
            content.update(piece)
        os.fchmod(opened.fileno(), 0o444)
        os.fsync(opened.fileno())
    return content.hexdigest()


def _fsync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
