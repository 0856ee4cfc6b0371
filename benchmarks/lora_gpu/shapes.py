"""What is measured: the linear layers of a model, batches of adapters, and the bytes they need."""

from collections.abc import Iterator
from dataclasses import dataclass

ITEMSIZE = 2
"""bfloat16."""
RANKS: dict[str, tuple[int, ...]] = {
    "r8": (8,),
    "r16": (16,),
    "r32": (32,),
    "r64": (64,),
    "mixed": (8, 16, 64),
    "r8 of 64": (8,),
}
"""Ranks that adapters take in turn, by name."""
MAX_RANK = {"r8": 8, "r16": 16, "r32": 32, "r64": 64, "mixed": 64, "r8 of 64": 64}
"""What an engine that serves them allows: what padded stacks are padded to."""
MEASURED = ("r8", "r16", "r64", "mixed", "r8 of 64")
"""The names that the suite measures; the tuner uses others too."""
PREFILL_TOKENS = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Linear:
    """One linear layer with LoRA."""

    name: str
    features: int
    """K."""
    slices: tuple[int, ...]
    """N_s of each slice."""


LLAMA_8B = (
    Linear(name="qkv", features=4096, slices=(4096, 1024, 1024)),
    Linear(name="o", features=4096, slices=(4096,)),
    Linear(name="gate_up", features=4096, slices=(14336, 14336)),
    Linear(name="down", features=14336, slices=(4096,)),
)
"""One layer of Llama 3 8B."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One batch whose time is measured."""

    tokens: int
    adapters: int
    """Distinct ones in the batch; every token has one."""
    ranks: str
    """Key of RANKS."""

    @property
    def prefill(self) -> bool:
        """Whether tokens of an adapter lie together, as in prompts, and are many."""
        return self.tokens >= PREFILL_TOKENS

    @property
    def name(self) -> str:
        """For people."""
        return f"T={self.tokens}, {self.adapters} adapters, {self.ranks}"

    def rank_of(self, adapter: int) -> int:
        """Rank of an adapter, in all linear layers."""
        ranks = RANKS[self.ranks]
        return ranks[adapter % len(ranks)]

    @property
    def max_rank(self) -> int:
        """The largest rank that the engine allows."""
        return MAX_RANK[self.ranks]

    def slots(self) -> list[int]:
        """Slot of each token: in turn when decoding, in pieces in prefill."""
        if self.prefill:
            return [token * self.adapters // self.tokens for token in range(self.tokens)]
        return [token % self.adapters for token in range(self.tokens)]


def cells(
    *, tokens: tuple[int, ...] = (1, 8, 64, 256, PREFILL_TOKENS), adapters: tuple[int, ...]
) -> Iterator[Cell]:
    """All combinations in which there are no more adapters than tokens, grouped by weights."""
    for ranks in MEASURED:
        for count in adapters:
            yield from (Cell(tokens=t, adapters=count, ranks=ranks) for t in tokens if count <= t)


def unique_bytes(cell: Cell, linears: tuple[Linear, ...], layers: int) -> int:
    """Bytes that must cross the memory bus once: each adapter's own weights, x, and y twice."""
    total = 0
    for linear in linears:
        weights = sum(
            cell.rank_of(adapter) * (linear.features + size)
            for adapter in range(cell.adapters)
            for size in linear.slices
        )
        total += weights + cell.tokens * (linear.features + 2 * sum(linear.slices))
    return layers * ITEMSIZE * total


def operations(cell: Cell, linears: tuple[Linear, ...], layers: int) -> int:
    """Floating-point operations: two for each weight and token."""
    ranks = [cell.rank_of(slot) for slot in cell.slots()]
    per_rank = sum(linear.features + size for linear in linears for size in linear.slices)
    return layers * 2 * sum(ranks) * per_rank
