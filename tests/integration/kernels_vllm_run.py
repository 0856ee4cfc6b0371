"""One vLLM engine in a process of its own: plugins are decided once per process.

Usage: python -m tests.integration.kernels_vllm_run <plan.json> <out.json>. The plan names the
base, adapters by name, options of the kernels, whether the model is traced by torch.compile, and
two kinds of batches, both lists of [text, adapter name or null]: `batches` are answered greedily,
`forced` are scored as they are.
"""

import json
import sys
from pathlib import Path
from typing import Any


def main(plan_path: str, out_path: str) -> None:
    """Runs each batch of the plan; writes token ids, log probabilities and what served."""
    import vllm
    from vllm.lora.request import LoRARequest

    plan = json.loads(Path(plan_path).read_text())
    if plan["compiled"]:
        _trace_once()
    requests = {
        name: LoRARequest(name, number, path)
        for number, (name, path) in enumerate(plan["adapters"].items(), start=1)
    }
    llm = vllm.LLM(
        plan["base"],
        dtype=plan["dtype"],
        max_model_len=512,
        max_num_batched_tokens=512,
        max_num_seqs=16,
        block_size=32,
        enforce_eager=not plan["compiled"],
        enable_prefix_caching=False,
        enable_lora=True,
        max_loras=plan["slots"],
        max_cpu_loras=max(plan["slots"], len(requests)),
        max_lora_rank=32,
        max_logprobs=-1,
        kv_cache_memory_bytes=16 << 20,
        generation_config="vllm",
        disable_log_stats=True,
        additional_config={"lorebase": plan["options"]},
    )

    def run(batch: list[list[str | None]], sampling: Any) -> Any:
        return llm.generate(
            [text for text, _ in batch],
            sampling,
            lora_request=[requests[name] if name else None for _, name in batch],
            use_tqdm=False,
        )

    greedy = vllm.SamplingParams(
        max_tokens=plan["tokens"], temperature=0.0, ignore_eos=True, detokenize=False
    )
    answers = [
        [list(output.outputs[0].token_ids) for output in run(batch, greedy)]
        for batch in plan["batches"]
    ]
    score = vllm.SamplingParams(max_tokens=1, prompt_logprobs=-1, detokenize=False)
    scores = [[_scores(output) for output in run(batch, score)] for batch in plan["forced"]]
    facts = llm.apply_model(_facts)[0]
    Path(out_path).write_text(json.dumps({"answers": answers, "scores": scores, "facts": facts}))


def _trace_once() -> None:
    """Makes vLLM trace the model into one graph, as on a GPU: on a CPU with LoRA it won't."""
    from vllm.config import CompilationMode
    from vllm.platforms import current_platform

    platform: Any = type(current_platform)
    theirs = platform.check_and_update_config

    def traced(config: Any) -> None:
        theirs(config)
        config.compilation_config.mode = CompilationMode.DYNAMO_TRACE_ONCE
        # With the functional graphs that Inductor starts from, without its compiler.
        config.compilation_config.backend = "aot_eager"

    platform.check_and_update_config = staticmethod(traced)


def _scores(output: Any) -> list[list[float]]:
    """Log probabilities [text's tokens - 1, vocabulary] of what follows each token but the last."""
    return [
        [of_token.logprob for _, of_token in sorted(position.items())]
        for position in output.prompt_logprobs[1:]
    ]


def _facts(model: Any) -> dict[str, Any]:
    """What the wrapped model uses, seen inside the worker."""
    manager = model.lora_manager
    wrapper = next(iter(manager.punica_wrapper_mapping.values()))
    pool = wrapper.weights.pool
    rank = manager.lora_config.max_lora_rank
    padded = sum(
        rank * (layer.in_features + size) * 4 for layer in pool.layers for size in layer.slice_sizes
    )
    layer = next(module for module in manager.modules.values() if hasattr(module, "n_slices"))
    return {
        "wrapper": type(wrapper).__name__,
        "layers": sorted({type(module).__name__ for module in manager.modules.values()}),
        "kernel": type(layer.weights._linear).__name__,
        "compiled": bool(getattr(model.model, "compiled", False)),
        "held_bytes": manager._registered_adapters.used_bytes,
        "padded_bytes": padded * len(manager),
        "buffer_used_bytes": pool.used_bytes,
    }


if __name__ == "__main__":
    main(*sys.argv[1:])
