"""The content-addressed store: digests, atomicity, many writers, garbage collection."""

import io
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorebase.serving.artifacts import ArtifactStore
from lorebase.serving.errors import (
    InvalidArgumentError,
    NotFoundError,
    ResourceExhaustedError,
)
from tests.unit.artifact_samples import everything_in, tar_of, write_files

FILES = {"a.json": b"{}", "sub/b.json": b"[1]"}


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> ArtifactStore:
    return ArtifactStore(tmp_path / "store", max_bytes=10_000, clock=clock)


def test_the_digest_follows_from_names_and_content_only(
    store: ArtifactStore, tmp_path: Path
) -> None:
    one = store.put_dir(write_files(tmp_path / "one", FILES))
    other = write_files(tmp_path / "other", dict(reversed(FILES.items())))
    (other / "empty").mkdir()
    os.utime(other / "a.json", (1, 1))
    assert store.put_dir(other) == one
    assert store.import_tar(io.BytesIO(tar_of(FILES)), lambda _: None) == (one, 5)
    # A fixed value: a digest must not change between releases.
    assert one == "sha256:2f502dc1ba9bd613df7fca1678469a6b41f375d2f9cdb05a8476e3bd6c5b29e9"


@given(
    files=st.lists(
        st.dictionaries(
            st.sampled_from(["a", "b", "ab", "a/b", "c/a"]), st.binary(max_size=3), min_size=1
        ),
        min_size=2,
        max_size=4,
        unique_by=lambda files: tuple(sorted(files.items())),
    )
)
@settings(max_examples=15, deadline=None)
def test_different_directories_have_different_digests(
    tmp_path_factory: pytest.TempPathFactory, files: list[dict[str, bytes]]
) -> None:
    root = tmp_path_factory.mktemp("digests")
    store = ArtifactStore(root / "store")
    # A name can't be a file and a folder at once.
    usable = [one for one in files if not ("a" in one and "a/b" in one)]
    digests = [
        store.put_dir(write_files(root / str(number), one)) for number, one in enumerate(usable)
    ]
    assert len(set(digests)) == len(digests)


def test_stored_files_are_copies_that_can_not_be_written(
    store: ArtifactStore, tmp_path: Path
) -> None:
    source = write_files(tmp_path / "source", FILES)
    path = store.path(store.put_dir(source))
    (source / "a.json").write_bytes(b"changed")
    assert (path / "a.json").read_bytes() == b"{}"
    assert (path / "a.json").stat().st_mode & 0o222 == 0


@pytest.mark.parametrize("value", [None, 0, "text", {"b": [1.5, None], "a": {"ä": "ß"}}, []])
def test_json_values_come_back(store: ArtifactStore, value: Any) -> None:
    assert store.get_json(store.put_json(value)) == value


def test_equal_json_values_have_equal_digests(store: ArtifactStore) -> None:
    assert store.put_json({"a": 1, "b": 2}) == store.put_json({"b": 2, "a": 1})
    assert store.put_json([1, 2]) != store.put_json([2, 1])
    assert store.put_json(1, "one.json") != store.put_json(1, "other.json")


@pytest.mark.parametrize("value", [float("nan"), {1, 2}, object(), "\ud800"])
def test_what_is_not_json_is_refused(store: ArtifactStore, value: Any) -> None:
    with pytest.raises(InvalidArgumentError, match=r"'data\.json' is not JSON"):
        store.put_json(value)


def test_a_file_that_is_not_there_is_named(store: ArtifactStore) -> None:
    digest = store.put_bytes(b"1", "one.json")
    assert (store.path(digest) / "one.json").read_bytes() == b"1"
    with pytest.raises(NotFoundError, match=r"has no file 'other\.json'"):
        store.get_json(digest, "other.json")


def test_an_absent_artifact_is_not_found(store: ArtifactStore) -> None:
    digest = "sha256:" + "0" * 64
    assert not store.exists(digest)
    assert store.locate(digest).parent.parent.parent == store.root
    with pytest.raises(NotFoundError, match="upload it first"):
        store.path(digest)
    store.delete(digest)


@pytest.mark.parametrize(
    "digest", ["", "sha256:", "sha256:../../etc", "md5:" + "0" * 64, "sha256:" + "A" * 64]
)
def test_only_digests_lead_to_paths(store: ArtifactStore, digest: str) -> None:
    for use in (store.locate, store.path, store.exists, store.delete):
        with pytest.raises(InvalidArgumentError, match="expected 'sha256:' and 64"):
            use(digest)


def test_a_deleted_artifact_is_gone_and_can_come_back(store: ArtifactStore) -> None:
    digest = store.put_bytes(b"1", "one")
    store.delete(digest)
    assert not store.exists(digest)
    assert everything_in(store.root) == [f"objects/{digest[7:9]}"]
    assert store.put_bytes(b"1", "one") == digest


