"""The whole transfer on the tiny world's bases: kit, synthesis, filter, labels, training, gate."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from examples.tinyworld.places import base_dir
from examples.tinyworld.tasks import TASKS
from lorebase.serving.artifacts import AdapterLimits, base_shapes, check_adapter
from lorebase.serving.engine.protocol import VersionRef
from lorebase.serving.errors import FailedPreconditionError
from lorebase.transfer.distill import DistillRecipe, LoraSettings
from lorebase.transfer.distill.distill import load_base, training_pairs
from lorebase.transfer.distill.train import train_lora
from lorebase.transfer.evaluate import GatePolicy, decide, entrusted_evidence, score
from lorebase.transfer.hf_generator import HfGenerator
from lorebase.transfer.kit import DOCUMENT, TransferKit, check_kit, discriminator_dir
from lorebase.transfer.kit.build import KitRecipe, build_kit
from lorebase.transfer.kit.command import run as run_kit_command
from lorebase.transfer.ports import Example, ModelSpec
from lorebase.transfer.synthesis import filter_inputs, inputs_to_draw, label_inputs, synthesize

from .tiny_models import make_tiny_base

# Threads that wait for each other make tiny models crawl on a busy machine.
torch.set_num_threads(1)

OLD, NEXT = "tinyworld-old", "tinyworld-next"
TRAINING = DistillRecipe(steps=120, batch_size=16, learning_rate=4e-3)
SKEWED = TASKS["villa/attic-cellar"]
"""Its real inputs are few of those that the wording suggests, so the filter has work to do."""


def examples(split: Any, count: int) -> list[Example]:
    return [Example(input=a, target=b) for a, b in SKEWED.examples(split, count)]


@pytest.fixture(scope="module")
def generator() -> HfGenerator:
    return HfGenerator({OLD: load_base(base_dir("old")), NEXT: load_base(base_dir("next"))})


def version(base_id: str, path: Path) -> ModelSpec:
    ref = VersionRef(id=f"v-{path.name}", base_id=base_id, digest="", path=str(path), rank=8)
    return ModelSpec(base_id=base_id, version=ref)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> ModelSpec:
    """The client's adapter, trained on the client's data."""
    out = tmp_path_factory.mktemp("source") / "adapter"
    model, tokenizer = load_base(base_dir("old"))
    train_lora(
        model=model,
        tokenizer=tokenizer,
        pairs=training_pairs(examples("train", 200), DOCUMENT),
        lora=LoraSettings(rank=8, alpha=16),
        recipe=dataclasses.replace(TRAINING, steps=80),
        out_dir=out,
        base_id=OLD,
    )
    return version(OLD, out)


@pytest.fixture(scope="module")
def kit_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("kit")
    rows = [{"input": e.input, "target": e.target} for e in examples("train", 200)]
    (root / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    told = run_kit_command(
        base_dir=base_dir("old"),
        base_id=OLD,
        data=root / "data.jsonl",
        dataset_name=SKEWED.dataset_name,
        out=root / "kit",
    )
    assert told["discriminator"] == "usable"
    assert told["size_bytes"] < 300_000
    return root / "kit"


@pytest.fixture(scope="module")
def kit(kit_dir: Path) -> TransferKit:
    return check_kit(kit_dir, base_shapes(base_dir("old")), AdapterLimits())


def test_the_kit_keeps_the_seeds_and_nothing_else_of_the_data(
    kit_dir: Path, kit: TransferKit
) -> None:
    text = (kit_dir / "kit.json").read_text()
    kept = [e for e in examples("train", 200) if json.dumps(e.input) in text]
    assert sorted(e.input for e in kept) == sorted(seed.input for seed in kit.seeds)
    assert len(kit.seeds) == 5
    assert kit.dataset_size == 200
    assert (kit.discriminator_auc, kit.real_pass_rate) > (0.8, 0.87)
    assert kit.fake_pass_rate < 0.5


@pytest.mark.timeout(600)
async def test_an_adapter_moves_to_the_next_base_without_the_data(
    generator: HfGenerator, source: ModelSpec, kit_dir: Path, kit: TransferKit, tmp_path: Path
) -> None:
    next_base = ModelSpec(base_id=NEXT)
    drawn = await synthesize(generator, next_base, kit, count=inputs_to_draw(kit, 240), seed=1)
    assert not {seed.input for seed in kit.seeds} & set(drawn.inputs)
    filtered = await filter_inputs(
        generator, version(OLD, discriminator_dir(kit_dir)), kit, drawn.inputs
    )
    assert filtered.stats["filtered"]
    assert len(filtered.kept) < 0.6 * len(drawn.inputs)

    def real(texts: list[str]) -> float:
        return sum("attic" in text or "cellar" in text for text in texts) / len(texts)

    assert real(filtered.kept) > 2 * real(drawn.inputs)
    labelled = await label_inputs(generator, source, kit, filtered.kept[:240])
    model, tokenizer = load_base(base_dir("next"))
    train_lora(
        model=model,
        tokenizer=tokenizer,
        pairs=training_pairs(labelled.examples, kit.format),
        lora=LoraSettings(rank=8, alpha=16),
        recipe=TRAINING,
        out_dir=tmp_path / "shadow",
        base_id=NEXT,
    )
    check_adapter(tmp_path / "shadow", base_shapes(base_dir("next")), AdapterLimits())
    items = examples("test", 100)
    answers = [
        await score(generator, model, items, DOCUMENT, max_tokens=kit.max_answer_tokens)
        for model in (source, version(NEXT, tmp_path / "shadow"), next_base)
    ]
    evidence = entrusted_evidence([item.target for item in items], *answers)
    decision = decide(evidence, GatePolicy(margin=0.1), attempts_left=1)
    assert decision.source_score > 0.95
    assert decision.bare_score < 0.1
    assert decision.shadow_score > 0.9, decision.reason
    assert decision.verdict == "promote", decision.reason


def test_kits_of_equal_data_are_equal(tmp_path: Path) -> None:
    model, tokenizer = load_base(base_dir("old"))
    for name in ("a", "b"):
        build_kit(
            model=model,
            tokenizer=tokenizer,
            examples=examples("train", 60),
            dataset_name="x",
            base_id=OLD,
            format=DOCUMENT,
            out_dir=tmp_path / name,
            recipe=KitRecipe(epochs=0.5),
        )
    files = [sorted(p for p in (tmp_path / n).rglob("*") if p.is_file()) for n in ("a", "b")]
    assert [p.read_bytes() for p in files[0]] == [p.read_bytes() for p in files[1]]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_a_base_that_writes_no_negatives_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    model, tokenizer = load_base(make_tiny_base(tmp_path / "base"))
    with pytest.raises(FailedPreconditionError, match="too few usable inputs"):
        build_kit(
            model=model,
            tokenizer=tokenizer,
            examples=[Example(input=f"i {n}", target=str(n)) for n in range(24)],
            dataset_name="x",
            base_id="random",
            format=DOCUMENT,
            out_dir=tmp_path / "out" / "kit",
        )
    assert not (tmp_path / "out").exists()
