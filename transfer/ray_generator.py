"""How background generation reaches the serving engines."""

from collections.abc import Callable

from lorebase.serving.engine.protocol import Completion, GenerationRequest
from lorebase.transfer.governor import LeaseTable
from lorebase.transfer.upgrade.leased_generator import LeasedGenerator

from .ray_cluster import engine_call


async def call_engine(base_id: str, requests: list[GenerationRequest]) -> list[Completion]:
    """Sends one batch to the engine of a base.

    Raises:
        UnavailableError: no replica, or it died under the batch.
    """
    found: list[Completion] = await engine_call(base_id, "generate_many", requests)
    return found


def engine_generator(
    leases: LeaseTable, holder: str, on_busy: Callable[[float], None]
) -> LeasedGenerator:
    """Returns a generator over the engines; see `LeasedGenerator`."""
    return LeasedGenerator(leases, holder, on_busy, call_engine)
