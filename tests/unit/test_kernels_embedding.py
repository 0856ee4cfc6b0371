"""Adapters of an embedding in the pool, against the oracle: a token is a one-hot row."""

import pytest
import torch

from lorebase.kernels.lora.embedding import LoraEmbedding
from lorebase.kernels.lora.embedding_op import LoraEmbeddingOp
from lorebase.kernels.lora.layout import pack
from lorebase.kernels.lora.metadata import StepPlan
from lorebase.kernels.lora.pool import AdapterPool
from lorebase.kernels.lora.reference import SliceWeights, lora_reference
from tests.unit.kernel_samples import TOLERANCE, agrees

VOCAB, FEATURES = 53, 24
RANKS = (8, 0, 3, 40)


def _weights(dtype: torch.dtype) -> dict[int, list[SliceWeights]]:
    rng = torch.Generator().manual_seed(3)
    return {
        slot: [
            (
                torch.randn(rank, VOCAB, generator=rng).to(dtype),
                (torch.randn(FEATURES, rank, generator=rng) / rank**0.5).to(dtype),
            )
            if rank
            else None
        ]
        for slot, rank in enumerate(RANKS)
    }


@pytest.mark.parametrize("points", [True, False])
@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
def test_each_token_gets_its_own_adapters_row(dtype: torch.dtype, points: bool) -> None:
    pool = AdapterPool(
        slots=len(RANKS), budget_bytes=0 if points else 1 << 16, dtype=dtype, points=points
    )
    layer, weights = pool.add_layer(VOCAB, (FEATURES,)), _weights(dtype)
    plan = StepPlan(max_tokens=64, slots=len(RANKS))
    apply = LoraEmbedding(pool, layer, plan)
    rng = torch.Generator().manual_seed(4)
    for tokens in (0, 1, 23, 64):
        slots = [(3 * t + t // 7) % 5 - 1 for t in range(tokens)]
        ids = torch.randint(0, VOCAB, (tokens,), generator=rng)
        y = torch.randn(tokens, FEATURES, generator=rng).to(dtype)
        before = y.clone()
        plan.fill(slots)
        apply(y, ids)
        assert y.equal(before), "no slot adapts it yet" if tokens else "nothing to do"
        for slot, of_slot in weights.items():
            pool.assign(slot, pack([layer], {0: of_slot}, dtype=dtype))
        apply(y, ids)
        one_hot = torch.nn.functional.one_hot(ids, VOCAB).to(dtype)
        expected = lora_reference(before, one_hot, slots, weights, (FEATURES,))
        assert agrees(y, expected, dtype, deltas=2)
        base = [row for row, slot in enumerate(slots) if slot < 0]
        assert y[base].equal(before[base])
        for slot in weights:
            pool.unassign(slot)


def test_elsewhere_than_on_the_cpu_it_is_refused() -> None:
    pool = AdapterPool(slots=1, budget_bytes=64, dtype=torch.float32, device="meta")
    layer = pool.add_layer(VOCAB, (FEATURES,))
    with pytest.raises(ValueError, match="expected the CPU"):
        LoraEmbedding(pool, layer, StepPlan(max_tokens=4, slots=1))


@pytest.mark.parametrize(
    ("points", "slices", "slots", "words"),
    [
        (True, (FEATURES,), 1, "expected a buffer"),
        (False, (FEATURES, 8), 1, "one slice"),
        (False, (FEATURES,), 2, "expected 1 slots"),
    ],
)
def test_the_op_takes_one_slice_of_a_buffer_and_a_plan_of_its_slots(
    points: bool, slices: tuple[int, ...], slots: int, words: str
) -> None:
    pool = AdapterPool(slots=1, budget_bytes=64, dtype=torch.float32, points=points, max_rank=4)
    layer = pool.add_layer(VOCAB, slices)
    with pytest.raises(ValueError, match=words):
        LoraEmbeddingOp(pool, layer, StepPlan(max_tokens=4, slots=slots))
