"""What migrations save by sharing the engine's steps: many adapters in one batch or one by one.

Background generation of all migrations goes to one engine of each base, whose steps hold requests
of any adapters. Here the source adapters of the tiny world label inputs, as migrations do, once one
adapter after the other and once all at the same time; a step costs the base's forward pass either
way. Runs in a process of its own, because vLLM wants its environment before it is imported:

    python -m benchmarks.transfer.batching OUT.json
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from examples.tinyworld.places import ADAPTERS_DIR, base_dir
from examples.tinyworld.tasks import TASKS
from lorebase.serving.engine import (
    Engine,
    EngineSettings,
    GenerationRequest,
    Sampling,
    VersionRef,
    create_engine,
)
from lorebase.serving.engine.batch import complete_many
from lorebase.serving.engine.protocol import BACKGROUND_PRIORITY
from lorebase.transfer.kit import DOCUMENT

from .rows import Row

COUNTS = (1, 4, 16)
"""Adapters at once."""
PROMPTS = 8
"""Of each adapter and repeat: what is left of a migration's batch, or of a small one."""
REPEATS = 5
STEP_SLOTS = 64
"""Background requests in one step. Half of the rows have the default cap instead."""
MAX_TOKENS = 24
TIMEOUT_S = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Labeller:
    """An adapter and inputs of its task."""

    version: VersionRef
    inputs: tuple[str, ...]

    def requests(self, first: int, run: str) -> list[GenerationRequest]:
        """Returns `PROMPTS` requests; no input comes twice, so that no prefix is cached."""
        return [
            GenerationRequest(
                request_id=f"{run}-{self.version.id}-{number}",
                prompt=DOCUMENT.prompt(self.inputs[number]),
                version=self.version,
                sampling=Sampling(max_tokens=MAX_TOKENS, stop=(DOCUMENT.stop,)),
                priority=BACKGROUND_PRIORITY,
            )
            for number in range(first, first + PROMPTS)
        ]


def labellers(count: int, inputs: int) -> list[Labeller]:
    """Returns source adapters of the tiny world whose tasks have so many inputs."""
    tasks = [task for task in TASKS.values() if not task.benchmark][:count]
    if len(tasks) < count:
        raise ValueError(f"got {len(tasks)} tasks with drawn inputs, expected {count}")
    return [
        Labeller(
            version=VersionRef(
                id=task.name,
                base_id="old",
                digest=task.name,
                path=str(ADAPTERS_DIR / task.name.replace("/", "__") / "adapter"),
                rank=task.rank,
            ),
            inputs=tuple(text for text, _ in task.examples("test", inputs)),
        )
        for task in tasks
    ]


async def measure(*, cap: int, counts: Sequence[int] = COUNTS, repeats: int = REPEATS) -> list[Row]:
    """Returns CPU seconds of one engine for the same work, one adapter at a time and all at once.

    Args:
        cap: background requests that the engine takes into its steps at a time.
        counts: numbers of adapters.
        repeats: of each; medians are told.
    """
    # Twice as many: once one by one, once together; and some for the first loads.
    sets = 2 * repeats * len(counts) + 1
    everyone = labellers(max(counts), sets * PROMPTS)
    engine = await create_engine(
        EngineSettings(
            base_id="old",
            model_path=str(base_dir("old")),
            backend="inprocess",
            dtype="float32",
            max_model_len=256,
            max_num_seqs=STEP_SLOTS + 1,  # one is the foreground's
            max_batched_tokens=2048,
            max_loras=max(counts),
            background_cap=cap,
            kv_cache_bytes=64 << 20,
        )
    )
    try:
        await _cpu_s(engine, everyone, 0, together=True)
        rows, used = [], 1
        for count in counts:
            alone, together = [], []
            for number in range(repeats):
                # Turn about, so that neither way always comes first.
                for shared in (number % 2 == 0, number % 2 == 1):
                    took = await _cpu_s(engine, everyone[:count], used, together=shared)
                    (together if shared else alone).append(took)
                    used += 1
            rows.append(
                {
                    "kind": "batching",
                    "adapters": count,
                    "prompts_each": PROMPTS,
                    "background_cap": cap,
                    "repeats": repeats,
                    "one_by_one_cpu_s": round(statistics.median(alone), 4),
                    "together_cpu_s": round(statistics.median(together), 4),
                    "gain": round(statistics.median(alone) / statistics.median(together), 3),
                }
            )
        return rows
    finally:
        await engine.shutdown()


async def _cpu_s(engine: Engine, who: Sequence[Labeller], number: int, *, together: bool) -> float:
    """Returns CPU seconds of this process for one run."""
    batches = [one.requests(number * PROMPTS, str(number)) for one in who]
    if together:
        batches = [[request for batch in batches for request in batch]]
    began = time.process_time()
    for batch in batches:
        failed = [one.error for one in await complete_many(engine, batch) if one.error]
        if failed:
            raise RuntimeError(f"{len(failed)} of {len(batch)} requests failed: {failed[0]}")
    return time.process_time() - began


def batching_rows(out: Path) -> list[Row]:
    """Measures in a process of its own, once: rows that `out` holds already are taken from there.

    Raises:
        subprocess.SubprocessError: it failed or took longer than `TIMEOUT_S`.
    """
    if not out.is_file():
        out.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "benchmarks.transfer.batching", str(out)]
        subprocess.run(command, check=True, timeout=TIMEOUT_S)
    rows: list[Row] = json.loads(out.read_text(encoding="utf-8"))
    return rows


def batching_summary(rows: Sequence[Row]) -> dict[str, float]:
    """Returns the gains by number of adapters, with as many requests a step as there are."""
    gains = {
        f"batching_gain_{row['adapters']}": row["gain"]
        for row in rows
        if row["background_cap"] == STEP_SLOTS
    }
    at_default = {
        f"batching_gain_{row['adapters']}_at_default_cap": row["gain"]
        for row in rows
        if row["background_cap"] != STEP_SLOTS
    }
    return gains | at_default


def main() -> None:
    """Measures with wide steps and with the engine's default cap, and writes the rows."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.transfer.batching")
    parser.add_argument("out", type=Path)
    out: Path = parser.parse_args().out
    rows: list[Row] = []
    default = EngineSettings(base_id="old", model_path=str(base_dir("old"))).background_cap
    for cap in (STEP_SLOTS, default):
        rows += asyncio.run(measure(cap=cap))
    partial = out.with_name(out.name + ".partial")
    partial.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    partial.replace(out)


if __name__ == "__main__":
    main()
