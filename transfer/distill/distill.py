"""The distill stage: the next base learns the teacher's answers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lorebase.serving.errors import InvalidArgumentError

from ..kit.format import TaskFormat
from ..ports import Checkpoint, Example, no_checkpoint
from .settings import DistillRecipe, LoraSettings
from .train import TrainSummary, train_lora


def load_base(base_dir: Path) -> tuple[Any, Any]:
    """Loads a base from a local directory: fp32 on CPU, bf16 on a GPU.

    Returns:
        The model, frozen and in evaluation mode, and its tokenizer.

    Raises:
        InvalidArgumentError: the directory holds no model of a known architecture.
    """
    on_gpu = torch.cuda.is_available()
    try:
        tokenizer = AutoTokenizer.from_pretrained(base_dir, local_files_only=True)
        model: Any = AutoModelForCausalLM.from_pretrained(
            base_dir,
            dtype=torch.bfloat16 if on_gpu else torch.float32,
            local_files_only=True,
        )
    except (OSError, ValueError) as error:
        raise InvalidArgumentError(
            f"can't load a base from {base_dir}: {error}", reason="BASE_INVALID"
        ) from error
    model.requires_grad_(False)
    return model.to("cuda" if on_gpu else "cpu").eval(), tokenizer


def training_pairs(examples: Sequence[Example], format: TaskFormat) -> list[tuple[str, str]]:
    """Returns the (prompt, answer) pairs that an adapter for `format` is trained on."""
    return [(format.prompt(item.input), format.answer(item.target)) for item in examples]


def distill(
    *,
    base_dir: Path,
    examples: Sequence[Example],
    format: TaskFormat,
    lora: LoraSettings,
    recipe: DistillRecipe,
    out_dir: Path,
    base_id: str = "",
    checkpoint: Checkpoint = no_checkpoint,
) -> TrainSummary:
    """Trains an adapter of the base in `base_dir` on the teacher's labels.

    Args:
        base_dir: the next base.
        examples: synthetic inputs with the teacher's answers.
        format: how they are written.
        lora: shape of the adapter.
        recipe: how to train.
        out_dir: gets the PEFT directory.
        base_id: name of the base in the adapter's config; the directory's name by default.
        checkpoint: called before every step.

    Raises:
        InvalidArgumentError: no base there, no usable examples, no such modules.
        FloatingPointError: the loss is not finite.
    """
    model, tokenizer = load_base(base_dir)
    return train_lora(
        model=model,
        tokenizer=tokenizer,
        pairs=training_pairs(examples, format),
        lora=lora,
        recipe=recipe,
        out_dir=out_dir,
        base_id=base_id or base_dir.name,
        checkpoint=checkpoint,
    )
