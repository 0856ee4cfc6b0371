"""A change of weights as the product of two thin matrices. Legend: O out, I in, R rank."""

from dataclasses import dataclass

import torch

FULL_SVD = 1024
"""Up to this many rows or columns all singular values are computed; beyond, the largest only."""
OVERSAMPLING = 16
POWER_ITERATIONS = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Factors:
    """delta ~ b @ a, and how near."""

    a_RI: torch.Tensor
    b_OR: torch.Tensor
    energy: float
    """Squared Frobenius norm of the whole change."""
    kept: float
    """Of that, what the product holds."""

    @property
    def rank(self) -> int:
        """Rank of the product."""
        return self.a_RI.shape[0]


def factorise(delta_OI: torch.Tensor, *, max_rank: int, tolerance: float) -> Factors:
    """Returns the best product of the least rank that loses at most `tolerance` of the energy.

    By singular values, which are split evenly between the two, so that neither is hard to store
    in 16 bits. A change of zero has rank 1 with zeros.

    Args:
        delta_OI: the change of one linear layer's weight.
        max_rank: not more than this, whatever is lost.
        tolerance: share of the energy that may be lost; what is below is rounding.
    """
    delta_OI = delta_OI.double()
    energy = float(delta_OI.square().sum())
    limit = min(max_rank, *delta_OI.shape)
    if energy == 0.0:
        zeros = delta_OI.new_zeros
        a_RI, b_OR = zeros(1, delta_OI.shape[1]), zeros(delta_OI.shape[0], 1)
        return Factors(a_RI=a_RI, b_OR=b_OR, energy=0.0, kept=0.0)
    u_OR, s_R, v_RI = _largest(delta_OI, limit)
    held = s_R.square().cumsum(0) / energy
    # The first rank that holds enough; all that is allowed if none does.
    rank = min(limit, int(torch.searchsorted(held, 1.0 - tolerance)) + 1)
    root_R = s_R[:rank].sqrt()
    return Factors(
        a_RI=root_R[:, None] * v_RI[:rank],
        b_OR=u_OR[:, :rank] * root_R,
        energy=energy,
        kept=min(energy, float(s_R[:rank].square().sum())),
    )


def _largest(delta_OI: torch.Tensor, limit: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns left vectors, values and right vectors of the largest singular values."""
    if min(delta_OI.shape) <= FULL_SVD:
        u_OR, s_R, v_RI = torch.linalg.svd(delta_OI, full_matrices=False)
        return u_OR, s_R, v_RI
    q = min(limit + OVERSAMPLING, *delta_OI.shape)
    # Sketched with random vectors: fixed, so that a conversion is the same every time.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        u_OR, s_R, v_IR = torch.svd_lowrank(delta_OI, q=q, niter=POWER_ITERATIONS)
    return u_OR, s_R, v_IR.T
