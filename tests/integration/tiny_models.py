"""Tiny random models, made on the fly, for tests that need a real engine but no real answers.

Nothing is downloaded: a byte-level tokenizer is built from its 256 base symbols plus a few
merges, a base is a random transformer of about 100k parameters, and an adapter is a random LoRA
in PEFT's own file format, strong enough to change greedy output at once.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

torch.set_num_threads(1)
"""More threads only wait for each other on models of this size, and spin while they do."""

WHOLE_WORDS = (" yes", " no", " the", "Input", "Output")
"""Strings that are one token each, beside the 256 bytes."""

ALL_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

Arch = Literal["llama", "qwen3"]


def make_tokenizer(directory: Path) -> PreTrainedTokenizerFast:
    """Writes a byte-level BPE tokenizer whose merges build exactly `WHOLE_WORDS`."""
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<|pad|>": 0, "<|eos|>": 1}
    for symbol in symbols:
        vocabulary[symbol] = len(vocabulary)
    merges: list[tuple[str, str]] = []
    for word in WHOLE_WORDS:
        pieces = list(word.replace(" ", "Ġ"))
        left = pieces[0]
        for right in pieces[1:]:
            if (left, right) not in merges:
                merges.append((left, right))
            left += right
            vocabulary.setdefault(left, len(vocabulary))
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<|eos|>", pad_token="<|pad|>"
    )
    tokenizer.save_pretrained(directory)
    return tokenizer


def make_tiny_base(
    directory: Path, arch: Arch = "llama", seed: int = 0, max_positions: int = 512
) -> Path:
    """Writes a random base of 2 layers and hidden size 64 in float32.

    Args:
        directory: where config.json, model.safetensors and the tokenizer go; created.
        arch: architecture family.
        seed: seed of the weights; equal seeds give equal files.
        max_positions: longest sequence in tokens.

    Returns:
        `directory`.
    """
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer = make_tokenizer(directory)
    sizes = {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "max_position_embeddings": max_positions,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "initializer_range": 0.2,
        "tie_word_embeddings": False,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = (
            LlamaForCausalLM(LlamaConfig(**sizes))
            if arch == "llama"
            else Qwen3ForCausalLM(Qwen3Config(**sizes))
        )
    model.to(torch.float32).save_pretrained(directory, safe_serialization=True)
    return directory


def make_tiny_adapter(
    directory: Path,
    base_dir: Path,
    rank: int = 4,
    seed: int = 1,
    target_modules: Sequence[str] = ALL_LINEAR,
    strength: float = 0.3,
) -> Path:
    """Writes a random LoRA for the base at `base_dir` as PEFT saves it.

    Args:
        directory: where adapter_config.json and adapter_model.safetensors go; created.
        base_dir: base that the shapes must fit.
        rank: LoRA rank; alpha is 2 * rank.
        seed: seed of the weights; equal seeds give equal files.
        target_modules: names of the adapted linear layers.
        strength: standard deviation of the B matrices, which PEFT would start at zero.

    Returns:
        `directory`.
    """
    base = AutoModelForCausalLM.from_pretrained(base_dir, dtype=torch.float32)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = LoraConfig(
            r=rank,
            lora_alpha=2 * rank,
            target_modules=list(target_modules),
            task_type="CAUSAL_LM",
            bias="none",
        )
        model = get_peft_model(base, config)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=strength)
    model.save_pretrained(directory, safe_serialization=True)
    return directory


def spoil_shapes(adapter_dir: Path) -> None:
    """Halves the input width of every A matrix, so that the adapter fits no base any more."""
    file = adapter_dir / "adapter_model.safetensors"
    tensors = load_file(file)
    save_file(
        {
            name: (t[:, : t.shape[1] // 2].contiguous() if "lora_A" in name else t)
            for name, t in tensors.items()
        },
        file,
    )


def claim_rank(adapter_dir: Path, rank: int) -> None:
    """Rewrites the rank in adapter_config.json without touching the weights."""
    file = adapter_dir / "adapter_config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, "r": rank}))
