"""The engine on vLLM's AsyncLLM: engine core in a process of its own, for serving."""

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from typing import Any

from vllm import SamplingParams
from vllm.inputs import tokens_input
from vllm.lora.request import LoRARequest
from vllm.outputs import RequestOutput
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError as VllmEngineDeadError

from .settings import EngineSettings
from .side_channel import SideChannel
from .tokens import TokenEncoder
from .vllm_common import engine_args
from .vllm_engine import VllmEngine

logger = logging.getLogger(__name__)

_OPENING_S = 30.0


class AsyncDriver:
    """Drives an AsyncLLM from the event loop it was started in."""

    def __init__(self, llm: AsyncLLM) -> None:
        self._llm = llm
        self._stopped = False
        self._side: SideChannel | None = None

    async def open_side_channel(self) -> None:
        """Makes a way to the worker that is open during steps, too, where our kernels serve.

        An engine without it serves as well, only slower at first: nothing is raised.
        """
        side: SideChannel | None = None
        try:
            async with asyncio.timeout(_OPENING_S):
                side = SideChannel()
                await side.listen()
                if await self.call_worker("open_side_channel", side.address):
                    await side.connected()
                    self._side = side
        except Exception as error:
            logger.warning("no side channel to the worker: %r; new adapters wait for steps", error)
        finally:
            if side is not None and self._side is None:
                await side.close()

    async def generate(
        self,
        request_id: str,
        prompt_ids: list[int],
        params: SamplingParams,
        lora: LoRARequest | None,
        priority: int,
    ) -> AsyncGenerator[RequestOutput]:
        """Generates; closing the generator aborts the request."""
        outputs = self._llm.generate(
            tokens_input(prompt_ids),
            params,
            request_id,
            lora_request=lora,
            priority=priority,
        )
        async with aclosing(outputs):
            async for output in outputs:
                yield output

    async def call_worker(self, method: str, *arguments: Any) -> Any:
        """Calls a method of vllm_worker.WorkerExtension between two steps."""
        if self._stopped:
            raise VllmEngineDeadError()  # vLLM would wait for an answer
        [result] = await self._llm.collective_rpc(method, args=arguments)
        return result

    async def prefetch(self, name: str, int_id: int, path: str) -> None:
        """Begins to read an adapter; a hint."""
        if self._side is not None:
            with suppress(ConnectionError):
                await self._side.ask("prefetch", name, int_id, path)
                return
        await self.call_worker("prefetch_adapter", name, int_id, path)

    async def claim(self, name: str, int_id: int, path: str) -> int | None:
        """Waits until a prefetched adapter is read, and keeps it; see `vllm_engine.Driver`."""
        if self._side is not None:
            with suppress(ConnectionError):
                taken: int | None = await self._side.ask("claim", name, int_id, path)
                return taken
        return None

    async def remove_lora(self, int_id: int) -> None:
        """Unloads an adapter; a no-op if it is not loaded."""
        await self._llm.remove_lora(int_id)

    def unfinished(self) -> int:
        """Requests that vLLM has not finished or aborted."""
        return self._llm.get_num_unfinished_requests()

    def dead(self) -> str | None:
        """Why the engine can't serve any more, or None while it can."""
        if self._stopped:
            return "it was shut down"
        return "its engine core process is gone" if self._llm.errored else None

    async def shutdown(self) -> None:
        """Stops vLLM and its processes."""
        if self._stopped:
            return
        self._stopped = True
        try:
            if self._side is not None:
                await self._side.close()
        finally:
            handler = self._llm.output_handler
            if handler is not None and not self.unfinished():
                # Nobody waits for what it passes on, and it would log the core's end as a failure.
                handler.cancel()
            # On a thread, because it waits for the engine core to go.
            await asyncio.to_thread(self._llm.shutdown)
        # vLLM closes its sockets, which it does in this loop, but leaves their context open.
        await asyncio.sleep(0)
        self._llm.engine_core.resources.ctx.destroy(linger=0)


class AsyncVllmEngine(VllmEngine):
    """An engine for serving; start it inside the event loop that will use it."""

    @classmethod
    async def start(cls, settings: EngineSettings) -> "AsyncVllmEngine":
        """Loads the base. Blocks the event loop for the time of the start (10-30 s)."""
        llm = AsyncLLM.from_engine_args(engine_args(settings))
        encoder = TokenEncoder(llm.get_tokenizer(), llm.model_config.get_vocab_size())
        driver = AsyncDriver(llm)
        try:
            await driver.open_side_channel()
        except BaseException:  # cancelled
            await driver.shutdown()
            raise
        return cls(settings, driver, encoder)
