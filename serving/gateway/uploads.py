"""Uploaded artifacts: received, unpacked and checked in staging, then stored or forgotten."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, Literal

from ..artifacts import (
    AdapterLimits,
    ArtifactStore,
    BaseShapes,
    EvaluationLimits,
    base_shapes,
    check_adapter,
    check_evaluation_set,
)
from ..catalog import Catalog
from ..config_sections import LimitsSection
from ..errors import DeadlineExceededError, FailedPreconditionError, InvalidArgumentError

Kind = Literal["adapter", "kit", "evaluation_set"]
KitCheck = Callable[[Path, BaseShapes, AdapterLimits], Any]

MAX_CHUNK_BYTES = 1 << 20
CHUNK_WAIT_S = 60.0
"""A client that sends nothing for this long has gone away."""


class Uploads:
    """Stores what passes its check; nothing else is kept."""

    def __init__(
        self,
        *,
        catalog: Catalog,
        store: ArtifactStore,
        limits: LimitsSection,
        kit_check: KitCheck | None,
    ) -> None:
        self._catalog = catalog
        self._store = store
        self._limits = limits
        self._kit_check = kit_check

    @property
    def adapter_limits(self) -> AdapterLimits:
        """What an adapter's weights may be."""
        return AdapterLimits(
            max_rank=self._limits.max_adapter_rank, max_bytes=self._limits.max_artifact_bytes
        )

    async def receive(
        self, kind: Kind, base_id: str, chunks: AsyncIterator[bytes]
    ) -> tuple[str, int]:
        """Returns digest and size in bytes of the stored artifact.

        Raises:
            InvalidArgumentError: the archive or its content is refused; nothing is kept.
            NotFoundError: unknown base.
        """
        check = await asyncio.to_thread(self._check_for, kind, base_id)
        bounded = _bounded(chunks, self._limits.max_artifact_bytes)
        source = _BlockingChunks(bounded, asyncio.get_running_loop())
        work = asyncio.create_task(asyncio.to_thread(self._store.import_tar, source, check))
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            # The thread can't be cancelled: its next read fails, which makes the store clean up.
            source.stop()
            await asyncio.wait([work])
            raise

    def base_shapes(self, base_id: str) -> BaseShapes:
        """Reads the shapes of a base's modules. Blocks.

        Raises:
            NotFoundError: unknown base.
        """
        return base_shapes(Path(self._catalog.get_base(base_id).path))

    def _check_for(self, kind: Kind, base_id: str) -> Callable[[Path], None]:
        if kind == "evaluation_set":
            bounds = EvaluationLimits(max_examples=self._limits.max_evaluation_examples)
            return lambda folder: _discard(check_evaluation_set(folder, bounds))
        if not base_id:
            raise InvalidArgumentError(f"the header names no base, which a {kind} needs")
        shapes, limits = self.base_shapes(base_id), self.adapter_limits
        if kind == "adapter":
            return lambda folder: _discard(check_adapter(folder, shapes, limits))
        kit_check = self._kit_check
        if kit_check is None:
            raise FailedPreconditionError(
                "this gateway takes no transfer kits; set gateway.kit_check",
                reason="KITS_NOT_SUPPORTED",
            )
        return lambda folder: _discard(kit_check(folder, shapes, limits))


def _discard(_: object) -> None:
    """Checks return what they found; here only their errors count."""


async def _bounded(chunks: AsyncIterator[bytes], max_bytes: int) -> AsyncIterator[bytes]:
    # Tar headers and padding come on top of the content's limit.
    most = max_bytes + (1 << 20)
    size = 0
    async for chunk in chunks:
        if len(chunk) > MAX_CHUNK_BYTES:
            raise InvalidArgumentError(
                f"a chunk has {len(chunk)} bytes, expected at most {MAX_CHUNK_BYTES}"
            )
        size += len(chunk)
        if size > most:
            raise InvalidArgumentError(
                f"the upload is larger than {max_bytes} bytes, the limit of this service"
            )
        yield chunk


class _BlockingChunks:
    """An async stream read from a thread. The client is slowed down to the reader's pace."""

    def __init__(self, chunks: AsyncIterator[bytes], loop: asyncio.AbstractEventLoop) -> None:
        self._chunks = chunks
        self._loop = loop
        self._stopped = False

    def stop(self) -> None:
        self._stopped = True

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        if self._stopped:
            raise DeadlineExceededError("the client cancelled the upload")
        chunk = asyncio.run_coroutine_threadsafe(self._next(), self._loop).result()
        if chunk is None:
            raise StopIteration
        return chunk

    async def _next(self) -> bytes | None:
        try:
            async with asyncio.timeout(CHUNK_WAIT_S):
                return await anext(self._chunks, None)
        except TimeoutError:
            raise DeadlineExceededError(
                f"no data for {CHUNK_WAIT_S:.0f} s; the upload is given up"
            ) from None
