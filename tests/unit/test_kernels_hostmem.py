"""Host memory: aligned, of the size asked for, and free again when nobody holds it."""

import gc

import psutil
import pytest
import torch

from lorebase.kernels.lora.hostmem import HUGE, host_tensor


@pytest.mark.parametrize("elements", [0, 1, 1000, HUGE // 4 - 1, HUGE // 4, HUGE + 12_345])
def test_it_is_aligned_writable_and_of_the_size_asked_for(elements: int) -> None:
    memory = host_tensor(elements, torch.float32)
    assert memory.shape == (elements,)
    assert memory.dtype == torch.float32
    assert memory.data_ptr() % 64 == 0
    memory.fill_(1.5)
    assert float(memory.double().sum()) == 1.5 * elements


def test_views_keep_it_alive_and_the_last_one_frees_it() -> None:
    process = psutil.Process()
    gc.collect()
    before = process.memory_info().rss
    kept = [host_tensor(32 << 20, torch.uint8).fill_(1)[5:7] for _ in range(4)]
    assert process.memory_info().rss - before > 100 << 20
    assert all(view.tolist() == [1, 1] for view in kept)
    kept.clear()
    assert process.memory_info().rss - before < 32 << 20
