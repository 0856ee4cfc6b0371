"""What the kernels do not cover. Reads configurations alone, so that it can be asked beforehand."""

from collections.abc import Collection
from typing import Any

from ..lora.pool import DTYPES


def model_not_covered(model: Any) -> str | None:
    """Why vLLM's own LoRA must serve a model, given its ModelConfig; None if ours can."""
    if model.dtype not in DTYPES:
        return f"adapters are {model.dtype}"
    if model.is_moe:
        return "the base is a mixture of experts"
    if model.runner_type == "pooling" or model.is_multimodal_model:
        return "the base is not a text generator alone"
    return None


def not_covered(vllm_config: Any, *, uses_op: bool) -> str | None:
    """Why vLLM's own path must serve an engine; None if ours can.

    Args:
        vllm_config: Its VllmConfig.
        uses_op: Whether layers will call the op, as on a GPU, and not the C++ kernel directly.
    """
    import vllm.envs
    from vllm.config import CompilationMode

    lora = vllm_config.lora_config
    assert lora is not None
    if lora.fully_sharded_loras:
        return "fully sharded LoRA splits A across devices, which the pool does not"
    if lora.lora_dtype not in DTYPES:
        return f"adapters are {lora.lora_dtype}"
    if vllm.envs.VLLM_LORA_ENABLE_DUAL_STREAM:
        # Its layers call the wrapper with their own stacks, past ours.
        return "VLLM_LORA_ENABLE_DUAL_STREAM is set; unset it to have them"
    if uses_op:
        reason = _not_in_graphs(vllm_config, lora)
        if reason is not None:
            return reason
    if not uses_op and vllm_config.compilation_config.mode != CompilationMode.NONE:
        return "the model is compiled, and on the CPU they need enforce_eager"
    return model_not_covered(vllm_config.model_config)


def _not_in_graphs(vllm_config: Any, lora: Any) -> str | None:
    """What the op can't serve that the C++ kernel, called from Python in every step, can."""
    model, cache = vllm_config.model_config, vllm_config.cache_config
    if lora.lora_dtype != model.dtype:
        return f"adapters are {lora.lora_dtype} and the model is {model.dtype}"
    if model.enable_prompt_embeds or cache.kv_sharing_fast_prefill:
        return "some layers see fewer rows than the step has tokens"
    if model.enable_sleep_mode:
        return "sleep mode forgets the tables of the adapter pool"
    if vllm_config.speculative_config is not None:
        return "speculative decoding samples rows that no adapter is assigned to"
    return None


def refuse_stacked(names: Collection[str]) -> None:
    """Refuses layers outside the pool, where graphs are captured.

    Their part of a step is decided in Python, which a captured graph never runs again: adapters
    would be left out, or another step's put in.

    Raises:
        ValueError: There is such a layer.
    """
    if names:
        raise ValueError(
            f"got layers that lorebase's kernels can't adapt on this device: {', '.join(names)}; "
            "set engine.lora_kernels to stock for this model"
        )
