"""The distill job on a real (tiny, random) base: what a worker process runs."""

from dataclasses import replace
from pathlib import Path

import pytest

from lorebase.serving.artifacts import AdapterLimits, ArtifactStore, base_shapes, check_adapter
from lorebase.serving.config_sections import UpgradeSection
from lorebase.transfer.ports import StageCancelledError
from lorebase.transfer.recipes import LOREBASE, LoraChoice, OnPolicy
from lorebase.transfer.upgrade.jobs import lora_for, run_job
from lorebase.transfer.upgrade.ports import DistillJob
from lorebase.transfer.upgrade.settings import configured_recipe

from .upgrade_job import make_job


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> DistillJob:
    return make_job(tmp_path_factory.mktemp("jobs"), steps=45)


def test_a_job_makes_an_adapter_that_fits_the_next_base(job: DistillJob) -> None:
    outcome = run_job(job)
    path = ArtifactStore(job.store_root).path(outcome.digest)
    manifest = check_adapter(path, base_shapes(job.base_dir), AdapterLimits())
    assert (manifest.rank, manifest.alpha) == (4, 8.0)
    assert set(manifest.target_modules) == {"q_proj", "v_proj"}, "taken over from the source"
    assert outcome.summary["train"]["steps"] == 45
    assert outcome.busy_s > 0
    assert not list(job.work_root.iterdir()), "working files are gone"


def test_a_job_that_is_cut_off_goes_on_from_its_resume_point_to_the_same_adapter(
    job: DistillJob,
) -> None:
    def cut_off(progress: float) -> None:
        if progress > 0.6:
            raise StageCancelledError("controller gone")

    other = replace(job, key="m-1/distill/2")
    with pytest.raises(StageCancelledError):
        run_job(other, cut_off)
    assert list(job.work_root.iterdir())
    outcome = run_job(other)
    assert outcome.summary["train"]["resumed_from"] > 0
    assert outcome.digest == run_job(job).digest


def test_modules_that_the_next_base_lacks_become_all_linear(
    job: DistillJob, tmp_path: Path
) -> None:
    source = ArtifactStore(job.store_root).path(job.source_digest)
    for file in source.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = tmp_path / "adapter_config.json"
    text = config.read_text().replace("q_proj", "query").replace("v_proj", "value")
    config.write_text(text)
    assert lora_for(tmp_path, job.base_dir, LoraChoice()).target_modules == ("all-linear",)


@pytest.mark.parametrize("name", ["trans-lora", "titok"])
def test_a_job_follows_the_recipe_that_is_configured(tmp_path: Path, name: str) -> None:
    choices = UpgradeSection(recipe=name, steps=6, learning_rate=1e-3)
    recipe = configured_recipe(choices)
    job = replace(make_job(tmp_path, steps=1), recipe=recipe)
    outcome = run_job(job)
    manifest = check_adapter(
        ArtifactStore(job.store_root).path(outcome.digest),
        base_shapes(job.base_dir),
        AdapterLimits(),
    )
    assert manifest.rank == 4, "the source's"
    assert manifest.alpha == (8.0 if name == "trans-lora" else 4.0)
    assert outcome.summary["recipe"] == name
    assert outcome.summary["train"]["examples"] == (40 if name == "trans-lora" else 20)


def test_a_job_corrects_the_shadow_on_its_own_answers(tmp_path: Path) -> None:
    recipe = replace(LOREBASE, weigh_by_confidence=True, on_policy=OnPolicy(rounds=2))
    job = make_job(tmp_path, steps=8, recipe=recipe)
    seen: list[float] = []
    outcome = run_job(job, seen.append)
    rounds = outcome.summary["on_policy"]
    assert len(rounds) == 2
    assert rounds[0]["asked"] == 40
    assert all(one["steps"] == 2 for one in rounds if one["mistakes"])
    assert seen == sorted(seen)
    assert (seen[0], seen[-1]) == (0.0, 1.0)
    again = run_job(replace(job, key="m-1/distill/other"))
    assert again.digest == outcome.digest
    assert not list(job.work_root.iterdir()), "working files are gone"
