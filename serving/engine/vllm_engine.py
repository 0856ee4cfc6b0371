"""The engine proper: everything that does not depend on how vLLM is driven."""

import asyncio
import itertools
import logging
from collections.abc import AsyncGenerator, Awaitable
from contextlib import AsyncExitStack, aclosing
from pathlib import Path
from typing import Any, Protocol

import psutil
from vllm import SamplingParams
from vllm.lora.request import LoRARequest
from vllm.outputs import RequestOutput

from ..artifacts import AdapterLimits, base_shapes, check_adapter
from ..errors import EngineDeadError, InvalidArgumentError, LorebaseError, UnavailableError
from .adapters import AdapterRegistry
from .background import BackgroundGate
from .budget import ITEMSIZE, adapter_bytes
from .loaded import AdapterStall, LoadedAdapter
from .protocol import (
    BACKGROUND_PRIORITY,
    Chunk,
    EngineStats,
    GenerationRequest,
    VersionRef,
)
from .sampling import check_prompt, check_request
from .settings import EngineSettings
from .tokens import TokenEncoder
from .vllm_common import engine_dtype, lora_request, map_error, sampling_params, to_chunk

logger = logging.getLogger(__name__)

_ASK_AGAIN_S = 0.002
"""Between two questions whether an adapter has been read; far less than a step takes."""


class Driver(Protocol):
    """One way to run vLLM. Errors are vLLM's own; `VllmEngine` maps them."""

    def generate(
        self,
        request_id: str,
        prompt_ids: list[int],
        params: SamplingParams,
        lora: LoRARequest | None,
        priority: int,
    ) -> AsyncGenerator[RequestOutput]:
        """Generates; closing the generator aborts the request."""
        ...

    async def call_worker(self, method: str, *arguments: Any) -> Any:
        """Calls a method of vllm_worker.WorkerExtension between two steps."""
        ...

    async def prefetch(self, name: str, int_id: int, path: str) -> None:
        """Begins to read an adapter; a hint."""
        ...

    async def claim(self, name: str, int_id: int, path: str) -> int | None:
        """Waits until a prefetched adapter is read, and keeps it for the step that needs it.

        Returns:
            Its bytes; None: it has to be added, between two steps.
        """
        ...

    async def remove_lora(self, int_id: int) -> None:
        """Unloads an adapter; a no-op if it is not loaded."""
        ...

    def unfinished(self) -> int:
        """Requests that vLLM has not finished or aborted."""
        ...

    def dead(self) -> str | None:
        """Why the engine can't serve any more, or None while it can."""
        ...

    async def shutdown(self) -> None:
        """Stops vLLM."""
        ...


