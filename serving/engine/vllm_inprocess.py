"""The engine on vLLM's synchronous LLMEngine, stepped by one thread of this process.

No second process, so it starts in seconds and takes a third of the memory: right for tests and
small machines. The price: Python of the caller and of the engine share one interpreter lock.

Several engines may live in one process. vLLM keeps what belongs to the running step and to its
process groups in module globals, so their steps take turns and only the last engine to go takes
the groups down.
"""

import asyncio
import gc
import logging
import queue
import threading
import time
from collections.abc import AsyncGenerator, Callable
from typing import Any, TypeVar

import torch
from vllm import SamplingParams
from vllm.inputs import tokens_input
from vllm.lora.request import LoRARequest
from vllm.outputs import RequestOutput
from vllm.v1.engine.exceptions import EngineDeadError as VllmEngineDeadError
from vllm.v1.engine.llm_engine import LLMEngine

from .settings import EngineSettings
from .tokens import TokenEncoder
from .vllm_common import engine_args, kept_torch_threads
from .vllm_engine import VllmEngine

logger = logging.getLogger(__name__)

T = TypeVar("T")
Command = Callable[[], None]
_STOP_TIMEOUT_S = 30.0
_TURN_S = 5e-5
"""Pause that lets another engine's thread take the lock; locks are not fair."""

_vllm_lock = threading.Lock()
_engines: "set[InprocessDriver]" = set()
"""Drivers whose engine exists; guarded by `_vllm_lock`."""


