"""Which code finished cells were made by: generations, raised by hand, and the sources they cover.

A cell's key names what is measured, not how the code does it. So a change of the code that changes
results must raise a generation here, or old rows would be taken for new ones. `sources.json` holds
a digest of every source that decides a cell, without its comments and docstrings; a unit test
compares. Whoever changes such a source decides:

- results stay the same (a refactoring, a message, a type): write the digests anew, and nothing
  else: `python -m benchmarks.transfer.generation`;
- results of single arms change (a default of their recipe): raise those arms in `ARMS`, too;
- results of all cells change: raise `CELLS`; those of source adapters or kits: raise `STAGES`.
"""

from __future__ import annotations

import ast
import hashlib
import json
import sys
from pathlib import Path

STAGES = 1
"""Of source adapters and kits; all cells made with them start anew, too."""
CELLS = 2
"""Of all cells."""
ARMS: dict[str, int] = {"hop2": 1}
"""Of single arms' cells; 0 where an arm is missing."""

ROOT = Path(__file__).resolve().parents[2]
PINNED = Path(__file__).with_name("sources.json")
SOURCES = (
    "benchmarks/transfer/arms.py",
    "benchmarks/transfer/cells.py",
    "benchmarks/transfer/held_out.py",
    "benchmarks/transfer/metered.py",
    "benchmarks/transfer/moves.py",
    "benchmarks/transfer/stage.py",
    "benchmarks/transfer/world.py",
    "examples/tinyworld/conventions.py",
    "examples/tinyworld/tasks.py",
    "transfer/distill/*.py",
    "transfer/evaluate/evidence.py",
    "transfer/evaluate/score.py",
    "transfer/hf_*.py",
    "transfer/kit/build.py",
    "transfer/kit/calibrate.py",
    "transfer/kit/carry.py",
    "transfer/kit/choices.py",
    "transfer/kit/format.py",
    "transfer/kit/kit.py",
    "transfer/kit/material.py",
    "transfer/kit/seeds_only.py",
    "transfer/recipes/*.py",
    "transfer/synthesis/*.py",
)
"""Patterns below the repository's root."""


def generation_of(arm: str) -> list[int]:
    """Returns what an arm's keys hold."""
    return [CELLS, ARMS.get(arm, 0)]


def source_digests(root: Path = ROOT) -> dict[str, str]:
    """Returns the digest of every source that decides a cell, by its path below `root`."""
    paths = sorted(path for pattern in SOURCES for path in root.glob(pattern))
    return {
        path.relative_to(root).as_posix(): code_digest(path.read_text(encoding="utf-8"))
        for path in paths
    }


def code_digest(source: str) -> str:
    """Returns a digest of Python code that comments, docstrings and layout have no part in."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            # Bare strings are docstrings, of what they stand in or of the line above them.
            node.body = [one for one in node.body if not _is_text(one)]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()[:16]


def _is_text(node: ast.stmt) -> bool:
    if not isinstance(node, ast.Expr) or not isinstance(node.value, ast.Constant):
        return False
    return isinstance(node.value.value, str)


def python_version() -> str:
    """Returns the version that a digest holds for: another one's syntax trees differ."""
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def pinned() -> tuple[str, dict[str, str]]:
    """Returns the Python version and the digests that are written down."""
    told = json.loads(PINNED.read_text(encoding="utf-8"))
    return told["python"], told["sources"]


def pin() -> None:
    """Writes the digests down."""
    told = {"python": python_version(), "sources": source_digests()}
    PINNED.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    pin()
