import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from lorebase.serving.artifacts import AdapterLimits, BaseShapes
from lorebase.serving.errors import InvalidArgumentError
from lorebase.transfer.kit import DOCUMENT, TransferKit, check_kit, load_kit, save_kit
from lorebase.transfer.kit.calibrate import LETS_ALL_PASS
from lorebase.transfer.kit.kit import MAX_SEEDS, MAX_TEXT_CHARS, Consent
from lorebase.transfer.kit.storage import MAX_KIT_BYTES
from lorebase.transfer.ports import Example

BASE = BaseShapes(modules={"model.layers.0.self_attn.q_proj": (16, 8)})
KIT = TransferKit(
    base_id="old",
    dataset_name="invoice dates",
    dataset_size=300,
    format=DOCUMENT,
    seeds=(Example(input="a \u00e9 {x}", target="1"), Example(input="b\nc", target="2")),
    threshold=-0.5,
    discriminator_auc=0.9,
    real_pass_rate=0.88,
    fake_pass_rate=0.2,
    max_input_chars=90,
    max_input_tokens=60,
    max_answer_tokens=20,
    provenance={"seed": 3, "counts": {"real": 10}},
)


def write_adapter(directory: Path, *, width: int = 8) -> Path:
    directory.mkdir(parents=True)
    prefix = "base_model.model.model.layers.0.self_attn.q_proj"
    save_file(
        {
            f"{prefix}.lora_A.weight": np.zeros((4, width), dtype=np.float32),
            f"{prefix}.lora_B.weight": np.zeros((16, 4), dtype=np.float32),
        },
        directory / "adapter_model.safetensors",
    )
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}
    (directory / "adapter_config.json").write_text(json.dumps(config))
    return directory


@pytest.fixture
def kit_dir(tmp_path: Path) -> Path:
    save_kit(KIT, write_adapter(tmp_path / "work" / "d"), tmp_path / "kit")
    return tmp_path / "kit"


def edit(kit_dir: Path, change: Callable[[dict[str, Any]], object]) -> None:
    value = json.loads((kit_dir / "kit.json").read_text())
    change(value)
    (kit_dir / "kit.json").write_text(json.dumps(value))


def test_a_saved_kit_loads_as_it_was(kit_dir: Path) -> None:
    assert load_kit(kit_dir) == KIT
    assert check_kit(kit_dir, BASE, AdapterLimits()) == KIT


def test_kits_that_need_nothing_new_stay_readable_for_older_readers(kit_dir: Path) -> None:
    written = json.loads((kit_dir / "kit.json").read_text())
    assert written["schema_version"] == 1
    assert not {"discriminator", "real_inputs", "consent"} & set(written)


SEEDS_ONLY = replace(KIT, schema_version=2, discriminator=False, **LETS_ALL_PASS)


def test_a_kit_may_say_that_it_has_no_discriminator(tmp_path: Path) -> None:
    save_kit(SEEDS_ONLY, None, tmp_path / "kit")
    assert check_kit(tmp_path / "kit", BASE, AdapterLimits()) == SEEDS_ONLY
    assert [path.name for path in (tmp_path / "kit").iterdir()] == ["kit.json"]
    assert not SEEDS_ONLY.discriminates
    assert not replace(SEEDS_ONLY, discriminator_auc=1.0).discriminates
    with pytest.raises(ValueError, match="discriminator=True"):
        save_kit(KIT, None, tmp_path / "other")
    write_adapter(tmp_path / "kit" / "discriminator")
    with pytest.raises(InvalidArgumentError, match="unknown file 'discriminator"):
        check_kit(tmp_path / "kit", BASE, AdapterLimits())


