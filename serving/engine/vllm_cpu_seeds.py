"""Keeps seeded requests from killing the engine on CPU.

When only a part of a prompt fits a step, vLLM throws the token away that it sampled after that
part, and sets a seeded request's generator back by one draw through its Philox offset. Generators
on CPU have no offset: the call raises in the middle of a step and the engine dies (vLLM 0.32). Any
client that sends a seed and a long prompt, or meets a full step, could do that.

So the generator is set back here instead: started anew from its seed, with as many draws as the
request has tokens. vLLM's CPU sampler draws once a token, so this is exactly where it stood.
"""

from typing import Any

import numpy as np
import torch
from vllm.platforms import current_platform
from vllm.v1.worker.gpu_model_runner import GPUModelRunner

_MARK = "lorebase_rewinds_generators"


def rewind(generator: torch.Generator, draws: int) -> None:
    """Sets a CPU generator to where it stands after `draws` tokens were sampled with it."""
    generator.manual_seed(generator.initial_seed())
    for _ in range(draws):
        torch.randint(0, 2**31, (1,), generator=generator, dtype=torch.long)


def install() -> None:
    """Replaces the step of vLLM's model runner that would raise; idempotent, CPU only."""
    runner: Any = GPUModelRunner
    if not current_platform.is_cpu() or hasattr(runner, _MARK):
        return
    bookkeeping = runner._bookkeeping_sync

    def without_discarded(self: Any, *args: Any, **kwargs: Any) -> Any:
        batch = self.input_batch
        discarded = np.nonzero(self.discard_request_mask.np[: batch.num_reqs])[0].tolist()
        held = {row: batch.generators.pop(row) for row in discarded if row in batch.generators}
        for row, generator in held.items():
            request = self.requests[batch.req_ids[row]]
            rewind(generator, len(request.output_token_ids))
        try:
            return bookkeeping(self, *args, **kwargs)
        finally:
            batch.generators.update(held)

    runner._bookkeeping_sync = without_discarded
    setattr(runner, _MARK, True)
