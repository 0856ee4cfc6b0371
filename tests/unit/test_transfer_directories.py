"""Results replace results of their kind, and nothing else."""

from pathlib import Path

import pytest

from lorebase.serving.errors import FailedPreconditionError
from lorebase.transfer.convert.command import run as convert
from lorebase.transfer.convert.place import check_lora_place
from lorebase.transfer.directories import replace_directory
from lorebase.transfer.kit.command import build_kit_from_files
from lorebase.transfer.kit.storage import check_kit_place


def filled(directory: Path, *names: str) -> Path:
    directory.mkdir(parents=True)
    for name in names:
        (directory / name).write_text(name)
    return directory


def test_a_new_an_empty_and_a_finished_place_are_fine(tmp_path: Path) -> None:
    check_kit_place(tmp_path / "new")
    check_kit_place(filled(tmp_path / "empty"))
    kit = filled(tmp_path / "kit", "kit.json")
    (kit / "discriminator").mkdir()
    check_kit_place(kit)
    check_lora_place(
        filled(tmp_path / "lora", "adapter_config.json", "adapter_model.safetensors", "README.md")
    )


@pytest.mark.parametrize(
    "names", [("thesis.tex",), ("kit.json", "thesis.tex"), ("adapter_config.json",)]
)
def test_a_directory_with_anything_else_in_it_is_no_place_for_a_kit(
    tmp_path: Path, names: tuple[str, ...]
) -> None:
    with pytest.raises(FailedPreconditionError, match=names[-1]) as caught:
        check_kit_place(filled(tmp_path / "taken", *names))
    assert caught.value.reason == "OUT_TAKEN"


@pytest.mark.parametrize("names", [("kit.json",), ("adapter_config.json", "checkpoint-5")])
def test_a_directory_with_anything_else_in_it_is_no_place_for_a_lora(
    tmp_path: Path, names: tuple[str, ...]
) -> None:
    with pytest.raises(FailedPreconditionError, match=names[-1]):
        check_lora_place(filled(tmp_path / "taken", *names))


def test_a_file_and_a_link_are_no_place(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(filled(tmp_path / "empty"))
    for name in ("file", "link"):
        with pytest.raises(FailedPreconditionError, match="file or a link"):
            check_kit_place(tmp_path / name)


def test_a_taken_place_is_told_before_any_work(tmp_path: Path) -> None:
    home = filled(tmp_path / "home", "thesis.tex")
    data = tmp_path / "data.jsonl"  # missing, and so is the base: neither is looked at
    with pytest.raises(FailedPreconditionError, match=r"thesis\.tex"):
        build_kit_from_files(tmp_path / "base", data, home, base_id="old", dataset_name="x")
    source = filled(tmp_path / "source", "adapter_model.safetensors")
    (source / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    with pytest.raises(FailedPreconditionError, match=r"thesis\.tex"):
        convert(source=source, base_dir=tmp_path / "base", base_id="old", out=home)
    assert (home / "thesis.tex").exists()


def test_the_old_directory_goes_last(tmp_path: Path) -> None:
    place = filled(tmp_path / "place", "old")
    replace_directory(filled(tmp_path / "made", "new"), place)
    assert [entry.name for entry in place.iterdir()] == ["new"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["place"]


def test_what_was_there_stays_whole_when_the_new_one_can_not_be_put_there(tmp_path: Path) -> None:
    place = filled(tmp_path / "place", "old")
    with pytest.raises(FileNotFoundError):
        replace_directory(tmp_path / "never made", place)
    assert [entry.name for entry in place.iterdir()] == ["old"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["place"]
