"""lorebase's kernels inside vLLM, on the trained tiny base, against transformers and PEFT."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

# More threads only wait for each other on models of this size: minutes on a busy machine.
torch.set_num_threads(1)

# The tiny base ties its embeddings; adapting the embedding and lm_head apart is the point here.
pytestmark = pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings:UserWarning")

ROOT = Path(__file__).parents[2]
BASE = ROOT / "examples/tinyworld/bases/old"
TOKENS = 12
# Ranks 16, 8, 8; the last adapts four of the seven modules.
TRAINED = ("acme__date-dmy-to-compact", "telco__phone-flip", "depot__sku-flip")
EDGES = "random-embedding-and-lm-head"
DATE, PHONE = "Input: 20 July 2049\nOutput:", "Input: call +45 796 8476\nOutput:"
SOLO: list[list[list[str | None]]] = [
    [[prompt, name]] for name in (None, *TRAINED, EDGES) for prompt in (DATE, PHONE)
]
MIXED: list[list[list[str | None]]] = [
    # Both slots full, base requests between: vLLM's own wrapper gives those the last slot.
    [[DATE, TRAINED[0]], [DATE, None], [PHONE, TRAINED[1]], [PHONE, None], [PHONE, TRAINED[0]]],
    # The third adapter takes the slot of the first, one with other modules and other rank.
    [[PHONE, TRAINED[2]], [PHONE, None], [DATE, TRAINED[1]], [DATE, TRAINED[2]]],
    [[DATE, EDGES], [DATE, None], [PHONE, TRAINED[2]], [PHONE, EDGES], [DATE, TRAINED[2]]],
    [[DATE, None], [PHONE, None]],
]


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Paths by name: trained ones, and a random one of embedding, lm_head and q_proj."""
    paths = {name: str(ROOT / "examples/tinyworld/adapters" / name / "adapter") for name in TRAINED}
    torch.manual_seed(3)
    config = LoraConfig(
        r=4,
        lora_alpha=8,
        target_modules=["embed_tokens", "lm_head", "q_proj"],
        init_lora_weights=False,
    )
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32), config)
    edges = tmp_path_factory.mktemp("edges")
    model.save_pretrained(edges, save_embedding_layers=False)
    return {**paths, EDGES: str(edges)}


@pytest.fixture(scope="module")
def run(adapters: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Answers of one engine with our kernels: plugins are decided once per process."""
    folder = tmp_path_factory.mktemp("run")
    plan = {
        "base": str(BASE),
        "adapters": adapters,
        "slots": 2,
        "tokens": TOKENS,
        "batches": SOLO + MIXED,
    }
    (folder / "plan.json").write_text(json.dumps(plan))
    environment = {
        **os.environ,
        "LOREBASE_LORA_KERNELS": "lorebase",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_NO_USAGE_STATS": "1",
    }
    result = subprocess.run(
        [sys.executable, "-m", "tests.integration.kernels_vllm_run", "plan.json", "out.json"],
        cwd=folder,
        env={**environment, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=540,
    )
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    answered: dict[str, Any] = json.loads((folder / "out.json").read_text())
    return answered


def _solo(run: dict[str, Any]) -> dict[tuple[str | None, str | None], list[int]]:
    answers = run["answers"][: len(SOLO)]
    return {
        (prompt, name): answer[0] for [[prompt, name]], answer in zip(SOLO, answers, strict=True)
    }


@pytest.mark.timeout(600)
def test_the_plugin_serves_through_the_installed_entry_point(run: dict[str, Any]) -> None:
    facts = run["facts"]
    assert facts["wrapper"] == "PooledPunicaWrapper", "run `make setup`: entry points are missing"
    assert all(name.startswith("Pooled") for name in facts["layers"])


@pytest.mark.timeout(600)
def test_memory_is_taken_at_true_rank(run: dict[str, Any]) -> None:
    facts = run["facts"]
    assert 0 < facts["used_bytes"] < facts["buffer_bytes"] / 3  # ranks 8 and 4 of at most 32


@pytest.mark.timeout(600)
def test_each_adapters_greedy_answers_are_pefts(
    run: dict[str, Any], adapters: dict[str, str]
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    solo = _solo(run)
    for name in (None, *adapters):
        model = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)
        if name is not None:
            model = PeftModel.from_pretrained(model, adapters[name])
        for prompt in (DATE, PHONE):
            ids = tokenizer(prompt, return_tensors="pt")
            with torch.no_grad():
                output = model.generate(
                    **ids,
                    max_new_tokens=TOKENS,
                    min_new_tokens=TOKENS,
                    do_sample=False,
                    eos_token_id=None,
                    pad_token_id=0,
                )
            assert solo[prompt, name] == output[0, ids["input_ids"].shape[1] :].tolist(), name


@pytest.mark.timeout(600)
def test_mixed_batches_equal_solo_and_base_rows_equal_the_bare_base(run: dict[str, Any]) -> None:
    solo = _solo(run)
    assert len({tuple(answer) for answer in solo.values()}) >= 8  # adapters do differ
    for batch, answers in zip(MIXED, run["answers"][len(SOLO) :], strict=True):
        for (prompt, name), answer in zip(batch, answers, strict=True):
            assert answer == solo[prompt, name], f"{name} in {batch}"
