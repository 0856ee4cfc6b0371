"""The distill stage's work, as it runs in a worker process: plain code, no Ray."""

import shutil
import time
from dataclasses import asdict
from pathlib import Path

from lorebase.serving.artifacts import ArtifactStore, base_shapes
from lorebase.transfer.distill import DistillRecipe, LoraSettings, present_modules
from lorebase.transfer.distill.distill import distill
from lorebase.transfer.kit import load_kit
from lorebase.transfer.ports import Checkpoint, Example, no_checkpoint

from .keys import folder_of
from .lora_shape import lora_shape
from .ports import DistillJob, DistillOutcome

PAPER_EPOCHS = 20.0
SAVE_EVERY = 20
"""Steps between resume points: what a killed worker loses at most."""


def lora_for(source_dir: Path, base_dir: Path) -> LoraSettings:
    """Returns the source adapter's rank, alpha and target modules, fitted to the next base."""
    shape = lora_shape(source_dir)
    modules = present_modules(shape.target_modules, base_shapes(base_dir).modules)
    return LoraSettings(rank=shape.rank, alpha=shape.alpha, target_modules=modules)


def recipe_for(job: DistillJob) -> DistillRecipe:
    """Returns the training recipe that the job's figures ask for."""
    return DistillRecipe(
        steps=job.steps or None,
        epochs=None if job.steps else PAPER_EPOCHS,
        batch_size=job.batch_size,
        learning_rate=job.learning_rate,
        seed=job.seed,
        save_every=SAVE_EVERY,
    )


def run_job(job: DistillJob, checkpoint: Checkpoint = no_checkpoint) -> DistillOutcome:
    """Trains the shadow adapter and puts it into the store.

    The working directory follows from the job's key: a job that is run again after a crash goes
    on from its last resume point, and leaves nothing behind when it ends.

    Raises:
        StageCancelledError: the checkpoint said so; the resume point stays for the next run.
    """
    began = time.thread_time()
    store = ArtifactStore(job.store_root)
    kit = load_kit(store.path(job.kit_digest))
    labelled = store.get_json(job.examples_digest)
    lora = lora_for(store.path(job.source_digest), job.base_dir)
    out_dir = job.work_root / folder_of(job.key)
    out_dir.mkdir(parents=True, exist_ok=True)
    summary = distill(
        base_dir=job.base_dir,
        base_id=job.base_id,
        examples=[Example(**item) for item in labelled["training"]],
        format=kit.format,
        lora=lora,
        recipe=recipe_for(job),
        out_dir=out_dir,
        checkpoint=checkpoint,
    )
    digest = store.put_dir(out_dir)
    if not job.keep_files:
        shutil.rmtree(out_dir, ignore_errors=True)
    return DistillOutcome(
        digest=digest,
        summary={"train": asdict(summary), "lora": asdict(lora)},
        busy_s=time.thread_time() - began,
    )
