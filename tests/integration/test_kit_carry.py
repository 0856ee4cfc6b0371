"""A kit goes along to the next base: its discriminator is learnt from the old one's judgements."""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from examples.tinyworld.places import ADAPTERS_DIR, base_dir
from lorebase.serving.artifacts import AdapterLimits, ArtifactStore, base_shapes
from lorebase.serving.engine.protocol import VersionRef
from lorebase.serving.errors import InvalidArgumentError
from lorebase.transfer.distill.distill import load_base
from lorebase.transfer.hf_generator import HfGenerator
from lorebase.transfer.kit import TransferKit, check_kit, discriminator_dir, load_kit
from lorebase.transfer.kit.calibrate import auc
from lorebase.transfer.kit.carry import Judged, NextBase, carry_kit
from lorebase.transfer.kit.choices import fitting_choices
from lorebase.transfer.ports import ModelSpec
from lorebase.transfer.synthesis import score_inputs, synthesize
from lorebase.transfer.upgrade.jobs import run_job
from lorebase.transfer.upgrade.ports import JudgedDigests

from .tiny_models import make_tiny_base
from .upgrade_job import make_job

torch.set_num_threads(1)

FOLDER = ADAPTERS_DIR / "northwind__summer-bookings"
"""Its real inputs are few of those that the wording suggests, so there is something to judge."""
OLD, NEXT = "tinyworld-old", "tinyworld-next"
INPUTS = 360


@pytest.fixture(scope="module")
def bases() -> dict[str, tuple[Any, Any]]:
    return {OLD: load_base(base_dir("old")), NEXT: load_base(base_dir("next"))}


@pytest.fixture(scope="module")
def kit() -> TransferKit:
    return load_kit(FOLDER / "kit")


def judge(bases: dict[str, tuple[Any, Any]], kit: TransferKit, directory: Path) -> ModelSpec:
    path = str(discriminator_dir(directory))
    ref = VersionRef(id=f"d-{kit.base_id}", base_id=kit.base_id, digest="", path=path, rank=8)
    return ModelSpec(base_id=kit.base_id, version=ref)


@pytest.mark.timeout(600)
def test_the_next_bases_discriminator_judges_as_the_old_one_did(
    bases: dict[str, tuple[Any, Any]], kit: TransferKit, tmp_path: Path
) -> None:
    assert kit.discriminates
    generator = HfGenerator(dict(bases))

    def written(seed: int, count: int) -> list[str]:
        next_base = ModelSpec(base_id=NEXT)
        return asyncio.run(synthesize(generator, next_base, kit, count=count, seed=seed)).inputs

    def scores(of: TransferKit, directory: Path, texts: list[str]) -> list[float]:
        return asyncio.run(
            score_inputs(
                generator,
                judge(bases, of, directory),
                texts,
                format=of.format,
                dataset_name=of.dataset_name,
            )
        )

    inputs = written(1, INPUTS)
    judged = Judged(inputs=inputs, scores=scores(kit, FOLDER / "kit", inputs))
    model, tokenizer = bases[NEXT]
    carried = carry_kit(
        kit, judged, NextBase(id=NEXT, model=model, tokenizer=tokenizer), tmp_path / "kit", seed=3
    )
    assert check_kit(tmp_path / "kit", base_shapes(base_dir("next")), AdapterLimits()) == carried
    assert carried.seeds == kit.seeds
    assert carried.provenance["carried"]["hops"] == 1
    assert carried.provenance["carried"]["from_base"] == OLD
    assert carried.discriminates
    assert carried.discriminator_auc <= kit.discriminator_auc
    # Inputs that neither training nor calibration saw.
    fresh = [text for text in written(2, 150) if text not in set(inputs)]
    old = scores(kit, FOLDER / "kit", fresh)
    new = scores(carried, tmp_path / "kit", fresh)
    accepted = [n for n, o in zip(new, old, strict=True) if o > kit.threshold]
    rejected = [n for n, o in zip(new, old, strict=True) if o <= kit.threshold]
    assert auc(accepted, rejected) > 0.85
    same = sum(
        (o > kit.threshold) == (n > carried.threshold) for o, n in zip(old, new, strict=True)
    )
    assert same > 0.75 * len(fresh)


