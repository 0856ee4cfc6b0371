"""The measured part of suite `gate`: what label-free evidence saw of real shadows, and the truth.

Shadows of the tiny world are trained for too few steps on purpose, so that bad, middling and good
ones come before the gate. The truth is their accuracy on hidden test data, which no step here
trains on.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.gate_shapes import LiveShape, spread
from examples.tinyworld.places import ADAPTERS_DIR, base_dir
from lorebase.serving.engine.protocol import VersionRef
from lorebase.transfer.distill import DistillRecipe, LoraSettings
from lorebase.transfer.distill.distill import load_base, training_pairs
from lorebase.transfer.distill.train import train_lora
from lorebase.transfer.evaluate import GatePolicy, decide, label_free_evidence, matches, score
from lorebase.transfer.hf_generator import HfGenerator
from lorebase.transfer.kit import TransferKit, discriminator_dir, load_kit
from lorebase.transfer.ports import Example, ModelSpec
from lorebase.transfer.synthesis import (
    filter_inputs,
    hold_out,
    inputs_to_draw,
    label_inputs,
    synthesize,
)
from lorebase.transfer.upgrade.lora_shape import lora_shape

OLD, NEXT = "old", "next"


def live_rows(shape: LiveShape, work_dir: Path, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Trains and judges shadows; one row each."""
    torch.set_num_threads(1)
    folders = sorted(path.parent for path in ADAPTERS_DIR.glob("*/kit"))
    chosen = spread(folders, shape.tasks)
    bases = {name: load_base(base_dir(name)) for name in (OLD, NEXT)}
    rows = []
    for folder in chosen:
        made = asyncio.run(_one_task(_Task(folder, bases, shape, work_dir / folder.name)))
        rows += made
        losses = ", ".join(f"{row['disagreement_seen']:.0%}/{row['loss']:+.0%}" for row in made)
        say(f"{folder.name}: changes seen / true loss {losses}")
    return rows


@dataclass(frozen=True, slots=True)
class _Task:
    folder: Path
    bases: dict[str, tuple[Any, Any]]
    shape: LiveShape
    work: Path

    def source(self) -> ModelSpec:
        return _spec(OLD, "source", self.folder / "adapter")


async def _one_task(task: _Task) -> list[dict[str, Any]]:
    shape = task.shape
    kit = load_kit(task.folder / "kit")
    generator = HfGenerator(dict(task.bases))
    examples = await _labelled(task, kit, generator)
    training, held_out = hold_out(examples, shape.held_out, seed=shape.seed)
    hidden = _hidden(task.folder / "heldout.jsonl")[: shape.hidden]
    asked = [*held_out, *hidden]
    tokens = kit.max_answer_tokens

    async def answers(model: ModelSpec) -> list[str]:
        return await score(generator, model, asked, kit.format, max_tokens=tokens)

    source = await answers(task.source())
    bare = await answers(ModelSpec(base_id=NEXT))
    rows = []
    for steps in shape.steps:
        where = task.work / f"shadow-{steps}"
        _train(task, kit, training, steps, where)
        shadow = await answers(_spec(NEXT, f"{task.folder.name}-{steps}", where))
        row = {"task": task.folder.name.replace("__", "/"), "steps": steps}
        rows.append(row | _judged(source, shadow, bare, hidden, len(held_out)))
    return rows


async def _labelled(task: _Task, kit: TransferKit, generator: HfGenerator) -> list[Example]:
    wanted = task.shape.training + task.shape.held_out
    drawn = await synthesize(
        generator,
        ModelSpec(base_id=NEXT),
        kit,
        count=inputs_to_draw(kit, wanted),
        seed=task.shape.seed,
    )
    discriminator = _spec(OLD, "discriminator", discriminator_dir(task.folder / "kit"))
    kept = await filter_inputs(generator, discriminator, kit, drawn.inputs)
    return (await label_inputs(generator, task.source(), kit, kept.kept[:wanted])).examples


def _train(
    task: _Task, kit: TransferKit, examples: Sequence[Example], steps: int, where: Path
) -> None:
    model, tokenizer = task.bases[NEXT]
    shape = lora_shape(task.folder / "adapter")
    train_lora(
        model=model,
        tokenizer=tokenizer,
        pairs=training_pairs(examples, kit.format),
        lora=LoraSettings(rank=shape.rank, alpha=shape.alpha),
        recipe=DistillRecipe(steps=steps, learning_rate=5e-3, seed=task.shape.seed),
        out_dir=where,
        base_id=NEXT,
    )


def _judged(
    source: Sequence[str],
    shadow: Sequence[str],
    bare: Sequence[str],
    hidden: Sequence[Example],
    held_out: int,
) -> dict[str, Any]:
    """Compares what the gate saw (first `held_out` answers) with the truth (the rest)."""
    seen = label_free_evidence(source[:held_out], shadow[:held_out], bare[:held_out])
    decision = decide(seen, GatePolicy())
    targets = [example.target for example in hidden]
    was, now = matches(source[held_out:], targets), matches(shadow[held_out:], targets)
    same = matches(source[held_out:], shadow[held_out:])
    n = len(hidden)
    lost = sum(a and not b for a, b in zip(was, now, strict=True))
    gained = sum(b and not a for a, b in zip(was, now, strict=True))
    return {
        "what": "live",
        "n_seen": held_out,
        "n_true": n,
        "disagreement_seen": round(1.0 - decision.shadow_score, 4),
        "disagreement_true": round(1.0 - sum(same) / n, 4),
        "source_accuracy": round(sum(was) / n, 4),
        "loss": round((lost - gained) / n, 4),
        "lost": lost,
        "gained": gained,
        "promoted": decision.verdict == "promote",
    }


def _hidden(path: Path) -> list[Example]:
    rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return [Example(input=row["input"], target=row["target"]) for row in rows]


def _spec(base: str, name: str, path: Path) -> ModelSpec:
    version = VersionRef(
        id=name, base_id=base, digest="", path=str(path), rank=lora_shape(path).rank
    )
    return ModelSpec(base_id=base, version=version)
