"""Import contracts and generated code, checked with the tools that own them."""

import os
import subprocess
import sys
from pathlib import Path

from .conftest import ROOT

_BIN = Path(sys.executable).parent


def test_import_contracts_hold() -> None:
    result = subprocess.run(
        [_BIN / "lint-imports", "--no-logo", "--no-cache"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": ".typing"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_generated_stubs_are_up_to_date(tmp_path: Path) -> None:
    protos = ROOT / "protos"
    outputs = [
        f"--{kind}_out={tmp_path}" for kind in ("python", "grpc_python", "mypy", "mypy_grpc")
    ]
    files = sorted(str(path.relative_to(protos)) for path in protos.rglob("*.proto"))
    subprocess.run(
        [sys.executable, "-m", "grpc_tools.protoc", f"-I{protos}", *outputs, *files],
        cwd=ROOT,
        env={**os.environ, "PATH": f"{_BIN}{os.pathsep}{os.environ.get('PATH', '')}"},
        capture_output=True,
        check=True,
    )
    made = {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*_pb2*")}
    kept = {path.relative_to(protos): path.read_bytes() for path in protos.rglob("*_pb2*.py*")}
    kept = {path: data for path, data in kept.items() if "__pycache__" not in path.parts}
    assert made.keys() == kept.keys(), "run `make protos` and remove left-over stubs"
    assert made == kept, "run `make protos`"
