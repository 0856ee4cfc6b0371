"""Adapters of every PEFT type become LoRAs that do the same, or say what is lost or why not."""

import io
import json
import re
import tarfile
from pathlib import Path

import peft
import pytest
import torch

from lorebase.serving.artifacts import AdapterLimits, base_shapes, check_adapter
from lorebase.serving.cli.main import main
from lorebase.serving.errors import FailedPreconditionError, InvalidArgumentError
from lorebase.transfer.convert import kind_of
from lorebase.transfer.convert.command import run
from lorebase.transfer.convert.convert import convert_adapter
from lorebase.transfer.convert.report import ConvertSettings

from .cli_server import Server
from .peft_zoo import CONVERTIBLE, PLAIN, PROMPTED, UNMERGED, Species, logits, make
from .tiny_models import make_tiny_adapter, make_tiny_base

# PEFT warns of experimental types and of dtypes that it would choose otherwise.
pytestmark = pytest.mark.filterwarnings("ignore")

IDS = torch.randint(4, 200, (2, 16), generator=torch.Generator().manual_seed(3))
ANY_LOSS = ConvertSettings(max_rank=8, min_kept_energy=0.0)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_base(tmp_path_factory.mktemp("base") / "tiny")


def named(species: Species) -> str:
    return species.name


@pytest.mark.parametrize("species", CONVERTIBLE, ids=named)
def test_a_change_of_weights_becomes_a_lora_that_answers_the_same(
    species: Species, base: Path, tmp_path: Path
) -> None:
    source = make(species, base, tmp_path / "source")
    rank = 16 if species.low_rank else 64
    report = convert_adapter(
        source, base, tmp_path / "lora", settings=ConvertSettings(max_rank=rank)
    )
    assert report.path == "convert"
    assert report.exact
    assert report.kept_energy == pytest.approx(1.0, abs=1e-6)
    check_adapter(tmp_path / "lora", base_shapes(base), AdapterLimits(max_rank=rank))
    # As others see it: PEFT alone, on tokens that were not compared while converting.
    wanted, bare = logits(base, source, IDS), logits(base, make_nothing(base, tmp_path), IDS)
    effect = float((wanted - bare).abs().max())
    error = float((wanted - logits(base, tmp_path / "lora", IDS)).abs().max())
    assert effect > 0.1, "the test's adapter must do something"
    assert error < 3e-3 * effect
    assert report.likeness is not None
    assert report.likeness.top_token_agreement == 1.0


def make_nothing(base: Path, tmp_path: Path) -> Path:
    """Returns a LoRA that does nothing."""
    return make_tiny_adapter(tmp_path / "nothing", base, strength=0.0)


@pytest.mark.parametrize("species", [one for one in CONVERTIBLE if not one.low_rank][:6], ids=named)
def test_what_a_lower_rank_loses_is_measured(species: Species, base: Path, tmp_path: Path) -> None:
    source = make(species, base, tmp_path / "source")
    report = convert_adapter(source, base, tmp_path / "lora", settings=ANY_LOSS)
    assert not report.exact
    assert 0.05 < report.kept_energy < 0.999
    assert report.kept_energy_least <= report.kept_energy
    assert set(report.ranks.values()) == {8}
    assert report.likeness is not None
    assert 0 < report.likeness.divergence < 1.2 * report.likeness.divergence_of_base
    page = (tmp_path / "lora" / "README.md").read_text()
    told = json.loads(re.search(r"```json\n(.*)\n```", page, re.DOTALL)[1])  # type: ignore[index]
    assert told["kept_energy"] == report.kept_energy


def test_too_much_loss_is_refused_with_what_to_do(base: Path, tmp_path: Path) -> None:
    source = make(CONVERTIBLE[1], base, tmp_path / "source")
    with pytest.raises(FailedPreconditionError, match=r"rank 8 holds \d\d\.\d%.*transfer kit"):
        convert_adapter(source, base, tmp_path / "lora", settings=ConvertSettings(max_rank=8))
    assert not (tmp_path / "lora").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize("species", PLAIN, ids=named)
