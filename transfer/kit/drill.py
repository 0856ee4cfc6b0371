"""The canary drill: a throw-away kit from data with planted secrets, and a search for them.

Whoever gets hold of a kit has its text, its weights, and what a base writes after its seeds. The
drill looks for the secrets in all three. It also measures what no search shows: whether the
discriminator knows the very examples it was trained on (membership), planted or real.
"""

import asyncio
import random
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from lorebase.serving.engine.protocol import Sampling, VersionRef

from ..hf_generator import HfGenerator
from ..ports import Checkpoint, Example, ModelSpec, no_checkpoint
from ..synthesis.draw import draw_inputs
from ..synthesis.filter import score_inputs
from .build import KitRecipe, build_kit
from .calibrate import auc
from .canary import Canary, found_in_files, found_in_texts, make_canaries
from .format import TaskFormat
from .kit import TransferKit
from .storage import discriminator_dir

UNSEEN_SHARE = 0.2
"""Of the data, kept from the kit: what membership is compared with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DrillReport:
    """What came out again."""

    planted: int
    """Secrets in the data, those among the seeds not counted: seeds are handed over knowingly."""
    found_in_kit: int
    """In any byte of the kit's files."""
    found_in_synthetic: int
    """In inputs that the base wrote after the seeds."""
    found_in_discriminator: int
    """In what the base under the discriminator wrote."""
    written: int
    """Texts of each of the last two kinds."""
    membership_of_canaries: float
    """AUC of the discriminator's score, planted secrets against fresh ones; 0.5 is no memory."""
    membership_of_data: float
    """The same, real inputs that it was trained on against real ones that it never saw."""

    @property
    def passed(self) -> bool:
        """Whether no secret came out."""
        return not (self.found_in_kit + self.found_in_synthetic + self.found_in_discriminator)

    def as_dict(self) -> dict[str, Any]:
        """Returns plain data."""
        return {**asdict(self), "passed": self.passed}


def canary_drill(
    *,
    model: Any,
    tokenizer: Any,
    examples: Sequence[Example],
    dataset_name: str,
    format: TaskFormat,
    canaries: int = 20,
    write: int = 200,
    seed: int = 0,
    recipe: KitRecipe | None = None,
    checkpoint: Checkpoint = no_checkpoint,
) -> DrillReport:
    """Builds a kit with planted secrets in a temporary folder and looks for them.

    Must not be called from a running event loop.

    Args:
        model: the source base.
        tokenizer: its tokenizer.
        examples: the client's data.
        dataset_name: as for `build_kit`.
        format: as for `build_kit`.
        canaries: secrets to plant, each once.
        write: texts to let the base write, of each kind.
        seed: fixes everything random.
        recipe: of the kit.
        checkpoint: called during generation and training.

    Raises:
        InvalidArgumentError: too little data.
        FailedPreconditionError: the base writes no usable inputs.
    """
    recipe = recipe or KitRecipe()
    mixed = list(examples)
    random.Random(f"drill|{seed}").shuffle(mixed)
    cut = int(len(mixed) * (1 - UNSEEN_SHARE))
    used, unseen = mixed[:cut], mixed[cut:]
    planted = make_canaries(used, canaries, seed=seed)
    fresh = make_canaries(unseen or used, canaries, seed=seed + 1)
    data = [*used, *(one.example for one in planted)]
    # The newest examples are cut off first; canaries must take part.
    recipe = replace(recipe, max_real=max(recipe.max_real, len(data)))
    with tempfile.TemporaryDirectory(prefix="lorebase-drill-") as folder:
        kit_dir = Path(folder) / "kit"
        kit = build_kit(
            model=model,
            tokenizer=tokenizer,
            examples=data,
            dataset_name=dataset_name,
            base_id="base",
            format=format,
            out_dir=kit_dir,
            seed=seed,
            recipe=recipe,
            checkpoint=checkpoint,
        )
        seeds = {item.input for item in kit.seeds}
        hidden = [one for one in planted if one.example.input not in seeds]
        look = _Look(HfGenerator({"base": (model, tokenizer)}), kit, kit_dir, checkpoint)
        return asyncio.run(look.report(hidden, fresh, used, unseen, write, seed))


@dataclass(frozen=True, slots=True)
class _Look:
    """The search."""

    generator: HfGenerator
    kit: TransferKit
    kit_dir: Path
    checkpoint: Checkpoint

    @property
    def _discriminator(self) -> ModelSpec:
        path = str(discriminator_dir(self.kit_dir))
        ref = VersionRef(id="discriminator", base_id="base", digest="", path=path, rank=1)
        return ModelSpec(base_id="base", version=ref)

    async def report(
        self,
        hidden: Sequence[Canary],
        fresh: Sequence[Canary],
        used: Sequence[Example],
        unseen: Sequence[Example],
        write: int,
        seed: int,
    ) -> DrillReport:
        synthetic = await self._synthetic(write, seed)
        spoken = await self._spoken(write, seed)
        inputs = [[one.example.input for one in group] for group in (hidden, fresh)]
        real = [[item.input for item in group] for group in (used, unseen)]
        return DrillReport(
            planted=len(hidden),
            found_in_kit=len(found_in_files(hidden, self.kit_dir)),
            found_in_synthetic=len(found_in_texts(hidden, synthetic)),
            found_in_discriminator=len(found_in_texts(hidden, spoken)),
            written=write,
            membership_of_canaries=await self._membership(*inputs),
            membership_of_data=await self._membership(*real),
        )

    async def _synthetic(self, count: int, seed: int) -> list[str]:
        drawn = await draw_inputs(
            self.generator,
            ModelSpec(base_id="base"),
            format=self.kit.format,
            seeds=self.kit.seeds,
            count=count,
            seed=seed,
            max_input_chars=self.kit.max_input_chars,
            max_input_tokens=self.kit.max_input_tokens,
            checkpoint=self.checkpoint,
        )
        return drawn.inputs

    async def _spoken(self, count: int, seed: int) -> list[str]:
        """Returns what the base under the discriminator says where its prompts have an input."""
        start = self.kit.format.discriminator_template.partition("{input}")[0]
        prompt = start.replace("{dataset}", self.kit.dataset_name).rstrip()
        sampling = Sampling(max_tokens=self.kit.max_input_tokens, temperature=1.0, seed=seed)
        prompts = [prompt or self.kit.format.synthesis_cue] * count
        done = await self.generator.complete(self._discriminator, prompts, sampling)
        return [item.text for item in done]

    async def _membership(self, members: Sequence[str], others: Sequence[str]) -> float:
        if not members or not others:
            return 0.5
        scores = [
            await score_inputs(
                self.generator,
                self._discriminator,
                texts,
                format=self.kit.format,
                dataset_name=self.kit.dataset_name,
                checkpoint=self.checkpoint,
            )
            for texts in (members, others)
        ]
        return round(auc(*scores), 4)