class InprocessDriver:
    """Owns the thread on which the engine is made, stepped and destroyed.

    Everything that touches the engine is a command on that thread's queue; everything that
    touches asyncio goes back with `call_soon_threadsafe`.
    """

    def __init__(self, settings: EngineSettings) -> None:
        self._settings = settings
        self._loop = asyncio.get_running_loop()
        self._commands: queue.SimpleQueue[Command | None] = queue.SimpleQueue()
        self._outputs: dict[str, asyncio.Queue[RequestOutput | BaseException]] = {}
        self._pending: set[asyncio.Future[Any]] = set()
        self._engine: LLMEngine
        self._cause: str | None = None
        self._started: asyncio.Future[None] = self._loop.create_future()
        self._thread = threading.Thread(
            target=self._run, name=f"engine-{settings.base_id}", daemon=True
        )

    async def start(self) -> TokenEncoder:
        """Starts the thread and waits until the base is loaded; returns its encoder."""
        self._thread.start()
        await self._started
        return TokenEncoder(
            self._engine.get_tokenizer(), self._engine.model_config.get_vocab_size()
        )

    async def generate(
        self,
        request_id: str,
        prompt_ids: list[int],
        params: SamplingParams,
        lora: LoRARequest | None,
        priority: int,
    ) -> AsyncGenerator[RequestOutput]:
        """Generates; closing the generator aborts the request."""
        outputs: asyncio.Queue[RequestOutput | BaseException] = asyncio.Queue()
        self._outputs[request_id] = outputs
        finished = False
        try:
            await self._call(
                lambda: self._engine.add_request(
                    request_id,
                    tokens_input(prompt_ids),
                    params,
                    lora_request=lora,
                    priority=priority,
                )
            )
            while not finished:
                output = await outputs.get()
                if isinstance(output, BaseException):
                    raise output
                finished = output.finished
                yield output
        finally:
            del self._outputs[request_id]
            if not finished and self._cause is None:
                # Also after a cancellation while the request was being added: commands keep
                # their order, and aborting an unknown request is a no-op.
                self._commands.put(lambda: self._engine.abort_request([request_id]))

    async def call_worker(self, method: str, *arguments: Any) -> Any:
        """Calls a method of vllm_worker.WorkerExtension between two steps."""
        [result] = await self._call(lambda: self._engine.collective_rpc(method, args=arguments))
        return result

    async def prefetch(self, name: str, int_id: int, path: str) -> None:
        """Begins to read an adapter; a hint."""
        await self.call_worker("prefetch_adapter", name, int_id, path)

    async def claim(self, name: str, int_id: int, path: str) -> int | None:
        """Nothing: a step takes the interpreter's lock, and orders, anyway."""
        return None

    async def remove_lora(self, int_id: int) -> None:
        """Unloads an adapter; a no-op if it is not loaded."""
        await self._call(lambda: self._engine.remove_lora(int_id))

    def unfinished(self) -> int:
        """Requests that vLLM has not finished or aborted."""
        return 0 if self._cause else self._engine.get_num_unfinished_requests()

    def dead(self) -> str | None:
        """Why the engine can't serve any more, or None while it can."""
        return self._cause

    async def shutdown(self) -> None:
        """Stops the thread and frees the engine."""
        self._commands.put(None)
        await asyncio.to_thread(self._thread.join, _STOP_TIMEOUT_S)

    async def _call(self, function: Callable[[], T]) -> T:
        """Runs a function on the engine's thread."""
        if self._cause is not None:
            raise VllmEngineDeadError()
        answer: asyncio.Future[T] = self._loop.create_future()

        def command() -> None:
            try:
                result = function()
            except Exception as error:
                self._post(_fail, answer, error)
            else:
                self._post(_answer, answer, result)

        self._pending.add(answer)
        self._commands.put(command)
        try:
            return await answer
        finally:
            self._pending.discard(answer)

    def _post(self, function: Callable[..., None], *args: Any) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(function, *args)

    def _run(self) -> None:
        try:
            # Threads started later inherit torch's default; this one keeps its own number.
            torch.set_num_threads(self._settings.cpu_threads)
            with _vllm_lock, kept_torch_threads():
                self._engine = LLMEngine.from_engine_args(engine_args(self._settings))
                _engines.add(self)
        except BaseException as error:
            self._cause = f"it did not start: {error}"
            self._post(_fail, self._started, error)
            return
        self._post(_answer, self._started, None)
        try:
            self._serve()
            self._cause = "it was shut down"
        except BaseException as error:
            logger.exception("the engine of base %s died", self._settings.base_id)
            self._cause = f"{type(error).__name__}: {error}"
        finally:
            self._post(self._die)
            self._free()

    def _free(self) -> None:
        with _vllm_lock:
            _engines.discard(self)
            client: Any = self._engine.engine_core
            if _engines:
                # What `client.shutdown` does, except for the process groups.
                client._finalizer.detach()
                client.engine_core.model_executor.shutdown()
                client.engine_core.scheduler.shutdown()
            else:
                client.shutdown()
            del client, self._engine
            gc.collect()

    def _serve(self) -> None:
        while True:
            busy = self._engine.has_unfinished_requests()
            while True:
                try:
                    command = self._commands.get(block=not busy)
                except queue.Empty:
                    break
                if command is None:
                    return
                with _vllm_lock:
                    command()
                busy = True
            if self._engine.has_unfinished_requests():
                with _vllm_lock:
                    outputs = self._engine.step()
                if outputs:
                    self._post(self._deliver, outputs)
                if len(_engines) > 1:
                    time.sleep(_TURN_S)

    def _deliver(self, outputs: list[RequestOutput]) -> None:
        for output in outputs:
            waiting = self._outputs.get(output.request_id)
            if waiting is not None:
                waiting.put_nowait(output)

    def _die(self) -> None:
        for waiting in self._outputs.values():
            waiting.put_nowait(VllmEngineDeadError())
        for answer in self._pending:
            _fail(answer, VllmEngineDeadError())


def _answer(future: asyncio.Future[T], result: T) -> None:
    if not future.done():
        future.set_result(result)


def _fail(future: asyncio.Future[T], error: BaseException) -> None:
    if not future.done():
        future.set_exception(error)


class InprocessVllmEngine(VllmEngine):
    """An engine for tests and small machines."""

    @classmethod
    async def start(cls, settings: EngineSettings) -> "InprocessVllmEngine":
        """Loads the base on the engine's own thread; does not block the event loop."""
        driver = InprocessDriver(settings)
        encoder = await driver.start()
        return cls(settings, driver, encoder)