class VllmEngine:
    """Implements `protocol.Engine` on a driver; for one event loop.

    Background requests (priority >= BACKGROUND_PRIORITY) pass the gate and give one chunk at
    their end; foreground requests stream.
    """

    def __init__(self, settings: EngineSettings, driver: Driver, encoder: TokenEncoder) -> None:
        self.settings = settings
        self._itemsize = ITEMSIZE[engine_dtype(settings)]
        self._driver = driver
        self._encoder = encoder
        self._gate = BackgroundGate(
            cap=settings.background_cap,
            busy_cap=settings.background_cap_busy,
            max_waiting=settings.background_queue,
        )
        self._adapters = AdapterRegistry(
            capacity=settings.max_cpu_loras,
            load=self._load,
            unload=self._unload,
            wait_s=settings.adapter_wait_s,
            budget_bytes=settings.adapter_host_bytes,
            measure=self._measure,
        )
        self._shapes = base_shapes(Path(settings.model_path))
        self._limits = AdapterLimits(max_rank=settings.max_lora_rank)
        self._numbers = itertools.count()
        self._unstarted = 0
        self._process = psutil.Process()

    def prefetch_adapter(self, version: VersionRef) -> None:
        """Begins to load a version that is for this base; see `protocol.Engine`."""
        if version.base_id == self.settings.base_id:
            self._adapters.prefetch(version)

    async def ensure_adapter(self, version: VersionRef) -> None:
        """Loads and checks an adapter version; see `protocol.Engine`."""
        self._check_base(version)
        await self._adapters.ensure(version)

    async def drop_adapter(self, version_id: str) -> bool:
        """Unloads a version once no request uses it; see `protocol.Engine`."""
        return await self._adapters.drop(version_id)

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Chunk]:
        """Generates; see `protocol.Engine`. Close the generator to abort the request."""
        check_request(request)
        if request.version is not None:
            self._check_base(request.version)
            # While the prompt is tokenized and, for background, waits at the gate.
            self._adapters.prefetch(request.version)
        prompt_ids = await self._prompt_ids(request)
        check_prompt(len(prompt_ids), self.settings.max_model_len)
        choice_ids = self._encoder.choice_ids(request.sampling.choices)
        background = request.priority >= BACKGROUND_PRIORITY
        params = sampling_params(request.sampling, choice_ids, stream=not background)
        async with AsyncExitStack() as stack:
            if background:
                await stack.enter_async_context(self._gate.enter_background())
            else:
                stack.enter_context(self._gate.enter_foreground())
            adapter: LoadedAdapter | None = None
            if request.version is not None:
                adapter = await stack.enter_async_context(self._adapters.use(request.version))
            outputs = self._driver.generate(
                # Unique here even if a client uses an id twice.
                f"{request.request_id}/{next(self._numbers)}",
                prompt_ids,
                params,
                lora_request(adapter) if adapter else None,
                request.priority,
            )
            await stack.enter_async_context(aclosing(outputs))
            async for output in self._mapped(outputs, counted=not background):
                yield to_chunk(
                    output,
                    base_id=self.settings.base_id,
                    version_id=adapter.version.id if adapter else "",
                    choice_ids=choice_ids,
                )

    async def stats(self) -> EngineStats:
        """Returns the current load; a foreground request waits until its first token."""
        return EngineStats(
            base_id=self.settings.base_id,
            running_foreground=self._gate.foreground - self._unstarted,
            waiting_foreground=self._unstarted,
            running_background=self._gate.running + self._gate.waiting,
            loaded_versions=len(self._adapters.loaded),
            rss_bytes=await asyncio.to_thread(self._rss_bytes),
        )

    async def adapter_stalls(self) -> list[AdapterStall]:
        """Returns how long steps stood still for adapters since the last call.

        At most the 4,096 newest; none where vLLM's own LoRA serves.
        """
        found = await self._driver.call_worker("adapter_stalls")
        return [AdapterStall(*one) for one in found]

    async def check_health(self) -> None:
        """Raises EngineDeadError if the engine can't serve any more."""
        self._check_alive()

    async def shutdown(self) -> None:
        """Stops the engine; requests in flight end with EngineDeadError."""
        await self._driver.shutdown()

    def unfinished_requests(self) -> int:
        """Returns how many requests vLLM still works on."""
        return self._driver.unfinished()

    async def _mapped(
        self, outputs: AsyncGenerator[RequestOutput], *, counted: bool
    ) -> AsyncGenerator[RequestOutput]:
        """Passes outputs on with errors mapped; counts the request until its first output."""
        waiting = int(counted)
        self._unstarted += waiting
        try:
            async for output in outputs:
                self._unstarted -= waiting
                waiting = 0
                yield output
        except Exception as error:
            mapped = map_error(error)
            if mapped is error:
                raise
            raise mapped from error
        finally:
            self._unstarted -= waiting

    async def _prompt_ids(self, request: GenerationRequest) -> list[int]:
        if request.prompt_token_ids is not None:
            return self._encoder.check_ids(request.prompt_token_ids)
        assert request.prompt is not None, "checked by check_request"
        return await self._encoder.encode(request.prompt)

    def _check_base(self, version: VersionRef) -> None:
        if version.base_id != self.settings.base_id:
            raise InvalidArgumentError(
                f"adapter version {version.id!r} was made for base {version.base_id!r}, this "
                f"engine runs {self.settings.base_id!r}; route it to that base's engine, or "
                "upgrade the adapter",
                reason="WRONG_BASE",
            )

    def _check_alive(self) -> None:
        cause = self._driver.dead()
        if cause is not None:
            raise EngineDeadError(f"the engine of base {self.settings.base_id!r} died: {cause}")

    async def _measure(self, version: VersionRef) -> int:
        try:
            return await asyncio.to_thread(adapter_bytes, Path(version.path), self._itemsize)
        except (OSError, LorebaseError):
            return 0  # loading it will say what is wrong

    async def _load(self, adapter: LoadedAdapter, room: Awaitable[object]) -> int:
        version = adapter.version
        # Also for artifacts that were checked when they were imported: files may have gone
        # since, and a wrong shape would be copied into a larger slot without a word.
        checking = asyncio.to_thread(check_adapter, Path(version.path), self._shapes, self._limits)
        try:
            async with asyncio.timeout(self.settings.adapter_load_timeout_s):
                # The worker reads while the files are checked here, and its steps go on.
                names = (adapter.name, adapter.int_id, version.path)
                await asyncio.gather(checking, self._driver.prefetch(*names), room)
                taken = await self._driver.claim(*names)
                if taken is None:
                    taken = await self._add(*names)
        except LorebaseError:
            raise
        except TimeoutError as error:
            self._check_alive()
            raise UnavailableError(
                f"loading adapter version {version.id!r} took longer than "
                f"{self.settings.adapter_load_timeout_s:g} s; retry later"
            ) from error
        except Exception as error:
            self._check_alive()
            mapped = map_error(error)
            if isinstance(mapped, EngineDeadError):
                raise mapped from error
            raise InvalidArgumentError(
                f"the engine can't load adapter version {version.id!r}: {error}",
                reason="ADAPTER_REFUSED",
            ) from error
        logger.info("loaded adapter version %s as %d", version.id, adapter.int_id)
        return taken

    async def _add(self, name: str, int_id: int, path: str) -> int:
        """Has an adapter added between two steps; returns its bytes."""
        while True:
            taken = await self._driver.call_worker("add_adapter", name, int_id, path)
            if taken is not None:
                return int(taken)
            await asyncio.sleep(_ASK_AGAIN_S)

    async def _unload(self, adapter: LoadedAdapter) -> None:
        try:
            await self._driver.remove_lora(adapter.int_id)
        except Exception as error:
            raise map_error(error) from error

    def _rss_bytes(self) -> int:
        total: int = self._process.memory_info().rss
        for child in self._process.children(recursive=True):
            try:
                total += child.memory_info().rss
            except psutil.Error:
                continue  # gone meanwhile
        return total
