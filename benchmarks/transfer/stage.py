"""One task at one seed: its source adapter, its kit and the models, made once and kept."""

from __future__ import annotations

import asyncio
import hashlib
import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from lorebase.serving.artifacts import base_revision
from lorebase.serving.engine.protocol import VersionRef
from lorebase.transfer.distill.distill import load_base, training_pairs
from lorebase.transfer.distill.train import train_lora
from lorebase.transfer.evaluate import score
from lorebase.transfer.hf_generator import HfGenerator
from lorebase.transfer.kit import TransferKit, discriminator_dir, load_kit
from lorebase.transfer.kit.build import KitRecipe, build_kit
from lorebase.transfer.ports import Example, ModelSpec
from lorebase.transfer.recipes.models import Teacher, load_teacher
from lorebase.transfer.recipes.run import Cast

from . import generation
from .metered import MeteredGenerator
from .world import TransferTask, World, plain


def digest_of(*parts: Any) -> str:
    """Returns a short digest of plain data."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def digest_of_files(directory: Path) -> str:
    """Returns a digest of an adapter's weights and shape."""
    hashed = hashlib.sha256()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        hashed.update((directory / name).read_bytes())
    return hashed.hexdigest()[:20]


class Bases:
    """The bases in this process, with a generator over them."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.models = {base: load_base(folder) for base, folder in world.dirs.items()}
        self.revisions = revisions_of(world)
        self.generator = HfGenerator(self.models, max_adapted=world.max_adapted)


def revisions_of(world: World) -> dict[str, str]:
    """Returns the digest of each base's files, by id."""
    return {base: base_revision(folder) for base, folder in world.dirs.items()}


@dataclass(frozen=True)
class Stage:
    """What the arms of one task and seed share.

    Attributes:
        bases: The bases.
        task: The task.
        seed: Of the source adapter, the kit's seeds and everything after them.
        folder: Where it is kept between runs; named after its content.
        generator: Counts and keeps completions.
    """

    bases: Bases
    task: TransferTask
    seed: int
    folder: Path
    generator: MeteredGenerator

    @classmethod
    def of(cls, bases: Bases, task: TransferTask, seed: int, cache: Path) -> Stage:
        """Opens or creates the stage's folder below `cache`."""
        folder = cache / stage_key(bases.world, bases.revisions, task, seed)
        generator = MeteredGenerator(bases.generator, folder / "made.sqlite", bases.revisions)
        folder.mkdir(parents=True, exist_ok=True)
        return cls(bases, task, seed, folder, generator)

    @cached_property
    def source_adapter(self) -> Path:
        """Directory of the source adapter, trained on the real data."""
        path = self.folder / "source"
        if not (path / "adapter_model.safetensors").is_file():
            began = time.process_time()
            model, tokenizer = self.bases.models[self.bases.world.source_id]
            train_lora(
                model=model,
                tokenizer=tokenizer,
                pairs=training_pairs(self.task.real, self.bases.world.format),
                lora=self.task.lora,
                recipe=replace(self.bases.world.source_training, seed=self.seed),
                out_dir=path,
                base_id=self.bases.world.source_id,
            )
            self._note(source_cpu_s=time.process_time() - began)
        return path

    @cached_property
    def kit_dir(self) -> Path:
        """Directory of the kit, made from the real data."""
        path = self.folder / "kit"
        if not (path / "kit.json").is_file():
            began = time.process_time()
            model, tokenizer = self.bases.models[self.bases.world.source_id]
            build_kit(
                model=model,
                tokenizer=tokenizer,
                examples=self.task.real,
                dataset_name=self.task.dataset_name,
                base_id=self.bases.world.source_id,
                format=self.bases.world.format,
                out_dir=path,
                seed=self.seed,
                recipe=KitRecipe(),
            )
            self._note(kit_cpu_s=time.process_time() - began)
        return path

    @cached_property
    def kit(self) -> TransferKit:
        """The kit."""
        return load_kit(self.kit_dir)

    @cached_property
    def cast(self) -> Cast:
        """The models of every recipe."""
        source_id = self.bases.world.source_id
        return Cast(
            next_base=ModelSpec(base_id=self.bases.world.next_id),
            teacher=self.spec(source_id, self.source_adapter),
            discriminator=self.spec(source_id, discriminator_dir(self.kit_dir)),
        )

    @cached_property
    def teacher(self) -> Teacher:
        """The teacher, for likelihoods."""
        return load_teacher(self.bases.world.source_dir, self.source_adapter)

    def spec(self, base_id: str, adapter: Path) -> ModelSpec:
        """Returns a model with an adapter, named after the adapter's content."""
        digest = digest_of_files(adapter)
        ref = VersionRef(
            id=f"{base_id}-{digest}", base_id=base_id, digest=digest, path=str(adapter), rank=0
        )
        return ModelSpec(base_id=base_id, version=ref)

    def right(self, model: ModelSpec, few_shot: Sequence[Example] = ()) -> list[bool]:
        """Tells for each test example whether the model answers it exactly."""
        answers = asyncio.run(
            score(
                self.generator,
                model,
                self.task.test,
                self.bases.world.format,
                few_shot=few_shot,
                max_tokens=self.max_answer_tokens,
            )
        )
        return [a == one.target.strip() for a, one in zip(answers, self.task.test, strict=True)]

    @cached_property
    def max_answer_tokens(self) -> int:
        """Budget of an answer: the kit's, or one more than the longest true answer needs."""
        tokenizer = self.bases.models[self.bases.world.next_id][1]
        needed = (
            len(tokenizer.encode(one.target, add_special_tokens=False)) for one in self.task.test
        )
        return max(self.kit.max_answer_tokens, max(needed) + 4)

    @property
    def notes(self) -> dict[str, Any]:
        """What making the stage cost: source_cpu_s, kit_cpu_s."""
        path = self.folder / "notes.json"
        found: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
        return found

    def _note(self, **values: float) -> None:
        rounded = {name: round(value, 2) for name, value in values.items()}
        (self.folder / "notes.json").write_text(json.dumps(self.notes | rounded))

    def close(self) -> None:
        """Frees what is not kept in files."""
        self.generator.close()

    def drop(self) -> None:
        """Removes the folder."""
        self.close()
        shutil.rmtree(self.folder, ignore_errors=True)


def stage_key(world: World, revisions: dict[str, str], task: TransferTask, seed: int) -> str:
    """Returns the name of a stage's folder: a digest of all that decides its content.

    Neither the next base nor the test inputs have a part in it.
    """
    return digest_of(
        generation.STAGES,
        revisions[world.source_id],
        plain(world.format),
        plain(world.source_training),
        task.name,
        task.dataset_name,
        [asdict(one) for one in task.real],
        plain(task.lora),
        seed,
    )
