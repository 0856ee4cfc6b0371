"""The distill job on a real (tiny, random) base: what a worker process runs."""

from dataclasses import replace
from pathlib import Path

import pytest

from lorebase.serving.artifacts import AdapterLimits, ArtifactStore, base_shapes, check_adapter
from lorebase.transfer.ports import StageCancelledError
from lorebase.transfer.upgrade.jobs import lora_for, run_job
from lorebase.transfer.upgrade.ports import DistillJob

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
    assert lora_for(tmp_path, job.base_dir).target_modules == ("all-linear",)
