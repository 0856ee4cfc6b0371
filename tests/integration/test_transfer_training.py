"""The training recipe on real (tiny, random) models."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from peft import PeftModel
from safetensors.torch import load_file

from lorebase.serving.artifacts import AdapterLimits, base_shapes, check_adapter
from lorebase.serving.errors import InvalidArgumentError
from lorebase.transfer.distill import DistillRecipe, LoraSettings
from lorebase.transfer.distill.batches import encode_pairs
from lorebase.transfer.distill.collate import collate
from lorebase.transfer.distill.distill import distill, load_base
from lorebase.transfer.distill.files import RESUME_FILE
from lorebase.transfer.distill.train import TrainSummary, train_lora
from lorebase.transfer.kit import DOCUMENT
from lorebase.transfer.ports import Example, StageCancelledError

from .tiny_models import make_tiny_base

# Threads that wait for each other make tiny models crawl on a busy machine.
torch.set_num_threads(1)

PAIRS = [(f"Input: item {n}\nOutput:", f" {n % 7}\n") for n in range(40)]
LORA = LoraSettings(rank=4, alpha=8)
RECIPE = DistillRecipe(steps=30, batch_size=8, learning_rate=1e-2, seed=3, weights_dtype="float32")


@pytest.fixture(scope="module", params=["llama", "qwen3"])
def base_dir(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_base(tmp_path_factory.mktemp(request.param), arch=request.param)


@pytest.fixture
def base(base_dir: Path) -> tuple[Any, Any]:
    return load_base(base_dir)


def train(base: tuple[Any, Any], out: Path, **changes: Any) -> TrainSummary:
    settings = {"lora": LORA, "recipe": RECIPE, "base_id": "tiny"} | changes
    model, tokenizer = base
    return train_lora(model=model, tokenizer=tokenizer, pairs=PAIRS, out_dir=out, **settings)


def answer_loss(model: Any, tokenizer: Any) -> float:
    """Mean loss over all answer tokens, one example at a time, with nothing clever."""
    total = count = 0.0
    for prompt, answer in PAIRS:
        start = tokenizer(prompt)["input_ids"]
        end = tokenizer(answer, add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([start + end])).logits[0]
        rows = logits[len(start) - 1 : len(start) + len(end) - 1]
        total += float(F.cross_entropy(rows, torch.tensor(end), reduction="sum"))
        count += len(end)
    return total / count


def test_training_lowers_the_loss_and_the_saved_adapter_holds_what_was_learned(
    base: tuple[Any, Any], base_dir: Path, tmp_path: Path
) -> None:
    model, tokenizer = base
    before = answer_loss(model, tokenizer)
    summary = train(base, tmp_path / "out")
    assert summary.steps == 30
    assert summary.last_loss < 0.6 * summary.first_loss
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    adapted = PeftModel.from_pretrained(load_base(base_dir)[0], str(tmp_path / "out"))
    assert answer_loss(adapted, tokenizer) < 0.6 * before


def test_the_model_is_left_as_it_was(base: tuple[Any, Any], tmp_path: Path) -> None:
    model, tokenizer = base
    names = set(model.state_dict())
    before = answer_loss(model, tokenizer)
    train(base, tmp_path / "out", recipe=replace(RECIPE, steps=3))
    assert set(model.state_dict()) == names
    assert answer_loss(model, tokenizer) == before
    assert not any(p.requires_grad for p in model.parameters())
    assert not hasattr(model, "peft_config")


def test_the_adapter_passes_the_checks_of_an_upload(
    base: tuple[Any, Any], base_dir: Path, tmp_path: Path
) -> None:
    recipe = replace(RECIPE, steps=2, weights_dtype="bfloat16")
    train(base, tmp_path / "out", recipe=recipe)
    manifest = check_adapter(tmp_path / "out", base_shapes(base_dir), AdapterLimits())
    assert (manifest.rank, manifest.alpha) == (4, 8)
    assert len(manifest.target_modules) == 2 * 7
    weights = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "tiny"


def test_equal_arguments_give_equal_bytes_and_another_seed_does_not(
    base: tuple[Any, Any], tmp_path: Path
) -> None:
    recipe = replace(RECIPE, steps=5)
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        torch.manual_seed(len(name) + seed)  # Global randomness must not matter.
        train(base, tmp_path / name, recipe=replace(recipe, seed=seed))

    def content(name: str) -> list[bytes]:
        return [path.read_bytes() for path in sorted((tmp_path / name).iterdir())]

    assert content("a") == content("b")
    assert content("a") != content("c")


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_an_interrupted_run_goes_on_to_the_same_adapter(
    base: tuple[Any, Any], tmp_path: Path, dropout: float
) -> None:
    settings = {"lora": replace(LORA, dropout=dropout), "recipe": replace(RECIPE, save_every=4)}
    train(base, tmp_path / "whole", **settings)

    def interrupt(progress: float) -> None:
        if progress > 0.5:
            raise StageCancelledError

    with pytest.raises(StageCancelledError):
        train(base, tmp_path / "parts", checkpoint=interrupt, **settings)
    assert [path.name for path in (tmp_path / "parts").iterdir()] == [RESUME_FILE]
    summary = train(base, tmp_path / "parts", **settings)
    assert summary.resumed_from == 16
    weights = "adapter_model.safetensors"
    whole, parts = (load_file(tmp_path / name / weights) for name in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert RESUME_FILE not in [path.name for path in (tmp_path / "parts").iterdir()]


def test_a_resume_point_of_another_run_or_a_broken_one_is_ignored(
    base: tuple[Any, Any], tmp_path: Path
) -> None:
    def interrupt(progress: float) -> None:
        if progress > 0.5:
            raise StageCancelledError

    recipe = replace(RECIPE, steps=8, save_every=2)
    with pytest.raises(StageCancelledError):
        train(base, tmp_path / "out", recipe=recipe, checkpoint=interrupt)
    other = replace(recipe, learning_rate=5e-3)
    assert train(base, tmp_path / "out", recipe=other).resumed_from == 0
    (tmp_path / "out" / RESUME_FILE).write_bytes(b"half a file")
    assert train(base, tmp_path / "out", recipe=recipe).resumed_from == 0


def test_the_checkpoint_is_called_before_every_step(base: tuple[Any, Any], tmp_path: Path) -> None:
    seen: list[float] = []
    train(base, tmp_path / "out", recipe=replace(RECIPE, steps=4), checkpoint=seen.append)
    assert seen == [0.0, 0.25, 0.5, 0.75, 1.0]


def test_adapters_of_bases_in_bfloat16_are_trained_in_float32(
    base_dir: Path, base: tuple[Any, Any], tmp_path: Path
) -> None:
    """Small steps on weights near one would round away in bfloat16."""
    model = base[0].to(torch.bfloat16)
    train((model, base[1]), tmp_path / "out", recipe=replace(RECIPE, steps=3, learning_rate=1e-5))
    weights = load_file(tmp_path / "out" / "adapter_model.safetensors")
    rounded = [torch.equal(w, w.to(torch.bfloat16).float()) for w in weights.values()]
    assert {w.dtype for w in weights.values()} == {torch.float32}
    assert not any(rounded)


def test_eva_starts_from_the_activations_and_writes_an_ordinary_adapter(
    base: tuple[Any, Any], base_dir: Path, tmp_path: Path
) -> None:
    lora = replace(LORA, initialisation="eva")
    start = replace(RECIPE, steps=1, learning_rate=1e-9)
    for name in ("a", "b"):
        train(base, tmp_path / name, lora=lora, recipe=start)
    first, second = (tmp_path / name / "adapter_model.safetensors" for name in ("a", "b"))
    assert first.read_bytes() == second.read_bytes()
    rows = [w for name, w in load_file(first).items() if "lora_A" in name]
    assert all(torch.allclose(w @ w.T, torch.eye(4), atol=1e-3) for w in rows), "orthonormal"
    check_adapter(tmp_path / "a", base_shapes(base_dir), AdapterLimits())
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert (config["init_lora_weights"], config["eva_config"]) == (True, None)
    summary = train(base, tmp_path / "c", lora=lora)
    assert summary.last_loss < 0.6 * summary.first_loss


def test_only_answers_count_and_padding_does_not(base: tuple[Any, Any]) -> None:
    model, tokenizer = base
    pairs = [("Input: a\nOutput:", " yes\n"), ("Input: a longer one\nOutput:", " no\n")]
    examples, _ = encode_pairs(tokenizer, pairs, max_tokens=100)
    ids, labels, keep = collate(examples, pad_id=0)
    with torch.no_grad():
        kept = model(input_ids=ids, logits_to_keep=keep).logits
        whole = model(input_ids=ids).logits
    assert torch.allclose(kept, whole[:, -keep:], atol=1e-5)
    for row, example in enumerate(examples):
        scored = [int(i) for i in labels[row] if i >= 0]
        assert scored == list(example.answer_ids)
        with torch.no_grad():
            alone = model(input_ids=torch.tensor([example.prompt_ids + example.answer_ids]))
        assert torch.allclose(alone.logits[0], whole[row, : len(example)], atol=1e-4)


def test_modules_that_the_base_lacks_are_refused(base: tuple[Any, Any], tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="query_key_value"):
        train(base, tmp_path / "out", lora=replace(LORA, target_modules=("query_key_value",)))
    # The model still works for the next one.
    train(base, tmp_path / "out", recipe=replace(RECIPE, steps=1))


def test_a_diverging_run_stops_and_writes_no_adapter(base: tuple[Any, Any], tmp_path: Path) -> None:
    recipe = replace(RECIPE, learning_rate=1e30, max_gradient_norm=0.0, warmup_steps=0)
    with pytest.raises(FloatingPointError, match="lower the learning rate"):
        train(base, tmp_path / "out", recipe=recipe)
    assert not (tmp_path / "out" / "adapter_model.safetensors").exists()


def test_nothing_to_train_on_is_refused(base: tuple[Any, Any], tmp_path: Path) -> None:
    model, tokenizer = base
    with pytest.raises(InvalidArgumentError, match="got 1 pairs of which 1"):
        train_lora(
            model=model,
            tokenizer=tokenizer,
            pairs=[("a", "")],
            lora=LORA,
            recipe=RECIPE,
            out_dir=tmp_path,
        )


def test_distill_trains_from_a_directory_and_names_the_base(base_dir: Path, tmp_path: Path) -> None:
    summary = distill(
        base_dir=base_dir,
        examples=[Example(input=f"item {n}", target=str(n % 3)) for n in range(20)],
        format=DOCUMENT,
        lora=replace(LORA, target_modules=("q_proj", "v_proj")),
        recipe=replace(RECIPE, steps=None, epochs=2.0),
        out_dir=tmp_path / "out",
    )
    assert summary.steps == 5
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == base_dir.name
    assert config["target_modules"] == ["q_proj", "v_proj"]


def test_a_directory_without_a_base_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="can't load a base"):
        load_base(tmp_path)
