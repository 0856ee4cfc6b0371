"""A text generator that counts what it costs and never makes the same completion twice.

Arms of one task share most of their work: the same base writes after the same seeds, the same
teacher labels. A completion depends on model, prompt and sampling alone, so it is kept by these.
Each arm is charged what its completions cost when they were made, shared or not.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from lorebase.serving.engine.protocol import Completion, Sampling
from lorebase.transfer.ports import ModelSpec, TextGenerator


@dataclass(slots=True, kw_only=True)
class Spent:
    """What completions cost."""

    cpu_s: float = 0.0
    """CPU seconds as if nothing had been shared."""
    fresh_cpu_s: float = 0.0
    """CPU seconds that were really spent now."""
    completions: int = 0
    tokens_read: int = 0
    """Of prompts."""
    tokens_written: int = 0

    def minus(self, other: Spent) -> Spent:
        """Returns the difference of two readings."""
        return Spent(**{key: value - getattr(other, key) for key, value in asdict(self).items()})


@dataclass(slots=True)
class MeteredGenerator:
    """TextGenerator over another one.

    Attributes:
        inner: Makes the completions.
        path: SQLite file with what was made.
        revisions: Digest of each base's files, by id.
        spent: Reading of the meter.
    """

    inner: TextGenerator
    path: Path
    revisions: dict[str, str]
    spent: Spent = field(default_factory=Spent)
    _store: sqlite3.Connection | None = None

    async def complete(
        self, model: ModelSpec, prompts: Sequence[str], sampling: Sampling
    ) -> list[Completion]:
        """Completes every prompt, in order; see TextGenerator."""
        keys = [self._key(model, prompt, sampling, number) for number, prompt in enumerate(prompts)]
        found = self._read(keys)
        for first, stop in runs([key not in found for key in keys]):
            seed = None if sampling.seed is None else sampling.seed + first
            began = time.process_time()
            made = await self.inner.complete(
                model, prompts[first:stop], replace(sampling, seed=seed)
            )
            cost = time.process_time() - began
            self.spent.fresh_cpu_s += cost
            fresh = {
                key: (completion, cost / len(made))
                for key, completion in zip(keys[first:stop], made, strict=True)
            }
            self._write(fresh)
            found |= fresh
        for key in keys:
            completion, cost = found[key]
            self.spent.cpu_s += cost
            self.spent.completions += 1
            self.spent.tokens_read += completion.prompt_tokens
            self.spent.tokens_written += len(completion.token_ids)
        return [found[key][0] for key in keys]

    def reading(self) -> Spent:
        """Returns the meter's reading now."""
        return replace(self.spent)

    def close(self) -> None:
        """Closes the file."""
        if self._store is not None:
            self._store.close()
            self._store = None

    def _key(self, model: ModelSpec, prompt: str, sampling: Sampling, number: int) -> bytes:
        seed = None
        if sampling.temperature > 0 and sampling.seed is not None:
            seed = sampling.seed + number
        digest = model.version.digest if model.version else ""
        told = [self.revisions[model.base_id], digest, prompt, asdict(replace(sampling, seed=seed))]
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).digest()

    def _open(self) -> sqlite3.Connection:
        if self._store is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._store = sqlite3.connect(self.path, check_same_thread=False)
            self._store.execute(
                "create table if not exists made (key blob primary key, value text, cpu_s real)"
            )
        return self._store

    def _read(self, keys: Sequence[bytes]) -> dict[bytes, tuple[Completion, float]]:
        store, found = self._open(), {}
        for first in range(0, len(keys), 500):
            some = keys[first : first + 500]
            marks = ",".join("?" * len(some))
            query = f"select key, value, cpu_s from made where key in ({marks})"
            for key, value, cost in store.execute(query, some):
                found[key] = (_completion(json.loads(value)), cost)
        return found

    def _write(self, made: dict[bytes, tuple[Completion, float]]) -> None:
        rows = [
            (key, json.dumps(asdict(completion)), cost)
            for key, (completion, cost) in made.items()
            if completion.error is None
        ]
        with self._open() as store:
            store.executemany("insert or replace into made values (?, ?, ?)", rows)


def _completion(value: dict[str, object]) -> Completion:
    for name in ("token_ids", "choice_logprobs"):
        value[name] = tuple(value[name])  # type: ignore[arg-type]
    return Completion(**value)  # type: ignore[arg-type]


def runs(wanted: Sequence[bool]) -> Iterator[tuple[int, int]]:
    """Yields the first and the one after the last place of every run of True."""
    first = None
    for place, one in enumerate((*wanted, False)):
        if one and first is None:
            first = place
        elif not one and first is not None:
            yield first, place
            first = None
