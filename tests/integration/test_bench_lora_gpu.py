"""The GPU suite on a machine that has torch, triton and numpy but nothing else of ours."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
# Refuses every import from site-packages but these and what they need themselves.
BARE = """
import importlib.metadata, re, sys

def plain(name):
    return re.sub("[-_.]+", "-", name).lower()

wanted, allowed = ["torch", "triton", "numpy"], set()
while wanted:
    name = re.match("[A-Za-z0-9._-]+", wanted.pop()).group()
    if plain(name) not in allowed:
        allowed.add(plain(name))
        try:
            needs = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        wanted += [need for need in needs if "extra ==" not in need]
known = importlib.metadata.packages_distributions()
refused = {module for module, owners in known.items() if not allowed & set(map(plain, owners))}
refused -= {"lorebase"}

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in refused:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Refuse())
assert {"ray", "vllm", "transformers", "pydantic", "scipy", "grpc"} <= refused
from benchmarks.run import main
sys.exit(main(["lora-gpu", "--quick", "--results", sys.argv[1]]))
"""


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: it would be measured")
def test_the_suite_starts_with_torch_and_triton_alone_and_says_that_there_is_no_gpu(
    tmp_path: Path,
) -> None:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / '.typing'}:{ROOT}"}
    environment |= {"TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", BARE, str(tmp_path / "results")],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=170,
    )
    assert done.returncode == 2, done.stdout + done.stderr
    assert "got no GPU that torch can use" in done.stderr
    assert "Nothing was measured" in done.stderr
    assert not (tmp_path / "results").exists()


# vLLM's CPU build switches its own Triton off; here its kernels are interpreted all the same.
# In float16: the interpreter multiplies the bits of bfloat16.
BASELINE = """
import os, sys, types
from importlib.util import find_spec

os.environ["TRITON_INTERPRET"] = "1"
import torch, triton, triton.language as tl

utils = types.ModuleType("vllm.triton_utils")
utils.triton, utils.tl, utils.HAS_TRITON = triton, tl, True
utils.aggregate = utils.tldevice = utils.gluon = utils.gl = None
utils.use_tensor_descriptor = lambda *a, **k: False
folder = next(iter(find_spec("vllm").submodule_search_locations))
utils.__path__ = [os.path.join(folder, "triton_utils")]
sys.modules["vllm.triton_utils"] = utils

from benchmarks.lora_gpu import providers, world
from benchmarks.lora_gpu.shapes import Cell, Linear

world.DTYPE = providers.DTYPE = torch.float16
linears = (
    Linear(name="kv", features=64, slices=(64, 32)),
    Linear(name="down", features=96, slices=(64,)),
)
# It divides K among 64 programs, most of which find nothing to do but take their time here.
made = world.make_world(Cell(tokens=3, adapters=2, ranks="r16"), linears, 1, "cpu")
for name in ("ours", "vllm"):
    print("gate:", name, made.wrong(providers.PROVIDERS[name](made)))
"""


def test_vllms_own_kernels_and_ours_pass_the_suites_gate() -> None:
    done = subprocess.run(
        [sys.executable, "-c", BASELINE],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=170,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert "gate: ours None" in done.stdout
    assert "gate: vllm None" in done.stdout
