"""Muon in fp32: torch's own orthogonalises in bf16, which CPUs without AVX-512 do slowly."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def orthogonalise(update: torch.Tensor, steps: int) -> torch.Tensor:
    """Returns the nearest semi-orthogonal matrices, by Newton-Schulz iteration.

    Args:
        update: Stacked matrices, `[count, rows, columns]`.
        steps: Iterations.

    Returns:
        Matrices of the same shape whose singular values are near one.
    """
    a, b, c = _COEFFICIENTS
    wide = update.size(1) <= update.size(2)
    x = update if wide else update.transpose(1, 2)
    x = x / (torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.transpose(1, 2)
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x if wide else x.transpose(1, 2)


class Muon(torch.optim.Optimizer):
    """Muon: momentum, orthogonalised per matrix; matrices of one shape go together.

    The step is scaled to the root mean square that AdamW's would have, so that one learning
    rate serves both.
    """

    def __init__(
        self,
        params: Iterable[torch.nn.Parameter],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.05,
        steps: int = 5,
    ) -> None:
        """Creates the optimizer.

        Args:
            params: Matrices.
            lr: Learning rate.
            momentum: Nesterov momentum.
            weight_decay: Decoupled weight decay.
            steps: Newton-Schulz iterations.
        """
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "steps": steps}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Makes one step."""
        del closure
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[torch.nn.Parameter]] = defaultdict(list)
            for param in group["params"]:
                if param.grad is not None:
                    by_shape[param.shape].append(param)
            for params in by_shape.values():
                self._step_stack(params, group)

    def _step_stack(self, params: list[torch.nn.Parameter], group: dict[str, float]) -> None:
        """Steps parameters of one shape."""
        updates = []
        for param in params:
            state, gradient = self.state[param], param.grad
            assert gradient is not None
            if "momentum" not in state:
                state["momentum"] = torch.zeros_like(param)
            buffer = state["momentum"].lerp_(gradient, 1 - group["momentum"])
            updates.append(gradient.lerp(buffer, group["momentum"]))
        stack = orthogonalise(torch.stack(updates), int(group["steps"]))
        scale = 0.2 * max(params[0].shape) ** 0.5
        for param, update in zip(params, stack, strict=True):
            param.mul_(1 - group["lr"] * group["weight_decay"])
            param.add_(update, alpha=-group["lr"] * scale)
