"""Keeps tenants apart where vLLM's own LoRA serves on CPU.

vLLM's wrapper for CPU marks a row without adapter by slot -1 and then indexes the stacked weights
with it, which in Python is the last slot. In a batch that mixes base and adapter requests the
base's rows so get the weights of whatever adapter was last put into that slot, even of one that
has left since: another tenant's weights. (vLLM 0.32; its GPU kernels skip -1.) Spare slots don't
help, because vLLM fills every slot before it reuses one.

`engine.lora_kernels: stock` means vLLM's own arithmetic, layers and managers, with this one
repair: what such rows held before the adapters were added is put back afterwards. lorebase.kernels
needs none of it: there, rows without adapter are in no group.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from vllm.lora.layers import LoRAMapping
from vllm.lora.punica_wrapper.punica_base import PunicaWrapperBase
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU
from vllm.platforms import current_platform
from vllm.utils.import_utils import resolve_obj_by_qualname

_STOCK = f"{PunicaWrapperCPU.__module__}.{PunicaWrapperCPU.__name__}"


class IsolatedPunicaWrapper(PunicaWrapperCPU):
    """vLLM's wrapper; rows without adapter keep what the base gave them.

    Shapes: T tokens in the step, S rows that are sampled, N output features.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._bare_tokens = self._bare_samples = torch.empty(0, dtype=torch.long)

    def update_metadata(self, *args: Any, **kwargs: Any) -> None:
        """Finds the rows of the coming step that have no adapter."""
        super().update_metadata(*args, **kwargs)
        self._bare_tokens = torch.nonzero(self.token_lora_indices < 0).view(-1)
        self._bare_samples = torch.nonzero(self.sampler_indices < 0).view(-1)

    def add_lora_linear(self, y: torch.Tensor, *args: Any, **kwargs: Any) -> None:
        """Adds each token's delta to y [..., N]."""
        with _kept(y.view(-1, y.shape[-1]), self._bare_tokens):
            super().add_lora_linear(y, *args, **kwargs)

    def add_lora_embedding(self, y: torch.Tensor, *args: Any, **kwargs: Any) -> None:
        """Adds each token's delta to y [T, N]."""
        with _kept(y, self._bare_tokens):
            super().add_lora_embedding(y, *args, **kwargs)

    def add_lora_logits(self, y: torch.Tensor, *args: Any, **kwargs: Any) -> None:
        """Adds each sampled row's delta to y [S, N]."""
        with _kept(y.view(-1, y.shape[-1]), self._bare_samples):
            super().add_lora_logits(y, *args, **kwargs)


@contextmanager
def _kept(y_TN: torch.Tensor, rows: torch.Tensor) -> Iterator[None]:
    """Puts rows of y back to what they are now."""
    if not len(rows):
        yield
        return
    before = y_TN.index_select(0, rows)
    yield
    y_TN.index_copy_(0, rows, before)


def check_isolation(kind: Callable[..., PunicaWrapperBase]) -> None:
    """Runs a mixed batch with all slots full through a wrapper that `kind` makes.

    Raises:
        RuntimeError: the wrapper lets an adapter's weights reach a row without adapter, or
            keeps them from a row with one.
    """
    slots, features, rank = 2, 4, 2
    wrapper = kind(8, max_batches=4, device="cpu", lora_config=_SelfTestConfig)
    mapping = LoRAMapping(index_mapping=(1, 0, 2), prompt_mapping=(1, 0, 2), is_prefill=True)
    wrapper.update_metadata(mapping, [1, 2], slots + 1, 16)
    y_TN = torch.zeros(3, features)
    wrapper.add_lora_linear(
        y_TN,
        torch.ones(3, features),
        (torch.ones(slots, 1, rank, features),),
        (torch.ones(slots, 1, features, rank),),
        1.0,
        (features,),
    )
    expected = torch.tensor([[1.0], [0.0], [1.0]]) * features * rank
    if not torch.equal(y_TN, expected.expand(3, features)):
        raise RuntimeError(
            f"{type(wrapper).__module__}.{type(wrapper).__qualname__} does not keep base requests "
            f"and adapters apart: a mixed batch gave {y_TN[:, 0].tolist()} instead of "
            f"{expected[:, 0].tolist()}. Refusing to serve"
        )


class _SelfTestConfig:
    """What a wrapper may look up of vLLM's LoRAConfig."""

    max_loras = 2
    max_lora_rank = 2
    fully_sharded_loras = False
    lora_dtype = torch.float32


def install() -> None:
    """Repairs vLLM's own wrapper on CPU; idempotent.

    A wrapper that somebody else installed stays, if it passes the check.
    """
    if not current_platform.is_cpu():
        return
    path = current_platform.get_punica_wrapper()
    if path == _STOCK:
        path = f"{IsolatedPunicaWrapper.__module__}.{IsolatedPunicaWrapper.__name__}"
        ours = path
        platform: Any = type(current_platform)
        platform.get_punica_wrapper = classmethod(lambda cls: ours)
    check_isolation(resolve_obj_by_qualname(path))
