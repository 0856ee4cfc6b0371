"""Results are directories that are replaced whole, and only where a result of that kind is."""

import os
import shutil
import tempfile
from collections.abc import Collection
from pathlib import Path

from lorebase.serving.errors import FailedPreconditionError


def check_replaceable(directory: Path, *, kind: str, mark: str, names: Collection[str]) -> None:
    """Checks that a result may go to `directory`; call it before the work, too.

    Args:
        directory: where it goes; it may be missing or empty.
        kind: what the result is, for people.
        mark: file that every such result has.
        names: all that such a result has, at the top.

    Raises:
        FailedPreconditionError: something else is there, which would be lost.
    """
    if not os.path.lexists(directory):
        return
    if directory.is_symlink() or not directory.is_dir():
        raise FailedPreconditionError(
            f"{directory} is a file or a link: expected a directory that is new, empty or {kind}",
            reason="OUT_TAKEN",
        )
    found = sorted(entry.name for entry in directory.iterdir())
    others = [name for name in found if name not in names]
    if not found or (mark in found and not others):
        return
    raise FailedPreconditionError(
        f"{directory} holds {(others or found)[0]!r} and would be replaced: expected a directory "
        f"that is new, empty or {kind}; name another one, or remove it yourself",
        reason="OUT_TAKEN",
    )


def replace_directory(made: Path, directory: Path) -> None:
    """Puts a finished directory in the place of another one, which it removes last.

    A crash leaves the old or the new one whole; at worst the old one lies beside its place under
    the name `.replaced-...`.

    Args:
        made: the new directory, in the same file system.
        directory: its place; what is there goes, so check it before.
    """
    if not directory.exists():
        made.rename(directory)
        return
    aside = Path(tempfile.mkdtemp(prefix=f".replaced-{directory.name}-", dir=directory.parent))
    old = aside / directory.name
    try:
        directory.rename(old)
        made.rename(directory)
    except OSError:
        if old.exists():
            old.rename(directory)
        aside.rmdir()
        raise
    shutil.rmtree(aside, ignore_errors=True)
