"""One vLLM engine in a process of its own: plugins are decided once per process.

Usage: python -m tests.integration.kernels_vllm_run <plan.json> <out.json>. The plan names the
base, adapters by name, and batches: lists of [prompt, adapter name or null].
"""

import json
import sys
from pathlib import Path
from typing import Any


def main(plan_path: str, out_path: str) -> None:
    """Runs each batch of the plan greedily and writes token ids."""
    import vllm
    from vllm.lora.request import LoRARequest

    plan = json.loads(Path(plan_path).read_text())
    requests = {
        name: LoRARequest(name, number, path)
        for number, (name, path) in enumerate(plan["adapters"].items(), start=1)
    }
    llm = vllm.LLM(
        plan["base"],
        dtype="float32",
        max_model_len=256,
        max_num_batched_tokens=256,
        max_num_seqs=16,
        block_size=32,
        enforce_eager=True,
        enable_prefix_caching=False,
        enable_lora=True,
        max_loras=plan["slots"],
        max_cpu_loras=max(plan["slots"], len(requests)),
        max_lora_rank=32,
        kv_cache_memory_bytes=16 << 20,
        generation_config="vllm",
        disable_log_stats=True,
    )
    sampling = vllm.SamplingParams(
        max_tokens=plan["tokens"], temperature=0.0, ignore_eos=True, detokenize=False
    )
    answers = []
    for batch in plan["batches"]:
        outputs = llm.generate(
            [prompt for prompt, _ in batch],
            sampling,
            lora_request=[requests[name] if name else None for _, name in batch],
            use_tqdm=False,
        )
        answers.append([list(output.outputs[0].token_ids) for output in outputs])
    Path(out_path).write_text(json.dumps({"answers": answers, "facts": llm.apply_model(_facts)[0]}))


def _facts(model: Any) -> dict[str, Any]:
    """What the wrapped model uses, seen inside the worker."""
    modules = model.lora_manager.modules
    wrapper = next(iter(model.lora_manager.punica_wrapper_mapping.values()))
    pool = wrapper._weights.pool() if hasattr(wrapper, "_weights") else None
    return {
        "wrapper": type(wrapper).__name__,
        "layers": sorted({type(module).__name__ for module in modules.values()}),
        "used_bytes": None if pool is None else pool.used_bytes,
        "buffer_bytes": None if pool is None else pool.buffer.nbytes,
    }


if __name__ == "__main__":
    main(*sys.argv[1:])
