"""A filled pool, the same weights for the oracle, and inputs that show a wrong read or write."""

from collections.abc import Sequence

import torch

from lorebase.kernels.lora.cpu.linear import TILE_TOKENS
from lorebase.kernels.lora.metadata import StepPlan
from lorebase.kernels.lora.pool import AdapterPool, PoolLayer
from lorebase.kernels.lora.reference import SliceWeights

# Rounding of y once to the dtype, and of fp32 sums: relative to values of about 1.
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}
# Of larger values. Triton's interpreter cuts bfloat16 off instead of rounding: 2 units.
RELATIVE = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 1e-3}


def agrees(
    y_TN: torch.Tensor, expected_TN: torch.Tensor, dtype: torch.dtype, *, deltas: int = 1
) -> bool:
    """Whether y, to which so many deltas of `dtype` were added, is what the oracle says."""
    return torch.allclose(
        y_TN.double().cpu(),
        expected_TN,
        atol=deltas * TOLERANCE[dtype],
        rtol=RELATIVE[dtype],
    )


class Case:
    """A pool with one layer, filled, and the same weights as the oracle takes them."""

    def __init__(
        self,
        ranks: Sequence[Sequence[int]],
        *,
        features: int = 72,
        slices: Sequence[int] = (40, 24, 19),
        dtype: torch.dtype = torch.float32,
        max_tokens: int = 64,
        tile_tokens: int = TILE_TOKENS,
        wide_tile_tokens: int = 0,
        max_rank: int | None = None,
        device: str = "cpu",
    ) -> None:
        rng = torch.Generator().manual_seed(7)
        self.slices, self.features, self.dtype = tuple(slices), features, dtype
        self.pool = AdapterPool(
            slots=len(ranks), budget_bytes=8 << 20, dtype=dtype, device=device, max_rank=max_rank
        )
        self.pool.buffer.fill_(torch.nan)  # what no adapter wrote must not be read
        self.layer: PoolLayer = self.pool.add_layer(features, slices)
        self.plan = StepPlan(
            max_tokens=max_tokens,
            slots=len(ranks),
            tile_tokens=tile_tokens,
            wide_tile_tokens=wide_tile_tokens,
            device=device,
        )
        self.weights: dict[int, list[SliceWeights]] = {}
        for slot, of_slices in enumerate(ranks):
            self.weights[slot] = [
                (
                    (torch.randn(r, features, generator=rng) / features**0.5).to(dtype),
                    (torch.randn(n, r, generator=rng) / r**0.5).to(dtype),
                )
                if r
                else None
                for r, n in zip(of_slices, slices, strict=True)
            ]
            self.pool.put(self.layer, slot, self.weights[slot])
        self.rng = rng

    def inputs(self, slots: Sequence[int], strided: bool = False) -> tuple[torch.Tensor, ...]:
        """Y and x; x rows without adapter are NaN. Strided: rows lie apart, NaN between them."""
        tokens, columns, gap = len(slots), sum(self.slices), 5 if strided else 0
        tensors = []
        for width in (columns, self.features):
            wide = torch.full(
                (tokens, width + 2 * gap), torch.nan, dtype=self.dtype, device=self.pool.device
            )
            part = wide[:, gap : gap + width]
            part.copy_(torch.randn(tokens, width, generator=self.rng))
            tensors.append(part)
        tensors[1][[row for row, slot in enumerate(slots) if slot < 0]] = torch.nan
        return tuple(tensors)
