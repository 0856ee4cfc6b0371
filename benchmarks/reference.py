"""What an adapter answers according to transformers and PEFT, without any serving engine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def answers(
    base_dir: Path, adapter_dir: Path, prompts: Sequence[str], *, stop: str, max_tokens: int
) -> list[str]:
    """Generates greedily, one prompt at a time, in fp32.

    Args:
        base_dir: weights and tokenizer of the base.
        adapter_dir: PEFT directory.
        prompts: what to continue.
        stop: the answer ends before this text.
        max_tokens: most new tokens.

    Returns:
        The texts without the stop, in the prompts' order.
    """
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base_dir)
    base = AutoModelForCausalLM.from_pretrained(base_dir, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, str(adapter_dir)).eval()
    texts = []
    for prompt in prompts:
        inputs = tokenizer(prompt, return_tensors="pt")
        with torch.inference_mode():
            output = model.generate(  # type: ignore[no-untyped-call]
                input_ids=inputs["input_ids"],
                attention_mask=inputs["attention_mask"],
                max_new_tokens=max_tokens,
                do_sample=False,
                stop_strings=[stop],
                tokenizer=tokenizer,
            )
        new = output[0, inputs["input_ids"].shape[1] :]
        texts.append(str(tokenizer.decode(new, skip_special_tokens=True)).split(stop)[0])
    return texts
