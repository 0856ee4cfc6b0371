"""Unpacking untrusted archives: what is refused, with which words, and that nothing escapes."""

import io
import tarfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorebase.serving.artifacts.store import ArtifactStore
from lorebase.serving.artifacts.tar import TarLimits, extract
from lorebase.serving.errors import InvalidArgumentError
from tests.unit.artifact_samples import everything_in, member, tar_entries, tar_of

LIMITS = TarLimits(max_bytes=10_000, max_files=8)


def _link(kind: bytes) -> bytes:
    return tar_entries([(member("a", type=kind, linkname="/etc/passwd"), b"")])


def _pax(records: bytes, then: tarfile.TarInfo, content: bytes = b"") -> bytes:
    header = member("pax", len(records), type=tarfile.XHDTYPE)
    return tar_entries([(header, records), (then, content)], kind=tarfile.USTAR_FORMAT)


def _record(key: str, value: str) -> bytes:
    body = f" {key}={value}\n".encode()
    length = len(body) + len(str(len(body) + 2))
    return str(length).encode() + body


REFUSED: dict[str, tuple[bytes, str]] = {
    "absolute path": (tar_of({"/etc/passwd": b"x"}), "absolute or foreign path"),
    "parent path": (tar_of({"../evil": b"x"}), r"leads out of the archive \('\.\.'\)"),
    "parent path inside": (tar_of({"a/../../evil": b"x"}), "leads out of the archive"),
    "backslash path": (tar_of({"..\\evil": b"x"}), "absolute or foreign path"),
    "absolute pax path": (
        _pax(_record("path", "/etc/passwd"), member("a", 1), b"x"),
        "absolute or foreign path",
    ),
    "parent gnu long name": (
        tar_entries(
            [(member("l", 8, type=tarfile.GNUTYPE_LONGNAME), b"../evil\0"), (member("a"), b"")]
        ),
        "leads out of the archive",
    ),
    "symbolic link": (_link(tarfile.SYMTYPE), "'a' is a symbolic link"),
    "hard link": (_link(tarfile.LNKTYPE), "'a' is a hard link"),
    "character device": (_link(tarfile.CHRTYPE), "'a' is a device"),
    "block device": (_link(tarfile.BLKTYPE), "'a' is a device"),
    "named pipe": (_link(tarfile.FIFOTYPE), "'a' is a named pipe"),
    "unknown type": (_link(b"Z"), "'a' is of unknown type"),
    "gnu sparse": (
        tar_entries([(member("a", 4, type=tarfile.GNUTYPE_SPARSE), b"data")]),
        "'a' is a sparse file",
    ),
    "pax sparse": (
        _pax(_record("GNU.sparse.realsize", "9999999999"), member("a", 1), b"x"),
        r"'GNU\.sparse\.realsize' is not allowed",
    ),
    "duplicate": (
        tar_entries([(member("a", 1), b"1"), (member("a", 1), b"2")]),
        "'a' is there twice",
    ),
    "duplicate with a dot": (
        tar_entries([(member("a", 1), b"1"), (member("./a", 1), b"2")]),
        "'a' is there twice",
    ),
    "file and folder": (
        tar_entries([(member("a", 1), b"1"), (member("a/b", 1), b"2")]),
        "is a file and a directory",
    ),
    "too deep": (tar_of({"a/b/c": b"x"}), "more than 2 levels deep"),
    "hidden": (tar_of({".bashrc": b"x"}), "file name '.bashrc'"),
    "control character": (tar_of({"a\nb": b"x"}), "file name"),
    "empty part": (tar_of({"a//b": b"x"}), "more than 2 levels deep"),
    "no name": (tar_entries([(member("./.", 1), b"x")]), "has no name"),
    "too many files": (tar_of({f"f{n}": b"" for n in range(9)}), "more than 8 entries"),
    "too large": (tar_of({"a": bytes(10_001)}), "declares more than 10000 bytes"),
    "too large in sum": (tar_of({"a": bytes(6000), "b": bytes(6000)}), r"10000 bytes \(at 'b'\)"),
    "too large by declaration": (
        tar_entries([(member("a", 1 << 40), b"x")], kind=tarfile.GNU_FORMAT),
        "declares more than 10000 bytes",
    ),
    "too large by pax": (_pax(_record("size", "99999999999"), member("a")), "declares more than"),
    "malformed pax size": (_pax(_record("size", "-5"), member("a")), "size of '-5'"),
    "malformed pax": (_pax(b"99 path=a\n", member("a")), "extended header is malformed"),
    "short pax": (_pax(b"5 a=b\n", member("a")), "extended header is malformed"),
    "huge pax": (
        tar_entries([(member("pax", 1 << 30, type=tarfile.XHDTYPE), b"")]),
        "extended header declares 1073741824 bytes",
    ),
    "pax without entry": (
        tar_entries([(member("pax", 10, type=tarfile.XHDTYPE), _record("path", "a"))]),
        "extended header has no entry",
    ),
    "global path": (
        tar_entries(
            [(member("g", 10, type=tarfile.XGLTYPE), _record("path", "a")), (member("b"), b"")]
        ),
        "global header sets path",
    ),
    "folder with content": (
        tar_entries([(member("a", 3, type=tarfile.DIRTYPE), b"abc")]),
        "directory 'a' declares 3 bytes",
    ),
    "truncated file": (tar_of({"a": bytes(600)})[:700], "ends in the middle of 'a'"),
    "truncated header": (tar_of({"a": b"x"})[:100], "ends in the middle of a header"),
    "no end": (tar_of({"a": b"x"})[:1024], "ends in the middle of a header"),
    "data after the end": (tar_of({"a": b"x"}) + b"more", "data after its end"),
    "endless padding": (tar_of({"a": b"x"}) + bytes(2 << 20), "data after its end"),
    "gzip": (b"\x1f\x8b\x08" + bytes(600), "not an uncompressed tar archive"),
    "empty stream": (b"", "ends in the middle of a header"),
    "no files": (bytes(1024), "holds no files"),
    "only folders": (
        tar_entries([(member("./", type=tarfile.DIRTYPE), b"")]),
        "holds no files",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_an_unsafe_archive_is_refused_and_leaves_nothing(tmp_path: Path, kind: str) -> None:
    archive, said = REFUSED[kind]
    store = ArtifactStore(tmp_path / "store", max_bytes=LIMITS.max_bytes)
    with pytest.raises(InvalidArgumentError, match=said):
        # The store's own limits are wider only in the number of files.
        extract(io.BytesIO(archive), _fresh(tmp_path / "plain"), LIMITS)
    if kind != "too many files":
        with pytest.raises(InvalidArgumentError, match=said):
            store.import_tar(io.BytesIO(archive), _never_called)
    assert everything_in(tmp_path / "store") == []
    assert not (tmp_path / "evil").exists()
    assert not (tmp_path / "plain" / "evil").exists()


def test_a_damaged_header_is_refused(tmp_path: Path) -> None:
    archive = bytearray(tar_of({"a": b"x"}))
    archive[0] ^= 1
    with pytest.raises(InvalidArgumentError, match=r"is damaged \(bad checksum\)"):
        extract(io.BytesIO(archive), tmp_path, LIMITS)


@pytest.mark.parametrize("kind", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_archives_of_common_tools_are_read(tmp_path: Path, kind: int) -> None:
    source = _fresh(tmp_path / "source")
    # Beyond 100 characters the formats go different ways; the oldest has none.
    long_name = "n" * (80 if kind == tarfile.USTAR_FORMAT else 120) + ".json"
    (source / long_name).write_bytes(b"{}")
    (source / "sub").mkdir()
    (source / "sub" / "inner.bin").write_bytes(bytes(range(256)) * 9)
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w", format=kind) as tar:
        tar.add(source, arcname=".")
    into = _fresh(tmp_path / "into")
    size = extract(io.BytesIO(archive.getvalue()), into, LIMITS)
    assert size == 2 + 256 * 9
    assert (into / long_name).read_bytes() == b"{}"
    assert (into / "sub" / "inner.bin").read_bytes() == bytes(range(256)) * 9


def test_permissions_of_the_archive_are_not_taken_over(tmp_path: Path) -> None:
    archive = tar_entries([(member("a", 1, mode=0o6777, uid=0), b"x")])
    extract(io.BytesIO(archive), tmp_path, LIMITS)
    assert (tmp_path / "a").stat().st_mode & 0o7111 == 0


@given(
    content=st.binary(max_size=3000),
    cuts=st.lists(st.integers(1, 700), min_size=1, max_size=5),
)
@settings(max_examples=30, deadline=None)
def test_it_does_not_matter_how_the_stream_is_cut(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, cuts: list[int]
) -> None:
    archive = tar_of({"a": content, "sub/b": content[::-1]})

    def pieces() -> Iterator[bytes]:
        position = turn = 0
        while position < len(archive):
            size = cuts[turn % len(cuts)]
            yield archive[position : position + size]
            yield b""
            position, turn = position + size, turn + 1

    into = tmp_path_factory.mktemp("cut")
    extract(pieces(), into, LIMITS)
    assert (into / "a").read_bytes() == content
    assert (into / "sub" / "b").read_bytes() == content[::-1]


@given(position=st.integers(0, 1535), value=st.integers(0, 255))
@settings(max_examples=60, deadline=None)
def test_a_changed_byte_is_refused_or_stays_inside(
    tmp_path_factory: pytest.TempPathFactory, position: int, value: int
) -> None:
    archive = bytearray(tar_of({"a": b"content"}))
    archive[position] = value
    # Unsigned sums of the header would catch nearly all; make it valid to test what is behind.
    header = bytes(archive[:148]) + b" " * 8 + bytes(archive[156:512])
    archive[148:156] = b"%06o\0 " % sum(header)
    outside = tmp_path_factory.mktemp("changed")
    into = _fresh(outside / "into")
    with suppress(InvalidArgumentError):
        extract(io.BytesIO(archive), into, LIMITS)
    assert [path.name for path in outside.iterdir()] == ["into"]
    assert all(path.is_file() and not path.is_symlink() for path in into.iterdir())


@given(noise=st.binary(max_size=2000))
@settings(max_examples=30, deadline=None)
def test_noise_is_never_anything_but_an_invalid_argument(
    tmp_path_factory: pytest.TempPathFactory, noise: bytes
) -> None:
    with pytest.raises(InvalidArgumentError):
        extract(io.BytesIO(noise), tmp_path_factory.mktemp("noise"), LIMITS)


def _fresh(path: Path) -> Path:
    path.mkdir()
    return path


def _never_called(_: Path) -> None:
    raise AssertionError("the check ran on a refused archive")
