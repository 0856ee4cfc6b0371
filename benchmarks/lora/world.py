"""A base with random weights and adapters for it, written to disk: nothing is downloaded.

Speed does not depend on what weights say, so random ones do; correctness is checked against the
same files with the adapters merged into the base (`merged`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_PREFIX = "base_model.model."


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseShape:
    """Sizes of a Llama base."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    vocab: int = 32_000
    positions: int = 1024

    def linear(self) -> dict[str, tuple[int, int]]:
        """Returns (outputs, inputs) of each adapted layer by module name."""
        wide, narrow = self.intermediate, self.hidden
        of = {
            **dict.fromkeys(("self_attn.q_proj", "self_attn.k_proj"), (narrow, narrow)),
            **dict.fromkeys(("self_attn.v_proj", "self_attn.o_proj"), (narrow, narrow)),
            **dict.fromkeys(("mlp.gate_proj", "mlp.up_proj"), (wide, narrow)),
            "mlp.down_proj": (narrow, wide),
        }
        return {
            f"model.layers.{number}.{name}": shape
            for number in range(self.layers)
            for name, shape in of.items()
        }


BIG = BaseShape(hidden=1024, intermediate=2816, layers=8, heads=16)
"""168M parameters."""
TINY = BaseShape(hidden=256, intermediate=512, layers=2, heads=4, vocab=2_000)
"""For smoke runs."""


def make_base(folder: Path, shape: BaseShape, *, seed: int = 0) -> int:
    """Writes config.json and float32 weights; returns the number of parameters."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(
            LlamaConfig(
                hidden_size=shape.hidden,
                intermediate_size=shape.intermediate,
                num_hidden_layers=shape.layers,
                num_attention_heads=shape.heads,
                num_key_value_heads=shape.heads,
                vocab_size=shape.vocab,
                max_position_embeddings=shape.positions,
                tie_word_embeddings=False,
                # Wide enough that tokens differ clearly in their logits.
                initializer_range=0.05,
            )
        )
    model.save_pretrained(folder, safe_serialization=True)
    return sum(parameter.numel() for parameter in model.parameters())


def make_adapter(folder: Path, shape: BaseShape, rank: int, *, seed: int) -> Path:
    """Writes a PEFT directory with bfloat16 weights for all linear layers; returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = torch.Generator().manual_seed(seed)
    tensors = {}
    for module, (outputs, inputs) in shape.linear().items():
        a_RK = torch.randn(rank, inputs, generator=rng) / inputs**0.5
        b_NR = torch.randn(outputs, rank, generator=rng) * (0.3 / rank**0.5)
        tensors[f"{_PREFIX}{module}.lora_A.weight"] = a_RK.to(torch.bfloat16)
        tensors[f"{_PREFIX}{module}.lora_B.weight"] = b_NR.to(torch.bfloat16)
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": rank,
        "target_modules": list(TARGETS),
        "bias": "none",
        "lora_dropout": 0.0,
    }
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def merged(base: Path, adapter: Path | None) -> LlamaForCausalLM:
    """Returns the base in float32 with the adapter's weights added into its own."""
    model: LlamaForCausalLM = LlamaForCausalLM.from_pretrained(base, dtype=torch.float32)
    if adapter is not None:
        config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
        tensors = load_file(adapter / "adapter_model.safetensors")
        for name in [n for n in tensors if n.endswith(".lora_A.weight")]:
            module = name.removeprefix(_PREFIX).removesuffix(".lora_A.weight")
            a_RK = tensors[name].float()
            b_NR = tensors[name.replace("lora_A", "lora_B")].float()
            with torch.no_grad():
                weight = model.get_submodule(module).weight
                weight += (config["lora_alpha"] / config["r"]) * (b_NR @ a_RK)
    return model.eval()


def shortfall(model: LlamaForCausalLM, prompt: Sequence[int], answer: Sequence[int]) -> float:
    """Says how far greedy tokens are from the best, teacher-forced.

    Returns:
        The largest difference of the best logit and the given token's, over the tokens of the
        answer, in standard deviations of that position's logits. Rounding alone gives less than
        0.001; another adapter's tokens give more than 1.
    """
    ids = torch.tensor([[*prompt, *answer]])
    with torch.inference_mode():
        logits_TV = model(ids).logits[0, len(prompt) - 1 : -1].float()
    chosen_T = logits_TV.gather(1, torch.tensor(answer)[:, None])[:, 0]
    gaps_T = (logits_TV.max(dim=1).values - chosen_T) / logits_TV.std(dim=1)
    return float(gaps_T.max())
