"""The configuration file: precedence, paths, and errors that name the key."""

import copy
import dataclasses
import os
from pathlib import Path

import pytest

from lorebase.serving.config import Settings, json_schema, load_settings, settings_of
from lorebase.serving.config_sections import EngineSection
from lorebase.serving.engine.settings import EngineSettings
from lorebase.serving.errors import InvalidArgumentError, NotFoundError

MINIMAL = "bases:\n  - {id: old, path: weights/old}\n"


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.upper().startswith("LOREBASE_"):
            monkeypatch.delenv(name)


def load(tmp_path: Path, text: str = MINIMAL) -> Settings:
    file = tmp_path / "config.yaml"
    file.write_text(text)
    return load_settings(file)


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    settings = load(tmp_path, MINIMAL + "cluster: {state_dir: ../state}\n")
    assert settings.bases[0].path == tmp_path / "weights/old"
    assert settings.cluster.state_dir == tmp_path.parent / "state"
    assert settings.catalog_url == f"sqlite:///{tmp_path.parent}/state/catalog.db"


def test_default_state_directory_lies_beside_the_file(tmp_path: Path) -> None:
    assert load(tmp_path).cluster.state_dir == tmp_path / "lorebase-state"
    other = tmp_path / "other"
    other.mkdir()
    assert load(other).cluster.state_dir == other / "lorebase-state"


def test_environment_wins_over_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOREBASE_SERVING__GRPC_PORT", "6000")
    settings = load(tmp_path, MINIMAL + "serving: {grpc_port: 5000, http_port: 5001}\n")
    assert (settings.serving.grpc_port, settings.serving.http_port) == (6000, 5001)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        (MINIMAL + "servng: {}\n", "servng"),
        (MINIMAL + "serving: {grpcport: 1}\n", r"serving\.grpcport"),
        (MINIMAL + "serving: {grpc_port: 70000}\n", r"serving\.grpc_port"),
        (MINIMAL + "serving: {grpc_port: 7000, http_port: 7000}\n", "both 7000, expected two"),
        ("bases: []\n", "bases"),
        ("serving: {}\n", "bases"),
        ("bases: [{id: 'a/b', path: x}]\n", r"bases\.0\.id"),
        ("bases: [{id: a, path: x}, {id: a, path: y}]\n", "a given more than once"),
        (MINIMAL + "serving: {base: next}\n", "next"),
        (MINIMAL + "limits: {max_adapter_rank: 128}\n", "max_lora_rank"),
        (MINIMAL + "background_plugin: no-colon\n", "background_plugin"),
        (MINIMAL + "engine: {max_loras: 0}\n", "max_loras"),
        ("- a list\n", "mapping"),
        ("a: [\n", "YAML"),
    ],
)
def test_errors_name_the_key(tmp_path: Path, text: str, names: str) -> None:
    with pytest.raises(InvalidArgumentError, match=names):
        load(tmp_path, text)


def test_missing_file_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"nowhere\.yaml"):
        load_settings(tmp_path / "nowhere.yaml")


def test_settings_can_not_be_changed_and_survive_copying(tmp_path: Path) -> None:
    settings = load(tmp_path)
    with pytest.raises(ValueError, match="frozen"):
        settings.serving.gateways = 3  # type: ignore[misc]
    assert copy.deepcopy(settings) == settings


def test_engine_settings_carry_the_base_and_its_own_dtype(tmp_path: Path) -> None:
    settings = settings_of(
        {
            "bases": [{"id": "a", "path": "x"}, {"id": "b", "path": "y", "dtype": "bfloat16"}],
            "engine": {"dtype": "float32", "threads": 2, "max_loras": 4},
        },
        folder=tmp_path,
    )
    a, b = settings.engine_settings("a"), settings.engine_settings("b")
    assert (a.base_id, a.model_path, a.dtype) == ("a", str(tmp_path / "x"), "float32")
    assert (b.dtype, b.cpu_threads, b.max_loras) == ("bfloat16", 2, 4)


def test_unknown_base_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="old"):
        load(tmp_path).engine_settings("next")


def test_engine_section_has_every_field_of_an_engine_with_the_same_default() -> None:
    theirs = {
        field.name: field.default
        for field in dataclasses.fields(EngineSettings)
        if field.name not in ("base_id", "model_path")
    }
    ours = EngineSection().model_dump(exclude={"replicas", "replica_cpus", "replica_gpus"})
    ours["cpu_threads"] = ours.pop("threads")
    assert ours == theirs


def test_schema_describes_every_section() -> None:
    schema = json_schema()
    assert schema["required"] == ["bases"]
    assert schema["additionalProperties"] is False
    serving = schema["$defs"]["ServingSection"]["properties"]
    assert serving["max_queue"]["description"]
