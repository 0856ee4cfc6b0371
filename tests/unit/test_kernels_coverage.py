"""Which models keep vLLM's own LoRA."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lorebase.kernels.vllm.coverage import _not_in_graphs, model_not_covered, refuse_stacked

COVERED = {
    "dtype": torch.bfloat16,
    "is_moe": False,
    "runner_type": "generate",
    "is_multimodal_model": False,
}


def test_a_text_generator_is_covered() -> None:
    assert model_not_covered(SimpleNamespace(**COVERED)) is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"dtype": torch.float64}, "adapters are torch.float64"),
        ({"is_moe": True}, "mixture of experts"),
        ({"runner_type": "pooling"}, "not a text generator"),
        ({"is_multimodal_model": True}, "not a text generator"),
    ],
)
def test_other_models_are_not_and_it_says_why(change: dict[str, Any], words: str) -> None:
    assert words in str(model_not_covered(SimpleNamespace(**{**COVERED, **change})))


def test_where_graphs_are_captured_every_layer_must_be_in_the_pool() -> None:
    refuse_stacked([])
    with pytest.raises(ValueError, match=r"layers\.0\.router.*lora_kernels to stock"):
        refuse_stacked(["layers.0.router"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, None),
        ({"dtype": torch.float32}, "the model is torch.float32"),
        ({"enable_prompt_embeds": True}, "fewer rows"),
        ({"kv_sharing_fast_prefill": True}, "fewer rows"),
        ({"enable_sleep_mode": True}, "sleep mode"),
        ({"speculative_config": object()}, "speculative decoding"),
    ],
)
def test_what_captured_graphs_cannot_serve_is_said(
    change: dict[str, Any], words: str | None
) -> None:
    values: dict[str, Any] = {
        "dtype": torch.bfloat16,
        "enable_prompt_embeds": False,
        "enable_sleep_mode": False,
        "kv_sharing_fast_prefill": False,
        "speculative_config": None,
        **change,
    }
    namespace = SimpleNamespace(**values)
    config = SimpleNamespace(
        model_config=namespace,
        cache_config=namespace,
        speculative_config=namespace.speculative_config,
    )
    found = _not_in_graphs(config, SimpleNamespace(lora_dtype=torch.bfloat16))
    assert found is None if words is None else words in str(found)
