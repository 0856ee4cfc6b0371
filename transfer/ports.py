"""What the transfer algorithms need from the world, as Protocols and plain data.

The algorithms never know whether text comes from a serving engine (through Ray) or from a
transformers model in this process (kit building, tests): both are a `TextGenerator`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from lorebase.serving.engine.protocol import Completion, Sampling, VersionRef


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One task input with its answer."""

    input: str
    target: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """A base, alone or under an adapter version."""

    base_id: str
    version: VersionRef | None = None


class TextGenerator(Protocol):
    """Batched generation at background priority."""

    async def complete(
        self, model: ModelSpec, prompts: Sequence[str], sampling: Sampling
    ) -> list[Completion]:
        """Completes every prompt, in order; a failed prompt has `Completion.error` set.

        With `sampling.seed` set, prompt i is sampled with seed + i, so results do not depend on
        how prompts are batched.
        """
        ...


class Checkpoint(Protocol):
    """Lets long work yield: called between batches and training steps."""

    def __call__(self, progress: float) -> None:
        """Reports progress (0 to 1); blocks while the lease is revoked.

        Raises:
            StageCancelledError: the work is not wanted any more.
        """
        ...


class StageCancelledError(Exception):
    """The stage was cancelled (pause, abort, controller gone)."""


def no_checkpoint(progress: float) -> None:
    """A checkpoint that never waits, for foreground use."""


ProgressCallback = Callable[[float], None]
