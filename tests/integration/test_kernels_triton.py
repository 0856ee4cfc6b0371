"""The Triton kernels: interpreted against the oracle, and compiled for GPUs that need not be here.

Each in a process of its own: whether triton interprets is decided when it is first imported. The
time limits are for a busy machine; on a quiet one all takes about a minute.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lorebase.kernels.lora.gpu import linear
from tests.unit.kernel_samples import Case

ROOT = Path(__file__).parents[2]
CASES = "tests/integration/kernels_triton_cases.py"
BASELINES = "tests/integration/kernels_baselines_cases.py"


def _run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("TRITON_", "PYTEST_"))}
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=ROOT,
        env={**inherited, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=580,
    )


@pytest.mark.timeout(600)
def test_interpreted_kernels_agree_with_the_oracle() -> None:
    done = _run("pytest", "-q", "-p", "no:cacheprovider", CASES, TRITON_INTERPRET="1")
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert "skipped" not in done.stdout.splitlines()[-1]


@pytest.mark.timeout(600)
def test_the_gpu_suite_calls_vllms_kernels_right() -> None:
    pytest.importorskip("vllm")
    done = _run("pytest", "-q", "-p", "no:cacheprovider", BASELINES, TRITON_INTERPRET="1")
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert "1 passed" in done.stdout


@pytest.mark.timeout(600)
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: they were interpreted above")
def test_compiled_kernels_agree_with_the_oracle() -> None:
    done = _run("pytest", "-q", "-p", "no:cacheprovider", CASES)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


@pytest.mark.timeout(600)
def test_every_shipped_configuration_compiles_as_recorded() -> None:
    done = _run("lorebase.kernels.lora.aot", "--check")
    assert done.returncode == 0, done.stdout + done.stderr[-6000:]
    assert "0 faults" in done.stdout


def test_the_gate_notices_a_configuration_that_changed(tmp_path: Path) -> None:
    # A copy of the package, in which one number of one table differs from the record.
    copy = tmp_path / "lorebase" / "kernels" / "lora"
    shutil.copytree(ROOT / "kernels" / "lora", copy)
    path = copy / "gpu" / "configs" / "sm_80.json"
    table = json.loads(path.read_text())
    table["rows"] = [row for row in table["rows"] if "fused" in row][:1]  # the rest takes time
    table["rows"][0]["fused"]["block_k"] //= 2
    path.write_text(json.dumps(table))
    done = _run("lorebase.kernels.lora.aot", "--check", "--arch", "sm_80", PYTHONPATH=str(tmp_path))
    assert done.returncode == 1, done.stdout + done.stderr
    assert "is not in the record" in done.stderr
    assert "is in the record only" in done.stderr


def test_on_the_cpu_compiled_kernels_are_refused_before_launch() -> None:
    case = Case([(4,)], slices=(16,), max_rank=4)
    y, x = case.inputs([0])
    case.plan.fill([0])
    call = linear.Call(
        y_TN=y,
        x_TK=x,
        weights=case.pool.buffer,
        a_offsets=case.layer.a_offsets,
        b_offsets=case.layer.b_offsets,
        ranks=case.layer.ranks,
        slice_starts=case.layer.slice_starts,
        tiles=case.plan.tiles,
        order=case.plan.order,
        slice_sizes=(16,),
        tile_tokens=16,
        max_rank=4,
    )
    with pytest.raises(ValueError, match="TRITON_INTERPRET=1"):
        linear.run(call)


@pytest.mark.parametrize("wrong", ["rows", "columns", "dtype", "stride", "tables", "plan", "rank"])
def test_foreign_arguments_are_refused_before_a_launch(wrong: str) -> None:
    case = Case([(4,), (4,)], slices=(16,), max_rank=4, max_tokens=4)
    y, x = case.inputs([0, 1, 0])
    longer_y, longer_x = case.inputs([0] * 5)
    values = {
        "y_TN": y,
        "x_TK": x,
        "weights": case.pool.buffer,
        "a_offsets": case.layer.a_offsets,
        "b_offsets": case.layer.b_offsets,
        "ranks": case.layer.ranks,
        "slice_starts": case.layer.slice_starts,
        "tiles": case.plan.tiles,
        "order": case.plan.order,
        "slice_sizes": (16,),
        "tile_tokens": 16,
        "max_rank": 4,
    }
    linear.Call(**values).check()
    changes = {
        "rows": {"x_TK": x[:2]},
        "columns": {"y_TN": y[:, 1:]},
        "dtype": {"x_TK": x.half()},
        "stride": {"x_TK": x.t().contiguous().t()},
        "tables": {"ranks": case.layer.ranks[:, :0]},
        "plan": {"y_TN": longer_y, "x_TK": longer_x},
        "rank": {"max_rank": 0},
    }
    with pytest.raises(ValueError, match=r"got .*expected"):
        linear.Call(**{**values, **changes[wrong]}).check()
