"""What the gateway needs from the world, as Protocols, and what it hands to plugged-in servicers.

Ray stays behind these: the gateway's own code runs on fakes in unit tests.
"""

from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from typing import Protocol

from ..artifacts import ArtifactStore
from ..catalog import Catalog
from ..config import Settings
from ..engine.protocol import Chunk, GenerationRequest, VersionRef
from ..routing.table import RouteTable
from .calls import Message
from .resume import TextCodec


class EngineClient(Protocol):
    """The engines of all bases."""

    def generate(
        self, base_id: str, request: GenerationRequest, wait_s: float
    ) -> AsyncGenerator[Chunk, None]:
        """Generates; closing the generator aborts the request in the engine.

        Args:
            base_id: whose engine.
            request: for that engine.
            wait_s: least time between two chunks.

        Raises:
            InvalidArgumentError: as the engine says.
            EngineDeadError: the engine died under the request; resubmitting may help.
            UnavailableError: no engine runs for that base.
        """
        ...

    def prefetch(self, version: VersionRef) -> None:
        """Lets a version be loaded that a queued request will use: a hint, which never raises."""
        ...

    async def ensure_adapter(self, version: VersionRef) -> None:
        """Loads a version at the engine of its base.

        Raises:
            InvalidArgumentError: the files don't fit.
            UnavailableError: no engine runs for that base.
        """
        ...

    async def drop_adapter(self, version: VersionRef) -> None:
        """Unloads a version once its requests have finished.

        Raises:
            UnavailableError: no engine runs for that base.
        """
        ...


class Tokenizers(Protocol):
    """Tokenizers and chat templates of the bases."""

    async def codec(self, base_id: str) -> TextCodec:
        """Returns a base's tokenizer.

        Raises:
            FailedPreconditionError: the base has none that can be used outside its engine.
        """
        ...

    async def render_chat(
        self, base_id: str, messages: tuple[Message, ...]
    ) -> str | tuple[int, ...]:
        """Returns the prompt for a chat, as text or as token ids.

        Raises:
            InvalidArgumentError: the base's chat template refuses the messages.
        """
        ...


class RoutePublisher(Protocol):
    """Makes a new revision of the routes take effect."""

    async def publish(self, revision: int) -> None:
        """Returns once every live gateway uses `revision` or a later one.

        Raises:
            DeadlineExceededError: some gateway does not yet; it will as soon as it can.
            UnavailableError: the route hub is not running.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayContext:
    """Handed to the `install(server, context)` functions of `gateway.extra_servicers`.

    An install function adds its servicers to the `grpc.aio.Server` and returns the full names of
    their services, for reflection and health. Servicers let LorebaseErrors through; the gateway
    maps them to google.rpc.Status. Catalog calls are blocking: use asyncio.to_thread.
    """

    settings: Settings
    catalog: Catalog
    artifacts: ArtifactStore
    engines: EngineClient
    publisher: RoutePublisher
    table: Callable[[], RouteTable | None]
    """The gateway's present route table; None before the first."""
