"""Adapters, inputs and outputs of one cell on a device, and what the outputs must be."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from lorebase.kernels.lora.gpu.config import tile_tokens_for
from lorebase.kernels.lora.metadata import StepPlan
from lorebase.kernels.lora.pool import AdapterPool, PoolLayer
from lorebase.kernels.lora.reference import SliceWeights

from .shapes import Cell, Linear

DTYPE = torch.bfloat16


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Module:
    """One linear layer of one model layer: shapes, input, output."""

    linear: Linear
    layer: PoolLayer
    x_TK: torch.Tensor
    y_TN: torch.Tensor


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class World:
    """A cell with its weights in a pool. Providers copy from it what they keep differently."""

    cell: Cell
    pool: AdapterPool
    plan: StepPlan
    modules: list[Module]
    before: list[torch.Tensor] = field(repr=False)
    """Each y as it was."""

    def weights(self, module: Module, slot: int) -> tuple[SliceWeights, ...]:
        """An adapter's weights in one module, as views of the pool."""
        return self.pool.read(module.layer, slot)

    def reset(self) -> None:
        """Makes every y what it was."""
        for module, before in zip(self.modules, self.before, strict=True):
            module.y_TN.copy_(before)

    def wrong(self, run: Callable[[], None]) -> str | None:
        """Runs once from fresh outputs and compares; returns what is wrong, or None."""
        self.reset()
        run()
        worst = 0.0
        for module, before in zip(self.modules, self.before, strict=True):
            expected = self._expected(module, before)
            error = (module.y_TN.float() - expected).abs() / (1 + expected.abs())
            worst = max(worst, float(error.nan_to_num(torch.inf).max()))
        self.reset()
        # bfloat16 keeps 8 bits of y (0.004), and h is rounded on the way (up to as much again).
        return None if worst < 0.03 else f"differs from float32 by {worst:.3g} of the value"

    def _expected(self, module: Module, before: torch.Tensor) -> torch.Tensor:
        expected = before.float()
        for slot, rows in self.plan.groups():
            rows_G = torch.from_numpy(rows).long().to(before.device)
            x_GK, column = module.x_TK[rows_G].float(), 0
            for size, pair in zip(module.linear.slices, self.weights(module, slot), strict=True):
                assert pair is not None
                delta_GN = x_GK @ pair[0].float().t() @ pair[1].float().t()
                expected[rows_G, column : column + size] += delta_GN
                column += size
        return expected


def make_world(
    cell: Cell, linears: tuple[Linear, ...], layers: int, device: str, *, seed: int = 0
) -> World:
    """Makes random weights and inputs of about 1, each module's apart from all others'."""
    rng = torch.Generator(device).manual_seed(seed)

    def random(rows: int, columns: int, scale: float = 1.0) -> torch.Tensor:
        values = torch.randn(rows, columns, generator=rng, device=device)
        return (values * scale).to(DTYPE)

    per_rank = sum(linear.features + size for linear in linears for size in linear.slices)
    ranks = sum(cell.rank_of(adapter) for adapter in range(cell.adapters))
    pool = AdapterPool(
        slots=cell.adapters,
        budget_bytes=layers * (per_rank * ranks * DTYPE.itemsize + 2048 * cell.adapters),
        dtype=DTYPE,
        device=device,
        max_rank=cell.max_rank,
    )
    modules = []
    for linear in linears * layers:
        layer = pool.add_layer(linear.features, linear.slices)
        for slot in range(cell.adapters):
            r = cell.rank_of(slot)
            pool.put(
                layer,
                slot,
                [
                    (random(r, linear.features, linear.features**-0.5), random(n, r, r**-0.5))
                    for n in linear.slices
                ],
            )
        modules.append(
            Module(
                linear=linear,
                layer=layer,
                x_TK=random(cell.tokens, linear.features),
                y_TN=random(cell.tokens, sum(linear.slices)),
            )
        )
    plan = StepPlan(
        max_tokens=cell.tokens,
        slots=cell.adapters,
        tile_tokens=tile_tokens_for(cell.tokens),
        device=device,
    )
    plan.fill(cell.slots())
    before = [module.y_TN.clone() for module in modules]
    return World(cell=cell, pool=pool, plan=plan, modules=modules, before=before)
