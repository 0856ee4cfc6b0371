"""Secrets that were planted in real training data do not come out; seeds can be taken out."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from examples.tinyworld.places import ADAPTERS_DIR, base_dir
from examples.tinyworld.tasks import TASKS
from lorebase.serving.artifacts import AdapterLimits, base_shapes
from lorebase.serving.cli.main import main
from lorebase.transfer.distill.distill import load_base
from lorebase.transfer.kit import DOCUMENT, check_kit, load_kit
from lorebase.transfer.kit.canary import make_canaries
from lorebase.transfer.kit.drill import canary_drill
from lorebase.transfer.kit.privacy_command import audit, scrub
from lorebase.transfer.ports import Example

torch.set_num_threads(1)

TASK = TASKS["depot/sku-flip"]
FOLDER = ADAPTERS_DIR / TASK.slug


def examples(count: int) -> list[Example]:
    return [Example(input=a, target=b) for a, b in TASK.examples("train", count)]


def write(path: Path, items: list[Example]) -> Path:
    path.write_text("\n".join(json.dumps({"input": i.input, "target": i.target}) for i in items))
    return path


def test_the_kits_of_the_tiny_world_hold_no_real_text_but_their_seeds(tmp_path: Path) -> None:
    data = write(tmp_path / "data.jsonl", examples(TASK.train_examples))
    report = audit(kit=FOLDER / "kit", against=data)
    assert report["clean"], report["findings"]
    assert report["exposed"]["seeds_from_data"] == len(report["contents"]["seeds"]) == 5


@pytest.mark.timeout(600)
def test_planted_secrets_come_out_of_neither_kit_nor_text() -> None:
    model, tokenizer = load_base(base_dir("old"))
    report = canary_drill(
        model=model,
        tokenizer=tokenizer,
        examples=examples(100),
        dataset_name=TASK.dataset_name,
        format=DOCUMENT,
        canaries=12,
        write=60,
        seed=1,
    )
    assert report.planted >= 8
    assert report.written == 60
    assert report.passed, report
    assert 0.0 <= report.membership_of_data <= 1.0


def test_a_secret_in_the_weights_would_be_found(tmp_path: Path) -> None:
    from lorebase.transfer.kit.canary import found_in_files

    canaries = make_canaries(examples(10), 3, seed=1)
    file = FOLDER / "kit" / "discriminator" / "adapter_model.safetensors"
    save_file(
        load_file(file), tmp_path / "w.safetensors", metadata={"note": canaries[1].example.input}
    )
    assert found_in_files(canaries, tmp_path) == [canaries[1].secret]


@pytest.mark.parametrize("mode", ["synthetic", "mask"])
def test_a_scrubbed_kit_has_new_answered_seeds_and_the_same_discriminator(
    mode: str, tmp_path: Path
) -> None:
    told = scrub(
        kit=FOLDER / "kit",
        out=tmp_path / "kit",
        base_dir=base_dir("old"),
        adapter=FOLDER / "adapter",
        mode=mode,  # type: ignore[arg-type]
        seed=2,
    )
    assert told["real_seeds_left"] == 0
    old = load_kit(FOLDER / "kit")
    new = check_kit(tmp_path / "kit", base_shapes(base_dir("old")), AdapterLimits())
    assert len(new.seeds) == len(old.seeds)
    assert "data_sha256" not in new.provenance
    assert new.threshold == old.threshold
    weights = "discriminator/adapter_model.safetensors"
    assert (tmp_path / "kit" / weights).read_bytes() == (FOLDER / "kit" / weights).read_bytes()
    data = write(tmp_path / "data.jsonl", examples(TASK.train_examples))
    report = audit(kit=tmp_path / "kit", against=data)
    assert report["contents"]["seeds_are"] == ("synthetic" if mode == "synthetic" else "masked")
    assert report["exposed"]["seeds_from_data"] == 0


def test_the_command_line_audits_and_fails_on_leaks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    leaky = tmp_path / "kit"
    real = examples(20)
    (leaky / "discriminator").mkdir(parents=True)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        data = (FOLDER / "kit" / "discriminator" / name).read_bytes()
        (leaky / "discriminator" / name).write_bytes(data)
    kit = json.loads((FOLDER / "kit" / "kit.json").read_text())
    kit["provenance"]["example"] = real[11].input
    (leaky / "kit.json").write_text(json.dumps(kit))
    data_file = write(tmp_path / "data.jsonl", real)
    for folder, code in ((FOLDER / "kit", 0), (leaky, 1)):
        with pytest.raises(SystemExit) as ended:
            main(["kit", "audit", str(folder), "--against", str(data_file), "-o", "json"])
        report = json.loads(capsys.readouterr().out)
        assert (ended.value.code or 0) == code
        assert report["clean"] is (code == 0)
