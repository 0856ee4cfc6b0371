"""A scripted TextGenerator for tests of the transfer stages."""

from collections.abc import Callable, Sequence

from lorebase.serving.engine.protocol import Completion, Sampling
from lorebase.transfer.kit import DOCUMENT, TransferKit
from lorebase.transfer.ports import Example, ModelSpec

MODEL = ModelSpec(base_id="next")
SEEDS = tuple(Example(input=f"seed {n}", target=str(n)) for n in range(5))
KIT = TransferKit(
    base_id="old",
    dataset_name="things",
    dataset_size=100,
    format=DOCUMENT,
    seeds=SEEDS,
    threshold=-0.5,
    discriminator_auc=0.9,
    real_pass_rate=0.88,
    fake_pass_rate=0.4,
    max_input_chars=30,
    max_input_tokens=16,
    max_answer_tokens=8,
)


class Script:
    """Answers prompt i of a call with `answer(prompt, number)`; records every call."""

    def __init__(self, answer: Callable[[str, int], Completion]) -> None:
        self._answer = answer
        self.calls: list[tuple[ModelSpec, list[str], Sampling]] = []
        self.count = 0

    async def complete(
        self, model: ModelSpec, prompts: Sequence[str], sampling: Sampling
    ) -> list[Completion]:
        self.calls.append((model, list(prompts), sampling))
        done = [self._answer(prompt, self.count + at) for at, prompt in enumerate(prompts)]
        self.count += len(prompts)
        return done


def done(text: str) -> Completion:
    return Completion(text=text, finish_reason="stop")
