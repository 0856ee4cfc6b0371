"""A change of weights becomes two thin matrices; what is lost is counted."""

import pytest
import torch

from lorebase.transfer.convert import factor
from lorebase.transfer.convert.factor import factorise


def low_rank(rows: int, columns: int, rank: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    left = torch.randn(rows, rank, generator=generator, dtype=torch.float64)
    return left @ torch.randn(rank, columns, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("full", [1024, 8])
def test_a_change_of_low_rank_is_held_exactly_with_no_more_rank_than_it_has(
    full: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(factor, "FULL_SVD", full)
    delta = low_rank(40, 96, 5)
    found = factorise(delta, max_rank=16, tolerance=1e-9)
    assert found.rank == 5
    assert found.a_RI.shape == (5, 96)
    assert found.b_OR.shape == (40, 5)
    assert torch.allclose(found.b_OR @ found.a_RI, delta, atol=1e-6)
    assert found.kept == pytest.approx(found.energy, rel=1e-9)


@pytest.mark.parametrize("full", [1024, 8])
def test_what_a_lower_rank_loses_is_what_is_missing(
    full: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(factor, "FULL_SVD", full)
    generator = torch.Generator().manual_seed(1)
    delta = torch.randn(48, 40, generator=generator, dtype=torch.float64)
    found = factorise(delta, max_rank=6, tolerance=0.0)
    missing = float((delta - found.b_OR @ found.a_RI).square().sum())
    assert found.rank == 6
    assert found.energy == pytest.approx(float(delta.square().sum()))
    # The sketch of large matrices finds nearly the best product.
    assert found.energy - found.kept == pytest.approx(missing, rel=0.02)


def test_the_two_sides_share_the_scale() -> None:
    found = factorise(1e6 * low_rank(20, 20, 2), max_rank=4, tolerance=1e-9)
    assert float(found.a_RI.norm()) == pytest.approx(float(found.b_OR.norm()), rel=1e-6)


def test_no_change_is_two_matrices_of_zeros() -> None:
    found = factorise(torch.zeros(6, 9), max_rank=4, tolerance=1e-9)
    assert (found.rank, found.energy, found.kept) == (1, 0.0, 0.0)
    assert not found.a_RI.any()
    assert not found.b_OR.any()


def test_the_rank_is_never_more_than_the_matrix_has() -> None:
    found = factorise(low_rank(3, 50, 3), max_rank=64, tolerance=0.0)
    assert found.rank <= 3


def test_the_same_change_gives_the_same_factors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(factor, "FULL_SVD", 4)
    delta = low_rank(32, 32, 9)
    one, other = (factorise(delta, max_rank=8, tolerance=0.0) for _ in range(2))
    assert torch.equal(one.a_RI, other.a_RI)
