"""Chooses kernel configurations on the GPU at hand and writes them into its table.

    PYTHONPATH=.typing python -m benchmarks.lora_gpu.tune            print what would change
    PYTHONPATH=.typing python -m benchmarks.lora_gpu.tune --write    and write configs/<arch>.json

For each row of the table (`--row` takes some only) it starts from the row's configuration and
changes one number at a time to the next larger or smaller, as long as that makes the row's batches
faster. What gives wrong results, spills or takes too much shared memory is never taken. Afterwards
`python -m lorebase.kernels.lora.aot --write` renews the record of what compiling gives.
"""

import argparse
import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from statistics import median
from typing import TypeVar

import torch

from lorebase.kernels.lora.aot import compile_all, faults
from lorebase.kernels.lora.gpu import linear
from lorebase.kernels.lora.gpu.compiling import variants
from lorebase.kernels.lora.gpu.config import (
    PREFILL_TILE,
    TABLES,
    Expand,
    Fused,
    Row,
    Shrink,
    Table,
    arch_of,
    table,
)

from .shapes import LLAMA_8B, PREFILL_TOKENS, Cell
from .timing import Device
from .world import World, make_world

Kernels = Fused | tuple[Shrink, Expand]
Config = TypeVar("Config", Shrink, Expand, Fused)
ALLOWED: dict[str, tuple[int, ...]] = {
    "block_r": (16, 32, 64),
    "block_k": (32, 64, 128, 256, 512),
    "block_n": (32, 64, 128, 256, 512),
    "steps_n": (1, 2, 4, 8),
    "split_k": (1, 2, 4, 8, 16),
    "warps": (1, 2, 4, 8),
    "stages": (1, 2, 3, 4),
}
CLEAR = 0.99
"""A change must be faster by this factor to be taken: less is noise."""
ROUNDS = 15


def neighbours(kernels: Kernels) -> list[Kernels]:
    """All configurations that differ in one number, by one step."""
    if isinstance(kernels, Fused):
        return list(_steps(kernels))
    shrink, expand = kernels
    return [*((s, expand) for s in _steps(shrink)), *((shrink, e) for e in _steps(expand))]


def _steps(config: Config) -> list[Config]:
    found = []
    for field in fields(config):
        allowed, value = ALLOWED[field.name], getattr(config, field.name)
        at = allowed.index(value)
        found += [
            replace(config, **{field.name: allowed[to]})
            for to in (at - 1, at + 1)
            if 0 <= to < len(allowed)
        ]
    return found


def descend(
    start: Kernels, score: Callable[[Kernels], float], fit: Callable[[Kernels], bool]
) -> tuple[Kernels, float]:
    """Greedy descent by one number at a time.

    Args:
        start: where to begin.
        score: seconds, infinite for what can't run.
        fit: whether a configuration that is faster may be taken; asked only then.

    Returns:
        The best configuration and its score.
    """
    best, seconds = start, score(start)
    tried = {start}
    moved = True
    while moved:
        moved = False
        for candidate in neighbours(best):
            if candidate in tried:
                continue
            tried.add(candidate)
            took = score(candidate)
            if took < seconds * CLEAR and fit(candidate):
                best, seconds, moved = candidate, took, True
                break
    return best, seconds


def batches(row: Row) -> list[Cell]:
    """The batches that a row is tuned for."""
    names = {16: ("r8", "r16"), 32: ("r32",)}.get(row.rank or 0, ("r64", "mixed"))
    if row.tile_tokens == PREFILL_TILE:
        tokens, adapters = (PREFILL_TOKENS,), (8,)
    elif row.tokens is not None:
        tokens, adapters = (1, row.tokens), (1, 8)
    else:
        tokens, adapters = (64,), (8, 64)
    return [
        Cell(tokens=t, adapters=a, ranks=name)
        for name in names
        for t in tokens
        for a in adapters
        if a <= t
    ]


def _runner(world: World, kernels: Kernels) -> Callable[[], None]:
    calls = [
        linear.Call(
            y_TN=module.y_TN,
            x_TK=module.x_TK,
            weights=world.pool.buffer,
            a_offsets=module.layer.a_offsets,
            b_offsets=module.layer.b_offsets,
            ranks=module.layer.ranks,
            slice_starts=module.layer.slice_starts,
            tiles=world.plan.tiles,
            order=world.plan.order,
            slice_sizes=module.layer.slice_sizes,
            tile_tokens=world.plan.tile_tokens,
            max_rank=world.cell.max_rank,
        )
        for module in world.modules
    ]

    def run() -> None:
        for call in calls:
            linear.run(call, kernels)

    return run


def tune_row(row: Row, arch: str, device: Device) -> tuple[Row, float, float]:
    """Tunes one row; returns it with the mean seconds before and after."""
    worlds = [make_world(cell, LLAMA_8B, 2, "cuda") for cell in batches(row)]

    def score(kernels: Kernels) -> float:
        logarithms = []
        for world in worlds:
            run = _runner(world, kernels)
            try:
                if world.wrong(run) is not None:
                    return math.inf
                replay = device.capture(run)
            except Exception as error:  # too much shared memory, a block that doesn't compile
                print(f"  {kernels}: {type(error).__name__}")
                torch.cuda.synchronize()
                return math.inf
            logarithms.append(math.log(median(device.seconds(replay) for _ in range(ROUNDS))))
        return math.exp(sum(logarithms) / len(logarithms))

    def fit(kernels: Kernels) -> bool:
        return not faults(compile_all(variants(arch, [replace(row, kernels=kernels)]), 2))

    before = score(row.kernels)
    kernels, after = descend(row.kernels, score, fit)
    return replace(row, kernels=kernels), before, after


def as_text(tuned: Table) -> str:
    """The table as its file has it: a line for each row."""
    rows = ",\n".join(f"  {json.dumps(row.as_json())}" for row in tuned.rows)
    return f'{{\n "measured_on": {json.dumps(tuned.measured_on)},\n "rows": [\n{rows}\n ]\n}}\n'


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.lora_gpu.tune")
    parser.add_argument("--write", action="store_true", help="write configs/<arch>.json")
    parser.add_argument("--row", type=int, action="append", help="only these, from 0")
    options = parser.parse_args(arguments)
    try:
        device = Device()
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 2
    arch = arch_of(torch.device("cuda", torch.cuda.current_device()))
    rows = list(table(arch).rows)
    for index, row in enumerate(rows):
        # float32 adapters are for tests: nobody serves them on a GPU.
        if row.itemsize == 2 and (options.row is None or index in options.row):
            rows[index], before, after = tune_row(row, arch, device)
            print(f"row {index}: {before * 1e6:.1f} -> {after * 1e6:.1f} us, {rows[index].kernels}")
    if options.write:
        path = TABLES / f"{arch}.json"
        partial = path.with_suffix(".partial")
        partial.write_text(as_text(Table(arch=arch, measured_on=device.name, rows=tuple(rows))))
        partial.replace(path)
        print(f"wrote {path.name}; now run `python -m lorebase.kernels.lora.aot --write`")
    return 0


if __name__ == "__main__":
    sys.exit(main())
