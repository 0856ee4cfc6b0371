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
