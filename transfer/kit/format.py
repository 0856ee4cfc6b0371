"""How a task is written as text: prompts are data, so that a kit can carry its own."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ..ports import Example

_FIELD = re.compile(r"\{(input|target|index|next|count|dataset)\}")


def _fill(template: str, **values: str | int) -> str:
    """Replaces the known `{field}`s in one pass; braces inside the values stay as they are."""
    return _FIELD.sub(lambda match: str(values.get(match.group(1), match.group(0))), template)


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskFormat:
    """Templates of every prompt that serving, transfer and evaluation use for one task.

    Fields in braces: `{input}`, `{target}`, `{dataset}` (name of the data), `{index}` (number of
    a seed, from 1; in the cue and the stop: of the example to be written), `{next}` (`{index}` +
    1) and `{count}` (seeds shown).
    """

    name: str
    """Name of the preset, or a name of the client's own."""
    prompt_template: str
    """Asks for the answer to `{input}`."""
    answer_template: str
    """Follows the prompt; ends with `stop`."""
    stop: str
    """Ends an answer."""
    example_separator: str
    """Stands between the examples of a few-shot prompt."""
    synthesis_header: str
    """Opens a synthesis prompt."""
    synthesis_item: str
    """One seed in a synthesis prompt."""
    synthesis_cue: str
    """Ends a synthesis prompt: the base goes on with a new input."""
    synthesis_stop_template: str
    """Ends a synthetic input."""
    discriminator_template: str
    """Asks whether `{input}` is real."""
    choices: tuple[str, str] = (" yes", " no")
    """Answers of the discriminator, real first; each is one token of the source base."""
    markers: tuple[str, ...] = ()
    """Pieces of the format that an input can't contain; a synthetic one that does is dropped."""

    def prompt(self, text: str) -> str:
        """Returns the prompt that asks for the answer to `text`."""
        return _fill(self.prompt_template, input=text)

    def answer(self, target: str) -> str:
        """Returns the text that follows `prompt` when the answer is `target`, stop included."""
        return _fill(self.answer_template, target=target)

    def few_shot(self, seeds: Sequence[Example], text: str) -> str:
        """Returns the prompt for `text` with `seeds` before it as solved examples."""
        shots = (
            self.prompt(seed.input) + self.answer(seed.target) + self.example_separator
            for seed in seeds
        )
        return "".join(shots) + self.prompt(text)

    def synthesis_prompt(self, seeds: Sequence[Example]) -> str:
        """Returns a prompt that a base goes on with by writing one more input like the seeds'."""
        items = (
            _fill(self.synthesis_item, input=seed.input, target=seed.target, index=number)
            for number, seed in enumerate(seeds, 1)
        )
        index = len(seeds) + 1
        return (
            _fill(self.synthesis_header, count=len(seeds))
            + "".join(items)
            + _fill(self.synthesis_cue, index=index)
        )

    def synthesis_stop(self, seed_count: int) -> str:
        """Returns the text that ends a synthetic input written after `seed_count` seeds."""
        index = seed_count + 1
        return _fill(self.synthesis_stop_template, index=index, next=index + 1)

    def discriminator_prompt(self, text: str, dataset_name: str) -> str:
        """Returns the prompt that asks the discriminator whether `text` is a real input."""
        return _fill(self.discriminator_template, input=text, dataset=dataset_name)


DOCUMENT = TaskFormat(
    name="document",
    prompt_template="Input: {input}\nOutput:",
    answer_template=" {target}\n",
    stop="\n",
    example_separator="\n",
    synthesis_header="",
    synthesis_item="Input: {input}\nOutput: {target}\n\n",
    synthesis_cue="Input:",
    synthesis_stop_template="\nOutput",
    discriminator_template="Input: {input}\nReal:",
    markers=("\nInput:", "\nReal:"),
)
"""A document of solved examples: for bases that continue text (the tiny world's do)."""

PAPER = TaskFormat(
    name="paper",
    prompt_template="{input}\nAnswer:",
    answer_template=" {target}\n",
    stop="\n",
    example_separator="\n",
    synthesis_header="Here are 10 examples:\n",
    synthesis_item="{index}. {input}\n",
    synthesis_cue="{index}.",
    synthesis_stop_template="\n{next}.",
    discriminator_template=(
        "Answer in as few words as possible. {input} Is the above question from the {dataset} "
        "dataset?"
    ),
    choices=(" Yes", " No"),
)
"""The wording of Trans-LoRA (arXiv 2405.17258); it leaves the task prompt open, so that is ours."""

FORMATS: dict[str, TaskFormat] = {preset.name: preset for preset in (DOCUMENT, PAPER)}
"""The presets by name."""
