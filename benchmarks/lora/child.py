"""One vLLM engine in a process of its own, told what to do through a socket.

Usage: python -m benchmarks.lora.child <socket's file descriptor> <plan as JSON>. Every message is
one JSON object with `op`; every answer is one JSON object. vLLM is as it is installed: the arm
`stock` has nothing of ours in it.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any


class Child:
    """Owns the engine. Token counts are exact: prompts are ids and end by length."""

    def __init__(self, plan: dict[str, Any]) -> None:
        from vllm import EngineArgs
        from vllm.v1.engine.llm_engine import LLMEngine

        lora = {}
        if plan["max_rank"]:
            lora = {
                "enable_lora": True,
                "max_loras": plan["slots"],
                "max_cpu_loras": plan["registered"],
                "max_lora_rank": plan["max_rank"],
            }
        self._engine = LLMEngine.from_engine_args(
            EngineArgs(
                model=plan["base"],
                skip_tokenizer_init=True,
                dtype=plan["dtype"],
                max_model_len=plan["max_model_len"],
                max_num_batched_tokens=plan["max_batched_tokens"],
                max_num_seqs=plan["max_seqs"],
                block_size=32,
                enforce_eager=True,
                enable_prefix_caching=False,
                kv_cache_memory_bytes=plan["kv_cache_bytes"],
                generation_config="vllm",
                disable_log_stats=True,
                **lora,
            )
        )
        self._numbers = iter(range(sys.maxsize))
        self._adapters: list[Any] = []
        self._running: list[str] = []

    def load(self, adapters: list[str]) -> dict[str, Any]:
        """Loads adapters by path; their numbers are their places in all lists so far."""
        from vllm.lora.request import LoRARequest

        began = time.perf_counter()
        for path in adapters:
            number = len(self._adapters) + 1
            self._adapters.append(LoRARequest(f"a{number}", number, path))
            self._engine.add_lora(self._adapters[-1])
        return {"seconds": time.perf_counter() - began}

    def generate(self, prompts: list[list[int]], adapters: list[int | None], tokens: int) -> Any:
        """Answers greedily; returns the answers in order."""
        names = self._add(prompts, adapters, tokens)
        answers: dict[str, list[int]] = {}
        while self._engine.has_unfinished_requests():
            for output in self._engine.step():
                answers[output.request_id] = list(output.outputs[0].token_ids)
        return {"answers": [answers[name] for name in names]}

    def prefill(self, prompts: list[list[int]], adapters: list[int | None]) -> Any:
        """Computes prompts and one token each; returns prompt tokens and times."""

        def work() -> None:
            self._add(prompts, adapters, 1)
            while self._engine.has_unfinished_requests():
                self._engine.step()

        return {"tokens": sum(map(len, prompts)), **_timed(work)}

    def begin(self, prompts: list[list[int]], adapters: list[int | None], tokens: int) -> Any:
        """Starts a batch and computes the prompts; `steps` then only decodes."""
        self._running = self._add(prompts, adapters, tokens)
        waiting = set(self._running)
        while waiting:
            waiting -= {output.request_id for output in self._engine.step()}
        return {}

    def steps(self, count: int) -> Any:
        """Decodes so many tokens for each request of the batch; returns tokens and times."""
        made = 0

        def work() -> None:
            nonlocal made
            for _ in range(count):
                made += len(self._engine.step())

        times = _timed(work)
        if made != count * len(self._running):
            raise RuntimeError(f"{made} tokens in {count} steps of {len(self._running)} requests")
        return {"tokens": made, **times}

    def end(self) -> Any:
        """Aborts the batch."""
        self._engine.abort_request(self._running)
        self._running = []
        while self._engine.has_unfinished_requests():
            self._engine.step()
        return {}

    def bookkeeping(self, in_batch: int, registered: int, calls: int) -> Any:
        """Times what a step of 256 tokens does for its adapters before the model runs.

        Returns:
            Seconds of each call: steady, where the batch is that of the step before, and changed,
            where every request has moved on to another row.
        """
        import numpy as np
        from vllm.lora.layers import LoRAMapping
        from vllm.lora.request import LoRARequest

        manager = self._worker().model_runner.lora_manager

        def request(number: int) -> Any:
            return LoRARequest(f"d{number}", number, "/none")

        with manager.dummy_lora_cache():
            for number in range(len(manager.list_adapters()) + 1, registered + 1):
                manager.add_dummy_lora(request(number), rank=8)
        requests = {request(number) for number in range(1, in_batch + 1)}
        rows = np.arange(1, in_batch + 1, dtype=np.int32)
        mappings = [
            LoRAMapping(
                tuple(np.roll(rows, turn).repeat(256 // in_batch)),
                tuple(np.roll(rows, turn)),
                is_prefill=True,
            )
            for turn in range(2)
        ]

        def timed(turn: int) -> float:
            began = time.perf_counter()
            manager.set_active_adapters(requests, mappings[turn])
            return time.perf_counter() - began

        timed(0)
        return {
            "steady_s": [timed(0) for _ in range(calls)],
            "changed_s": [timed((call + 1) % 2) for call in range(calls)],
        }

    def facts(self) -> Any:
        """Says what runs here."""
        import torch

        config = self._engine.vllm_config
        manager = getattr(self._worker().model_runner, "lora_manager", None)
        wrapper = None
        if manager is not None:
            wrappers = manager._adapter_manager.punica_wrapper_mapping.values()
            wrapper = type(next(iter(wrappers))).__name__
        return {
            "dtype": str(config.model_config.dtype).removeprefix("torch."),
            "threads": torch.get_num_threads(),
            "wrapper": wrapper,
            "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        }

    def _worker(self) -> Any:
        core: Any = self._engine.engine_core
        return core.engine_core.model_executor.driver_worker.worker

    def _add(self, prompts: list[list[int]], adapters: list[int | None], tokens: int) -> list[str]:
        from vllm import SamplingParams
        from vllm.inputs import tokens_input

        names = []
        for prompt, adapter in zip(prompts, adapters, strict=True):
            names.append(str(next(self._numbers)))
            self._engine.add_request(
                names[-1],
                tokens_input(prompt),
                SamplingParams(
                    max_tokens=tokens, temperature=0.0, ignore_eos=True, detokenize=False
                ),
                lora_request=None if adapter is None else self._adapters[adapter],
            )
        return names


def _timed(work: Callable[[], None]) -> dict[str, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}


def main(descriptor: str, plan: str) -> None:
    """Serves commands until the other side closes."""
    commands = Connection(int(descriptor))

    def answer(what: dict[str, Any]) -> None:
        commands.send_bytes(json.dumps(what).encode())

    child = Child(json.loads(plan))
    answer({})
    while True:
        try:
            message = json.loads(commands.recv_bytes())
        except EOFError:
            return
        operation = getattr(child, message.pop("op"))
        answer(operation(**message))


if __name__ == "__main__":
    main(*sys.argv[1:])