def test_a_plain_lora_stays_as_it_is(species: Species, base: Path, tmp_path: Path) -> None:
    source = make(species, base, tmp_path / "source")
    report = convert_adapter(source, base, tmp_path / "lora")
    assert (report.path, report.exact, report.likeness) == ("keep", True, None)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "lora" / name).read_bytes() == (source / name).read_bytes()


@pytest.mark.parametrize("species", [*PROMPTED, *UNMERGED], ids=named)
def test_what_is_no_change_of_weights_asks_for_a_kit(
    species: Species, base: Path, tmp_path: Path
) -> None:
    source = make(species, base, tmp_path / "source")
    assert run(source=source, base_dir=base, base_id="b", dry_run=True)["path"] == "distill"
    with pytest.raises(FailedPreconditionError, match="transfer kit"):
        run(source=source, base_dir=base, base_id="b", out=tmp_path / "lora")


def test_another_base_takes_a_kit_even_for_a_lora(base: Path, tmp_path: Path) -> None:
    source = make(PLAIN[0], base, tmp_path / "source")
    other = make_tiny_base(tmp_path / "other", seed=5)
    with pytest.raises(FailedPreconditionError, match="on another base: give the adapter's"):
        run(source=source, base_dir=base, base_id="b", out=tmp_path / "x", to_base_dir=other)


def test_a_change_of_norms_is_refused_with_the_reason(base: Path, tmp_path: Path) -> None:
    species = Species("ln", lambda: peft.LNTuningConfig(task_type="CAUSAL_LM"), False)
    source = make(species, base, tmp_path / "source")
    with pytest.raises(FailedPreconditionError, match="norms"):
        convert_adapter(source, base, tmp_path / "lora")


def test_a_change_of_other_layers_than_linear_ones_is_refused(base: Path, tmp_path: Path) -> None:
    species = Species(
        "head",
        lambda: peft.LoHaConfig(task_type="CAUSAL_LM", r=2, target_modules=["lm_head"]),
        True,
    )
    source = make(species, base, tmp_path / "source")
    with pytest.raises(InvalidArgumentError, match="lm_head"):
        convert_adapter(source, base, tmp_path / "lora")


def test_an_adapter_of_another_base_is_refused(base: Path, tmp_path: Path) -> None:
    source = make(CONVERTIBLE[-1], base, tmp_path / "source")
    config = json.loads((source / "adapter_config.json").read_text())
    (source / "adapter_config.json").write_text(json.dumps({**config, "r": 7}))
    with pytest.raises(InvalidArgumentError, match="does not fit"):
        convert_adapter(source, base, tmp_path / "lora")


def test_every_peft_type_has_a_place_in_the_table() -> None:
    for peft_type in peft.PeftType:
        assert "not known here" not in kind_of({"peft_type": peft_type.value}).reason, peft_type


def test_the_command_line_converts_and_says_what_it_did(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = make(CONVERTIBLE[7], base, tmp_path / "source")
    with pytest.raises(SystemExit) as ended:
        main(
            [
                *("adapter", "convert", str(source), "--base-dir", str(base), "--base", "old"),
                *("--out", str(tmp_path / "lora"), "--max-rank", "8", "-o", "json"),
            ]
        )
    assert not ended.value.code
    told = json.loads(capsys.readouterr().out)
    assert (told["peft_type"], told["path"], told["exact"]) == ("HRA", "convert", True)
    check_adapter(tmp_path / "lora", base_shapes(base), AdapterLimits(max_rank=8))


def test_creating_an_adapter_converts_it_on_the_way(
    base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source = make(CONVERTIBLE[3], base, tmp_path / "source")
    server = Server()
    monkeypatch.setenv("LOREBASE_ENDPOINT", server.endpoint)
    try:
        with pytest.raises(SystemExit) as ended:
            main(
                [
                    *("adapter", "create", "acme/x", "--from", str(source), "--base", "old"),
                    *("--base-dir", str(base), "-o", "json"),
                ]
            )
    finally:
        server.stop()
    assert not ended.value.code
    assert "DELORA became a LoRA that holds 100.00% of it" in capsys.readouterr().err
    [(_, archive)] = server.adapters.uploads.values()
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        tar.extractall(tmp_path / "sent", filter="data")
    check_adapter(tmp_path / "sent", base_shapes(base), AdapterLimits())
