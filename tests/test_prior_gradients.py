"""Derivatives of first and second order, in reverse and forward mode, against finite differences in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.autograd.forward_ad import dual_level, make_dual, unpack_dual
from torch.distributions import LogNormal, Weibull

from isa import LpNested, Node, isa_prior

TREES = {
    "Eq. 6": Node(1.3, [1, Node(2.6, [2])]),
    "uneven": Node(1.7, [Node(2.4, 2), 1, Node(0.9, 2)]),
    "deep": Node(1.5, [1, Node(0.8, [Node(3.0, [2, Node(1.2, 2)]), 1])]),
    "large": Node(12.0, [Node(30.0, 2), 1]),
    "small": Node(0.4, [Node(0.3, 2), 1]),
    "chain": Node(2.1, [Node(0.7, [Node(1.4, 2)])]),
}


def wide(values, grad: bool = True) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64, requires_grad=grad)


def setting(tree: Node, points: int = 3):
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(points, tree.n_leaves, generator=generator, dtype=torch.float64)
    z = (z / tree.norm(z)[:, None]).requires_grad_()  # where large exponents keep their curvature in range
    return z, wide(tree.exponents), wide(0.8)


@pytest.mark.parametrize("tree", TREES.values(), ids=TREES)
def test_log_prob_by_finite_differences(tree):
    def log_prob(z, p, s):
        return LpNested(tree.with_exponents(p.unbind()), s, validate_args=False).log_prob(z)

    assert gradcheck(log_prob, setting(tree), atol=1e-6, check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(log_prob, setting(tree, 2), atol=1e-4, rtol=1e-4, check_fwd_over_rev=True)


@pytest.mark.parametrize("tree", TREES.values(), ids=TREES)
def test_the_norm_by_finite_differences(tree):
    def norm(z, p):
        return tree.with_exponents(p.unbind()).norm(z)

    z, p, _ = setting(tree)
    assert gradcheck(norm, (z, p), atol=1e-6, check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(norm, (z, p), atol=1e-4, rtol=1e-4, check_fwd_over_rev=True)


def test_batched_parameters_by_finite_differences():
    def log_prob(z, p0, p1, s):
        return LpNested(Node(p0, [1, Node(p1, 2)]), s, validate_args=False).log_prob(z)

    generator = torch.Generator().manual_seed(1)
    for shape in [(2, 3), (2, 1, 3), (4, 2, 3)]:
        z = torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)
        inputs = (z, wide([0.8, 2.3]), wide(1.7), wide([1.0, 0.5]))
        assert gradcheck(log_prob, inputs, check_forward_ad=True, check_batched_grad=True)
        assert gradgradcheck(log_prob, inputs, atol=1e-4, check_fwd_over_rev=True)


@pytest.mark.parametrize("family", [LogNormal, Weibull])
def test_a_radial_density_s_parameters_by_finite_differences(family):
    def log_prob(z, p, a, b):
        tree = Node(p[0], [1, Node(p[1], 2)])
        return LpNested(tree, radial=family(a, b), validate_args=False).log_prob(z)

    z, _, _ = setting(Node(1.5, [1, Node(2.0, 2)]))
    inputs = (z, wide([1.5, 2.4]), wide(0.7), wide(1.3))
    assert gradcheck(log_prob, inputs)
    assert gradgradcheck(log_prob, inputs, atol=1e-4)


def test_closed_forms_by_finite_differences():
    def dist(p, s):
        return LpNested(Node(p[0], [1, Node(p[1], 2)]), s, validate_args=False)

    inputs = (wide([1.4, 2.5]), wide(0.7))
    assert gradcheck(lambda p, s: dist(p, s).entropy(), inputs)
    assert gradcheck(lambda p, s: dist(p, s).variance, inputs)
    assert gradcheck(lambda p, s: dist(p, s).absolute_moment(0.7), inputs)
    assert gradcheck(lambda p: dist(p, 1.0).tree.log_surface(), inputs[:1])
    assert gradcheck(lambda p: isa_prior((2, 2), p[0], p[1], "unit", validate_args=False).scale, inputs[:1])


def test_the_scale_for_unit_variance_passes_gradients_on_to_the_exponents():
    def log_prob(z, p):
        return isa_prior((2, 2), p[0], p[1], scale="unit").log_prob(z)

    z = torch.linspace(-1, 1, 4, dtype=torch.float64, requires_grad=True)
    assert gradcheck(log_prob, (z, wide([1.4, 2.5])))


def test_single_precision_gradients_are_those_of_double_precision():
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(200, 20, generator=generator)
    results = []
    for dtype in (torch.float32, torch.float64):
        x = z.detach().clone().to(dtype).requires_grad_()
        p = torch.tensor([2.1, 1.7, 2.2, 0.8, 3.0, 2.0]).to(dtype).requires_grad_()
        s = torch.tensor(0.9).to(dtype).requires_grad_()
        isa_prior(p0=p[0], p1=p[1:], scale=s).log_prob(x).mean().backward()
        results.append([g.double() for g in (x.grad, p.grad, s.grad)])
    for single, double in zip(*results, strict=True):
        torch.testing.assert_close(single, double, rtol=2e-5, atol=2e-5 * double.abs().max().item())


def test_two_backward_passes_on_one_instance_with_learned_exponents():
    p0, p1 = torch.tensor(2.1, requires_grad=True), torch.tensor([2.0, 1.5], requires_grad=True)
    prior = isa_prior((2, 2), p0, p1)
    z = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    prior.log_prob(z).sum().backward()
    first = p0.grad.clone(), p1.grad.clone()
    prior.log_prob(z).sum().backward()
    torch.testing.assert_close(p0.grad, 2 * first[0])
    torch.testing.assert_close(p1.grad, 2 * first[1])


def test_evaluation_without_gradients_does_not_cost_a_later_one_its_gradients():
    p1 = torch.tensor(2.0, requires_grad=True)
    scale = torch.tensor(1.0, requires_grad=True)
    for prior in (isa_prior((2, 2), p1=p1), isa_prior((2, 2), scale=scale), isa_prior((2, 2), p1=p1, scale="unit")):
        z = torch.ones(4, requires_grad=True)
        with torch.no_grad():
            quiet = prior.log_prob(z)
        loud = prior.log_prob(z)
        assert torch.equal(quiet, loud) and not quiet.requires_grad
        leaf = scale if prior.tree.exponents[1] is not p1 else p1
        assert all(g.abs().sum() > 0 for g in torch.autograd.grad(loud, (z, leaf)))


def test_forward_mode():
    prior = LpNested(Node(1.3, [1, Node(2.6, 2)]), 0.7)
    z, t = torch.tensor([[0.5, -1.0, 2.0], [0.3, 0.1, -0.9]]).double()
    with dual_level():
        slope = unpack_dual(prior.log_prob(make_dual(z, t))).tangent
    step = 1e-6
    expected = (prior.log_prob(z + step * t) - prior.log_prob(z - step * t)) / (2 * step)
    torch.testing.assert_close(slope, expected, rtol=1e-7, atol=1e-8)


def test_the_score_has_mean_zero():
    torch.manual_seed(0)
    p0, p1, s = wide(1.6), wide([2.4, 0.9]), wide(0.8)
    prior = isa_prior((3, 2), p0, p1, s)
    z = prior.sample((20_000,))
    scores = torch.func.vmap(
        torch.func.grad(lambda p, q, r, x: isa_prior((3, 2), p, q, r, validate_args=False).log_prob(x), (0, 1, 2)),
        in_dims=(None, None, None, 0),
    )(p0.detach(), p1.detach(), s.detach(), z)
    for score in scores:
        error = score.std(0) / math.sqrt(len(z))
        assert (score.mean(0).abs() < 4.5 * error).all()


def test_divergence_theorem():
    # E[z . grad log p] = -n for every density that vanishes at infinity
    torch.manual_seed(1)
    for prior in (isa_prior((3, 2), p1=[2.4, 0.9]), LpNested(Node(1.5, [2, Node(3.0, 2)]), radial=LogNormal(0.2, 0.4))):
        z = prior.sample((40_000,)).double().requires_grad_()
        (gradient,) = torch.autograd.grad(prior.log_prob(z).sum(), z)
        terms = (z.detach() * gradient).sum(-1)
        assert abs(terms.mean().item() + prior.tree.n_leaves) < 4.5 * terms.std().item() / math.sqrt(len(z))