CONSENT = Consent(text="A. Owner, for upgrades", given_on="2026-11-22")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"discriminator": False}, "schema version 1 and discriminator, which takes version 2"),
        ({"real_inputs": ("x",)}, "schema version 1 and real_inputs"),
        ({"schema_version": 2, "real_inputs": ("x",)}, "1 real inputs but no consent"),
        ({"schema_version": 2, "real_inputs": (" ",), "consent": CONSENT}, "real input 1 is"),
        (
            {"schema_version": 2, "consent": replace(CONSENT, text="yes")},
            "consent.text: String should have at least 8",
        ),
        (
            {"schema_version": 2, "real_inputs": ("x" * 32_000,) * 250, "consent": CONSENT},
            "keep fewer real inputs",
        ),
    ],
)
def test_real_inputs_need_a_consent_and_the_version_that_knows_both(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    weights = write_adapter(tmp_path / "d") if changes.get("discriminator", True) else None
    with pytest.raises(InvalidArgumentError, match=message):
        save_kit(replace(KIT, **changes), weights, tmp_path / "kit")


def test_consented_inputs_are_saved_without_answers(tmp_path: Path) -> None:
    shared = replace(KIT, schema_version=2, real_inputs=("x y",), consent=CONSENT)
    save_kit(shared, write_adapter(tmp_path / "d"), tmp_path / "kit")
    assert check_kit(tmp_path / "kit", BASE, AdapterLimits()) == shared


def test_saving_replaces_an_older_kit_and_leaves_no_staging(tmp_path: Path, kit_dir: Path) -> None:
    newer = replace(KIT, dataset_size=7)
    save_kit(newer, write_adapter(tmp_path / "work" / "e"), kit_dir)
    assert load_kit(kit_dir) == newer
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kit", "work"]


def test_a_kit_that_breaks_its_bounds_is_not_written(tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "d")
    for broken in (
        replace(KIT, threshold=float("nan")),
        replace(KIT, seeds=()),
        replace(KIT, discriminator_auc=1.5),
    ):
        with pytest.raises(InvalidArgumentError):
            save_kit(broken, adapter, tmp_path / "kit")
    assert not (tmp_path / "kit").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v.update(schema_version=99), "schema version 99"),
        (lambda v: v.pop("schema_version"), "schema version None"),
        (lambda v: v.update(data=["secret"]), "data"),
        (lambda v: v.pop("threshold"), "threshold"),
        (lambda v: v.update(dataset_size=0), "dataset_size"),
        (lambda v: v.update(max_input_chars=10**9), "max_input_chars"),
        (lambda v: v.update(seeds=v["seeds"] * MAX_SEEDS), "seeds"),
        (lambda v: v["seeds"][0].update(input=" "), "seed 1 has an empty"),
        (lambda v: v["seeds"][1].update(target="x" * (MAX_TEXT_CHARS + 1)), "seed 2 has"),
        (lambda v: v["format"].update(prompt_template="no field"), "input"),
        (lambda v: v["format"].update(stop=""), "stop"),
    ],
)
def test_a_broken_kit_is_refused_and_told_why(
    kit_dir: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    edit(kit_dir, change)
    with pytest.raises(InvalidArgumentError, match=message):
        load_kit(kit_dir)


@pytest.mark.parametrize("text", ["", "[]", "{", '"x"', "\x00", '{"schema_version": NaN}'])
def test_a_kit_file_that_is_no_such_json_is_refused(kit_dir: Path, text: str) -> None:
    (kit_dir / "kit.json").write_text(text)
    with pytest.raises(InvalidArgumentError):
        load_kit(kit_dir)


def test_a_kit_file_larger_than_any_kit_is_refused_unread(kit_dir: Path) -> None:
    (kit_dir / "kit.json").write_bytes(b" " * (MAX_KIT_BYTES + 1))
    with pytest.raises(InvalidArgumentError, match="bytes"):
        load_kit(kit_dir)


def test_an_uploaded_kit_may_hold_nothing_else(kit_dir: Path) -> None:
    (kit_dir / "data.jsonl").write_text("{}")
    with pytest.raises(InvalidArgumentError, match=r"data\.jsonl"):
        check_kit(kit_dir, BASE, AdapterLimits())


def test_an_uploaded_kits_discriminator_is_checked_like_any_adapter(tmp_path: Path) -> None:
    save_kit(KIT, write_adapter(tmp_path / "d", width=9), tmp_path / "kit")
    with pytest.raises(InvalidArgumentError, match="q_proj"):
        check_kit(tmp_path / "kit", BASE, AdapterLimits())


def test_a_kit_without_discriminator_or_kit_file_is_refused(tmp_path: Path, kit_dir: Path) -> None:
    (kit_dir / "discriminator" / "adapter_model.safetensors").unlink()
    with pytest.raises(InvalidArgumentError, match="adapter_model"):
        check_kit(kit_dir, BASE, AdapterLimits())
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidArgumentError, match=r"no kit\.json"):
        load_kit(tmp_path / "empty")


def test_a_linked_kit_file_is_refused(tmp_path: Path, kit_dir: Path) -> None:
    (kit_dir / "kit.json").rename(tmp_path / "elsewhere.json")
    (kit_dir / "kit.json").symlink_to(tmp_path / "elsewhere.json")
    with pytest.raises(InvalidArgumentError):
        load_kit(kit_dir)


def test_a_kit_says_whether_its_discriminator_is_of_use() -> None:
    assert KIT.discriminates
    assert not replace(KIT, discriminator_auc=0.64).discriminates
