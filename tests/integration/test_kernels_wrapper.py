"""Our punica wrapper without an engine: stacked weights, logits of any rows, what it refuses."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from lorebase.kernels.lora.layout import pack
from lorebase.kernels.lora.reference import SliceWeights, lora_reference

if TYPE_CHECKING:
    from lorebase.kernels.vllm.wrapper import PooledPunicaWrapper

pytestmark = pytest.mark.filterwarnings("ignore")  # vLLM and what it imports warn of each other

SLOTS, RANK, HIDDEN, VOCAB = 3, 5, 12, 4099
IDS = [7, None, 9]
"""Adapter in each slot."""


def _wrapper(dtype: torch.dtype = torch.float32) -> "PooledPunicaWrapper":
    from lorebase.kernels.vllm.options import KernelOptions
    from lorebase.kernels.vllm.wrapper import PooledPunicaWrapper

    config = SimpleNamespace(max_loras=SLOTS, max_lora_rank=RANK, lora_dtype=dtype)
    return PooledPunicaWrapper(32, 8, "cpu", options=KernelOptions(), lora_config=config)


def _plan(wrapper: "PooledPunicaWrapper", tokens: Sequence[int], samples: Sequence[int]) -> None:
    from vllm.lora.layers import LoRAMapping

    mapping = LoRAMapping(index_mapping=tuple(tokens), prompt_mapping=tuple(samples))
    wrapper.update_metadata(mapping, list(IDS), SLOTS + 1, VOCAB)


def _slots(identities: Sequence[int]) -> list[int]:
    return [IDS.index(one) if one else -1 for one in identities]


def _weights(outputs: int, dtype: torch.dtype = torch.float32) -> dict[int, list[SliceWeights]]:
    rng = torch.Generator().manual_seed(outputs)
    return {
        slot: [
            (
                (torch.randn(rank, HIDDEN, generator=rng) / HIDDEN**0.5).to(dtype),
                (torch.randn(outputs, rank, generator=rng) / rank**0.5).to(dtype),
            )
        ]
        for slot, rank in ((0, RANK), (2, 3))
    }


def test_stacked_weights_of_layers_outside_the_pool_follow_the_formula() -> None:
    wrapper, sizes = _wrapper(), (8, 4)
    tokens = [9, 0, 7, 7, 0, 9, 9]
    _plan(wrapper, tokens, [9])
    rng = torch.Generator().manual_seed(1)
    a = tuple(torch.randn(SLOTS, 1, RANK, HIDDEN, generator=rng) for _ in sizes)
    b = tuple(torch.randn(SLOTS, 1, size, RANK, generator=rng) for size in sizes)
    y, x = torch.randn(7, 12, generator=rng), torch.randn(7, HIDDEN, generator=rng)
    x[1] = torch.nan  # a base row: neither read nor written
    weights: dict[int, list[SliceWeights]] = {
        slot: [(a_LRK[slot, 0], b_LNR[slot, 0] * 0.5) for a_LRK, b_LNR in zip(a, b, strict=True)]
        for slot in (0, 2)
    }
    expected = lora_reference(y, x, _slots(tokens), weights, sizes)
    before = y.clone()
    wrapper.add_lora_linear(y, x, a, b, 0.5, sizes)
    assert torch.allclose(y.double(), expected, atol=1e-4)
    assert y[[1, 4]].equal(before[[1, 4]])


def _logits(wrapper: "PooledPunicaWrapper", dtype: torch.dtype = torch.float32) -> Any:
    logits, weights = wrapper.add_logits(HIDDEN, VOCAB), _weights(VOCAB, dtype)
    wrapper.weights.reserve()
    pool = wrapper.weights.pool
    for slot, of_slot in weights.items():
        pool.assign(slot, pack(pool.layers, {logits.samples.index: of_slot}, dtype=dtype))
    return logits, weights


def _check_logits(
    logits: Any,
    weights: dict[int, list[SliceWeights]],
    x: torch.Tensor,
    identities: Sequence[int],
    dtype: torch.dtype,
) -> None:
    rng = torch.Generator().manual_seed(2)
    y = torch.randn(len(x), VOCAB + 5, generator=rng).to(dtype)  # vLLM pads the vocabulary
    before = y.clone()
    expected = lora_reference(y[:, :VOCAB], x, _slots(identities), weights, (VOCAB,))
    assert logits.add_lora_logits(y, x, None, None, 1.0) is y
    assert torch.allclose(y[:, :VOCAB].double(), expected, atol=2e-2, rtol=1e-2)
    if x.dtype == torch.float32:
        assert torch.allclose(y[:, :VOCAB].double(), expected, atol=1e-4)
    base = [row for row, identity in enumerate(identities) if not identity]
    assert y[base].equal(before[base])
    assert y[:, VOCAB:].equal(before[:, VOCAB:])


@pytest.mark.parametrize(
    ("hidden", "kept"),
    [
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.bfloat16),
        (torch.bfloat16, torch.float32),
    ],
)
def test_sampled_rows_get_their_own_adapters_lm_head(
    hidden: torch.dtype, kept: torch.dtype
) -> None:
    wrapper = _wrapper(hidden)
    logits, weights = _logits(wrapper, hidden)
    _plan(wrapper, [7, 7, 7, 0, 0, 9], [7, 0, 9])
    states = torch.randn(6, HIDDEN, generator=torch.Generator().manual_seed(5)).to(hidden)
    rows = states[torch.tensor([2, 4, 5])]
    _check_logits(logits, weights, rows, [7, 0, 9], kept)


def test_rows_of_a_prompt_are_known_by_their_place_in_the_hidden_states() -> None:
    # For log probabilities of prompts vLLM asks for one request's rows at a time, also when there
    # are as many of them as sampled ones.
    wrapper = _wrapper()
    logits, weights = _logits(wrapper)
    tokens, samples = [0, 0, 0, 9, 9, 9, 7, 7], [0, 9, 7]
    _plan(wrapper, tokens, samples)
    padded = torch.randn(11, HIDDEN, generator=torch.Generator().manual_seed(6))
    states = padded[:8]
    for first, length in ((3, 3), (0, 3), (6, 2), (3, 2), (7, 1)):
        rows = states[first : first + length]
        _check_logits(logits, weights, rows, tokens[first : first + length], torch.float32)
    _check_logits(logits, weights, states[torch.tensor([2, 5, 7])], samples, torch.float32)


def test_a_lone_prompts_rows_are_all_of_the_hidden_states() -> None:
    wrapper = _wrapper()
    logits, weights = _logits(wrapper)
    for tokens in ([9, 9, 9, 9], [9]):
        _plan(wrapper, tokens, [9])
        states = torch.randn(len(tokens), HIDDEN, generator=torch.Generator().manual_seed(7))
        _check_logits(logits, weights, states, tokens, torch.float32)


def test_rows_that_nobody_knows_are_refused_instead_of_given_anybodys_adapter() -> None:
    wrapper = _wrapper()
    logits, _ = _logits(wrapper)
    _plan(wrapper, [7, 7, 9], [7, 9])
    y = torch.zeros(4, VOCAB)
    with pytest.raises(ValueError, match="got 4 rows of logits; expected 2"):
        logits.add_lora_logits(y, torch.ones(4, HIDDEN))
    with pytest.raises(ValueError, match="got 1 rows"):  # gathered, but not one per sample
        logits.add_lora_logits(y[:1], torch.ones(1, HIDDEN))
    assert not y.any()


@pytest.mark.parametrize(
    "name",
    [
        "add_shrink",
        "add_expand",
        "add_lora_embedding",
        "add_lora_logits",
        "apply_lora_full_linear",
        "add_lora_fused_moe",
    ],
)
def test_what_would_read_stacks_that_nobody_fills_is_refused(name: str) -> None:
    with pytest.raises(RuntimeError, match=f"got a call of {name}; expected"):
        getattr(_wrapper(), name)(torch.zeros(1, 1), torch.zeros(1, 1))
