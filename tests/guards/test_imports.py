"""Where modules may reach. The layers themselves are import-linter's (pyproject.toml)."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from .conftest import ROOT, parsed

PACKAGE_ROOTS = ("serving", "transfer", "kernels")


def _imports(path: Path) -> Iterator[tuple[int, str]]:
    """Yields line and absolute module name of every import, also those inside functions."""
    package = ("lorebase", *path.parent.parts)
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level == 0:
                yield node.lineno, node.module or ""
            else:
                base = package[: len(package) - node.level + 1]
                yield node.lineno, ".".join((*base, node.module or "")).rstrip(".")


def _offenders(sources: list[Path], root: str, allowed: tuple[str, ...]) -> list[str]:
    return [
        f"{path}:{line} imports {name}"
        for path in sources
        if path.parts[0] in PACKAGE_ROOTS and not any(path.match(pattern) for pattern in allowed)
        for line, name in _imports(path)
        if name.split(".")[0] == root
    ]


def test_ray_stays_in_its_rooms(sources: list[Path]) -> None:
    allowed = ("ray_*.py", "serving/app.py", "serving/launch.py")
    assert not _offenders(sources, "ray", allowed), "Ray belongs to ray_*.py, app.py, launch.py"


def test_vllm_stays_in_its_rooms(sources: list[Path]) -> None:
    allowed = ("serving/engine/vllm_*.py", "kernels/vllm/*.py", "kernels/vllm/**/*.py")
    assert not _offenders(sources, "vllm", allowed), "vLLM belongs to serving/engine/vllm_*.py"


def test_unit_tests_import_neither_ray_nor_vllm(sources: list[Path]) -> None:
    unit = [path for path in sources if path.parts[:2] == ("tests", "unit")]
    found = [
        f"{path}:{line} imports {name}"
        for path in unit
        for line, name in _imports(path)
        if name.split(".")[0] in ("ray", "vllm")
    ]
    assert not found, "\n".join(found)


def test_relative_imports_stay_inside_their_folder(sources: list[Path]) -> None:
    found = []
    for path in sources:
        if path.parts[0] not in PACKAGE_ROOTS:
            continue
        for node in ast.walk(parsed(path)):
            # One dot is the module's own folder, so a file at depth d may climb d dots.
            if isinstance(node, ast.ImportFrom) and node.level > len(path.parent.parts):
                found.append(f"{path}:{node.lineno}: across folders write lorebase.<folder>")
    assert not found, "\n".join(found)


def test_nothing_unpickles(sources: list[Path]) -> None:
    found = []
    for path in sources:
        if path.parts[0] not in PACKAGE_ROOTS:
            continue
        for line, name in _imports(path):
            if name.split(".")[0] in (
                "pickle",
                "dill",
                "cloudpickle",
                "joblib",
                "marshal",
                "shelve",
            ):
                found.append(f"{path}:{line} imports {name}")
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                found.append(f"{path}:{node.lineno} calls torch.load")
    assert not found, "a pickle runs code of whoever made it; use safetensors and JSON"


@pytest.mark.parametrize("module", ["lorebase.serving.cli.main", "lorebase.serving.cli.client"])
def test_the_cli_starts_without_heavy_modules(module: str) -> None:
    code = (
        f"import sys, {module}; "
        "print([m for m in ('torch', 'ray', 'vllm', 'transformers', 'sqlalchemy', 'fastapi') "
        "if m in sys.modules])"
    )
    output = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True
    )
    assert output.stdout.strip() == "[]"