@pytest.mark.parametrize("name", ["../evil", "/evil", ".hidden", "", "a/b"])
def test_file_names_stay_inside(store: ArtifactStore, name: str) -> None:
    with pytest.raises(InvalidArgumentError, match="file name"):
        store.put_bytes(b"x", name)
    assert everything_in(store.root) == []


def test_links_are_not_followed_out_of_a_directory(store: ArtifactStore, tmp_path: Path) -> None:
    source = write_files(tmp_path / "source", FILES)
    (source / "link").symlink_to("/etc/passwd")
    with pytest.raises(InvalidArgumentError, match="'link' is a link or device"):
        store.put_dir(source)
    assert everything_in(store.root) == []


def test_sizes_are_bounded_and_nothing_stays_behind(store: ArtifactStore, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="10001 bytes: expected at most 10000"):
        store.put_bytes(bytes(10_001), "large")
    with pytest.raises(InvalidArgumentError, match="expected at most 10000"):
        store.put_dir(write_files(tmp_path / "large", {"a": bytes(6000), "b": bytes(6000)}))
    (tmp_path / "empty" / "sub").mkdir(parents=True)
    with pytest.raises(InvalidArgumentError, match="at least one file"):
        store.put_dir(tmp_path / "empty")
    assert everything_in(store.root) == []


def test_a_refused_import_leaves_nothing_behind(store: ArtifactStore) -> None:
    seen: list[Path] = []

    def refuse(path: Path) -> None:
        seen.append(path)
        assert (path / "a.json").read_bytes() == b"{}"
        raise InvalidArgumentError("not like this")

    with pytest.raises(InvalidArgumentError, match="not like this"):
        store.import_tar(io.BytesIO(tar_of(FILES)), refuse)
    assert len(seen) == 1
    assert everything_in(store.root) == []


def test_a_stream_that_breaks_off_leaves_nothing_behind(store: ArtifactStore) -> None:
    def broken() -> Iterator[bytes]:
        yield tar_of(FILES)[:600]
        raise ConnectionError("client went away")

    with pytest.raises(ConnectionError):
        store.import_tar(broken(), lambda _: None)
    assert everything_in(store.root) == []


def test_a_full_disk_is_said_to_be_full(
    store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ResourceExhaustedError, match="disk is full"):
        store.put_bytes(b"x", "x")
    monkeypatch.undo()
    assert everything_in(store.root) == []


def test_many_writers_of_the_same_content_agree(tmp_path: Path) -> None:
    root = tmp_path / "store"

    def put(number: int) -> str:
        # Each its own store, as in each its own process.
        return ArtifactStore(root).put_json({"value": number % 3})

    with ThreadPoolExecutor(8) as pool:
        digests = list(pool.map(put, range(60)))
    assert len(set(digests)) == 3
    store = ArtifactStore(root)
    assert [store.get_json(digest) for digest in digests[:3]] == [{"value": n} for n in range(3)]
    assert list((root / "staging").iterdir()) == []


def test_garbage_is_what_nothing_names_and_what_is_old(store: ArtifactStore, clock: Clock) -> None:
    kept, old, renewed = (store.put_json(number) for number in range(3))
    clock.now += 100
    young = store.put_json(3)
    assert store.put_json(2) == renewed
    clock.now += 50
    assert store.collect_garbage({kept}, older_than_s=60) == [old]
    assert [store.exists(one) for one in (kept, old, renewed, young)] == [True, False, True, True]


def test_what_a_crashed_writer_left_is_collected(store: ArtifactStore, clock: Clock) -> None:
    crashed, running = store.root / "staging" / "crashed", store.root / "staging" / "running"
    for path, age in ((crashed, 500), (running, 5)):
        write_files(path, FILES)
        os.utime(path, (clock.now - age, clock.now - age))
    assert store.collect_garbage(set(), older_than_s=60) == []
    assert not crashed.exists()
    assert running.exists()


def test_collecting_while_others_write_never_takes_what_they_just_stored(tmp_path: Path) -> None:
    root = tmp_path / "store"

    def write(number: int) -> bool:
        store = ArtifactStore(root)
        return store.get_json(store.put_json(number % 4)) == number % 4

    def collect(_: int) -> bool:
        # Just stored means young, so everything here is safe.
        return ArtifactStore(root).collect_garbage(set(), older_than_s=30) == []

    with ThreadPoolExecutor(6) as pool:
        writes = [pool.submit(write, number) for number in range(40)]
        collections = [pool.submit(collect, number) for number in range(10)]
        assert all(future.result() for future in [*writes, *collections])
