"""A LoRA that learned the answers of an adapter that no engine serves, on its base or the next.

The same stages as a migration, in this process: inputs from the kit's seeds, the teacher run
through PEFT, training, and the gate's word on inputs that were held out.
"""

import asyncio
import shutil
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lorebase.serving.artifacts import (
    AdapterLimits,
    base_revision,
    base_shapes,
    check_adapter,
)
from lorebase.serving.engine.protocol import VersionRef
from lorebase.serving.errors import FailedPreconditionError

from ..directories import replace_directory
from ..distill.distill import load_base, training_pairs
from ..distill.settings import DistillRecipe, LoraSettings
from ..distill.train import TrainSummary, train_lora
from ..evaluate import Decision, GatePolicy, decide, label_free_evidence, score
from ..hf_generator import HfGenerator
from ..kit import TransferKit, check_kit, discriminator_dir
from ..ports import Checkpoint, Example, ModelSpec, no_checkpoint
from ..synthesis import filter_inputs, hold_out, inputs_to_draw, label_inputs, synthesize
from .files import read_kind, source_sha256
from .kinds import DISTILL, REFUSE
from .place import check_lora_place
from .report import DistilledReport, DistillSettings

MIN_TRAINING = 32
"""Fewer labelled inputs teach nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseFiles:
    """A base by name and place."""

    id: str
    path: Path


def distill_adapter(
    source_dir: Path,
    source_base: BaseFiles,
    kit_dir: Path,
    out_dir: Path,
    *,
    target_base: BaseFiles | None = None,
    settings: DistillSettings | None = None,
    checkpoint: Checkpoint = no_checkpoint,
) -> DistilledReport:
    """Trains a LoRA on the answers of an adapter of any PEFT type that can be run.

    Must not be called from a running event loop.

    Args:
        source_dir: what PEFT saved.
        source_base: the base that it was trained on.
        kit_dir: transfer kit of the adapter, for that base.
        out_dir: gets the PEFT directory; one that is there is replaced.
        target_base: base of the result; the source's by default.
        settings: how much, how long, and whether the gate must agree.
        checkpoint: called between batches and before every training step.

    Raises:
        InvalidArgumentError: unfit files.
        FailedPreconditionError: a type that can't be run, too few usable inputs, the gate
            refuses the result, or something that is no PEFT directory is in its place.
    """
    settings = settings or DistillSettings()
    check_lora_place(out_dir)
    kind = read_kind(source_dir)
    if kind.path == REFUSE:
        raise FailedPreconditionError(kind.reason, reason="NOT_CONVERTIBLE")
    target_base = target_base or source_base
    kit = check_kit(kit_dir, base_shapes(source_base.path), AdapterLimits())
    run = _Run(
        source_dir=source_dir,
        source_base=source_base,
        target_base=target_base,
        kit_dir=kit_dir,
        kit=kit,
        settings=settings,
        checkpoint=checkpoint,
        bases={base.id: load_base(base.path) for base in (source_base, target_base)},
    )
    out_dir.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=".distill-", dir=out_dir.parent))
    try:
        training, held_out = asyncio.run(run.examples())
        summary = run.train(training, work)
        decision = asyncio.run(run.judge(held_out, work))
        if decision.verdict != "promote" and not settings.accept_loss:
            raise FailedPreconditionError(
                f"the gate refuses the result: {decision.reason}", reason="DISTILLATION_LOSSY"
            )
        manifest = check_adapter(work, base_shapes(target_base.path), AdapterLimits())
        report = DistilledReport(
            peft_type=kind.name,
            path=DISTILL,
            source_sha256=source_sha256(source_dir),
            base_revision=base_revision(target_base.path),
            inputs=len(training),
            training=asdict(summary),
            rank=manifest.rank,
            parameters=manifest.parameters,
            decision=decision.as_dict(),
        )
        (work / "README.md").write_text(report.page(), encoding="utf-8")
        work.chmod(0o755)
        replace_directory(work, out_dir)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return report


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    """One distillation."""

    source_dir: Path
    source_base: BaseFiles
    target_base: BaseFiles
    kit_dir: Path
    kit: TransferKit
    settings: DistillSettings
    checkpoint: Checkpoint
    bases: dict[str, tuple[Any, Any]]

    def _model(self, base: BaseFiles, name: str, path: Path) -> ModelSpec:
        ref = VersionRef(id=name, base_id=base.id, digest="", path=str(path), rank=1)
        return ModelSpec(base_id=base.id, version=ref)

    @property
    def _teacher(self) -> ModelSpec:
        return self._model(self.source_base, "teacher", self.source_dir)

    async def examples(self) -> tuple[list[Example], list[Example]]:
        """Returns labelled inputs to train on, and those held out."""
        generator = HfGenerator(dict(self.bases))
        choices = self.settings
        wanted = choices.samples + choices.evaluation_samples
        drawn = await synthesize(
            generator,
            ModelSpec(base_id=self.target_base.id),
            self.kit,
            count=inputs_to_draw(self.kit, wanted),
            seed=choices.seed,
            checkpoint=self.checkpoint,
        )
        discriminator = self._model(
            self.source_base, "discriminator", discriminator_dir(self.kit_dir)
        )
        kept = await filter_inputs(
            generator, discriminator, self.kit, drawn.inputs, checkpoint=self.checkpoint
        )
        labelled = await label_inputs(
            generator, self._teacher, self.kit, kept.kept[:wanted], checkpoint=self.checkpoint
        )
        training, held_out = hold_out(
            labelled.examples, choices.evaluation_samples, seed=choices.seed
        )
        if len(training) < MIN_TRAINING:
            raise FailedPreconditionError(
                f"{len(training)} usable inputs, expected at least {MIN_TRAINING}: "
                f"{drawn.stats}, {kept.stats['reason']}, {labelled.stats}",
                reason="STARVED",
            )
        return training, held_out

    def train(self, examples: list[Example], out_dir: Path) -> TrainSummary:
        """Trains the LoRA."""
        choices = self.settings
        model, tokenizer = self.bases[self.target_base.id]
        return train_lora(
            model=model,
            tokenizer=tokenizer,
            pairs=training_pairs(examples, self.kit.format),
            lora=LoraSettings(rank=choices.rank, alpha=2.0 * choices.rank),
            recipe=DistillRecipe(
                steps=choices.steps,
                batch_size=choices.batch_size,
                learning_rate=choices.learning_rate,
                seed=choices.seed,
            ),
            out_dir=out_dir,
            base_id=self.target_base.id,
            checkpoint=self.checkpoint,
        )

    async def judge(self, held_out: list[Example], result: Path) -> Decision:
        """Compares result and teacher on held-out inputs."""
        generator = HfGenerator(dict(self.bases))
        source = [item.target for item in held_out]
        answers = []
        for model in (
            self._model(self.target_base, "result", result),
            ModelSpec(base_id=self.target_base.id),
        ):
            answers.append(
                await score(
                    generator,
                    model,
                    held_out,
                    self.kit.format,
                    max_tokens=self.kit.max_answer_tokens,
                    checkpoint=self.checkpoint,
                )
            )
        policy = GatePolicy(label_free_margin=self.settings.margin)
        return decide(label_free_evidence(source, answers[0], answers[1]), policy)
