"""Shapes and revision of a base, from its files alone."""

import json
from pathlib import Path

import pytest

from lorebase.serving.artifacts import base_revision, base_shapes
from lorebase.serving.errors import InvalidArgumentError
from tests.unit.artifact_samples import Tensors, safetensors, write_files

CONFIG = {"architectures": ["Qwen3ForCausalLM"], "num_hidden_layers": 2, "dtype": "bfloat16"}


def _weights(layers: int = 2) -> Tensors:
    tensors: Tensors = {"model.embed_tokens.weight": ("BF16", [16, 8], bytes(256))}
    for layer in range(layers):
        prefix = f"model.layers.{layer}"
        tensors[f"{prefix}.self_attn.q_proj.weight"] = ("BF16", [12, 8], bytes(192))
        tensors[f"{prefix}.self_attn.q_proj.bias"] = ("BF16", [12], bytes(24))
        tensors[f"{prefix}.self_attn.q_norm.weight"] = ("BF16", [4], bytes(8))
        tensors[f"{prefix}.mlp.down_proj.weight"] = ("BF16", [8, 20], bytes(320))
        tensors[f"{prefix}.input_layernorm.weight"] = ("BF16", [8], bytes(16))
    return {**tensors, "model.norm.weight": ("BF16", [8], bytes(16))}


def _files(tensors: Tensors | None = None) -> dict[str, bytes]:
    return {
        "config.json": json.dumps(CONFIG).encode(),
        "model.safetensors": safetensors(_weights() if tensors is None else tensors),
        "tokenizer.json": b"{}",
        "README.md": b"a card",
    }


def _sharded() -> dict[str, bytes]:
    tensors = _weights()
    names = sorted(tensors)
    shards = {"model-00001-of-00002.safetensors": names[:5]}
    shards["model-00002-of-00002.safetensors"] = names[5:]
    files = {
        shard: safetensors({name: tensors[name] for name in names})
        for shard, names in shards.items()
    }
    weight_map = {name: shard for shard, names in shards.items() for name in names}
    files["model.safetensors.index.json"] = json.dumps({"weight_map": weight_map}).encode()
    return {**files, "config.json": json.dumps(CONFIG).encode()}


@pytest.mark.parametrize("files", [_files(), _sharded()], ids=["single", "sharded"])
def test_linear_layers_are_found_with_their_shapes(tmp_path: Path, files: dict[str, bytes]) -> None:
    shapes = base_shapes(write_files(tmp_path, files))
    assert dict(shapes.modules) == {
        f"model.layers.{layer}.{module}": shape
        for layer in range(2)
        for module, shape in {"self_attn.q_proj": (12, 8), "mlp.down_proj": (8, 20)}.items()
    }
    assert (shapes.architecture, shapes.dtype, shapes.layers) == ("Qwen3ForCausalLM", "bfloat16", 2)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"config.json": None}, r"has no config\.json"),
        ({"config.json": b"[]"}, "is no JSON object"),
        ({"model.safetensors": None}, "has neither model.safetensors nor"),
        ({"model.safetensors": b"PK\x03\x04 and more"}, "is a zip archive"),
        ({"model.safetensors": safetensors(_weights(1))}, "says 2 layers, the weights have 1"),
        ({"model.safetensors": safetensors({})}, "says 2 layers, the weights have 0"),
    ],
)
def test_an_incomplete_base_is_refused(
    tmp_path: Path, change: dict[str, bytes | None], said: str
) -> None:
    files = {
        name: content for name, content in {**_files(), **change}.items() if content is not None
    }
    with pytest.raises(InvalidArgumentError, match=said):
        base_shapes(write_files(tmp_path, files))


@pytest.mark.parametrize(
    ("index", "said"),
    [
        ({}, "has no weight_map"),
        ({"weight_map": {"x": "../other.safetensors"}}, "names the shard"),
        ({"weight_map": {"x": "model-00009.safetensors"}}, "names the shard"),
        (
            {"weight_map": {"x": "model-00001-of-00002.safetensors"}},
            "names the tensor 'x', which no shard holds",
        ),
    ],
)
def test_an_index_must_fit_its_shards(tmp_path: Path, index: object, said: str) -> None:
    files = {**_sharded(), "model.safetensors.index.json": json.dumps(index).encode()}
    with pytest.raises(InvalidArgumentError, match=said):
        base_shapes(write_files(tmp_path, files))


def test_the_revision_follows_weights_tokenizer_and_config_only(tmp_path: Path) -> None:
    revision = base_revision(write_files(tmp_path / "a", _files()))
    assert revision.startswith("sha256:")
    same = {**_files(), "README.md": b"another card", "loss.json": b"[1]"}
    assert base_revision(write_files(tmp_path / "b", same)) == revision
    for number, name in enumerate(("model.safetensors", "tokenizer.json", "config.json")):
        changed = {**_files(), name: _files()[name] + b" "}
        assert base_revision(write_files(tmp_path / str(number), changed)) != revision


def test_a_directory_without_weights_has_no_revision(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="has neither"):
        base_revision(tmp_path)
    with pytest.raises(InvalidArgumentError, match="has neither"):
        base_revision(tmp_path / "nowhere")
