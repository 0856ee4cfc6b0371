"""Puts a fresh LoRA on a model, and takes it off again."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from peft import EvaConfig, LoraConfig, get_peft_model, initialize_lora_eva_weights

from lorebase.serving.errors import InvalidArgumentError

from .batches import TokenPair, plan_batches
from .collate import collate
from .settings import ALL_LINEAR, LoraSettings

EVA_BATCHES = 24
"""Batches whose activations EVA looks at, at most; it stops when the directions stand still."""
EVA_BATCH_SIZE = 8


def attach(
    model: Any, lora: LoraSettings, examples: Sequence[TokenPair], *, seed: int, base_id: str
) -> Any:
    """Returns the model with a fresh LoRA; its weights depend on the arguments alone.

    Args:
        model: transformers causal language model.
        lora: shape and initialisation.
        examples: what it will be trained on; EVA starts from the directions in which their
            activations vary most.
        seed: of random weights.
        base_id: goes into the adapter's configuration.

    Raises:
        InvalidArgumentError: the model has no such target modules.
    """
    eva = lora.initialisation == "eva"
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.rank,
        # PEFT declares an integer and takes any number; whole ones are written as integers.
        lora_alpha=int(lora.alpha) if lora.alpha == int(lora.alpha) else lora.alpha,  # type: ignore[arg-type]
        lora_dropout=lora.dropout,
        target_modules="all-linear"
        if lora.target_modules == ALL_LINEAR
        else list(lora.target_modules),
        init_lora_weights="eva" if eva else True,
        # rho = 1 keeps every module at the rank that was asked for.
        eva_config=EvaConfig(rho=1.0) if eva else None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            # By default PEFT trains in float32 on bases in bfloat16, whose steps would round away.
            # EVA fills weights that have no memory yet: that leaves more of it for activations.
            adapted = get_peft_model(model, config, low_cpu_mem_usage=eva)
        except ValueError as error:
            raise InvalidArgumentError(
                f"can't put a LoRA on {', '.join(lora.target_modules)} of "
                f"{type(model).__name__}: {error}",
                reason="TARGET_MODULES",
            ) from error
        if eva:
            batches = list(_batches(examples, seed, next(model.parameters()).device))
            initialize_lora_eva_weights(adapted, batches, show_progress_bar=False)
            # The file is an ordinary LoRA: how its training began is nothing to its readers.
            config.init_lora_weights, config.eva_config = True, None
    config.base_model_name_or_path = base_id
    return adapted


def detach(adapted: Any, model: Any) -> None:
    """Takes the LoRA off again and leaves the base as it was, frozen."""
    adapted.unload()
    # PEFT leaves its mark behind and would warn that the model is adapted already.
    if hasattr(model, "peft_config"):
        del model.peft_config
    model.requires_grad_(False)
    model.eval()


def _batches(
    examples: Sequence[TokenPair], seed: int, device: torch.device
) -> Iterator[dict[str, torch.Tensor]]:
    planned = plan_batches(
        [len(example) for example in examples],
        batch_size=EVA_BATCH_SIZE,
        steps=EVA_BATCHES,
        seed=seed,
    )
    for numbers in planned:
        batch = [examples[number] for number in numbers]
        ids_BT, _, _ = collate(batch, pad_id=0)
        mask_BT = torch.zeros_like(ids_BT)
        for row, example in enumerate(batch):
            mask_BT[row, : len(example)] = 1
        yield {"input_ids": ids_BT.to(device), "attention_mask": mask_BT.to(device)}
