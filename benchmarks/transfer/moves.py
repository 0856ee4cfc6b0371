"""Moves one task's adapter: gathers what an arm trains on, trains, and may go one base further."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorebase.serving.artifacts import base_shapes
from lorebase.transfer.kit import TransferKit, discriminator_dir
from lorebase.transfer.kit.carry import Judged, NextBase, carry_kit
from lorebase.transfer.kit.seeds_only import build_seeds_only
from lorebase.transfer.ports import Example, ModelSpec
from lorebase.transfer.recipes.models import LoadTeacher, Shadow, load_teacher
from lorebase.transfer.recipes.recipe import Recipe
from lorebase.transfer.recipes.run import Cast, Gathered, gather_examples
from lorebase.transfer.recipes.shadow import train_shadow
from lorebase.transfer.synthesis import label_inputs

from .arms import Arm
from .generation import generation_of
from .metered import Spent
from .rows import Row
from .stage import Stage, digest_of
from .world import plain


@dataclass(frozen=True, slots=True, kw_only=True)
class Moved:
    """An adapter of another base."""

    model: ModelSpec
    examples: Sequence[Example]
    """What it was trained on."""
    gathered: Spent
    """What gathering that cost."""
    figures: Row


def move(stage: Stage, arm: Arm, samples: int) -> Moved:
    """Trains a tuned arm's adapter on the next base; with two hops, goes on from there."""
    first = _first_hop(stage, arm, samples)
    if arm.hops == 1 or first.model.version is None:
        return first
    return _second_hop(stage, arm, samples, first)


def _first_hop(stage: Stage, arm: Arm, samples: int) -> Moved:
    assert arm.recipe is not None, "arms that train have a recipe"
    world, before = stage.bases.world, stage.generator.reading()
    gathered = gather(stage, arm, samples)
    cost = stage.generator.reading().minus(before)
    folder = _shadow_dir(stage, arm.recipe, samples)
    figures: Row = {"data": _about(stage, gathered)}
    if not gathered.examples:
        return _starved(ModelSpec(base_id=world.next_id), cost, figures)
    # What the second hop starts from is the very adapter that the first one was measured with.
    if arm.hops == 1 or not (folder / "adapter_model.safetensors").is_file():
        into = folder if _has_second_hop(arm) else stage.folder / "shadow"
        figures |= _train(
            stage,
            arm.recipe,
            gathered.examples,
            base_id=world.next_id,
            kit=kit_of(stage, arm),
            teacher=lambda: stage.teacher,
            out_dir=into,
        )
        folder = into
    model = stage.spec(world.next_id, folder)
    return Moved(model=model, examples=gathered.examples, gathered=cost, figures=figures)


def _starved(base: ModelSpec, cost: Spent, figures: Row) -> Moved:
    """What is left where no input passed the filter: no adapter, so the base answers alone."""
    return Moved(model=base, examples=(), gathered=cost, figures={**figures, "starved": True})


def _has_second_hop(arm: Arm) -> bool:
    return arm.hops > 1 or arm.name == "lorebase"


def _shadow_dir(stage: Stage, recipe: Recipe, samples: int) -> Path:
    revisions, world = stage.bases.revisions, stage.bases.world
    told = (generation_of("lorebase"), revisions[world.next_id], plain(recipe), samples)
    return stage.folder / "shadows" / digest_of(*told)


def _second_hop(stage: Stage, arm: Arm, samples: int, first: Moved) -> Moved:
    """Moves the first hop's adapter as a tenant's next upgrade would, with the carried kit.

    The first hop's discriminator has judged what the next base wrote; a discriminator of the next
    base learns that. Then the further base writes, the first hop's adapter answers.
    """
    assert arm.recipe is not None, "arms that train have a recipe"
    assert first.model.version is not None, "the first hop made an adapter"
    world, bases = stage.bases.world, stage.bases
    gathered = gather(stage, arm, samples)
    began = time.process_time()
    model, tokenizer = bases.models[world.next_id]
    kit_dir = stage.folder / "second-kit"
    kit = carry_kit(
        stage.kit,
        Judged(
            inputs=gathered.judged,
            scores=gathered.scores,
            answers=[one.target for one in gathered.examples],
        ),
        NextBase(id=world.next_id, model=model, tokenizer=tokenizer),
        kit_dir,
        seed=stage.seed,
    )
    carry_cpu_s = round(time.process_time() - began, 2)
    cast = Cast(
        next_base=ModelSpec(base_id=world.further_id),
        teacher=first.model,
        discriminator=stage.spec(world.next_id, discriminator_dir(kit_dir)),
    )
    before = stage.generator.reading()
    again = _gather(stage, arm.recipe, cast, kit, _count(stage, arm, samples))
    cost = stage.generator.reading().minus(before)
    figures: Row = {
        "data": _about(stage, again),
        "carried": dict(kit.provenance["carried"]),
        "carry_cpu_s": carry_cpu_s,
        "further_base": world.further_id,
    }
    if not again.examples:
        return _starved(ModelSpec(base_id=world.further_id), cost, figures)
    teacher = Path(first.model.version.path)
    trained = _train(
        stage,
        arm.recipe,
        again.examples,
        base_id=world.further_id,
        kit=kit,
        teacher=lambda: load_teacher(world.next_dir, teacher),
        out_dir=stage.folder / "shadow",
    )
    return Moved(
        model=stage.spec(world.further_id, stage.folder / "shadow"),
        examples=again.examples,
        gathered=cost,
        figures=figures | trained,
    )


