"""An adapter of whose data five examples are left goes through all stages, with real models."""

import asyncio
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from examples.tinyworld.places import ADAPTERS_DIR, base_dir
from lorebase.serving.artifacts import AdapterLimits, base_shapes, check_adapter
from lorebase.serving.catalog import version_id
from lorebase.serving.catalog.records import NEXT_KIT, Adapter, AdapterVersion
from lorebase.serving.config_sections import UpgradeSection
from lorebase.transfer.distill.distill import load_base
from lorebase.transfer.governor import Lease
from lorebase.transfer.hf_generator import HfGenerator
from lorebase.transfer.kit import check_kit, load_kit
from lorebase.transfer.kit.command import run as build
from lorebase.transfer.upgrade.jobs import run_job
from lorebase.transfer.upgrade.ports import DistillJob, DistillOutcome

from .upgrade_world import World

torch.set_num_threads(1)

TASK = ADAPTERS_DIR / "telco__phone-flip"
NAME = "telco/phone-flip"


class HereWorkers:
    """Trains in this process."""

    async def distill(
        self, job: DistillJob, lease: Lease, on_progress: Callable[[float], None]
    ) -> DistillOutcome:
        return await asyncio.to_thread(run_job, job)

    async def trim(self, keep: int) -> None:
        pass


def seeds_only_kit(folder: Path) -> Path:
    """Builds a kit of the five examples that another kit has left."""
    data = folder / "few.jsonl"
    data.write_text("\n".join(json.dumps(asdict(seed)) for seed in load_kit(TASK / "kit").seeds))
    told = build(
        base_dir=base_dir("old"),
        base_id="old",
        data=data,
        dataset_name="phone numbers",
        out=folder / "kit",
        seeds_only=True,
    )
    assert told["seeds"] == 5
    assert "discriminator_auc" not in told
    assert told["discriminator"].startswith("none")
    return folder / "kit"


@pytest.fixture
def world(tmp_path: Path) -> World:
    paths = {"old": base_dir("old"), "next": base_dir("next")}
    choices = UpgradeSection(
        samples=24,
        evaluation_samples=20,
        min_examples=20,
        steps=8,
        batch_size=8,
        learning_rate=5e-3,
        max_attempts=1,
    )
    made = World(tmp_path, (), bases=paths, choices=choices)
    made.models = HfGenerator({name: load_base(path) for name, path in paths.items()})  # type: ignore[assignment]
    made.workers = HereWorkers()  # type: ignore[assignment]
    manifest = check_adapter(TASK / "adapter", base_shapes(paths["old"]), AdapterLimits())
    digest = made.store.put_dir(TASK / "adapter")
    kit = seeds_only_kit(tmp_path)
    check_kit(kit, base_shapes(paths["old"]), AdapterLimits())
    version = AdapterVersion(
        id=version_id(NAME, "old", digest),
        adapter=NAME,
        base_id="old",
        digest=digest,
        peft_type=manifest.peft_type,
        rank=manifest.rank,
        target_modules=manifest.target_modules,
        origin="upload",
        created_at=0.0,
    )
    adapter = Adapter(name=NAME, tenant="telco", kit_digest=made.store.put_dir(kit), created_at=0.0)
    made.catalog.create_adapter(adapter, version)
    return made


async def test_five_examples_are_enough_to_migrate(world: World) -> None:
    upgrade = world.commands.start("next", [], "")
    world.boot()
    try:
        await world.until(lambda: world.upgrade_state() == "completed", 170.0)
        [migration] = world.migrations()
        assert migration.path == "distill-no-kit"
        assert migration.decision is not None, migration.error
        assert migration.decision["evidence"] == "label-free"
        assert migration.decision["n"] == 25
        filtered = world.store.get_json(migration.artifacts["filter"])
        assert not filtered["stats"]["filtered"]
        labelled = world.store.get_json(migration.artifacts["label"])
        assert len(labelled["training"]) >= 24, "twice what is trained on, less what is unfinished"
        version = world.catalog.get_version(str(migration.shadow_version))
        assert version.provenance["recipe"]["name"] == "lorebase-without-kit"
        carried = load_kit(world.store.path(version.provenance[NEXT_KIT]))
        assert (carried.base_id, carried.discriminator) == ("next", False)
        if migration.state != "promoted":  # eight steps are few: the gate may say so
            world.commands.promote(upgrade.id, [NAME])
            await world.until(lambda: world.states() == {NAME: "promoted"})
        assert world.route(NAME) == "next"
    finally:
        await world.kill()
        world.catalog.close()
