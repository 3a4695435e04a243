"""Kullback-Leibler divergences: closed forms against samples and against other distributions' closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import (
    Independent,
    Laplace,
    LogNormal,
    MultivariateNormal,
    Normal,
    kl_divergence,
)

from isa import LpNested, Node, isa_prior
from isa.prior import kl_monte_carlo


def wide(x) -> torch.Tensor:
    return torch.tensor(x, dtype=torch.float64)


def normal(n: int, loc=0.0, scale=1.0) -> Independent:
    return Independent(Normal(wide(loc).expand(n), wide(scale).expand(n)), 1)


def by_samples(p, q, count: int = 100_000) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    z = p.expand(torch.broadcast_shapes(p.batch_shape, q.batch_shape)).sample((count,)).double()
    difference = p.log_prob(z) - q.log_prob(z)
    return difference.mean(0), difference.std(0) / math.sqrt(count)


def is_closed(p, q) -> bool:
    """A closed form gives the same number whatever the seed."""
    torch.manual_seed(0)
    first = kl_divergence(p, q)
    torch.manual_seed(1)
    return torch.equal(first, kl_divergence(p, q))


S = wide(0.8)
CLOSED = {
    "other scale": (isa_prior((2, 3), scale=S), isa_prior((2, 3), scale=2 * S)),
    "other root, same subspaces": (
        isa_prior((2, 3), p0=1.5, p1=[2.4, 0.9], scale=S),
        isa_prior((2, 3), p0=2.6, p1=[2.4, 0.9]),
    ),
    "leaves only": (LpNested(Node(1.5, [1, Node(2.4, 2)]), S), LpNested(Node(1.2, 3))),
    "a subtree from deeper down": (
        LpNested(Node(1.5, [Node(2.4, [Node(0.9, 2), 1]), 1]), S),
        LpNested(Node(1.1, [Node(0.9, 2), 2])),
    ),
    "a normal": (isa_prior((2, 3), p0=1.5, p1=[2.4, 0.9], scale=S), normal(5, 0.3, 0.7)),
    "a batch": (
        LpNested(Node(wide([1.0, 2.0, 3.0]), [1, Node(2.4, 2)]), S),
        LpNested(Node(wide([1.5, 1.5, 0.7]), [1, Node(2.4, 2)])),
    ),
    "one against a batch": (LpNested(Node(1.3, 2), S), LpNested(Node(wide([1.0, 2.0, 3.0]), 2))),
}


@pytest.mark.parametrize(("p", "q"), CLOSED.values(), ids=CLOSED)
def test_closed_forms_against_samples(p, q):
    mean, error = by_samples(p, q)
    assert is_closed(p, q)
    divergence = kl_divergence(p, q)
    assert divergence.shape == mean.shape
    assert (divergence > 0).all()
    assert ((divergence - mean).abs() < 4.5 * error).all()
    assert (4.5 * error < 0.2 * divergence).all()


ESTIMATED = {
    "another tree": (isa_prior((2, 3), scale=S), isa_prior((3, 2), p1=[1.2, 2.0], scale=S)),
    "other exponents within": (isa_prior((2, 2), p1=1.2, scale=S), isa_prior((2, 2), p1=3.0, scale=S)),
    "a radius of one's own": (LpNested(Node(1.5, 3), radial=LogNormal(wide(0.2), wide(0.4))), LpNested(Node(1.5, 3))),
    "from a normal": (normal(4, 0.3, 0.8), isa_prior((2, 2))),
    "from a full normal": (
        MultivariateNormal(torch.zeros(2).double(), wide([[1.0, 0.5], [0.5, 1.0]])),
        LpNested(Node(2.0, 2), 2.0),
    ),
    "one against a batch": (LpNested(Node(1.3, 2), S), LpNested(Node(wide([1.0, 2.0]), [Node(3.0, 2)]))),
    "to Laplace": (isa_prior((2, 2), scale=S), Independent(Laplace(wide(0.0).expand(4), 0.5), 1)),
}


@pytest.mark.parametrize(("p", "q"), ESTIMATED.values(), ids=ESTIMATED)
def test_estimates_agree_with_larger_estimates(p, q):
    assert not is_closed(p, q)
    mean, error = by_samples(p, q)
    torch.manual_seed(2)
    # 10,000 samples against 100,000
    assert ((kl_divergence(p, q) - mean).abs() < 4.5 * error * math.sqrt(1 + 10)).all()


@pytest.mark.parametrize(("a", "b"), [(1.0, 2.0), (0.3, 0.1)])
def test_normal_cases_in_both_directions(a, b):
    n = 4
    tree = Node(2.0, [2, Node(2.0, 2)])
    ours = LpNested(tree, wide(2 * a**2))
    expected = kl_divergence(normal(n, 0.0, a), normal(n, 0.2, b))
    torch.testing.assert_close(kl_divergence(ours, normal(n, 0.2, b)), expected)
    torch.testing.assert_close(
        kl_divergence(ours, LpNested(tree, wide(2 * b**2))), kl_divergence(normal(n, 0.0, a), normal(n, 0.0, b))
    )
    torch.manual_seed(0)
    shifted = normal(n, 0.2, b)
    exact = kl_divergence(shifted, normal(n, 0.0, a))
    z = shifted.sample((10_000,))
    error = (shifted.log_prob(z) - ours.log_prob(z)).std() / 100
    assert abs(kl_divergence(shifted, ours) - exact) < 4.5 * error + 1e-9


def test_the_divergence_from_itself_is_zero(lp_nested):
    torch.manual_seed(0)
    torch.testing.assert_close(
        kl_divergence(lp_nested, lp_nested).double(), torch.zeros(lp_nested.batch_shape).double(), atol=2e-5, rtol=0
    )


def test_how_far_the_paper_s_prior_is_from_a_normal():
    prior = isa_prior(scale=wide(1.0))
    best = normal(20, 0.0, prior.variance[0].sqrt().item())
    divergence = kl_divergence(prior, best)
    mean, error = by_samples(prior, best)
    assert 0 < divergence < 0.1 and abs(divergence - mean) < 4.5 * error
    assert kl_divergence(prior, normal(20)) > divergence  # the normal of the same variance is the nearest


def test_divergences_have_gradients():
    def closed(p, q, s):
        return kl_divergence(LpNested(Node(p, [1, Node(2.4, 2)]), s), LpNested(Node(q, [1, Node(2.4, 2)])))

    inputs = tuple(wide(x).requires_grad_() for x in (1.4, 2.2, 0.7))
    assert torch.autograd.gradcheck(closed, inputs)
    scale = wide(0.5).requires_grad_()
    torch.manual_seed(0)
    estimate = kl_monte_carlo(
        Independent(Normal(torch.zeros(3).double(), scale), 1), LpNested(Node(2.0, 3), 2.0), 40_000
    )
    (slope,) = torch.autograd.grad(estimate, scale)
    assert slope.item() == pytest.approx(3 * (0.5 - 1 / 0.5), rel=0.02)


def test_the_number_of_samples_decides_the_error():
    p, q = isa_prior((2, 2)), isa_prior((2, 2), p1=1.0)
    torch.manual_seed(0)
    few = torch.stack([kl_monte_carlo(p, q, 10) for _ in range(200)])
    many = torch.stack([kl_monte_carlo(p, q, 1000) for _ in range(200)])
    assert 6 < few.std() / many.std() < 16


def test_a_batch_of_divergences_draws_a_bounded_number_of_samples_in_total(monkeypatch):
    drawn = []
    before = Independent.rsample
    monkeypatch.setattr(Independent, "rsample", lambda self, shape: drawn.append(before(self, shape)) or drawn[-1])
    q = Independent(Normal(torch.zeros(64, 20), 0.5), 1)
    torch.manual_seed(0)
    divergence = kl_divergence(q, isa_prior())
    assert divergence.shape == (64,) and drawn[0].numel() <= 10_000 * 20
    mean, error = by_samples(Independent(Normal(torch.zeros(20), 0.5), 1), isa_prior(), 20_000)
    assert abs(divergence.mean() - mean) < 4.5 * error * math.sqrt(1 + 2)
    assert kl_divergence(q.expand((20_000, 64)), isa_prior()).shape == (20_000, 64)


@pytest.mark.parametrize(
    ("p", "q"),
    [
        (isa_prior((2, 2)), isa_prior((2, 3))),
        (isa_prior((2, 2)), normal(5)),
        (Normal(torch.zeros(4), 1.0), isa_prior((2, 2))),
    ],
)
def test_distributions_over_different_spaces_are_refused(p, q):
    with pytest.raises(ValueError, match=r"^p has event shape .* and q has .*; they must agree$"):
        kl_divergence(p, q)
