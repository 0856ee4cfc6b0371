"""Builds a transfer kit where the client's data is. Needs torch, transformers and peft only."""

import asyncio
import math
import random
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lorebase.serving.engine.protocol import VersionRef
from lorebase.serving.errors import FailedPreconditionError, InvalidArgumentError

from ..distill.settings import DistillRecipe, LoraSettings
from ..distill.train import TrainSummary, train_lora
from ..hf_generator import HfGenerator, choice_tokens
from ..ports import Checkpoint, Example, ModelSpec, no_checkpoint
from ..synthesis.draw import DrawSettings, SynthesisResult, draw_inputs
from ..synthesis.filter import score_inputs
from .calibrate import REAL_PASS_RATE, Calibration, calibrate
from .format import TaskFormat
from .kit import MAX_SEEDS, MAX_TEXT_CHARS, USABLE_AUC, TransferKit
from .storage import discriminator_dir, save_kit

MIN_EXAMPLES = 24


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
    checkpoint: Checkpoint = no_checkpoint,
) -> TransferKit:
    """Makes a kit: seeds, a discriminator of real against synthetic inputs, its threshold.

    The source base writes negatives after the seeds; a LoRA on it learns to tell them from the
    real inputs, half and half; held-out inputs of both kinds calibrate the threshold. Nothing
    of the data but the seeds and some figures goes into the kit.

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
        checkpoint: called during synthesis and training.

    Raises:
        InvalidArgumentError: too little data, too long texts, or the format's choices are not
            single tokens of this base.
        FailedPreconditionError: the source base writes no usable negatives.
    """
    recipe = recipe or KitRecipe()
    choice_tokens(tokenizer, format.choices)
    unique = _unique(examples, recipe)
    rng = random.Random(f"kit|{seed}")
    rng.shuffle(unique)
    seeds, rest = tuple(unique[: recipe.seeds]), unique[recipe.seeds :][: recipe.max_real]
    limits = _limits(tokenizer, unique, recipe)
    generator = HfGenerator({base_id: (model, tokenizer)})
    fakes = asyncio.run(
        draw_inputs(
            generator,
            ModelSpec(base_id=base_id),
            format=format,
            seeds=seeds,
            count=len(rest),
            seed=seed,
            max_input_chars=limits["max_input_chars"],
            max_input_tokens=limits["max_input_tokens"],
            settings=recipe.draw,
            checkpoint=checkpoint,
        )
    )
    real = _split([example.input for example in rest], recipe.held_out_share)
    fake = _split(_without(fakes.inputs, rest), recipe.held_out_share)
    if min(map(len, (*real, *fake))) < 2:
        raise _no_negatives(base_id, fakes)
    out_dir.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=".kit-build-", dir=out_dir.parent))
    try:
        summary = train_lora(
            model=model,
            tokenizer=tokenizer,
            pairs=_pairs(real[0], fake[0], format, dataset_name, rng),
            lora=recipe.lora,
            recipe=DistillRecipe(
                epochs=recipe.epochs,
                batch_size=recipe.batch_size,
                learning_rate=recipe.learning_rate,
                seed=seed,
            ),
            out_dir=discriminator_dir(work),
            base_id=base_id,
            checkpoint=checkpoint,
        )
        cut = _calibrate(generator, base_id, work, format, dataset_name, (real[1], fake[1]), recipe)
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
            **limits,
            provenance=_provenance(seed, base_revision, recipe, fakes, summary, real, fake, cut),
        )
        save_kit(kit, discriminator_dir(work), out_dir)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return kit


def _unique(examples: Sequence[Example], recipe: KitRecipe) -> list[Example]:
    if not 1 <= recipe.seeds <= MAX_SEEDS:
        raise InvalidArgumentError(f"got {recipe.seeds} seeds, expected 1 to {MAX_SEEDS}")
    unique = list({example.input: example for example in examples}.values())
    if len(unique) < max(MIN_EXAMPLES, 3 * recipe.seeds):
        raise InvalidArgumentError(
            f"got {len(unique)} different examples, at least "
            f"{max(MIN_EXAMPLES, 3 * recipe.seeds)} are needed to train and calibrate a "
            "discriminator"
        )
    for number, example in enumerate(unique):
        if not example.input.strip() or not example.target.strip():
            raise InvalidArgumentError(f"example {number} has an empty input or target")
        if max(len(example.input), len(example.target)) > MAX_TEXT_CHARS:
            raise InvalidArgumentError(
                f"example {number} is longer than {MAX_TEXT_CHARS} characters"
            )
    return unique


