"""The parent's side of an engine in a child process."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

ROOT = Path(__file__).resolve().parents[2]
Kind = Literal["none", "stock", "ours"]
START_S = 300.0
CALL_S = 600.0
STEP_TOKENS = 1024
"""Most tokens of an engine's step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EnginePlan:
    """How a child runs its engine."""

    base: str
    max_rank: int
    """0: without LoRA."""
    slots: int = 64
    registered: int = 64
    """Adapters in host memory, at most."""
    dtype: str = "float32"
    """This suite's default: without AVX512-BF16, bfloat16 is emulated and says nothing."""
    max_model_len: int = 512
    max_batched_tokens: int = STEP_TOKENS
    max_seqs: int = 64
    kv_cache_bytes: int = 1 << 30


class Arm:
    """An engine in a child process; use as a context manager, which ends it."""

    def __init__(self, kind: Kind, plan: EnginePlan, *, threads: int, log: Path) -> None:
        """Starts the child; `ready` waits for it.

        Args:
            kind: whose LoRA code it runs.
            plan: its engine.
            threads: of torch's team.
            log: where its output goes.
        """
        self.kind = kind
        self._log = log
        ours, theirs = socket.socketpair()
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": str(threads),
            "MKL_NUM_THREADS": str(threads),
            # Several engines take turns: one that waits must not spin.
            "OMP_WAIT_POLICY": "PASSIVE",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_NO_USAGE_STATS": "1",
            "LOREBASE_LORA_KERNELS": "lorebase" if kind == "ours" else "stock",
        }
        with theirs, log.open("wb") as output:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "benchmarks.lora.child"),
                    *(str(theirs.fileno()), json.dumps(asdict(plan))),
                ],
                env=environment,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        self._link = Connection(ours.detach())

    def ready(self) -> None:
        """Waits until the engine is there.

        Raises:
            RuntimeError: it did not start.
        """
        self._answer(START_S)

    def call(self, op: str, **arguments: Any) -> dict[str, Any]:
        """Runs one command of child.py.

        Raises:
            RuntimeError: the child died or did not answer in time; the message has its last words.
        """
        self._link.send_bytes(json.dumps({"op": op, **arguments}).encode())
        return self._answer(CALL_S)

    def load(self, adapters: Sequence[Path]) -> float:
        """Loads adapters; returns the seconds it took."""
        return float(self.call("load", adapters=[str(path) for path in adapters])["seconds"])

    def _answer(self, timeout_s: float) -> dict[str, Any]:
        try:
            if self._link.poll(timeout_s):
                found: dict[str, Any] = json.loads(self._link.recv_bytes())
                return found
            why = f"no answer in {timeout_s:g} s"
        except (EOFError, OSError):
            why = "its process ended"
        words = self._log.read_text(encoding="utf-8", errors="replace")[-2000:]
        raise RuntimeError(f"the engine {self.kind!r}: {why}. Its last words:\n{words}")

    def close(self) -> None:
        """Ends the child. Whoever waits for its answer sees the socket close."""
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._link.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
