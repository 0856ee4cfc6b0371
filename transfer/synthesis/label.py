"""The label stage: the source base with its adapter answers the new inputs."""

import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lorebase.serving.engine.protocol import Sampling

from ..kit.kit import TransferKit
from ..ports import Checkpoint, Example, ModelSpec, TextGenerator, no_checkpoint
from .draw import require_some

BATCH_SIZE = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelResult:
    """Inputs with the teacher's answers."""

    examples: list[Example]
    stats: dict[str, Any]
    """inputs, labelled, dropped by cause, distinct_answers, top_answer_share."""


async def label_inputs(
    generator: TextGenerator,
    teacher: ModelSpec,
    kit: TransferKit,
    inputs: Sequence[str],
    *,
    checkpoint: Checkpoint = no_checkpoint,
) -> LabelResult:
    """Lets the teacher answer every input greedily; unfinished and empty answers are dropped.

    Raises:
        UnavailableError: a whole batch failed.
    """
    examples: list[Example] = []
    dropped: Counter[str] = Counter()
    sampling = Sampling(max_tokens=kit.max_answer_tokens, temperature=0.0, stop=(kit.format.stop,))
    for first in range(0, len(inputs), BATCH_SIZE):
        checkpoint(first / len(inputs))
        batch = inputs[first : first + BATCH_SIZE]
        prompts = [kit.format.prompt(text) for text in batch]
        completions = await generator.complete(teacher, prompts, sampling)
        require_some(completions, teacher)
        for text, item in zip(batch, completions, strict=True):
            answer = item.text.strip()
            if item.error is not None:
                dropped["failed"] += 1
            elif item.finish_reason != "stop":
                dropped["unfinished"] += 1
            elif not answer:
                dropped["empty"] += 1
            else:
                examples.append(Example(input=text, target=answer))
    checkpoint(1.0)
    answers = Counter(example.target for example in examples)
    top = answers.most_common(1)[0][1] if answers else 0
    return LabelResult(
        examples=examples,
        stats={
            "inputs": len(inputs),
            "labelled": len(examples),
            "dropped": dict(sorted(dropped.items())),
            "distinct_answers": len(answers),
            "top_answer_share": round(top / len(examples), 4) if examples else 0.0,
        },
    )


def cap_answers(examples: Sequence[Example], share: float) -> list[Example]:
    """Drops examples so that no answer has more than `share` of them as they were.

    Of each answer the first ones stay. 1 drops none.
    """
    most = math.ceil(share * len(examples))
    seen: Counter[str] = Counter()
    kept = []
    for example in examples:
        seen[example.target] += 1
        if seen[example.target] <= most:
            kept.append(example)
    return kept


def hold_out(
    examples: Sequence[Example], count: int, *, seed: int
) -> tuple[list[Example], list[Example]]:
    """Splits labelled examples into (training, held out), at random but fixed by `seed`.

    At most half is held out. The gate of a label-free adapter sees only what was held out.
    """
    order = list(range(len(examples)))
    random.Random(f"hold-out|{seed}").shuffle(order)
    held = set(order[: min(count, len(examples) // 2)])
    training = [example for number, example in enumerate(examples) if number not in held]
    return training, [examples[number] for number in sorted(held)]
