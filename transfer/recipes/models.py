"""The two models of a transfer, in the process that trains."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorebase.serving.engine.protocol import VersionRef

from ..distill.batches import encode_all
from ..distill.distill import load_base
from ..distill.likelihood import answer_logprobs, answer_spans
from ..distill.settings import LoraSettings
from ..distill.signals import ScoredAnswer
from ..hf_generator import merged_copy
from ..kit.format import TaskFormat

Pairs = Sequence[tuple[str, str]]
"""(prompt, answer) with the answer's stop."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Teacher:
    """The source adapter on its base, in this process."""

    adapted: Any
    """transformers model: source base with the adapter."""
    bare: Any
    """Source base alone."""
    tokenizer: Any

    def score(self, pairs: Pairs, *, bare: bool = False) -> list[ScoredAnswer]:
        """Returns the likelihood of each answer; with `bare` also without the adapter."""
        tokens = encode_all(self.tokenizer, pairs)
        spans = answer_spans(self.tokenizer, [answer for _, answer in pairs])
        adapted = answer_logprobs(self.adapted, tokens)
        without = answer_logprobs(self.bare, tokens) if bare else [()] * len(tokens)
        return [
            ScoredAnswer(spans=one, logprobs=logprobs, bare_logprobs=bare_logprobs)
            for one, logprobs, bare_logprobs in zip(spans, adapted, without, strict=True)
        ]


LoadTeacher = Callable[[], Teacher]
"""Called at most once, and only by recipes that need likelihoods."""


def load_teacher(base_dir: Path, adapter_dir: Path) -> Teacher:
    """Loads a teacher from its files.

    Raises:
        InvalidArgumentError: no base there, or an adapter that does not fit it.
    """
    model, tokenizer = load_base(base_dir)
    return Teacher(
        adapted=merged_copy(model, version_at(adapter_dir, "teacher", base_dir.name)),
        bare=model,
        tokenizer=tokenizer,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Shadow:
    """What is trained, on what."""

    model: Any
    """The next base, without adapter."""
    tokenizer: Any
    base_id: str
    lora: LoraSettings
    format: TaskFormat
    max_answer_tokens: int
    source_dir: Path | None = None
    """PEFT directory of the source adapter, for recipes with a warm start."""


def version_at(adapter: Path, name: str, base_id: str) -> VersionRef:
    """Returns a reference to an adapter's files for generation in this process."""
    return VersionRef(id=name, base_id=base_id, digest="", path=str(adapter), rank=0)
