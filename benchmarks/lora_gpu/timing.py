"""Timing on a GPU: captured graphs, a cold cache, and rounds in which all take turns."""

import random
from collections.abc import Callable, Mapping
from typing import Any

import torch

CACHE_BYTES = 512 << 20
"""More than any GPU's L2 cache: what is written to make it cold."""


class Device:
    """One GPU and its L2 cache; times are seconds."""

    def __init__(self) -> None:
        """Takes the current device.

        Raises:
            RuntimeError: There is none.
        """
        if not torch.cuda.is_available():
            raise RuntimeError(
                "got no GPU that torch can use; expected one. Nothing was measured. Run "
                "`PYTHONPATH=.typing python -m benchmarks.run lora-gpu` on a machine with torch, "
                "triton and a GPU"
            )
        self.name: str = torch.cuda.get_device_name()
        self._flushed = torch.empty(CACHE_BYTES // 4, dtype=torch.int32, device="cuda")

    def capture(self, run: Callable[[], None]) -> Callable[[], None]:
        """Captures a CUDA graph of one run; returns its replay.

        Three runs come before, which compile what is compiled at a first call.
        """
        stream: Any = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                run()
        torch.cuda.current_stream().wait_stream(stream)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run()
        replay: Callable[[], None] = graph.replay
        return replay

    def seconds(self, run: Callable[[], None]) -> float:
        """Time of one run that finds nothing of its own in the cache."""
        self._flushed.zero_()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3

    def copy_bandwidth(self, rounds: int = 20) -> float:
        """Bytes per second, read and written, of a large copy: the median of `rounds`."""
        source = torch.empty(1 << 30, dtype=torch.int8, device="cuda")
        target = torch.empty_like(source)
        times = sorted(self.seconds(lambda: target.copy_(source)) for _ in range(rounds))
        return 2 * source.numel() / times[rounds // 2]


def interleaved(
    timed: Mapping[str, Callable[[], float]], *, rounds: int, rng: random.Random
) -> dict[str, list[float]]:
    """Takes one sample of each in every round, in an order that changes from round to round.

    So a change of clocks or temperature hits all alike, and the n-th samples of two belong
    together. The first round is thrown away.
    """
    samples: dict[str, list[float]] = {name: [] for name in timed}
    for number in range(rounds + 1):
        names = list(timed)
        rng.shuffle(names)
        for name in names:
            sample = timed[name]()
            if number:
                samples[name].append(sample)
    return samples
