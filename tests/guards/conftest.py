"""What guards look at: the files that git would commit."""

import ast
import functools
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@functools.cache
def parsed(path: Path) -> ast.Module:
    """Returns the syntax tree of a source file, given relative to the root."""
    return ast.parse((ROOT / path).read_text())


@pytest.fixture(scope="session")
def tracked() -> list[Path]:
    """Tracked files and new ones that aren't ignored, relative to the root, existing ones only."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    paths = sorted({Path(name) for name in listing.stdout.split("\0") if name})
    return [path for path in paths if (ROOT / path).is_file()]


@pytest.fixture(scope="session")
def sources(tracked: list[Path]) -> list[Path]:
    """Python files that people write: no generated stubs, no links."""
    return [
        path
        for path in tracked
        if path.suffix == ".py"
        and not path.name.endswith(("_pb2.py", "_pb2_grpc.py"))
        and path.parts[0] != ".typing"
    ]
