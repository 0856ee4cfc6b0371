"""What the gate sees where nobody knows true answers: agreement on held-out synthetic inputs."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

from lorebase.transfer.evaluate import label_free_evidence, score
from lorebase.transfer.ports import Example, ModelSpec
from lorebase.transfer.recipes import LOREBASE, WITHOUT_KIT
from lorebase.transfer.recipes.run import gather_examples

from .arms import Arm
from .moves import Moved, kit_of
from .rows import Row, to_hex
from .stage import Stage

SEED = 1000
"""Added to the stage's: held-out inputs are drawn for themselves."""


def label_free(stage: Stage, arm: Arm, moved: Moved) -> Row:
    """Returns how a moved adapter, and the bare next base, agree with the source adapter.

    As in an upgrade, the inputs were written by the next base and filtered with the kit (without
    one: not at all), and those that the adapter was trained on are left out.

    Returns:
        n: inputs; shadow, bare: which answers equal the source adapter's, packed.
    """
    trained_on = {one.input.strip() for one in moved.examples}
    held = [one for one in _held_out(stage, arm) if one.input.strip() not in trained_on]
    evidence = label_free_evidence(
        [one.target for one in held],
        _answers(stage, moved.model, held),
        _answers(stage, stage.cast.next_base, held),
    )
    return {
        "n": len(held),
        "shadow": to_hex(evidence.shadow_correct),
        "bare": to_hex(evidence.bare_correct),
    }


def _held_out(stage: Stage, arm: Arm) -> list[Example]:
    gathered = asyncio.run(
        gather_examples(
            # A pool is for selecting training inputs; here every input counts.
            replace(WITHOUT_KIT if arm.legacy else LOREBASE, pool=1.0),
            stage.generator,
            stage.cast,
            kit_of(stage, arm),
            count=stage.bases.world.held_out,
            seed=SEED + stage.seed,
        )
    )
    return gathered.examples


def _answers(stage: Stage, model: ModelSpec, items: Sequence[Example]) -> list[str]:
    return asyncio.run(
        score(
            stage.generator,
            model,
            items,
            stage.bases.world.format,
            max_tokens=stage.kit.max_answer_tokens,
        )
    )
