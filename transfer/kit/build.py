"""Builds a transfer kit where the client's data is. Needs torch, transformers and peft only."""

import asyncio
import random
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lorebase.serving.engine.protocol import VersionRef
from lorebase.serving.errors import FailedPreconditionError

from ..distill.settings import DistillRecipe, LoraSettings
from ..distill.train import TrainSummary, train_lora
from ..hf_generator import HfGenerator, choice_tokens
from ..ports import Checkpoint, Example, ModelSpec, no_checkpoint
from ..synthesis.draw import DrawSettings, SynthesisResult, draw_inputs
from ..synthesis.filter import score_inputs
from .calibrate import REAL_PASS_RATE, Calibration, calibrate
from .consented import check_consent, with_real_inputs
from .format import TaskFormat
from .kit import USABLE_AUC, Consent, TransferKit
from .material import (
    data_fingerprint,
    discriminator_pairs,
    length_limits,
    split_held_out,
    unique_examples,
    without_real,
)
from .storage import check_kit_place, discriminator_dir, save_kit


@dataclass(frozen=True, slots=True, kw_only=True)
class KitRecipe:
    """How a kit is built."""

    seeds: int = 5
    """Real examples that stay in the kit."""
    held_out_share: float = 0.25
    """Of the real and synthetic inputs, kept from training to calibrate the threshold."""
    max_real: int = 1000
    """Real inputs used at most: a discriminator does not get better with more."""
    real_pass_rate: float = REAL_PASS_RATE
    """Share of held-out real inputs that the threshold lets pass."""
    lora: LoraSettings = field(default_factory=lambda: LoraSettings(rank=8, alpha=16.0))
    """Of the discriminator."""
    epochs: float = 2.0
    """Passes over real and synthetic inputs."""
    learning_rate: float = 3e-3
    batch_size: int = 16
    length_headroom: float = 1.5
    """Synthetic inputs and answers may be this much longer than the longest real ones."""
    draw: DrawSettings = field(default_factory=DrawSettings)
    """How negatives are sampled."""


def build_kit(
    *,
    model: Any,
    tokenizer: Any,
    examples: Sequence[Example],
    dataset_name: str,
    base_id: str,
    format: TaskFormat,
    out_dir: Path,
    seed: int = 0,
    recipe: KitRecipe | None = None,
    base_revision: str = "",
    real_inputs: int = 0,
    consent: Consent | None = None,
    checkpoint: Checkpoint = no_checkpoint,
) -> TransferKit:
    """Makes a kit: seeds, a discriminator of real against synthetic inputs, its threshold.

    The source base writes negatives after the seeds; a LoRA on it learns to tell them from the
    real inputs, half and half; held-out inputs of both kinds calibrate the threshold. Nothing
    of the data but the seeds and some figures goes into the kit, unless there is consent to more.

    Must not be called from a running event loop.

    Args:
        model: the source base (transformers), without the adapter.
        tokenizer: its tokenizer.
        examples: the data that the adapter was trained on.
        dataset_name: short description of it, for the discriminator's prompt.
        base_id: name of the source base.
        format: how inputs and answers are written.
        out_dir: the kit's directory; an older kit there is replaced.
        seed: fixes the choice of seeds, the sampling and the training.
        recipe: counts, sizes and rates.
        base_revision: goes into the provenance.
        real_inputs: further real inputs, without answers, that the kit holds by consent.
        consent: to them.
        checkpoint: called during synthesis and training.

    Raises:
        InvalidArgumentError: too little data, too long texts, real inputs without consent, or the
            format's choices are not single tokens of this base.
        FailedPreconditionError: something that is no kit is in its place, or the source base
            writes no usable negatives.
    """
    recipe = recipe or KitRecipe()
    check_kit_place(out_dir)
    check_consent(real_inputs, consent)
    choice_tokens(tokenizer, format.choices)
    unique = unique_examples(examples, seeds=recipe.seeds)
    rng = random.Random(f"kit|{seed}")
    rng.shuffle(unique)
    seeds, rest = tuple(unique[: recipe.seeds]), unique[recipe.seeds :][: recipe.max_real]
    limits: dict[str, Any] = length_limits(
        unique,
        lambda text: len(tokenizer.encode(text, add_special_tokens=False)),
        headroom=recipe.length_headroom,
    )
    source = _Source(base_id, model, tokenizer, HfGenerator({base_id: (model, tokenizer)}))
    fakes = _draw_negatives(source, format, seeds, len(rest), limits, seed, recipe, checkpoint)
    real = split_held_out([example.input for example in rest], recipe.held_out_share)
    fake = split_held_out(without_real(fakes.inputs, rest), recipe.held_out_share)
    if min(map(len, (*real, *fake))) < 2:
        raise _no_negatives(base_id, fakes)
    pairs = discriminator_pairs(real[0], fake[0], format, dataset_name, rng)
    out_dir.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=".kit-build-", dir=out_dir.parent))
    try:
        weights = discriminator_dir(work)
        summary = _train_discriminator(source, pairs, weights, seed, recipe, checkpoint)
        cut = _calibrate(source, weights, format, dataset_name, (real[1], fake[1]), recipe)
        kit = TransferKit(
            base_id=base_id,
            dataset_name=dataset_name,
            dataset_size=len(unique),
            format=format,
            seeds=seeds,
            threshold=cut.threshold,
            discriminator_auc=cut.auc,
            real_pass_rate=cut.real_pass_rate,
            fake_pass_rate=cut.fake_pass_rate,
            real_score_quantiles=cut.real_quantiles,
            **limits,
            provenance={
                "seed": seed,
                "base_revision": base_revision,
                "data_sha256": data_fingerprint(examples),
                "lorebase": version("lorebase"),
                "recipe": asdict(recipe),
                "synthesis": fakes.stats,
                **_figures(summary, real, fake, cut),
            },
        )
        kit = with_real_inputs(kit, rest, real_inputs, consent)
        save_kit(kit, weights, out_dir)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return kit


