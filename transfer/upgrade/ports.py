"""What the controller needs from the cluster, as Protocols; Ray stands behind them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from lorebase.serving.catalog.records import Base
from lorebase.serving.engine.protocol import EngineStats, VersionRef
from lorebase.transfer.governor.leases import Lease
from lorebase.transfer.recipes import Recipe

Clock = Callable[[], float]
"""Seconds since the epoch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedDigests:
    """Artifacts of one attempt: inputs, and what the discriminator thought of them."""

    inputs: str
    """Holds all `inputs` that were written."""
    scores: str
    """Of the filter stage; its scores are in the order of those inputs, or empty."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillJob:
    """All that a worker process needs to train one shadow adapter. Plain data: it is pickled."""

    key: str
    """Idempotency key (migration/stage/attempt)."""
    store_root: Path
    """Artifact store, reachable from the worker."""
    work_root: Path
    """Directory for working files and resume points."""
    base_id: str
    base_dir: Path
    """Weights and tokenizer of the next base."""
    examples_digest: str
    """Artifact of the label stage."""
    kit_digest: str
    """Its task format shapes prompts and answers."""
    source_digest: str
    """Source adapter: its rank is taken over, and it teaches where the recipe asks it."""
    source_base_dir: Path
    """Weights and tokenizer of its base."""
    recipe: Recipe
    """How to train, retries taken into account."""
    seed: int
    keep_files: bool = False
    """Whether working files stay after the job."""
    judged: JudgedDigests | None = None
    """With what to carry the kit to the next base; None does not carry it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillOutcome:
    """What a worker made."""

    digest: str
    """PEFT directory in the store."""
    summary: dict[str, Any]
    """Figures of the training, JSON."""
    busy_s: float
    """CPU seconds of the training thread."""
    next_kit: str | None = None
    """Kit in the store with which the shadow can migrate to a further base; None if there is
    none."""


class WorkerPool(Protocol):
    """Processes that train; bounded, on idle CPU only."""

    async def distill(
        self, job: DistillJob, lease: Lease, on_progress: Callable[[float], None]
    ) -> DistillOutcome:
        """Trains in a worker while the lease is granted; cancelling stops the training.

        Raises:
            UnavailableError: the worker died; the job may be tried again.
        """
        ...

    async def trim(self, keep: int) -> None:
        """Stops idle workers beyond `keep`."""
        ...


class Cluster(Protocol):
    """Engines, routes and gateways."""

    async def deploy_engine(self, base: Base) -> None:
        """Starts the engine of a base and waits until it runs; a no-op if it does."""
        ...

    async def retire_engine(self, base_id: str) -> None:
        """Stops an engine; a no-op if there is none."""
        ...

    async def refresh_routes(self) -> None:
        """Makes the route hub read the catalog now."""
        ...

    async def wait_acks(self, revision: int, timeout_s: float) -> bool:
        """Waits until every gateway holds the revision; False if the time was not enough."""
        ...

    async def warm(self, version: VersionRef) -> int:
        """Loads a version on all replicas of its base; returns how many hold it.

        Raises:
            InvalidArgumentError: the engine refuses the version.
            UnavailableError: not every replica could be reached; try again.
        """
        ...

    async def engine_stats(self, base_id: str) -> EngineStats:
        """Returns the load of an engine, summed over its replicas."""
        ...


class Metrics(Protocol):
    """What the controller counts."""

    def swap(self, seconds: float) -> None:
        """A route flipped and every gateway acknowledged it after so many seconds."""
        ...

    def busy(self, stage: str, seconds: float) -> None:
        """A stage kept background resources busy."""
        ...

    def migrations(self, by_state: dict[str, int]) -> None:
        """How many migrations of the newest upgrade are in each state."""
        ...

    def lease(self, kind: str, change: int) -> None:
        """A lease was granted (+1), or revoked or released (-1)."""
        ...
