"""Packing of uploads: deterministic, bounded, readable by any tar."""

import io
import os
import tarfile
from pathlib import Path

import pytest

from lorebase.serving.cli.packing import MAX_FILES, files_of, tar_chunks
from lorebase.serving.errors import InvalidArgumentError, NotFoundError


def _write(root: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


FILES = {
    "kit.json": b"{}",
    "discriminator/adapter_model.safetensors": bytes(range(256)) * 37,
    "empty": b"",
    "block": b"x" * 512,
}


@pytest.mark.parametrize("chunk_bytes", [1, 511, 512, 4096, 1 << 20])
def test_any_tar_reader_gets_the_same_files_back(tmp_path: Path, chunk_bytes: int) -> None:
    source = _write(tmp_path, FILES)
    chunks = list(tar_chunks(files_of(source), chunk_bytes))
    assert all(0 < len(chunk) <= chunk_bytes for chunk in chunks)
    with tarfile.open(fileobj=io.BytesIO(b"".join(chunks))) as archive:
        got = {
            member.name: stream.read()
            for member in archive.getmembers()
            if (stream := archive.extractfile(member)) is not None
        }
    assert got == FILES


def test_the_same_files_give_the_same_bytes_whatever_their_times(tmp_path: Path) -> None:
    first = _write(tmp_path / "a", FILES)
    second = _write(tmp_path / "b", dict(reversed(FILES.items())))
    for path in second.rglob("*"):
        os.utime(path, (1, 1))
    (second / "kit.json").chmod(0o600)
    assert b"".join(tar_chunks(files_of(first))) == b"".join(tar_chunks(files_of(second)))


def test_one_file_takes_the_name_that_the_server_expects(tmp_path: Path) -> None:
    (tmp_path / "mine.jsonl").write_text("{}")
    (packed,) = files_of(tmp_path / "mine.jsonl", single_name="evaluation.jsonl")
    assert packed.name == "evaluation.jsonl"
    assert packed.size_bytes == 2


def test_long_names_survive(tmp_path: Path) -> None:
    name = "/".join(["a-rather-long-folder-name"] * 6) + "/model.safetensors"
    source = _write(tmp_path, {name: b"1"})
    with tarfile.open(fileobj=io.BytesIO(b"".join(tar_chunks(files_of(source))))) as archive:
        assert archive.getnames() == [name]


def test_a_missing_source_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="nowhere"):
        files_of(tmp_path / "nowhere")


def test_an_empty_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="empty"):
        files_of(tmp_path)


def test_links_are_refused(tmp_path: Path) -> None:
    (tmp_path / "secret").symlink_to("/etc/passwd")
    with pytest.raises(InvalidArgumentError, match="link"):
        files_of(tmp_path)


def test_a_folder_with_very_many_files_is_refused(tmp_path: Path) -> None:
    for number in range(MAX_FILES + 1):
        (tmp_path / str(number)).touch()
    with pytest.raises(InvalidArgumentError, match=str(MAX_FILES)):
        files_of(tmp_path)


@pytest.mark.parametrize("size", [10, 1000])
def test_a_file_that_changes_meanwhile_is_noticed(tmp_path: Path, size: int) -> None:
    source = _write(tmp_path, {"weights": b"x" * 500})
    files = files_of(source)
    (source / "weights").write_bytes(b"y" * size)
    with pytest.raises(InvalidArgumentError, match="changed"):
        list(tar_chunks(files))