def gather(stage: Stage, arm: Arm, samples: int) -> Gathered:
    """Returns what a tuned arm trains on in its first hop, and figures about it.

    Raises:
        ValueError: this world has no random inputs.
    """
    assert arm.recipe is not None, "arms that train have a recipe"
    count, kit = _count(stage, arm, samples), kit_of(stage, arm)
    if arm.data == "seeds":
        return Gathered(examples=list(kit.seeds), stats={})
    if arm.data == "real":
        if arm.everything:
            return Gathered(examples=list(stage.task.real), stats={})
        others = [one for one in stage.task.real if one not in kit.seeds]
        return Gathered(examples=[*kit.seeds, *others][:count], stats={})
    if arm.data == "random":
        draw = stage.bases.world.random_inputs
        if draw is None:
            raise ValueError("this world has no random inputs: leave the arm out")
        labelled = asyncio.run(
            label_inputs(stage.generator, stage.cast.teacher, kit, draw(count, stage.seed))
        )
        return Gathered(examples=labelled.examples, stats=labelled.stats)
    return _gather(stage, arm.recipe, stage.cast, kit, count)


def _gather(stage: Stage, recipe: Recipe, cast: Cast, kit: TransferKit, count: int) -> Gathered:
    return asyncio.run(
        gather_examples(recipe, stage.generator, cast, kit, count=count, seed=stage.seed)
    )


def _count(stage: Stage, arm: Arm, samples: int) -> int:
    """Examples to train on: never more than the client had, where that is known."""
    return samples if arm.legacy else min(samples, len(stage.task.real))


def kit_of(stage: Stage, arm: Arm) -> TransferKit:
    """Returns what is known of the data: the kit, or its seeds alone."""
    if not arm.legacy:
        return stage.kit
    tokenizer = stage.bases.models[stage.bases.world.source_id][1]
    return seeds_alone(stage.kit, tokenizer, stage.folder / "seeds-only", stage.seed)


def seeds_alone(kit: TransferKit, tokenizer: Any, out_dir: Path, seed: int) -> TransferKit:
    """Makes the kit of an adapter whose data is gone, as a tenant does: of a kit's seeds alone."""
    return build_seeds_only(
        tokenizer=tokenizer,
        examples=kit.seeds,
        dataset_name=kit.dataset_name,
        base_id=kit.base_id,
        format=kit.format,
        out_dir=out_dir,
        seed=seed,
        seeds=len(kit.seeds),
    )


def _about(stage: Stage, gathered: Gathered) -> Row:
    test = {one.input.strip() for one in stage.task.test}
    overlap = sum(one.input.strip() in test for one in gathered.examples)
    return {"examples": len(gathered.examples), "in_test": overlap, **gathered.stats}


def _train(
    stage: Stage,
    recipe: Recipe,
    examples: Sequence[Example],
    *,
    base_id: str,
    kit: TransferKit,
    teacher: LoadTeacher,
    out_dir: Path,
) -> Row:
    model, tokenizer = stage.bases.models[base_id]
    source = stage.task.lora
    shadow = Shadow(
        model=model,
        tokenizer=tokenizer,
        base_id=base_id,
        lora=recipe.lora.settings(
            rank=source.rank,
            alpha=source.alpha,
            source_modules=source.target_modules,
            base=tuple(base_shapes(stage.bases.world.dirs[base_id]).modules),
        ),
        format=kit.format,
        max_answer_tokens=kit.max_answer_tokens,
    )
    shutil.rmtree(out_dir, ignore_errors=True)
    began = time.process_time()
    figures = train_shadow(
        recipe, shadow, examples, teacher=teacher, out_dir=out_dir, seed=stage.seed
    )
    train = figures["train"]
    return {
        "train": {key: train[key] for key in ("steps", "examples", "tokens", "last_loss")},
        "selection": figures["selection"],
        "on_policy": figures["on_policy"],
        "train_cpu_s": round(time.process_time() - began, 2),
    }
