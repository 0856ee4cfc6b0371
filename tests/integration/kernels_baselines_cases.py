"""The GPU suite's baselines, out of their installed packages, interpreted: do we call them right?

Run by test_kernels_triton.py in a process of its own with TRITON_INTERPRET=1. In float16, because
triton's interpreter multiplies bfloat16's bits.
"""

import sys
from types import ModuleType

import pytest
import torch

from benchmarks.lora_gpu import providers, world
from benchmarks.lora_gpu.shapes import Cell, Linear

LINEARS = (
    Linear(name="qkv", features=48, slices=(32, 16, 16)),
    Linear(name="gate_up", features=32, slices=(24, 24)),
    Linear(name="down", features=40, slices=(24,)),
)
torch.set_num_threads(1)


pytestmark = pytest.mark.filterwarnings("ignore")  # the packages' own


@pytest.fixture(autouse=True)
def half(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (world, providers):
        monkeypatch.setattr(module, "DTYPE", torch.float16)


@pytest.fixture(scope="session", autouse=True)
def triton_in_vllm() -> None:
    # Without a GPU vLLM hides triton from itself.
    found = ModuleType("vllm.triton_utils.importing")
    vars(found).update(HAS_TRITON=True, TritonPlaceholder=None, TritonLanguagePlaceholder=None)
    sys.modules[found.__name__] = found


@pytest.mark.parametrize("name", ["vllm", "sglang"])
def test_a_baseline_passes_the_suites_gate(name: str) -> None:
    if name == "sglang":
        pytest.importorskip("sglang")
    # Few: vLLM's blocks are large, and interpreted one by one. To it all layers are alike.
    linears = LINEARS if name == "sglang" else LINEARS[:1]
    made = world.make_world(Cell(tokens=3, adapters=2, ranks="mixed"), linears, 1, "cpu")
    assert made.wrong(providers.PROVIDERS[name](made)) is None
