"""The tiny bases: architecture, loading and export in the published file format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from examples.tinyworld.places import base_dir
from examples.tinyworld.vocab import VOCABULARY

BASE_NAMES = ("old", "next", "later")
PAD_ID, BOS_ID, EOS_ID = 0, 1, 2


def build_model(base: str) -> PreTrainedModel:
    """Builds a base with fresh weights.

    Args:
        base: `old` (Llama), `next` (Qwen3, deeper and wider) or `later` (Mistral, deeper still).

    Returns:
        The model in fp32.
    """
    common: dict[str, Any] = {
        "vocab_size": VOCABULARY[base],
        "max_position_embeddings": 2048,
        "tie_word_embeddings": True,
        "pad_token_id": PAD_ID,
        "bos_token_id": BOS_ID,
        "eos_token_id": EOS_ID,
    }
    if base == "old":
        llama = LlamaConfig(
            hidden_size=160,
            num_hidden_layers=4,
            num_attention_heads=5,
            num_key_value_heads=5,
            intermediate_size=384,
            **common,
        )
        return LlamaForCausalLM(llama)
    if base == "later":
        mistral = MistralConfig(
            hidden_size=192,
            num_hidden_layers=6,
            num_attention_heads=6,
            num_key_value_heads=2,
            head_dim=32,
            intermediate_size=512,
            sliding_window=None,
            **common,
        )
        return MistralForCausalLM(mistral)
    qwen = Qwen3Config(
        hidden_size=192,
        num_hidden_layers=5,
        num_attention_heads=6,
        num_key_value_heads=3,
        head_dim=32,
        intermediate_size=512,
        **common,
    )
    return Qwen3ForCausalLM(qwen)


def export(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, target: Path) -> None:
    """Writes a base in the published format: bf16 safetensors, configuration and tokenizer.

    Args:
        model: The trained model; its weights are left as they are.
        tokenizer: Its tokenizer.
        target: Folder to write to.
    """
    target.mkdir(parents=True, exist_ok=True)
    copy = type(model)(model.config)
    copy.load_state_dict(model.state_dict())
    copy.to(torch.bfloat16)
    copy.config.use_cache = True
    copy.config.dtype = torch.bfloat16
    copy.generation_config = GenerationConfig(
        bos_token_id=BOS_ID, eos_token_id=EOS_ID, pad_token_id=PAD_ID
    )
    copy.save_pretrained(target)
    tokenizer.save_pretrained(target)
    (target / "model.safetensors").chmod(0o644)


def load(source: Path | str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Loads a published base in fp32.

    Args:
        source: Name of a base or a folder.

    Returns:
        The model in evaluation mode and its tokenizer.
    """
    path = base_dir(source) if source in BASE_NAMES else Path(source)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    return model.eval(), AutoTokenizer.from_pretrained(path)
