"""Which kernels with which blocks serve a shape: looked up in a checked-in table, never tuned live.

configs/<arch>.json holds rows in order; the first whose bounds admit a call is taken. A bound of
null admits everything. Written by hand or by `tune`; `lorebase.kernels.lora.aot` compiles all of
them without a GPU and keeps what each takes in registers and shared memory.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch

from ..metadata import DECODE_TILE, PREFILL_TILE

TABLES = Path(__file__).parent / "configs"
DECODE_TOKENS = 256
"""Steps up to here are better cut into small tiles: there are few tokens for each adapter."""


def tile_tokens_for(tokens: int) -> int:
    """The tile size that a plan for steps of up to `tokens` tokens should have."""
    return DECODE_TILE if tokens <= DECODE_TOKENS else PREFILL_TILE


@dataclass(frozen=True, slots=True, kw_only=True)
class Shrink:
    """How `lora_shrink` is compiled and launched."""

    block_r: int
    """Rank rows at a time; a power of two, at least 16."""
    block_k: int
    """Features at a time; a power of two, at least 16."""
    split_k: int
    """Programs among which the features of one tile and slice are divided."""
    warps: int
    stages: int
    """Loads in flight, in loop iterations."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Expand:
    """How `lora_expand` is compiled and launched."""

    block_r: int
    """Rank rows at a time; a power of two, at least 16."""
    block_n: int
    """Columns of a program; a power of two, at least 16."""
    warps: int
    stages: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Fused:
    """How `lora_fused` is compiled and launched."""

    block_r: int
    """At least the largest rank; a power of two, at least 16."""
    block_k: int
    block_n: int
    steps_n: int
    """A program owns block_n * steps_n columns."""
    warps: int
    stages: int


Kernels = Fused | tuple[Shrink, Expand]


def for_odd_columns(kernels: Kernels) -> Kernels:
    """What serves where columns are no multiples of 16: half as many at a time.

    Addresses of single elements take the registers that wide loads leave free; with as many
    columns some kernels spill.
    """
    if isinstance(kernels, Fused):
        return replace(kernels, block_n=max(16, kernels.block_n // 2), steps_n=2 * kernels.steps_n)
    shrink, expand = kernels
    return shrink, replace(expand, block_n=max(16, expand.block_n // 2))


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One row of a table: bounds, and what serves calls within them."""

    itemsize: int
    """Bytes of an element; must be equal."""
    tile_tokens: int
    """Of the plan; at most this."""
    tokens: int | None
    """Rows of x, at most."""
    rank: int | None
    """max_rank of the call, at most."""
    kernels: Fused | tuple[Shrink, Expand]

    def admits(self, *, itemsize: int, tile_tokens: int, tokens: int, rank: int) -> bool:
        """Whether a call is within the bounds."""
        return (
            itemsize == self.itemsize
            and tile_tokens <= self.tile_tokens
            and (self.tokens is None or tokens <= self.tokens)
            and (self.rank is None or rank <= self.rank)
        )

    def as_json(self) -> dict[str, Any]:
        """The row as the table's file has it."""
        bounds = {
            name: getattr(self, name) for name in ("itemsize", "tile_tokens", "tokens", "rank")
        }
        if isinstance(self.kernels, Fused):
            return {**bounds, "fused": asdict(self.kernels)}
        shrink, expand = self.kernels
        return {**bounds, "shrink": asdict(shrink), "expand": asdict(expand)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Row":
        """Reads what `as_json` gave.

        Raises:
            ValueError: A fused row without a rank bound or with one above its block, or a block
                that no kernel takes.
        """
        kernels: Fused | tuple[Shrink, Expand]
        blocks: tuple[int, ...]
        if "fused" in values:
            kernels = Fused(**values["fused"])
            bound = values["rank"]
            if bound is None or bound > kernels.block_r:
                raise ValueError(f"got rank {bound} for {kernels}; expected at most block_r")
            blocks = (kernels.block_r, kernels.block_k, kernels.block_n)
        else:
            kernels = (Shrink(**values["shrink"]), Expand(**values["expand"]))
            blocks = (
                kernels[0].block_r,
                kernels[0].block_k,
                kernels[1].block_r,
                kernels[1].block_n,
            )
        if any(block < 16 or block & (block - 1) for block in blocks):
            raise ValueError(f"got blocks {blocks}; expected powers of two, at least 16")
        bounds = {name: values[name] for name in ("itemsize", "tile_tokens", "tokens", "rank")}
        return cls(**bounds, kernels=kernels)


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """All rows of one architecture."""

    arch: str
    measured_on: str | None
    """The device that `tune` chose the rows on; None: chosen by reasoning about bytes."""
    rows: tuple[Row, ...]

    def find(
        self, *, itemsize: int, tile_tokens: int, tokens: int, rank: int, split: bool = False
    ) -> Row:
        """The first row that admits the call; with `split` the first whose kernels are two.

        Raises:
            ValueError: None does.
        """
        call = {"itemsize": itemsize, "tile_tokens": tile_tokens, "tokens": tokens, "rank": rank}
        for row in self.rows:
            if row.admits(**call) and not (split and isinstance(row.kernels, Fused)):
                return row
        raise ValueError(
            f"got {call}; expected a call that a row of configs/{self.arch}.json admits"
        )


def arches() -> list[str]:
    """The architectures that a table is shipped for."""
    return sorted(path.stem for path in TABLES.glob("*.json"))


@cache
def table(arch: str) -> Table:
    """Reads an architecture's table."""
    values = json.loads((TABLES / f"{arch}.json").read_text(encoding="utf-8"))
    rows = tuple(Row.from_json(row) for row in values["rows"])
    return Table(arch=arch, measured_on=values["measured_on"], rows=rows)


@cache
def arch_of(device: torch.device) -> str:
    """The shipped table that fits a device: its own, or that of the next older architecture.

    The CPU, which only interprets kernels, takes sm_80's.

    Raises:
        ValueError: An NVIDIA device older than sm_80.
    """
    if device.type != "cuda":
        return "sm_80"
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip is not None:
        name = str(properties.gcnArchName).split(":")[0]
        return name if name in arches() else "gfx942"
    own = properties.major * 10 + properties.minor
    return nearest_sm(own)


def nearest_sm(own: int) -> str:
    """The newest shipped sm_XX that is not newer than compute capability `own` (90 for 9.0).

    Raises:
        ValueError: There is none.
    """
    shipped = [int(arch[3:]) for arch in arches() if arch.startswith("sm_")]
    older = [sm for sm in shipped if sm <= own]
    if not older:
        raise ValueError(f"got sm_{own}; expected at least sm_{min(shipped)}")
    return f"sm_{max(older)}"
