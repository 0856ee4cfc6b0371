"""What training minimises.

Legend of shape suffixes: N scored token positions of a batch, V vocabulary, C chunks.

With p the student and w the weight of a token (0 leaves it out):

    cross entropy   L = sum_n w_n * -log p(y_n | before) / #{n: w_n > 0}

Across tokenizers the student's tokens are not the teacher's, but both give a likelihood to the
same characters. For a chunk c of them, q(c) by the teacher and p(c) by the student, each the
product over its own tokens (approximate likelihood matching, arXiv 2503.20083):

    chunk loss      L = T * mean_c H(q(c)^(1/T), p(c)^(1/T)),
    where           H(q, p) = -(q log p + (1 - q) log(1 - p))

It is least where p(c) = q(c): a teacher in doubt does not ask for certainty. T > 1 weighs unlikely
chunks more evenly; the factor T keeps the gradients' size.
"""

import torch
import torch.nn.functional as F

EPSILON = 1e-6
"""Keeps log(1 - p) finite where p is 1 in float32."""


def weighted_cross_entropy(
    scores_NV: torch.Tensor, wanted_N: torch.Tensor, weights_N: torch.Tensor
) -> torch.Tensor:
    """Returns the weighted mean of -log p(wanted token), over the tokens with any weight.

    Args:
        scores_NV: logits.
        wanted_N: token ids; any id where the weight is 0.
        weights_N: not negative; 0 for padding and prompt.
    """
    losses_N = F.cross_entropy(scores_NV, wanted_N.clamp(min=0), reduction="none")
    counted = (weights_N > 0).sum().clamp(min=1)
    return (losses_N * weights_N).sum() / counted


def chunk_loss(
    scores_NV: torch.Tensor,
    wanted_N: torch.Tensor,
    chunk_N: torch.Tensor,
    teacher_C: torch.Tensor,
    temperature: float,
) -> torch.Tensor:
    """Returns the chunk loss; see the formulas above.

    Args:
        scores_NV: the student's logits.
        wanted_N: its tokens; any id where no chunk is.
        chunk_N: number of the chunk that a token belongs to; -1 for none.
        teacher_C: log q(c), at most 0.
        temperature: T, above 0.
    """
    inside = chunk_N >= 0
    if not bool(inside.any()):
        return scores_NV.sum() * 0.0
    logprobs_N = -F.cross_entropy(scores_NV, wanted_N.clamp(min=0), reduction="none")
    student_C = torch.zeros_like(teacher_C).index_add(0, chunk_N[inside], logprobs_N[inside])
    q_C = (teacher_C.clamp(max=0.0) / temperature).exp()
    log_p_C = (student_C / temperature).clamp(max=-EPSILON)
    entropy_C = -(q_C * log_p_C + (1.0 - q_C) * torch.log(-torch.expm1(log_p_C)))
    return temperature * entropy_C.mean()
