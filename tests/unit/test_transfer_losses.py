"""The losses against naive references, one token at a time."""

import math

import pytest
import torch

from lorebase.transfer.distill.losses import EPSILON, chunk_loss, weighted_cross_entropy

torch.set_num_threads(1)


def logprob(scores: torch.Tensor, token: int) -> torch.Tensor:
    return scores[token] - torch.logsumexp(scores, 0)


def batch(tokens: int = 7, vocabulary: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(tokens, vocabulary, generator=generator, dtype=torch.float64)
    wanted = torch.randint(vocabulary, (tokens,), generator=generator)
    return scores.requires_grad_(), wanted


def naive_chunk_loss(
    scores: torch.Tensor,
    wanted: torch.Tensor,
    chunks: list[list[int]],
    teacher: list[float],
    temperature: float,
) -> torch.Tensor:
    total = torch.zeros((), dtype=scores.dtype)
    for tokens, log_q in zip(chunks, teacher, strict=True):
        log_p = torch.stack([logprob(scores[n], int(wanted[n])) for n in tokens]).sum()
        q = math.exp(log_q / temperature)
        p = torch.exp(log_p / temperature)
        total = total - q * torch.log(p) - (1 - q) * torch.log(1 - p)
    return temperature * total / len(chunks)


def test_cross_entropy_is_the_weighted_mean_over_weighted_tokens() -> None:
    scores, wanted = batch()
    weights = torch.tensor([0.0, 1.0, 2.0, 0.0, 0.5, 0.0, 0.0], dtype=torch.float64)
    loss = weighted_cross_entropy(scores, wanted, weights)
    naive = -sum(weights[n] * logprob(scores[n], int(wanted[n])) for n in range(7)) / 3
    assert torch.allclose(loss, torch.as_tensor(naive))
    (gradient,) = torch.autograd.grad(loss, scores)
    (expected,) = torch.autograd.grad(torch.as_tensor(naive), scores)
    assert torch.allclose(gradient, expected)
    assert torch.equal(gradient[0], torch.zeros(5, dtype=torch.float64)), "weight 0 teaches nothing"


def test_equal_weights_are_plain_cross_entropy_and_ignored_labels_do_no_harm() -> None:
    scores, wanted = batch()
    plain = torch.nn.functional.cross_entropy(scores[:5], wanted[:5])
    ignored = torch.cat([wanted[:5], torch.tensor([-100, -100])])
    weights = torch.tensor([1.0] * 5 + [0.0] * 2, dtype=torch.float64)
    assert torch.allclose(weighted_cross_entropy(scores, ignored, weights), plain)


def test_no_weight_at_all_is_no_loss() -> None:
    scores, wanted = batch()
    loss = weighted_cross_entropy(scores, wanted, torch.zeros(7))
    assert float(loss.detach()) == 0.0


@pytest.mark.parametrize("temperature", [1.0, 4.0, 100.0])
def test_chunk_loss_and_its_gradient_are_those_of_the_formula(temperature: float) -> None:
    scores, wanted = batch()
    number = torch.tensor([-1, 0, 0, 1, 2, 2, -1])
    teacher = [-0.3, -2.0, -0.01]
    loss = chunk_loss(scores, wanted, number, torch.tensor(teacher).double(), temperature)
    naive = naive_chunk_loss(scores, wanted, [[1, 2], [3], [4, 5]], teacher, temperature)
    assert torch.allclose(loss, naive, rtol=1e-6)
    (gradient,) = torch.autograd.grad(loss, scores)
    (expected,) = torch.autograd.grad(naive, scores)
    assert torch.allclose(gradient, expected, rtol=1e-5, atol=1e-9)


def test_a_student_as_sure_as_the_teacher_is_left_alone() -> None:
    scores, wanted = batch(tokens=1)
    same = logprob(scores[0], int(wanted[0])).detach()[None]
    loss = chunk_loss(scores, wanted, torch.tensor([0]), same, 1.0)
    (gradient,) = torch.autograd.grad(loss, scores)
    assert float(gradient.abs().max()) < 1e-12


def test_a_certain_teacher_asks_for_the_likelihood_like_cross_entropy() -> None:
    scores, wanted = batch(tokens=2)
    number = torch.tensor([0, 1])
    loss = chunk_loss(scores, wanted, number, torch.zeros(2, dtype=torch.float64), 1.0)
    assert torch.allclose(loss, torch.nn.functional.cross_entropy(scores, wanted))


def test_a_student_that_is_too_sure_of_a_doubtful_answer_is_pulled_back() -> None:
    scores = torch.tensor([[9.0, 0.0]], requires_grad=True)
    loss = chunk_loss(scores, torch.tensor([0]), torch.tensor([0]), torch.tensor([-0.7]), 1.0)
    (gradient,) = torch.autograd.grad(loss, scores)
    assert gradient[0, 0] > 0


def test_probabilities_of_one_stay_finite() -> None:
    scores = torch.tensor([[200.0, 0.0]], requires_grad=True)
    loss = chunk_loss(scores, torch.tensor([0]), torch.tensor([0]), torch.tensor([-3.0]), 1.0)
    (gradient,) = torch.autograd.grad(loss, scores)
    assert math.isfinite(float(loss.detach()))
    assert float(loss.detach()) <= -math.log(EPSILON)
    assert torch.isfinite(gradient).all()


def test_no_chunk_is_no_loss_and_still_has_a_gradient() -> None:
    scores, wanted = batch()
    loss = chunk_loss(scores, wanted, torch.full((7,), -1), torch.zeros(0).double(), 1.0)
    loss.backward()
    assert float(loss.detach()) == 0.0