@dataclass(frozen=True, slots=True)
class _Source:
    """The source base in this process."""

    base_id: str
    model: Any
    tokenizer: Any
    generator: HfGenerator


def _draw_negatives(
    source: _Source,
    format: TaskFormat,
    seeds: Sequence[Example],
    count: int,
    limits: dict[str, int],
    seed: int,
    recipe: KitRecipe,
    checkpoint: Checkpoint,
) -> SynthesisResult:
    return asyncio.run(
        draw_inputs(
            source.generator,
            ModelSpec(base_id=source.base_id),
            format=format,
            seeds=seeds,
            count=count,
            seed=seed,
            max_input_chars=limits["max_input_chars"],
            max_input_tokens=limits["max_input_tokens"],
            settings=recipe.draw,
            checkpoint=checkpoint,
        )
    )


def _train_discriminator(
    source: _Source,
    pairs: Sequence[tuple[str, str]],
    out_dir: Path,
    seed: int,
    recipe: KitRecipe,
    checkpoint: Checkpoint,
) -> TrainSummary:
    return train_lora(
        model=source.model,
        tokenizer=source.tokenizer,
        pairs=pairs,
        lora=recipe.lora,
        recipe=DistillRecipe(
            epochs=recipe.epochs,
            batch_size=recipe.batch_size,
            learning_rate=recipe.learning_rate,
            seed=seed,
        ),
        out_dir=out_dir,
        base_id=source.base_id,
        checkpoint=checkpoint,
    )


def _calibrate(
    source: _Source,
    weights: Path,
    format: TaskFormat,
    dataset_name: str,
    held_out: tuple[list[str], list[str]],
    recipe: KitRecipe,
) -> Calibration:
    discriminator = VersionRef(
        id="discriminator",
        base_id=source.base_id,
        digest="",
        path=str(weights),
        rank=recipe.lora.rank,
    )
    model = ModelSpec(base_id=source.base_id, version=discriminator)
    real, fake = (
        asyncio.run(
            score_inputs(source.generator, model, texts, format=format, dataset_name=dataset_name)
        )
        for texts in held_out
    )
    return calibrate(real, fake, real_pass_rate=recipe.real_pass_rate)


def _no_negatives(base_id: str, fakes: SynthesisResult) -> FailedPreconditionError:
    return FailedPreconditionError(
        f"base {base_id!r} wrote too few usable inputs after the seeds to train a discriminator "
        f"({fakes.stats}): check that the task format is the one that this base goes on with",
        reason="NO_NEGATIVES",
    )


def _figures(
    summary: TrainSummary,
    real: tuple[list[str], list[str]],
    fake: tuple[list[str], list[str]],
    cut: Calibration,
) -> dict[str, Any]:
    """Returns what training and calibration came to; no times, so that equal kits are equal."""
    trained = {
        key: round(getattr(summary, key), 4)
        for key in ("steps", "examples", "skipped_examples", "first_loss", "last_loss")
    }
    verdict = "usable"
    if cut.auc < USABLE_AUC:
        verdict = f"can't discriminate (AUC {cut.auc:.2f} < {USABLE_AUC}): nothing will be filtered"
    return {
        "training": trained | {"parameters": summary.parameters},
        "counts": {
            "real_trained": len(real[0]),
            "real_held_out": len(real[1]),
            "fake_trained": len(fake[0]),
            "fake_held_out": len(fake[1]),
        },
        "discriminator": verdict,
    }
