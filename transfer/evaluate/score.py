"""Answers of a model on a set of inputs, in batches."""

from collections.abc import Sequence

from lorebase.serving.engine.protocol import Sampling
from lorebase.serving.errors import UnavailableError

from ..kit.format import TaskFormat
from ..ports import Checkpoint, Example, ModelSpec, TextGenerator, no_checkpoint

BATCH_SIZE = 64


async def score(
    generator: TextGenerator,
    model: ModelSpec,
    items: Sequence[Example],
    format: TaskFormat,
    *,
    few_shot: Sequence[Example] = (),
    max_tokens: int,
    checkpoint: Checkpoint = no_checkpoint,
) -> list[str]:
    """Returns the model's greedy answer to every input, without spaces around it.

    An unfinished answer counts as it stands. Targets are not looked at: compare with `matches`.

    Args:
        generator: where text comes from.
        model: base, alone or with an adapter version.
        items: inputs.
        format: wording of the prompt.
        few_shot: solved examples to put before every input.
        max_tokens: budget of an answer.
        checkpoint: called between batches.

    Raises:
        UnavailableError: an answer failed for technical reasons. It is no wrong answer, so the
            whole must be repeated.
    """
    answers: list[str] = []
    sampling = Sampling(max_tokens=max_tokens, temperature=0.0, stop=(format.stop,))
    for first in range(0, len(items), BATCH_SIZE):
        checkpoint(first / len(items))
        batch = items[first : first + BATCH_SIZE]
        prompts = [format.few_shot(few_shot, item.input) for item in batch]
        completions = await generator.complete(model, prompts, sampling)
        for number, completion in enumerate(completions, first):
            if completion.error is not None:
                raise UnavailableError(
                    f"input {number} of {len(items)} got no answer from base "
                    f"{model.base_id!r}: {completion.error}",
                    reason="SCORING_FAILED",
                )
            answers.append(completion.text.strip())
    checkpoint(1.0)
    return answers
