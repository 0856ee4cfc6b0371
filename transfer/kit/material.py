"""The client's data on its way into a kit: checked, bounded, split. Pure."""

import hashlib
import json
import math
import random
from collections.abc import Callable, Sequence

from lorebase.serving.errors import InvalidArgumentError

from ..ports import Example
from .format import TaskFormat
from .kit import MAX_SEEDS, MAX_TEXT_CHARS

MIN_EXAMPLES = 24
"""Fewer can't train and calibrate a discriminator."""
MIN_SEEDS_ONLY = 5
"""Fewer examples tell a base too little of what the task's inputs look like."""


def data_fingerprint(examples: Sequence[Example]) -> str:
    """Returns a digest of the data, by which a kit can be told to be out of date."""
    rows = sorted(json.dumps([example.input, example.target]) for example in examples)
    return hashlib.sha256("\n".join(rows).encode()).hexdigest()


def unique_examples(
    examples: Sequence[Example], *, seeds: int, seeds_only: bool = False
) -> list[Example]:
    """Returns the different examples in their order.

    Args:
        examples: the client's data.
        seeds: how many of them stay in the kit.
        seeds_only: whether no discriminator is to be made of them.

    Raises:
        InvalidArgumentError: too few, an empty or too long text, or a senseless number of seeds.
    """
    if not 1 <= seeds <= MAX_SEEDS:
        raise InvalidArgumentError(f"got {seeds} seeds, expected 1 to {MAX_SEEDS}")
    unique = list({example.input: example for example in examples}.values())
    least = max(MIN_SEEDS_ONLY, seeds) if seeds_only else max(MIN_EXAMPLES, 3 * seeds)
    if len(unique) < least:
        raise InvalidArgumentError(
            f"got {len(unique)} different examples, at least {least} are needed to "
            + (
                "show a base what the inputs look like"
                if seeds_only
                else "train and calibrate a discriminator; if that is all that is left of the "
                "data, make a kit without one (`--seeds-only`)"
            )
        )
    for number, example in enumerate(unique):
        if not example.input.strip() or not example.target.strip():
            raise InvalidArgumentError(f"example {number} has an empty input or target")
        if max(len(example.input), len(example.target)) > MAX_TEXT_CHARS:
            raise InvalidArgumentError(
                f"example {number} is longer than {MAX_TEXT_CHARS} characters"
            )
    return unique


def length_limits(
    examples: Sequence[Example], count_tokens: Callable[[str], int], *, headroom: float
) -> dict[str, int]:
    """Returns the kit's bounds on new inputs and answers: the longest real ones and some room."""
    inputs = [example.input for example in examples]
    # Some tokens more: the stop belongs to the budget, and another tokenizer may cut finer.
    sizes = {
        "max_input_chars": max(map(len, inputs)),
        "max_input_tokens": max(map(count_tokens, inputs)) + 8,
        "max_answer_tokens": max(count_tokens(example.target) for example in examples) + 8,
    }
    return {name: min(MAX_TEXT_CHARS, math.ceil(size * headroom)) for name, size in sizes.items()}


def split_held_out(items: Sequence[str], held_out_share: float) -> tuple[list[str], list[str]]:
    """Returns (training, held out)."""
    held = round(len(items) * held_out_share)
    return list(items[held:]), list(items[:held])


def without_real(inputs: Sequence[str], real: Sequence[Example]) -> list[str]:
    """Drops synthetic inputs that happen to be real ones: they are no negatives."""
    known = {example.input.strip() for example in real}
    return [text for text in inputs if text not in known]


def discriminator_pairs(
    real: Sequence[str],
    fake: Sequence[str],
    format: TaskFormat,
    dataset_name: str,
    rng: random.Random,
) -> list[tuple[str, str]]:
    """Returns training pairs, half real and half synthetic: the rarer kind is repeated."""
    size = max(len(real), len(fake))
    yes, no = format.choices
    pairs = []
    for texts, answer in ((real, yes), (fake, no)):
        repeated = [texts[number % len(texts)] for number in range(size)]
        pairs += [(format.discriminator_prompt(text, dataset_name), answer) for text in repeated]
    rng.shuffle(pairs)
    return pairs
