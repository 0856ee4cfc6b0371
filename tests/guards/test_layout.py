"""The layout that people and tools rely on."""

import ast
import re
import tomllib
from pathlib import Path

from .conftest import ROOT, parsed

PACKAGE_ROOTS = {"serving": "serving", "transfer": "transfer", "kernels": "kernels"}
TOP_LEVEL = {
    *("serving", "transfer", "kernels", "protos", "benchmarks", "tests"),
    *("examples", "deploy", "docs", "requirements"),
    *("pyproject.toml", "setup.py", "Makefile", "buf.yaml", "LICENSE", "NOTICE"),
    *("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md"),
}
MAX_FILE_LINES = {"tests": 500}
MAX_FUNCTION_LINES = {"tests": 80}
# Everything that isn't a test.
DEFAULT_FILE_LINES = 300
DEFAULT_FUNCTION_LINES = 60
# Path: why it may be longer. Keep it empty if you can.
LONG_FILES: dict[str, str] = {}
LONG_FUNCTIONS: dict[str, str] = {
    "serving/gateway/metrics.py:__init__": "a list: one declaration for each metric",
    "transfer/kit/build.py:build_kit": "a recipe, which reads from top to bottom",
}

# Tracked text must mean the same on every machine.
_MACHINE = {
    "absolute path": re.compile(r"(?<![\w.:/$}{)-])/(?:work|root|home|Users|opt|mnt)/[\w.-]+"),
    "registry or index host": re.compile(
        r"https?://[^\s\"'/]*(?:pypi|pythonhosted|artifactory|nexus|download\.pytorch)[^\s\"']*"
    ),
    "private address": re.compile(
        r"\b(?:10|192\.168|172\.(?:1[6-9]|2\d|3[01]))(?:\.\d{1,3}){2,3}\b"
    ),
}
_BINARY = {".safetensors", ".png", ".svg", ".gz", ".zip", ".pdf"}


def test_only_known_things_lie_at_the_top(tracked: list[Path]) -> None:
    tops = {path.parts[0] for path in tracked}
    unknown = {top for top in tops if top not in TOP_LEVEL and not top.startswith(".")}
    assert not unknown, f"move {sorted(unknown)} under one of {sorted(TOP_LEVEL)}"


def test_package_roots_have_no_init_file() -> None:
    found = [
        f"{root}/__init__.py" for root in PACKAGE_ROOTS if (ROOT / root / "__init__.py").exists()
    ]
    # A regular top-level package `kernels` makes transformers believe that HF's kernels is there.
    assert not found, "delete it: the package folders are parts of the namespace lorebase"


def test_pyproject_lists_exactly_the_package_folders(sources: list[Path]) -> None:
    listed = set(
        tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    )
    there = {"lorebase.v1"}
    for path in sources:
        if path.parts[0] in PACKAGE_ROOTS:
            there.add(".".join(("lorebase", *path.parent.parts)))
    assert listed - {"lorebase.kernels"} == there - {"lorebase.kernels"}, (
        "make [tool.setuptools] packages in pyproject.toml equal to the folders"
    )


def test_sub_folders_are_regular_packages(sources: list[Path]) -> None:
    folders = {path.parent for path in sources if path.parts[0] in PACKAGE_ROOTS}
    missing = sorted(
        str(folder)
        for folder in folders
        if len(folder.parts) > 1 and not (ROOT / folder / "__init__.py").exists()
    )
    assert not missing, f"add an __init__.py to {missing}"


def test_typing_links_point_to_the_package_folders() -> None:
    for name in (*PACKAGE_ROOTS, "v1"):
        link = ROOT / ".typing" / "lorebase" / name
        target = ROOT / ("protos/lorebase/v1" if name == "v1" else name)
        assert link.is_symlink(), f"{link} must be a link"
        assert link.resolve() == target.resolve()
        assert not Path(link.readlink()).is_absolute(), "a relative link survives a clone"


def test_files_stay_short(sources: list[Path]) -> None:
    long = {
        str(path): count
        for path in sources
        if (count := len((ROOT / path).read_text().splitlines()))
        > MAX_FILE_LINES.get(path.parts[0], DEFAULT_FILE_LINES)
    }
    assert long.keys() <= LONG_FILES.keys(), f"too many lines: {long}; split by noun"
    assert LONG_FILES.keys() <= long.keys(), "drop entries that aren't needed any more"


def test_functions_stay_short(sources: list[Path]) -> None:
    long: dict[str, int] = {}
    for path in sources:
        limit = MAX_FUNCTION_LINES.get(path.parts[0], DEFAULT_FUNCTION_LINES)
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1 - _docstring_lines(node)
                if lines > limit:
                    long[f"{path}:{node.name}"] = lines
    assert long.keys() <= LONG_FUNCTIONS.keys(), f"too many lines: {long}"
    assert LONG_FUNCTIONS.keys() <= long.keys(), "drop entries that aren't needed any more"


def _docstring_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    if ast.get_docstring(node, clean=False) is None:
        return 0
    first = node.body[0]
    return (first.end_lineno or first.lineno) - first.lineno + 1


def test_nothing_tracked_names_this_machine(tracked: list[Path]) -> None:
    found = []
    for path in tracked:
        if path.suffix in _BINARY or path == Path("tests/guards/test_layout.py"):
            continue
        try:
            text = (ROOT / path).read_text()
        except UnicodeDecodeError:
            continue
        for what, pattern in _MACHINE.items():
            found += [f"{path}: {what} {match.group()!r}" for match in pattern.finditer(text)]
    assert not found, "\n".join(found[:50])


def test_no_tracked_file_is_huge(tracked: list[Path]) -> None:
    limit = 8 << 20
    big = {str(path): (ROOT / path).stat().st_size for path in tracked}
    assert not {name: size for name, size in big.items() if size > limit}
