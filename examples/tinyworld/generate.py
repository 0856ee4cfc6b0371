"""Batched generation with a tiny base: answers, accuracies and synthetic inputs."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
)

from examples.tinyworld.bases import BOS_ID, EOS_ID, PAD_ID
from examples.tinyworld.corpus.base import Example
from examples.tinyworld.tasks import few_shot, prompt

BATCH = 100
MAX_ANSWER_TOKENS = 28
SYNTHESIS_STOP = "\nOutput"


def encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Encodes a prompt from BOS on."""
    return [BOS_ID, *tokenizer.encode(text, add_special_tokens=False)]


class _EndsWith(StoppingCriteria):
    """Stops a row at a sequence of tokens."""

    def __init__(self, sequence: list[int], prompt_tokens: int) -> None:
        self.sequence, self.prompt_tokens = torch.tensor(sequence), prompt_tokens

    def __call__(
        self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs: object
    ) -> torch.Tensor:
        """Tells which rows have ended."""
        size = len(self.sequence)
        if input_ids.shape[1] - self.prompt_tokens < size:
            return torch.zeros(len(input_ids), dtype=torch.bool)
        return (input_ids[:, -size:] == self.sequence).all(1)


@torch.no_grad()
def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    max_new_tokens: int,
    stop: str,
    temperature: float = 0.0,
) -> list[str]:
    """Continues prompts up to a stop string.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        prompts: Texts to continue.
        max_new_tokens: Limit of new tokens.
        stop: Where a continuation ends; it is left in the result.
        temperature: Zero for greedy decoding.

    Returns:
        The continuations, in the order of the prompts.
    """
    model.eval()
    encoded = [encode(tokenizer, text) for text in prompts]
    order = sorted(range(len(prompts)), key=lambda i: len(encoded[i]))
    results = [""] * len(prompts)
    stop_ids = tokenizer.encode(stop, add_special_tokens=False)
    sampling: dict[str, Any] = {"do_sample": temperature > 0}
    if temperature > 0:
        sampling |= {"temperature": temperature, "top_k": 0, "top_p": 1.0}
    for start in range(0, len(order), BATCH):
        chosen = order[start : start + BATCH]
        width = max(len(encoded[i]) for i in chosen)
        ids = torch.tensor([[PAD_ID] * (width - len(encoded[i])) + encoded[i] for i in chosen])
        output = model.generate(
            input_ids=ids,
            attention_mask=(ids != PAD_ID).long(),
            max_new_tokens=max_new_tokens,
            pad_token_id=PAD_ID,
            eos_token_id=EOS_ID,
            stopping_criteria=StoppingCriteriaList([_EndsWith(stop_ids, width)]),
            **sampling,
        )
        for index, row in zip(chosen, output[:, width:], strict=True):
            results[index] = tokenizer.decode(row[row != PAD_ID], skip_special_tokens=True)
    return results


def answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    inputs: Sequence[str],
    shots: Sequence[Example] = (),
) -> list[str]:
    """Returns the greedy answer to each input.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        inputs: Inputs of a task.
        shots: Examples to put before each input.

    Returns:
        The answers, stripped.
    """
    texts = [few_shot(list(shots), x) if shots else prompt(x) for x in inputs]
    found = generate(model, tokenizer, texts, max_new_tokens=MAX_ANSWER_TOKENS, stop="\n")
    return [text.split("\n")[0].strip() for text in found]


def accuracy(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    shots: Sequence[Example] = (),
) -> float:
    """Returns the share of examples answered exactly."""
    found = answers(model, tokenizer, [x for x, _ in examples], shots)
    return sum(a == y for a, (_, y) in zip(found, examples, strict=True)) / len(examples)


def synthesise(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    seeds: Sequence[Example],
    count: int,
    seed: int = 0,
) -> list[str | None]:
    """Draws task inputs by few-shot continuation at temperature one.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        seeds: Seed examples, shuffled anew for each draw.
        count: Number of draws.
        seed: Seed of the draws.

    Returns:
        One input a draw, or None where the continuation never reached its end.
    """
    rng = random.Random(seed)
    torch.manual_seed(seed)
    texts = []
    for _ in range(count):
        shots = rng.sample(list(seeds), len(seeds))
        texts.append(few_shot(shots, "\0").split("\0")[0].rstrip(" "))
    longest = max(len(tokenizer.encode(x, add_special_tokens=False)) for x, _ in seeds)
    found = generate(
        model,
        tokenizer,
        texts,
        max_new_tokens=int(longest * 1.6) + 12,
        stop=SYNTHESIS_STOP,
        temperature=1.0,
    )
    return [
        text.split(SYNTHESIS_STOP)[0].strip() if SYNTHESIS_STOP in text else None for text in found
    ]
