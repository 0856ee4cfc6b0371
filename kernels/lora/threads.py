"""Threads beside the engine's: they must not bring teams of their own to its cores."""

import ctypes

import torch


def stay_single() -> None:
    """Makes torch compute in the calling thread alone, now and later, and in no other thread so.

    Each thread that runs a parallel region gets a team as large as torch's, and reading an adapter
    ahead would so take the cores from the step that it should not disturb. `torch.set_num_threads`
    is no way: it also is the default of threads to come, and vLLM's worker disables it.
    """
    torch.get_num_threads()  # only once; torch would otherwise do it later, and undo this
    try:
        ctypes.CDLL(None).omp_set_num_threads(1)
    except AttributeError:  # no OpenMP in this process: torch has no teams
        return
