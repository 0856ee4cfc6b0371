"""Takes a kit along to the next base, so that the adapter can move once more without the data.

The discriminator is a LoRA of the old base. What it knows is in its judgements: during a migration
it has scored hundreds of inputs that the next base wrote. A LoRA of the next base learns to judge
the same inputs the same way; its threshold is set anew on judged inputs that it did not learn
from. No real input is needed but the seeds, which are in the kit anyway.
"""

import asyncio
import json
import random
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lorebase.serving.engine.protocol import VersionRef

from ..distill.settings import DistillRecipe, LoraSettings
from ..distill.train import TrainSummary, train_lora
from ..hf_generator import HfGenerator
from ..ports import Checkpoint, ModelSpec, no_checkpoint
from ..synthesis.filter import score_inputs
from .calibrate import LETS_ALL_PASS, Calibration, auc, calibrate
from .choices import fitting_choices
from .format import TaskFormat
from .kit import MAX_TEXT_CHARS, TransferKit
from .material import discriminator_pairs, split_held_out
from .storage import discriminator_dir, save_kit

MIN_JUDGED = 24
"""Inputs of each kind, accepted and rejected; fewer teach no judgement."""
SPARE_TOKENS = 8
"""Beyond the longest text seen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CarryRecipe:
    """How the next discriminator is trained; the same figures as a new kit's."""

    most_of_a_kind: int = 200
    """Judged inputs of each kind, accepted and rejected, that are learnt from or held out, chosen
    at random. A skewed task has a thousand rejected ones, and learning them all took more than
    twice as long as training the shadow."""
    held_out_share: float = 0.25
    """Of the judged inputs, kept from training to set the threshold."""
    lora: LoraSettings = field(default_factory=lambda: LoraSettings(rank=8, alpha=16.0))
    epochs: float = 3.0
    learning_rate: float = 3e-3
    batch_size: int = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """What the old discriminator thought of the next base's inputs."""

    inputs: Sequence[str]
    scores: Sequence[float]
    """log p(real) - log p(not real) of each; empty if it was not asked."""
    answers: Sequence[str] = ()
    """Answers of the adapter: how long they get in the next base's tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NextBase:
    """The base that the kit is carried to, in this process."""

    id: str
    model: Any
    """Transformers model, without any adapter."""
    tokenizer: Any
    revision: str = ""


def carry_kit(
    kit: TransferKit,
    judged: Judged,
    base: NextBase,
    out_dir: Path,
    *,
    seed: int = 0,
    recipe: CarryRecipe | None = None,
    checkpoint: Checkpoint = no_checkpoint,
) -> TransferKit:
    """Writes a kit for the next base that judges as the old one does.

    Where the old discriminator can't discriminate, was not asked or accepts (or rejects) nearly
    everything, there is nothing to learn: the new kit then says that its discriminator can't
    discriminate, and nothing will be filtered with it.

    Must not be called from a running event loop.

    Args:
        kit: the old base's kit.
        judged: inputs with the old discriminator's scores.
        base: the next base.
        out_dir: the new kit's directory; a kit there is replaced.
        seed: fixes split and training.
        recipe: how to train.
        checkpoint: called before every training step.

    Returns:
        The new kit. Its AUC is the worse of the old discriminator's and the likeness of the two;
        its pass rates are estimates from both (`provenance.carried` has the parts).

    Raises:
        ValueError: scores that belong to other inputs.
        InvalidArgumentError: no pair of choices is single tokens of this base.
    """
    if judged.scores and len(judged.scores) != len(judged.inputs):
        raise ValueError(f"got {len(judged.scores)} scores of {len(judged.inputs)} inputs")
    recipe = recipe or CarryRecipe()
    out_dir.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=".kit-carry-", dir=out_dir.parent))
    try:
        carried = _Carrier(kit, base, recipe, work, seed, checkpoint).carry(judged)
        save_kit(carried, discriminator_dir(work) if carried.discriminator else None, out_dir)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return carried


@dataclass(frozen=True, slots=True)
class _Carrier:
    kit: TransferKit
    base: NextBase
    recipe: CarryRecipe
    work: Path
    seed: int
    checkpoint: Checkpoint

    def carry(self, judged: Judged) -> TransferKit:
        limits = self._limits(judged)
        if not self.kit.discriminator:
            why = "there is no discriminator"
            return self._kit(self.kit.format, limits, 0, {}, {"why": why})
        format = replace(self.kit.format, choices=fitting_choices(self.base.tokenizer, self.kit))
        accepted, rejected = _split(judged, self.kit)
        why = _nothing_to_learn(self.kit, judged, accepted, rejected)
        if why:
            summary = self._train([(format.discriminator_prompt("-", ""), format.choices[1])], 1)
            return self._kit(format, limits, summary.steps, dict(LETS_ALL_PASS), {"why": why})
        rng = random.Random(f"carry|{self.seed}")
        most, held_out = self.recipe.most_of_a_kind, self.recipe.held_out_share
        real = split_held_out(_sample(accepted, most, rng), held_out)
        fake = split_held_out(_sample(rejected, most, rng), held_out)
        # The seeds are the only real inputs left: they are learnt from, not judged by.
        known = [*(item.input for item in self.kit.seeds), *real[0]]
        pairs = discriminator_pairs(known, fake[0], format, self.kit.dataset_name, rng)
        summary = self._train(pairs, None)
        scores = [self._scores(format, texts) for texts in (real[1], fake[1])]
        cut = calibrate(*scores, real_pass_rate=self.kit.real_pass_rate)
        share = len(accepted) / len(judged.inputs)
        figures = _figures(self.kit, cut, share)
        parts = {
            "likeness_auc": round(auc(*scores), 4),
            "accepted": len(accepted),
            "rejected": len(rejected),
            "accepted_pass_rate": round(cut.real_pass_rate, 4),
            "rejected_pass_rate": round(cut.fake_pass_rate, 4),
        }
        return self._kit(format, limits, summary.steps, figures, parts)

    def _train(self, pairs: Sequence[tuple[str, str]], steps: int | None) -> TrainSummary:
        return train_lora(
            model=self.base.model,
            tokenizer=self.base.tokenizer,
            pairs=pairs,
            lora=self.recipe.lora,
            recipe=DistillRecipe(
                steps=steps,
                epochs=None if steps else self.recipe.epochs,
                batch_size=self.recipe.batch_size,
                learning_rate=self.recipe.learning_rate,
                seed=self.seed,
            ),
            out_dir=discriminator_dir(self.work),
            base_id=self.base.id,
            checkpoint=self.checkpoint,
        )

    def _scores(self, format: TaskFormat, texts: Sequence[str]) -> list[float]:
        base = self.base
        generator = HfGenerator({base.id: (base.model, base.tokenizer)})
        path = str(discriminator_dir(self.work))
        ref = VersionRef(id="d", base_id=base.id, digest="", path=path, rank=self.recipe.lora.rank)
        model = ModelSpec(base_id=base.id, version=ref)
        return asyncio.run(
            score_inputs(generator, model, texts, format=format, dataset_name=self.kit.dataset_name)
        )

    def _limits(self, judged: Judged) -> dict[str, Any]:
        """Token budgets, for a tokenizer that may cut finer than the old one."""
        seeds = self.kit.seeds
        inputs = [*judged.inputs, *(item.input for item in seeds)]
        answers = [*judged.answers, *(item.target for item in seeds)]
        return {
            "max_input_tokens": self._budget(self.kit.max_input_tokens, inputs),
            "max_answer_tokens": self._budget(self.kit.max_answer_tokens, answers),
        }

    def _budget(self, old: int, texts: Sequence[str]) -> int:
        encode = self.base.tokenizer.encode
        longest = max(len(encode(text, add_special_tokens=False)) for text in texts)
        return min(MAX_TEXT_CHARS, max(old, longest + SPARE_TOKENS))

    def _kit(
        self,
        format: TaskFormat,
        limits: dict[str, Any],
        steps: int,
        figures: dict[str, Any],
        parts: dict[str, Any],
    ) -> TransferKit:
        old = self.kit
        before = old.provenance.get("carried", {})
        carried = {
            "from_base": old.base_id,
            "hops": int(before.get("hops", 0)) + 1,
            "old_auc": round(old.discriminator_auc, 4),
            "steps": steps,
            **parts,
        }
        provenance = {
            "seed": self.seed,
            "base_revision": self.base.revision,
            "lorebase": version("lorebase"),
            "recipe": json.loads(json.dumps(asdict(self.recipe))),
            "seeds": old.provenance.get("seeds", "real examples"),
            "carried": carried,
        }
        quantiles = figures.pop("real_score_quantiles", ())
        return replace(
            old,
            base_id=self.base.id,
            format=format,
            real_score_quantiles=quantiles,
            provenance=provenance,
            **limits,
            **figures,
        )


def _split(judged: Judged, kit: TransferKit) -> tuple[list[str], list[str]]:
    """Returns accepted and rejected inputs; without scores none."""
    pairs = list(zip(judged.inputs, judged.scores, strict=False))
    accepted = [text for text, score in pairs if score > kit.threshold]
    return accepted, [text for text, score in pairs if score <= kit.threshold]


def _sample(texts: Sequence[str], most: int, rng: random.Random) -> list[str]:
    return rng.sample(texts, most) if len(texts) > most else list(texts)


def _nothing_to_learn(
    kit: TransferKit, judged: Judged, accepted: Sequence[str], rejected: Sequence[str]
) -> str:
    """Returns why no discriminator can be learnt; empty if one can."""
    if not kit.discriminates:
        return f"the old discriminator can't discriminate (AUC {kit.discriminator_auc:.2f})"
    if not judged.scores:
        return "the old discriminator was not asked"
    if min(len(accepted), len(rejected)) < MIN_JUDGED:
        return f"it accepted {len(accepted)} and rejected {len(rejected)} inputs"
    return ""


def _figures(kit: TransferKit, cut: Calibration, accepted_share: float) -> dict[str, Any]:
    """Returns the new kit's figures.

    Nobody can measure them on real inputs any more. A real input passes the new discriminator if
    the old one accepts it and the new one agrees, or the other way round; a synthetic one likewise.
    """

    def passes(accepted: float) -> float:
        return accepted * cut.real_pass_rate + (1.0 - accepted) * cut.fake_pass_rate

    return {
        "threshold": cut.threshold,
        "discriminator_auc": min(kit.discriminator_auc, cut.auc),
        "real_pass_rate": passes(kit.real_pass_rate),
        "fake_pass_rate": passes(accepted_share),
        "real_score_quantiles": cut.real_quantiles,
    }
