"""Makes engines; the only place that decides when vLLM is imported."""

import asyncio
from typing import TYPE_CHECKING

from .protocol import Engine
from .settings import EngineSettings, apply_environment, cpu_environment

if TYPE_CHECKING:
    from .vllm_async import AsyncVllmEngine
    from .vllm_inprocess import InprocessVllmEngine


async def create_engine(settings: EngineSettings) -> Engine:
    """Starts an engine and returns it when it can serve.

    vLLM is imported here and not before, after the environment it needs is set (what is set
    already wins). Starting takes seconds (`inprocess`) to half a minute (`async`), and with
    `async` blocks the event loop meanwhile.

    Raises:
        InvalidArgumentError: a setting is impossible for this base or machine.
    """
    apply_environment(cpu_environment(settings))
    if settings.backend == "inprocess":
        # The import takes seconds; the loop stays free for it.
        return await (await asyncio.to_thread(_inprocess)).start(settings)
    return await (await asyncio.to_thread(_async)).start(settings)


def _inprocess() -> "type[InprocessVllmEngine]":
    from .vllm_inprocess import InprocessVllmEngine

    return InprocessVllmEngine


def _async() -> "type[AsyncVllmEngine]":
    from .vllm_async import AsyncVllmEngine

    return AsyncVllmEngine
