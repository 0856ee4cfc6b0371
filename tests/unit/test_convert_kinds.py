"""Each PEFT type has a path and a reason."""

from typing import Any

import pytest

from lorebase.transfer.convert import kind_of


@pytest.mark.parametrize(
    ("config", "path", "words"),
    [
        ({"peft_type": "LORA"}, "keep", "served as it is"),
        ({"peft_type": "LORA", "use_rslora": True}, "keep", "served"),
        ({"peft_type": "LORA", "init_lora_weights": "eva"}, "keep", "served"),
        ({"peft_type": "LORA", "use_dora": True}, "convert", "DoRA"),
        ({"peft_type": "LORA", "init_lora_weights": "pissa_niter_4"}, "convert", "pissa"),
        ({"peft_type": "LORA", "bias": "lora_only"}, "distill", "biases"),
        ({"peft_type": "LORA", "modules_to_save": ["lm_head"]}, "refuse", "whole modules"),
        ({"peft_type": "LORA", "alora_invocation_tokens": [1]}, "refuse", "alora"),
        ({"peft_type": "VERA"}, "convert", "low rank"),
        ({"peft_type": "MISS", "init_weights": True}, "convert", "low rank"),
        ({"peft_type": "MISS", "init_weights": "bat"}, "convert", "full rank"),
        ({"peft_type": "IA3"}, "convert", "full rank"),
        ({"peft_type": "PROMPT_TUNING"}, "distill", "learn its answers"),
        ({"peft_type": "PREFIX_TUNING"}, "distill", "learn its answers"),
        ({"peft_type": "LN_TUNING"}, "refuse", "norms"),
        ({"peft_type": "XLORA"}, "refuse", "several adapters"),
        ({"peft_type": "BRAND_NEW"}, "refuse", "not known"),
        ({}, "refuse", "no PEFT type"),
    ],
)
def test_what_becomes_of_an_adapter(config: dict[str, Any], path: str, words: str) -> None:
    kind = kind_of(config)
    assert kind.path == path
    assert words in kind.reason