@pytest.mark.parametrize(
    ("scores", "why"),
    [([], "was not asked"), ([1.0] * 60, "accepted 60 and rejected 0")],
)
def test_where_there_is_nothing_to_learn_the_kit_filters_nothing(
    kit: TransferKit, tmp_path: Path, scores: list[float], why: str
) -> None:
    directory = make_tiny_base(tmp_path / "base", "qwen3")
    model, tokenizer = load_base(directory)
    judged = Judged(inputs=[f"text {n}" for n in range(60)], scores=scores, answers=["x" * 500])
    base = NextBase(id="tiny", model=model, tokenizer=tokenizer)
    carried = carry_kit(kit, judged, base, tmp_path / "kit")
    assert check_kit(tmp_path / "kit", base_shapes(directory), AdapterLimits()) == carried
    assert not carried.discriminates
    assert why in carried.provenance["carried"]["why"]
    assert carried.max_answer_tokens >= 500, "this tokenizer cuts finer"


def test_scores_of_other_inputs_are_refused(kit: TransferKit, tmp_path: Path) -> None:
    judged = Judged(inputs=["a"], scores=[1.0, 2.0])
    with pytest.raises(ValueError, match="2 scores of 1 inputs"):
        carry_kit(kit, judged, NextBase(id="b", model=None, tokenizer=None), tmp_path / "kit")


class Bytes:
    """A tokenizer of bytes, apart from some whole words."""

    def __init__(self, *words: str) -> None:
        self._words = words

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        return [1000 + self._words.index(text)] if text in self._words else list(text.encode())


def test_answers_that_the_next_base_cuts_in_pieces_are_replaced(kit: TransferKit) -> None:
    assert fitting_choices(Bytes(" yes", " no"), kit) == (" yes", " no")
    assert fitting_choices(Bytes(" Yes", " No"), kit) == (" Yes", " No")
    assert fitting_choices(Bytes(), kit) == ("1", "0")


def test_a_base_without_any_fitting_answers_is_told(kit: TransferKit) -> None:
    class Pieces(Bytes):
        def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
            return [7, *text.encode()]

    with pytest.raises(InvalidArgumentError, match="single tokens"):
        fitting_choices(Pieces(), kit)


def test_the_distill_job_takes_the_kit_along(tmp_path: Path) -> None:
    job = make_job(tmp_path, steps=2)
    store = ArtifactStore(job.store_root)
    texts = [f"number {n}" for n in range(80)]
    judged = JudgedDigests(
        inputs=store.put_json({"inputs": texts}),
        scores=store.put_json({"scores": [1.0 if n % 2 else -1.0 for n in range(80)]}),
    )
    outcome = run_job(replace(job, judged=judged))
    assert outcome.next_kit is not None
    carried = load_kit(store.path(outcome.next_kit))
    assert carried.base_id == "next"
    check_kit(store.path(outcome.next_kit), base_shapes(job.base_dir), AdapterLimits())
    assert outcome.summary["next_kit"]["accepted"] == 40
    assert not list(job.work_root.iterdir()), "working files are gone"
    alone = run_job(replace(job, key="m-1/distill/2"))
    assert alone.next_kit is None
    assert alone.digest == outcome.digest, "the shadow does not depend on it"


def test_a_kit_that_can_not_be_carried_does_not_cost_the_shadow(tmp_path: Path) -> None:
    job = make_job(tmp_path, steps=2)
    store = ArtifactStore(job.store_root)
    judged = JudgedDigests(
        inputs=store.put_json({"inputs": ["a", "b"]}), scores=store.put_json({"scores": [1.0]})
    )
    outcome = run_job(replace(job, judged=judged))
    assert outcome.next_kit is None
    assert "1 scores of 2 inputs" in outcome.summary["next_kit"]["problem"]
    assert store.path(outcome.digest).is_dir()
