"""lorebase's kernels inside vLLM, on the trained tiny base, against merged weights."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from lorebase.kernels.lora.gpu.config import DECODE_TOKENS

# More threads only wait for each other on models of this size: minutes on a busy machine.
torch.set_num_threads(1)

pytestmark = [
    # The tiny base ties its embeddings; adapting the embedding and lm_head apart is the point.
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings:UserWarning"),
    pytest.mark.timeout(600),
]

ROOT = Path(__file__).parents[2]
WORLD = ROOT / "examples/tinyworld"
TOKENS = 12
# Different ranks; the last adapts fewer modules.
TRAINED = ("acme__date-dmy-to-compact", "telco__phone-flip", "depot__sku-flip")
EDGES = "random-embedding-and-lm-head"
DATE, PHONE = "Input: 20 July 2049\nOutput:", "Input: call +45 796 8476\nOutput:"
LONG = "Input: 20 July 2049\nOutput: 20490720\n\n" * 14 + DATE
"""More tokens than a step of small tiles has."""
Batch = list[list[str | None]]
SOLO: list[Batch] = [
    *([[prompt, name]] for name in (None, *TRAINED, EDGES) for prompt in (DATE, PHONE)),
    [[LONG, TRAINED[2]]],
]
MIXED: list[Batch] = [
    # Both slots full, base requests between: vLLM's own wrapper gives those the last slot.
    [[DATE, TRAINED[0]], [DATE, None], [PHONE, TRAINED[1]], [PHONE, None], [PHONE, TRAINED[0]]],
    # The third adapter takes the slot of the first, one with other modules and other rank.
    [[PHONE, TRAINED[2]], [PHONE, None], [DATE, TRAINED[1]], [DATE, TRAINED[2]]],
    [[DATE, EDGES], [DATE, None], [PHONE, TRAINED[2]], [PHONE, EDGES], [DATE, TRAINED[2]]],
    [[DATE, None], [PHONE, None]],
    [[LONG, TRAINED[2]], [DATE, None]],
]
FORCED: list[Batch] = [
    [[DATE + " 20490720\n", TRAINED[0]], [DATE + " 20490720\n", None], [PHONE, TRAINED[1]]],
    [[PHONE + " 8476 796 45\n", TRAINED[1]], [DATE, TRAINED[2]], [PHONE, None]],
    # Of the embedding and lm_head: logits of prompts are other rows than those that are sampled.
    [[DATE, EDGES], [PHONE + " 8476\n", None], [PHONE, EDGES], [DATE, TRAINED[0]]],
]
ROUNDING = 2e-3
"""Of float32 log probabilities, through all layers."""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A copy of the base and adapters by name: trained ones, and a random one of the edges."""
    folder = tmp_path_factory.mktemp("files")
    found = {"base": folder / "base"}
    shutil.copytree(WORLD / "bases/old", found["base"])
    for name in TRAINED:
        found[name] = folder / name
        shutil.copytree(WORLD / "adapters" / name / "adapter", found[name])
    torch.manual_seed(3)
    config = LoraConfig(
        r=4,
        lora_alpha=8,
        target_modules=["embed_tokens", "lm_head", "q_proj"],
        init_lora_weights=False,
    )
    model = get_peft_model(_model(found, None), config)
    found[EDGES] = folder / "edges"
    model.save_pretrained(found[EDGES], save_embedding_layers=False)
    return found


def _model(files: dict[str, Path], name: str | None) -> Any:
    model = AutoModelForCausalLM.from_pretrained(files["base"], dtype=torch.float32)
    return model if name is None else PeftModel.from_pretrained(model, files[name])


