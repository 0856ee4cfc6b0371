"""Compact LoRA training on a tiny base, with the call shape of `lorebase.transfer.distill`."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from examples.tinyworld.bases import PAD_ID
from examples.tinyworld.generate import encode
from examples.tinyworld.tasks import ALL_LINEAR

IGNORED = -100
WARM_UP_STEPS = 10
BUCKET = 5  # batches that are sorted by length together


@dataclass(frozen=True)
class LoraSettings:
    """How a LoRA is trained.

    Attributes:
        rank: Rank; alpha is twice as much.
        target_modules: Projections to change.
        steps: Optimizer steps.
        batch: Examples a step.
        learning_rate: Peak learning rate.
        seed: Seed of weights and order.
    """

    rank: int = 8
    target_modules: tuple[str, ...] = ALL_LINEAR
    steps: int = 120
    batch: int = 16
    learning_rate: float = 5e-3
    seed: int = 0


Encoded = tuple[list[int], list[int]]


def _batches(rows: list[Encoded], size: int, rng: random.Random) -> Iterator[list[Encoded]]:
    """Yields batches of examples of like length, epoch after epoch."""
    while True:
        order = rng.sample(range(len(rows)), len(rows))
        order += order[: -len(order) % size]
        batches = []
        for start in range(0, len(order), size * BUCKET):
            bucket = sorted(order[start : start + size * BUCKET], key=lambda i: len(rows[i][0]))
            batches += [bucket[at : at + size] for at in range(0, len(bucket), size)]
        rng.shuffle(batches)
        for batch in batches:
            yield [rows[i] for i in batch]


def _tensors(batch: list[Encoded]) -> tuple[torch.Tensor, torch.Tensor]:
    """Pads a batch on the right; labels cover the completions alone."""
    width = max(len(p) + len(c) for p, c in batch)
    ids = [(p + c) + [PAD_ID] * (width - len(p) - len(c)) for p, c in batch]
    labels = [[IGNORED] * len(p) + c + [IGNORED] * (width - len(p) - len(c)) for p, c in batch]
    return torch.tensor(ids), torch.tensor(labels)


def train_lora(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[tuple[str, str]],
    settings: LoraSettings,
) -> tuple[PeftModel, float]:
    """Trains a LoRA on prompts and completions.

    Args:
        model: The base; it is copied and left as it is.
        tokenizer: Its tokenizer.
        pairs: `(prompt, completion)` texts.
        settings: How to train.

    Returns:
        The base with the LoRA, in evaluation mode, and the mean loss of the last ten steps.
    """
    torch.manual_seed(settings.seed)
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=2 * settings.rank,
        target_modules=list(settings.target_modules),
        task_type="CAUSAL_LM",
    )
    peft = get_peft_model(copy.deepcopy(model), config)
    peft.train()
    weights = [p for p in peft.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=settings.learning_rate, weight_decay=0.0)
    rows = [(encode(tokenizer, p), tokenizer.encode(c, add_special_tokens=False)) for p, c in pairs]
    batches = _batches(rows, min(settings.batch, len(rows)), random.Random(settings.seed))
    losses = []
    for step in range(settings.steps):
        rate = min(1.0, (step + 1) / WARM_UP_STEPS) * (1 - 0.95 * step / settings.steps)
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * rate
        ids, labels = _tensors(next(batches))
        logits = peft(input_ids=ids, use_cache=False).logits[:, :-1]
        loss = F.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
    tail = losses[-10:]
    return peft.eval(), sum(tail) / len(tail)