def _limits(tokenizer: Any, examples: Sequence[Example], recipe: KitRecipe) -> dict[str, int]:
    """Bounds on the lengths of new inputs and answers, from the longest real ones."""

    def longest(texts: list[str]) -> int:
        return max(map(len, tokenizer(texts, add_special_tokens=False)["input_ids"]))

    inputs = [example.input for example in examples]
    # Some tokens more: the stop belongs to the budget, and another tokenizer may cut finer.
    sizes = {
        "max_input_chars": max(map(len, inputs)),
        "max_input_tokens": longest(inputs) + 8,
        "max_answer_tokens": longest([example.target for example in examples]) + 8,
    }
    return {
        name: min(MAX_TEXT_CHARS, math.ceil(size * recipe.length_headroom))
        for name, size in sizes.items()
    }


def _split(items: Sequence[str], held_out_share: float) -> tuple[list[str], list[str]]:
    """Returns (training, held out)."""
    held = round(len(items) * held_out_share)
    return list(items[held:]), list(items[:held])


def _without(inputs: Sequence[str], real: Sequence[Example]) -> list[str]:
    """Drops synthetic inputs that happen to be real ones: they are no negatives."""
    known = {example.input.strip() for example in real}
    return [text for text in inputs if text not in known]


def _pairs(
    real: Sequence[str],
    fake: Sequence[str],
    format: TaskFormat,
    dataset_name: str,
    rng: random.Random,
) -> list[tuple[str, str]]:
    """Returns training pairs, half real and half synthetic: the rarer kind is repeated."""
    size = max(len(real), len(fake))
    yes, no = format.choices
    pairs = []
    for texts, answer in ((real, yes), (fake, no)):
        repeated = [texts[number % len(texts)] for number in range(size)]
        pairs += [(format.discriminator_prompt(text, dataset_name), answer) for text in repeated]
    rng.shuffle(pairs)
    return pairs


def _calibrate(
    generator: HfGenerator,
    base_id: str,
    work: Path,
    format: TaskFormat,
    dataset_name: str,
    held_out: tuple[list[str], list[str]],
    recipe: KitRecipe,
) -> Calibration:
    path = discriminator_dir(work)
    discriminator = VersionRef(
        id="discriminator", base_id=base_id, digest="", path=str(path), rank=recipe.lora.rank
    )
    model = ModelSpec(base_id=base_id, version=discriminator)
    real, fake = (
        asyncio.run(score_inputs(generator, model, texts, format=format, dataset_name=dataset_name))
        for texts in held_out
    )
    return calibrate(real, fake, real_pass_rate=recipe.real_pass_rate)


def _no_negatives(base_id: str, fakes: SynthesisResult) -> FailedPreconditionError:
    return FailedPreconditionError(
        f"base {base_id!r} wrote too few usable inputs after the seeds to train a discriminator "
        f"({fakes.stats}): check that the task format is the one that this base goes on with",
        reason="NO_NEGATIVES",
    )


def _provenance(
    seed: int,
    base_revision: str,
    recipe: KitRecipe,
    fakes: SynthesisResult,
    summary: TrainSummary,
    real: tuple[list[str], list[str]],
    fake: tuple[list[str], list[str]],
    cut: Calibration,
) -> dict[str, Any]:
    usable = cut.auc >= USABLE_AUC
    return {
        "seed": seed,
        "base_revision": base_revision,
        "lorebase": version("lorebase"),
        "recipe": asdict(recipe),
        "synthesis": fakes.stats,
        "training": {key: _rounded(value) for key, value in asdict(summary).items()},
        "counts": {
            "real_trained": len(real[0]),
            "real_held_out": len(real[1]),
            "fake_trained": len(fake[0]),
            "fake_held_out": len(fake[1]),
        },
        "discriminator": "usable"
        if usable
        else f"can't discriminate (AUC {cut.auc:.2f} < {USABLE_AUC}): nothing will be filtered",
    }


def _rounded(value: Any) -> Any:
    return round(value, 4) if isinstance(value, float) else value
