r"""The oracle: batched LoRA as its formula, one token at a time, in float64.

    y[t, slice s]  +=  B_s (A_s x_t)        for the slot of token t

Slow on purpose and without any trick that a kernel might share, so that every other
implementation can be judged by it. Scaling (alpha / r) is folded into B beforehand.

Shapes (suffix legend of this folder): T tokens, K input features, N_s output features of slice s,
N = sum of N_s, R rank of one adapter's slice.
"""

from collections.abc import Mapping, Sequence

import torch

# One adapter's weights for one slice, in PEFT's shapes: A [R, K], B [N_s, R]; None: not adapted.
SliceWeights = tuple[torch.Tensor, torch.Tensor] | None


def lora_reference(
    y_TN: torch.Tensor,
    x_TK: torch.Tensor,
    token_slots: Sequence[int],
    weights: Mapping[int, Sequence[SliceWeights]],
    slice_sizes: Sequence[int],
    *,
    dtype: torch.dtype = torch.float64,
) -> torch.Tensor:
    """Returns y plus each token's own LoRA delta, computed in `dtype`; y itself stays as it is.

    Args:
        y_TN: The base layer's output.
        x_TK: The base layer's input. Rows without an adapter are never read.
        token_slots: For each token the slot of its adapter, -1 for none.
        weights: Slot -> one entry per slice. A slot that isn't there adapts nothing.
        slice_sizes: N_s of each slice, in the order of y's columns.
        dtype: Computing precision: float64 for the oracle, float32 to judge a tolerance.

    Returns:
        A new tensor [T, N] of `dtype`. Rows without an adapter equal y's bit for bit.

    Raises:
        ValueError: Shapes that don't belong together.
    """
    if len(token_slots) != x_TK.shape[0] or y_TN.shape[0] != x_TK.shape[0]:
        raise ValueError(
            f"got {len(token_slots)} slots, x {tuple(x_TK.shape)}, y {tuple(y_TN.shape)}; "
            "expected as many rows as slots"
        )
    if sum(slice_sizes) != y_TN.shape[1]:
        raise ValueError(
            f"got slices {tuple(slice_sizes)} for {y_TN.shape[1]} columns; expected their sum"
        )
    out_TN = y_TN.to(dtype, copy=True)
    for token, slot in enumerate(token_slots):
        if slot < 0:
            continue
        column = 0
        for size, pair in zip(
            slice_sizes, weights.get(slot, (None,) * len(slice_sizes)), strict=True
        ):
            if pair is not None:
                a_RK, b_NR = pair
                h_R = a_RK.to(dtype) @ x_TK[token].to(dtype)
                out_TN[token, column : column + size] += b_NR.to(dtype) @ h_R
            column += size
    return out_TN
