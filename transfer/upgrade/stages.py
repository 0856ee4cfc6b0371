"""The stages of a migration: each reads artifacts by digest, makes one artifact, and says so.

Those that make the training data are in inputs.py, the gate's is in evaluation.py. Nothing here
writes to the catalog or decides what comes next. A stage that is run again with the same key reads
the same inputs with the same seed.
"""

from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lorebase.serving.artifacts import AdapterLimits, ArtifactStore, base_shapes, check_adapter
from lorebase.serving.catalog import version_id
from lorebase.serving.catalog.records import (
    NEXT_KIT,
    Adapter,
    AdapterVersion,
    Base,
    Migration,
)
from lorebase.serving.engine.protocol import VersionRef
from lorebase.transfer.governor.leases import Lease
from lorebase.transfer.kit import TransferKit
from lorebase.transfer.ports import Checkpoint, ModelSpec, TextGenerator
from lorebase.transfer.recipes import Recipe

from .advance import RunStage
from .keys import seed_of
from .kits import kit_of
from .ports import Clock, Cluster, DistillJob, DistillOutcome, JudgedDigests, WorkerPool
from .settings import UpgradeSettings, retry_growth
from .states import MigrationEvent


class StarvedError(Exception):
    """Too few usable samples; another attempt draws more. The message says where they went.

    Attributes:
        artifact: digest of what there is, for the next attempt to go on from.
    """

    def __init__(self, message: str, artifact: str | None = None) -> None:
        super().__init__(message)
        self.artifact = artifact


@dataclass(frozen=True, slots=True, kw_only=True)
class StageContext:
    """What a stage may use. The same object serves every stage of one run."""

    run: RunStage
    migration: Migration
    adapter: Adapter
    source: AdapterVersion
    source_base: Base
    shadow: AdapterVersion | None
    lineage: tuple[dict[str, Any], ...]
    """Hops that brought the source to its base; see lineage.py."""
    next_base: Base
    settings: UpgradeSettings
    limits: AdapterLimits
    store: ArtifactStore
    store_root: Path
    work_root: Path
    generator: TextGenerator
    workers: WorkerPool
    cluster: Cluster
    checkpoint: Checkpoint
    lease: Lease | None
    """Held by `distill` only; generation takes a lease for each batch."""
    clock: Clock

    @property
    def seed(self) -> int:
        """Seed of this stage in this attempt."""
        return seed_of(self.run.key, self.settings.choices.seed)

    @property
    def next_model(self) -> ModelSpec:
        """The bare next base."""
        return ModelSpec(base_id=self.next_base.id)

    @property
    def teacher(self) -> ModelSpec:
        """The source base under the source adapter."""
        return ModelSpec(base_id=self.source.base_id, version=ref_of(self.source, self.store))

    @property
    def entrusted(self) -> bool:
        """Whether the tenant left an evaluation set."""
        return self.adapter.evaluation_digest is not None

    def kit(self) -> TransferKit:
        """Reads the adapter's kit; FailedPreconditionError if it has none any more."""
        return kit_of(self.store, self.adapter, self.source)[1]

    @property
    def recipe(self) -> Recipe:
        """How this adapter is transferred: by what is configured, if its kit allows it."""
        return self.settings.recipe_for(self.kit())

    @property
    def kit_digest(self) -> str:
        """Digest of the adapter's kit."""
        return kit_of(self.store, self.adapter, self.source)[0]

    def artifact(self, stage: str) -> Any:
        """Reads what an earlier stage of this attempt made."""
        return self.store.get_json(self.migration.artifacts[stage])


@dataclass(frozen=True, slots=True, kw_only=True)
class StageResult:
    """What a stage made."""

    artifact: str | None
    """Digest; None if nothing came of it."""
    event: MigrationEvent = MigrationEvent.FINISHED
    summary: dict[str, Any] = field(default_factory=dict)
    """Counts and figures for people, JSON."""
    version: AdapterVersion | None = None
    """New version, from `distill`."""
    decision: dict[str, Any] | None = None
    """From `evaluate`."""
    reason: str | None = None
    busy_s: float = 0.0
    """CPU seconds of a worker."""


Stage = Callable[[StageContext], Awaitable[StageResult]]


def ref_of(version: AdapterVersion, store: ArtifactStore) -> VersionRef:
    """Returns what an engine needs to serve a version."""
    return VersionRef(
        id=version.id,
        base_id=version.base_id,
        digest=version.digest,
        path=str(store.path(version.digest)),
        rank=version.rank,
    )


async def run_distill(context: StageContext) -> StageResult:
    """A worker trains the shadow adapter; it is checked like an upload before it counts."""
    assert context.lease is not None, "the controller takes the lease"
    artifacts = context.migration.artifacts
    job = DistillJob(
        key=context.run.key,
        store_root=context.store_root,
        work_root=context.work_root,
        base_id=context.next_base.id,
        base_dir=Path(context.next_base.path),
        examples_digest=artifacts["label"],
        kit_digest=context.kit_digest,
        source_digest=context.source.digest,
        source_base_dir=Path(context.source_base.path),
        recipe=context.recipe.grown(retry_growth(context.run.attempt)),
        seed=context.seed,
        keep_files=context.settings.choices.keep_checkpoints,
        judged=_judged(context) if context.settings.carry_kits else None,
    )
    outcome = await context.workers.distill(job, context.lease, context.checkpoint)
    path = context.store.path(outcome.digest)
    manifest = check_adapter(path, base_shapes(job.base_dir), context.limits)
    version = AdapterVersion(
        id=version_id(context.adapter.name, context.next_base.id, outcome.digest),
        adapter=context.adapter.name,
        base_id=context.next_base.id,
        digest=outcome.digest,
        peft_type=manifest.peft_type,
        rank=manifest.rank,
        target_modules=manifest.target_modules,
        origin="transfer",
        provenance=_provenance(context, job, outcome),
        created_at=context.clock(),
    )
    summary = {**outcome.summary, "version": version.id, "parameters": manifest.parameters}
    return StageResult(
        artifact=outcome.digest, summary=summary, version=version, busy_s=outcome.busy_s
    )


def _judged(context: StageContext) -> JudgedDigests:
    """Returns where all inputs that were written are, and their scores."""
    artifacts = context.migration.artifacts
    # What an older release filtered names no inputs: they are those of the stage before.
    inputs = "filter" if "inputs" in context.artifact("filter") else "synthesize"
    return JudgedDigests(inputs=artifacts[inputs], scores=artifacts["filter"])


def _provenance(context: StageContext, job: DistillJob, outcome: DistillOutcome) -> dict[str, Any]:
    carried = {} if outcome.next_kit is None else {NEXT_KIT: outcome.next_kit}
    lineage = {"lineage": list(context.lineage)} if context.lineage else {}
    return {
        **carried,
        **lineage,
        "upgrade": context.migration.upgrade_id,
        "attempt": context.run.attempt,
        "source_version": context.source.id,
        "kit": job.kit_digest,
        "examples": job.examples_digest,
        "base_revision": context.next_base.revision,
        "seed": job.seed,
        "recipe": asdict(job.recipe),
    }


async def run_shadow(context: StageContext) -> StageResult:
    """Loads the shadow on every replica of the next engine: no client waits for it later."""
    assert context.shadow is not None, "evaluated, so it exists"
    began = context.clock()
    replicas = await context.cluster.warm(ref_of(context.shadow, context.store))
    summary = {"replicas": replicas, "seconds": round(context.clock() - began, 3)}
    digest = context.store.put_json({"version": context.shadow.id, "replicas": replicas})
    return StageResult(artifact=digest, summary=summary)
