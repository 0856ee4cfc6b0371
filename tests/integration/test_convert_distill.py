"""Adapters that are no change of weights run as teachers, and a LoRA learns their answers."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from examples.tinyworld.places import ADAPTERS_DIR, base_dir
from lorebase.serving.artifacts import AdapterLimits, base_shapes, check_adapter
from lorebase.serving.engine.protocol import VersionRef
from lorebase.serving.errors import FailedPreconditionError, InvalidArgumentError
from lorebase.transfer.convert.command import run
from lorebase.transfer.distill.distill import load_base
from lorebase.transfer.hf_adapted import adapted_model

from .peft_zoo import CONVERTIBLE, PROMPTED, UNMERGED, Species, logits, make
from .tiny_models import make_tiny_base

pytestmark = pytest.mark.filterwarnings("ignore")  # PEFT warns of experimental types

torch.set_num_threads(1)

PROMPTS = [[5, 6, 7, 8, 9], [10, 11, 12], [20] * 9]
NEXT_TOKEN = 33


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_base(tmp_path_factory.mktemp("base") / "tiny")


def ref(path: Path) -> VersionRef:
    return VersionRef(id="v-1", base_id="b", digest="", path=str(path), rank=1)


@pytest.mark.parametrize(
    "species", [*PROMPTED, *UNMERGED, *CONVERTIBLE[:1]], ids=lambda one: one.name
)
def test_a_teacher_of_any_type_answers_in_batches_as_peft_does_alone(
    species: Species, base: Path, tmp_path: Path
) -> None:
    source = make(species, base, tmp_path / "source")
    model, _ = load_base(base)
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    adapted = adapted_model(model, ref(source))
    with torch.inference_mode():
        first, cache, mask = adapted.prefill(PROMPTS)
        mask = torch.cat([mask, mask.new_ones(len(PROMPTS), 1)], dim=1)
        second = adapted(
            input_ids=torch.full((len(PROMPTS), 1), NEXT_TOKEN),
            attention_mask=mask,
            position_ids=mask.sum(1, keepdim=True) - 1,
            past_key_values=cache,
            use_cache=True,
        ).logits[:, -1]
    for row, prompt in enumerate(PROMPTS):
        alone = logits(base, source, torch.tensor([[*prompt, NEXT_TOKEN]]))[0]
        assert torch.allclose(first[row], alone[-2], atol=1e-3)
        assert torch.allclose(second[row], alone[-1], atol=1e-3)
    for name, weight in model.named_parameters():
        assert torch.equal(weight, before[name]), f"{name} of the base itself changed"


def test_a_type_that_nothing_runs_is_told(base: Path, tmp_path: Path) -> None:
    source = make(PROMPTED[0], base, tmp_path / "source")
    config = json.loads((source / "adapter_config.json").read_text())
    config["peft_type"] = "MULTITASK_PROMPT_TUNING"
    (source / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(InvalidArgumentError, match="task id"):
        adapted_model(load_base(base)[0], ref(source))


@pytest.fixture(scope="module")
def biased(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained adapter that no engine serves: the tiny world's dates, with biases beside it."""
    folder = tmp_path_factory.mktemp("biased") / "adapter"
    shutil.copytree(ADAPTERS_DIR / "acme__date-dmy-to-compact" / "adapter", folder)
    tensors = load_file(folder / "adapter_model.safetensors")
    for name, tensor in list(tensors.items()):
        if name.endswith("lora_B.weight"):
            tensors[name.replace("weight", "bias")] = tensor.new_zeros(tensor.shape[0])
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "lora_bias": True}))
    return folder


@pytest.mark.timeout(600)
def test_a_lora_of_the_next_base_learns_the_answers(biased: Path, tmp_path: Path) -> None:
    kit = ADAPTERS_DIR / "acme__date-dmy-to-compact" / "kit"
    told = run(
        source=biased,
        base_dir=base_dir("old"),
        base_id="tinyworld-old",
        kit=kit,
        to_base_dir=base_dir("next"),
        to_base_id="tinyworld-next",
        out=tmp_path / "lora",
        accept_loss=True,
        training={
            "rank": 8,
            "samples": 120,
            "evaluation_samples": 60,
            "steps": 60,
            "batch_size": 16,
            "learning_rate": 5e-3,
        },
    )
    assert (told["path"], told["base"], told["rank"]) == ("distill", "tinyworld-next", 8)
    assert told["agreement"] > 0.8
    assert told["agreement_of_base"] < 0.2
    check_adapter(tmp_path / "lora", base_shapes(base_dir("next")), AdapterLimits())
    assert '"peft_type": "LORA"' in (tmp_path / "lora" / "README.md").read_text()


def test_a_kit_of_another_base_is_refused(base: Path, biased: Path, tmp_path: Path) -> None:
    kit = ADAPTERS_DIR / "acme__date-dmy-to-compact" / "kit"
    with pytest.raises((InvalidArgumentError, FailedPreconditionError), match="another base"):
        run(source=biased, base_dir=base, base_id="b", kit=kit, out=tmp_path / "lora")
