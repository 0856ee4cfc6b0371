"""The distill stage's work, as it runs in a worker process: plain code, no Ray."""

import shutil
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lorebase.serving.artifacts import ArtifactStore, base_shapes
from lorebase.serving.errors import LorebaseError
from lorebase.transfer.distill import LoraSettings
from lorebase.transfer.distill.distill import load_base
from lorebase.transfer.kit import TransferKit, load_kit
from lorebase.transfer.kit.carry import Judged, NextBase, carry_kit
from lorebase.transfer.ports import Checkpoint, Example, no_checkpoint
from lorebase.transfer.recipes import LoraChoice
from lorebase.transfer.recipes.models import Shadow, load_teacher
from lorebase.transfer.recipes.shadow import train_shadow

from .keys import folder_of
from .lora_shape import lora_shape
from .ports import DistillJob, DistillOutcome, JudgedDigests

SAVE_EVERY = 20
"""Steps between resume points: what a killed worker loses at most."""


def lora_for(source_dir: Path, base_dir: Path, choice: LoraChoice) -> LoraSettings:
    """Returns the shadow's shape: what the recipe says, else the source's, fitted to the base."""
    shape = lora_shape(source_dir)
    return choice.settings(
        rank=shape.rank,
        alpha=shape.alpha,
        source_modules=shape.target_modules,
        base=tuple(base_shapes(base_dir).modules),
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
    source_dir = store.path(job.source_digest)
    lora = lora_for(source_dir, job.base_dir, job.recipe.lora)
    out_dir = job.work_root / folder_of(job.key)
    out_dir.mkdir(parents=True, exist_ok=True)
    model, tokenizer = load_base(job.base_dir)
    figures = train_shadow(
        job.recipe,
        Shadow(
            model=model,
            tokenizer=tokenizer,
            base_id=job.base_id,
            lora=lora,
            format=kit.format,
            max_answer_tokens=kit.max_answer_tokens,
            source_dir=source_dir,
        ),
        [Example(**item) for item in labelled["training"]],
        teacher=lambda: load_teacher(job.source_base_dir, source_dir),
        out_dir=out_dir,
        seed=job.seed,
        save_every=SAVE_EVERY,
        checkpoint=checkpoint,
    )
    digest = store.put_dir(out_dir)
    summary: dict[str, Any] = {**figures, "lora": asdict(lora), "recipe": job.recipe.name}
    next_kit = None
    if job.judged is not None:
        next_base = NextBase(id=job.base_id, model=model, tokenizer=tokenizer)
        next_kit, summary["next_kit"] = _carried(job, job.judged, kit, next_base, checkpoint)
    if not job.keep_files:
        shutil.rmtree(out_dir, ignore_errors=True)
    return DistillOutcome(
        digest=digest,
        summary=summary,
        busy_s=time.thread_time() - began,
        next_kit=next_kit,
    )


def _carried(
    job: DistillJob,
    digests: JudgedDigests,
    kit: TransferKit,
    base: NextBase,
    checkpoint: Checkpoint,
) -> tuple[str | None, dict[str, Any]]:
    """Returns the digest of the kit for the next base, and figures for people.

    A kit that can't be carried is no reason to lose the shadow: the figures then say why.
    """
    store = ArtifactStore(job.store_root)
    labelled = store.get_json(job.examples_digest)
    judged = Judged(
        inputs=store.get_json(digests.inputs)["inputs"],
        scores=store.get_json(digests.scores)["scores"],
        answers=[item["target"] for item in labelled["training"]],
    )
    folder = job.work_root / folder_of(f"{job.key}/kit")

    def lease_only(progress: float) -> None:
        # The training has told the stage's progress; a kit's own would count back from 1.
        checkpoint(1.0)

    try:
        carried = carry_kit(kit, judged, base, folder, seed=job.seed, checkpoint=lease_only)
        return store.put_dir(folder), dict(carried.provenance["carried"])
    except (LorebaseError, FloatingPointError, ValueError) as error:
        return None, {"problem": str(error)}
    finally:
        shutil.rmtree(folder, ignore_errors=True)
