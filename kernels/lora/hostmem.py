"""Host memory for adapters: large pages where there are some.

An adapter is written once and then streamed through in every step. On pages of 4 KiB the kernel
first hands out ten thousand of them for a rank of 64, which takes longer than reading the file,
and every step misses the translation buffer as often. Pages of 2 MiB cost neither.
"""

import mmap

import torch

HUGE = 2 << 20
_ADVICE = getattr(mmap, "MADV_HUGEPAGE", None)  # Linux


def host_tensor(elements: int, dtype: torch.dtype) -> torch.Tensor:
    """Returns a flat tensor that starts on 64 bytes, or better; its contents are undefined.

    Args:
        elements: How many.
        dtype: Of which type.
    """
    size = elements * dtype.itemsize
    if size < HUGE or _ADVICE is None:
        return torch.empty(elements, dtype=dtype)
    try:
        # One large page more, to begin where a large page does; what isn't touched takes nothing.
        memory = mmap.mmap(-1, size + HUGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        whole = torch.frombuffer(memory, dtype=torch.uint8)
        start = -whole.data_ptr() % HUGE
        # The rest stays on small pages: rounding it up would waste a fifth of a small adapter.
        memory.madvise(_ADVICE, start, size // HUGE * HUGE)
    except (OSError, ValueError):
        return torch.empty(elements, dtype=dtype)
    return whole[start : start + size].view(dtype)
