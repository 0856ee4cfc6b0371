"""Adapters and bases as transformers and PEFT really write them."""

import tarfile
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from lorebase.serving.artifacts import (
    AdapterLimits,
    ArtifactStore,
    BaseShapes,
    base_revision,
    base_shapes,
    check_adapter,
)
from lorebase.serving.errors import InvalidArgumentError

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 64,
}
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def _model(kind: str) -> PreTrainedModel:
    torch.manual_seed(0)
    if kind == "llama":
        return LlamaForCausalLM(LlamaConfig(**SIZES))
    return Qwen3ForCausalLM(Qwen3Config(**SIZES, tie_word_embeddings=True))


@pytest.fixture(params=["llama", "qwen3"])
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return _model(request.param)


def _saved(model: PreTrainedModel, folder: Path, **settings: Any) -> Path:
    adapted = get_peft_model(model, LoraConfig(**{"r": 4, "target_modules": ALL, **settings}))
    adapted.save_pretrained(str(folder))
    return folder


def test_shapes_are_those_of_the_real_modules(model: PreTrainedModel, tmp_path: Path) -> None:
    expected = {
        name: tuple(module.weight.shape)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and ".layers." in name
    }
    model.save_pretrained(tmp_path / "whole")
    model.save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    assert (tmp_path / "sharded" / "model.safetensors.index.json").is_file()
    for folder in ("whole", "sharded"):
        shapes = base_shapes(tmp_path / folder)
        assert dict(shapes.modules) == expected
        assert shapes.architecture == type(model).__name__
        assert shapes.layers == 2
        assert base_revision(tmp_path / folder) == base_revision(tmp_path / folder)


@pytest.mark.parametrize(
    ("settings", "rank"),
    [
        ({}, 4),
        ({"target_modules": ["q_proj", "down_proj"], "r": 8}, 8),
        ({"rank_pattern": {"v_proj": 6, "layers.1.mlp.up_proj": 2}, "use_rslora": True}, 6),
        ({"layers_to_transform": [1], "alpha_pattern": {"q_proj": 3}}, 4),
        ({"target_modules": "all-linear"}, 4),
        ({"init_lora_weights": "gaussian"}, 4),
    ],
)
def test_what_peft_saves_is_accepted_and_stored(
    model: PreTrainedModel, tmp_path: Path, settings: dict[str, Any], rank: int
) -> None:
    model.save_pretrained(tmp_path / "base")
    shapes = base_shapes(tmp_path / "base")
    source = _saved(model, tmp_path / "adapter", **settings)
    manifest = check_adapter(source, shapes, AdapterLimits())
    assert manifest.rank == rank

    archive = BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        tar.add(source, arcname=".")
    archive.seek(0)
    store = ArtifactStore(tmp_path / "store")
    digest, size = store.import_tar(
        archive, lambda path: check_adapter(path, shapes, AdapterLimits())
    )
    assert store.put_dir(source) == digest
    assert size == sum(file.stat().st_size for file in source.iterdir())


def test_an_adapter_of_another_base_is_refused(tmp_path: Path) -> None:
    source = _saved(_model("llama"), tmp_path / "adapter")
    other = LlamaForCausalLM(LlamaConfig(**{**SIZES, "hidden_size": 64}))
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(InvalidArgumentError, match="is the adapter for another base"):
        check_adapter(source, base_shapes(tmp_path / "other"), AdapterLimits())


# PEFT warns of some of these itself.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"use_dora": True}, "'use_dora' to True"),
        ({"modules_to_save": ["lm_head"]}, "'modules_to_save'"),
        ({"bias": "all"}, "'bias' to 'all'"),
        ({"lora_bias": True}, "'lora_bias' to True"),
        ({"target_modules": ["q_proj", "embed_tokens"]}, "'embed_tokens' is no linear layer"),
        ({"r": 65}, "r=65: the largest rank served is 64"),
    ],
)
def test_what_can_not_be_served_is_refused_by_name(
    tmp_path: Path, settings: dict[str, Any], said: str
) -> None:
    model = _model("llama")
    model.save_pretrained(tmp_path / "base")
    shapes: BaseShapes = base_shapes(tmp_path / "base")
    with pytest.raises(InvalidArgumentError, match=said):
        check_adapter(_saved(model, tmp_path / "adapter", **settings), shapes, AdapterLimits())