def _run(folder: Path, files: dict[str, Path], **changes: Any) -> dict[str, Any]:
    """What one engine with our kernels says."""
    plan = {
        "base": str(files["base"]),
        "adapters": {name: str(path) for name, path in files.items() if name != "base"},
        "slots": 2,
        "tokens": TOKENS,
        "batches": SOLO + MIXED,
        "forced": FORCED,
        "options": {},
        "compiled": False,
        "dtype": "float32",
        **changes,
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
        "PYTHONPATH": str(ROOT),
    }
    if plan["options"].get("kernels_on_cpu") == "triton":
        environment["TRITON_INTERPRET"] = "1"
    result = subprocess.run(
        [sys.executable, "-m", "tests.integration.kernels_vllm_run", "plan.json", "out.json"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=540,
    )
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    answered: dict[str, Any] = json.loads((folder / "out.json").read_text())
    return answered


@pytest.fixture(scope="module")
def run(files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return _run(tmp_path_factory.mktemp("run"), files)


def _solo(run: dict[str, Any]) -> dict[tuple[str | None, str | None], list[int]]:
    answers = run["answers"][: len(SOLO)]
    return {
        (prompt, name): answer[0] for [[prompt, name]], answer in zip(SOLO, answers, strict=True)
    }


def _logprobs(model: Any, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(ids).logits[0].log_softmax(-1)
    return found


def test_the_plugin_serves_through_the_installed_entry_point(run: dict[str, Any]) -> None:
    facts = run["facts"]
    assert facts["wrapper"] == "PooledPunicaWrapper", "run `make setup`: entry points are missing"
    assert all(name.startswith("Pooled") for name in facts["layers"])
    assert facts["kernel"] == "CpuLinear"


def test_memory_is_taken_once_and_at_true_rank(run: dict[str, Any]) -> None:
    facts = run["facts"]
    assert 0 < facts["held_bytes"] < facts["padded_bytes"] / 2  # of at most rank 32 each
    assert facts["buffer_used_bytes"] == 0


def test_each_adapters_greedy_answers_are_the_best_by_peft(
    run: dict[str, Any], files: dict[str, Path]
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(files["base"])
    solo = _solo(run)
    for name in (None, *TRAINED, EDGES):
        model = _model(files, name)
        for prompt in (DATE, PHONE):
            ids = tokenizer(prompt, return_tensors="pt").input_ids
            answer = torch.tensor([solo[prompt, name]])
            scores = _logprobs(model, torch.cat([ids, answer], 1))[ids.shape[1] - 1 : -1]
            chosen = scores.gather(1, answer.t())[:, 0]
            # A tie within rounding may fall either way.
            assert (scores.max(1).values - chosen).max() < ROUNDING, name


def test_teacher_forced_logits_in_a_mixed_batch_are_those_of_merged_weights(
    run: dict[str, Any], files: dict[str, Path]
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(files["base"])
    for batch, of_batch in zip(FORCED, run["scores"], strict=True):
        for (text, name), scores in zip(batch, of_batch, strict=True):
            model = _model(files, name)
            if name not in (None, EDGES):  # which can't be merged into the base's tied weights
                model = model.merge_and_unload()
            ids = tokenizer(text, return_tensors="pt").input_ids
            expected, got = _logprobs(model, ids)[:-1], torch.tensor(scores)
            assert got.shape == expected.shape
            # Where a probability is nothing, its logarithm says little.
            assert torch.allclose(got.exp(), expected.exp(), atol=1e-4), name
            assert torch.allclose(got, expected, atol=ROUNDING, rtol=1e-3), name


def test_mixed_batches_equal_solo_and_base_rows_equal_the_bare_base(run: dict[str, Any]) -> None:
    solo = _solo(run)
    assert len({tuple(answer) for answer in solo.values()}) >= 8  # adapters do differ
    for batch, answers in zip(MIXED, run["answers"][len(SOLO) :], strict=True):
        for (prompt, name), answer in zip(batch, answers, strict=True):
            assert answer == solo[prompt, name], f"{name} in {batch}"


def test_a_buffer_of_bounded_bytes_serves_the_same_as_adapters_in_place(
    run: dict[str, Any], files: dict[str, Path], tmp_path: Path
) -> None:
    budget = run["facts"]["padded_bytes"] // 4 * 2  # for two slots
    copied = _run(tmp_path, files, options={"pool_bytes": budget}, forced=[])
    assert 0 < copied["facts"]["buffer_used_bytes"] <= budget
    assert copied["answers"] == run["answers"]


def test_in_bfloat16_logits_are_those_of_merged_weights_alone_and_in_company(
    files: dict[str, Path], tmp_path: Path
) -> None:
    batch: Batch = [[DATE, TRAINED[0]], [DATE, None], [DATE, TRAINED[1]]]
    run = _run(
        tmp_path, files, dtype="bfloat16", batches=[], forced=[batch, *([one] for one in batch)]
    )
    mixed, alone = run["scores"][0], [of_batch[0] for of_batch in run["scores"][1:]]
    assert mixed == alone
    ids = AutoTokenizer.from_pretrained(files["base"])(DATE, return_tensors="pt").input_ids
    for (_, name), scores in zip(batch, mixed, strict=True):
        # How far PEFT in bfloat16 is from merged float32 says what rounding does to this model.
        rounded = _logprobs(_model(files, name).bfloat16(), ids)[:-1].float().exp()
        model = _model(files, name)
        expected = _logprobs(model if name is None else model.merge_and_unload(), ids)[:-1].exp()
        theirs = (rounded - expected).abs().amax(1)
        ours = (torch.tensor(scores).exp() - expected).abs().amax(1)
        assert ours.mean() < 2 * theirs.mean() < 0.05, name
    # Far more lies between adapters.
    assert (torch.tensor(mixed[0]).exp() - torch.tensor(mixed[2]).exp()).abs().max() > 0.3


def test_the_gpus_kernels_interpreted_give_the_same_tokens(
    run: dict[str, Any], files: dict[str, Path], tmp_path: Path
) -> None:
    pytest.importorskip("triton")
    batches, tokens = MIXED[:2], 2  # the second one puts another rank into a slot of the first
    interpreted = _run(
        tmp_path,
        files,
        options={"kernels_on_cpu": "triton", "pool_bytes": 8 << 20},
        batches=batches,
        forced=[],
        tokens=tokens,
    )
    assert interpreted["facts"]["kernel"] == "LoraLinear"
    expected = run["answers"][len(SOLO) : len(SOLO) + len(batches)]
    assert interpreted["answers"] == [[one[:tokens] for one in batch] for batch in expected]


def test_in_a_model_traced_to_one_graph_they_do_too(
    run: dict[str, Any], files: dict[str, Path], tmp_path: Path
) -> None:
    # As on a GPU, where vLLM compiles: the graph of the first step serves all others. With the
    # embedding's and lm_head's adapter, and a buffer of the default size.
    pytest.importorskip("triton")
    # The long prompt runs over wide tiles.
    chosen, tokens = (3, 2, 4), 2
    long = len(AutoTokenizer.from_pretrained(files["base"])(LONG).input_ids)
    assert DECODE_TOKENS < long < 500
    traced = _run(
        tmp_path,
        files,
        options={"kernels_on_cpu": "triton"},
        compiled=True,
        batches=[MIXED[index] for index in chosen],
        forced=FORCED[2:],
        tokens=tokens,
    )
    assert traced["facts"]["compiled"]
    assert traced["facts"]["kernel"] == "LoraLinear"
    expected = [run["answers"][len(SOLO) + index] for index in chosen]
    assert traced["answers"] == [[one[:tokens] for one in batch] for batch in expected]
    for got, scores in zip(traced["scores"][0], run["scores"][2], strict=True):
        assert torch.allclose(torch.tensor(got).exp(), torch.tensor(scores).exp(), atol=1e-4)
