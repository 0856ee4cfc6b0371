"""Random adapters of every PEFT type that changes weights or prompts, on a tiny base."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import torch
from transformers import AutoModelForCausalLM

TARGETS = ["q_proj", "v_proj", "down_proj"]
LM = "CAUSAL_LM"


@dataclass(frozen=True)
class Species:
    """One kind of adapter."""

    name: str
    config: Callable[[], Any]
    low_rank: bool
    """Whether rank 16 holds it."""


def _weights(config_class: Any, **settings: Any) -> Callable[[], Any]:
    return lambda: config_class(task_type=LM, target_modules=list(TARGETS), **settings)


def _prompts(config_class: Any, **settings: Any) -> Callable[[], Any]:
    return lambda: config_class(task_type=LM, num_virtual_tokens=5, **settings)


CONVERTIBLE = [
    Species("adalora", _weights(peft.AdaLoraConfig, init_r=6, target_r=4, total_step=10), True),
    Species("boft", _weights(peft.BOFTConfig), False),
    Species("c3a", _weights(peft.C3AConfig, block_size=32), False),
    Species("delora", _weights(peft.DeloraConfig, r=4), True),
    Species("dora", _weights(peft.LoraConfig, r=4, use_dora=True), False),
    Species("fourierft", _weights(peft.FourierFTConfig), False),
    Species("gralora", _weights(peft.GraloraConfig, r=4), True),
    Species("hra", _weights(peft.HRAConfig, r=4), True),
    Species("ia3", _weights(peft.IA3Config, feedforward_modules=["down_proj"]), False),
    Species("loha", _weights(peft.LoHaConfig, r=3), True),
    Species("lokr", _weights(peft.LoKrConfig, r=4), False),
    Species("miss", _weights(peft.MissConfig, r=4), True),
    Species("miss-bat", _weights(peft.MissConfig, r=4, init_weights="bat"), False),
    Species("oft", _weights(peft.OFTConfig, r=0, oft_block_size=16), False),
    Species("pissa", _weights(peft.LoraConfig, r=4, init_lora_weights="pissa"), True),
    Species("randlora", _weights(peft.RandLoraConfig, r=4), False),
    Species("road", _weights(peft.RoadConfig), False),
    Species("shira", _weights(peft.ShiraConfig, r=4), False),
    Species("vblora", _weights(peft.VBLoRAConfig, vector_length=32, num_vectors=16, r=4), True),
    Species("vera", _weights(peft.VeraConfig, r=4), True),
]
"""Weight changes that PEFT can merge."""

PROMPTED = [
    Species("prompt-tuning", _prompts(peft.PromptTuningConfig), False),
    Species("p-tuning", _prompts(peft.PromptEncoderConfig, encoder_hidden_size=16), False),
    Species("prefix-tuning", _prompts(peft.PrefixTuningConfig), False),
]
"""What stands before the prompt."""

UNMERGED = [Species("lora-bias", _weights(peft.LoraConfig, r=4, lora_bias=True), False)]
"""Weight changes that the base has no place for."""

PLAIN = [
    Species("lora", _weights(peft.LoraConfig, r=4), True),
    Species("rslora", _weights(peft.LoraConfig, r=4, use_rslora=True), True),
]


def make(species: Species, base_dir: Path, directory: Path) -> Path:
    """Writes a random adapter, strong enough to change most tokens, as PEFT saves it."""
    base = AutoModelForCausalLM.from_pretrained(base_dir, dtype=torch.float32)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = peft.get_peft_model(base, species.config())
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(directory)
    (directory / "README.md").unlink(missing_ok=True)
    return directory


def logits(base_dir: Path, adapter: Path, ids: torch.Tensor) -> torch.Tensor:
    """Returns next-token logits [B, T, V] as PEFT itself computes them."""
    base = AutoModelForCausalLM.from_pretrained(base_dir, dtype=torch.float32)
    model = peft.PeftModel.from_pretrained(copy.deepcopy(base), str(adapter)).eval()
    with torch.inference_mode():
        found: torch.Tensor = model(input_ids=ids).logits[:, -ids.shape[1] :]
    return found
