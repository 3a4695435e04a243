"""Closed forms: moments, entropy, unit-variance scales, the marginals of subspaces and of coordinates."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import scipy.integrate
import scipy.stats
import torch
from torch.distributions import HalfNormal, LogNormal, Uniform, Weibull

from edition.factorise import coordinate_pdf
from isa import LpNested, Node, isa_prior

DEEP = Node(1.5, [1, Node(0.8, [Node(3.0, [2, Node(1.2, 2)]), 1]), Node(2.2, 3)])


def subspace_second_moment(p0: float, p1: float, n: int, s: float) -> float:
    """E z_j^2 of one subspace of n leaves, in Gamma functions."""
    g = math.lgamma
    log = 2 / p0 * math.log(s) + g((n + 2) / p0) - g(n / p0) + g(3 / p1) - g(1 / p1) + g(n / p1) - g((n + 2) / p1)
    return math.exp(log)


# ---- over the table


def test_moments_against_samples(lp_nested):
    torch.manual_seed(0)
    count = 40_000
    z = lp_nested.sample((count,)).double()
    # high powers of heavy tails converge too slowly to be tested through samples
    order = 2.0 if min(float(torch.as_tensor(p).min()) for p in lp_nested.tree.exponents) > 0.5 else 0.3
    power = z.abs() ** order
    error = power.std(0) / math.sqrt(count)
    moment = lp_nested.absolute_moment(order).double()
    assert ((power.mean(0) - moment).abs() < 4.5 * error).all()
    assert lp_nested.mean.eq(0).all() and lp_nested.mean.shape == z.shape[1:]
    assert ((z.sign() * power.sqrt()).mean(0).abs() < 4.5 * power.mean(0).sqrt() / math.sqrt(count)).all()
    assert torch.equal(lp_nested.variance, lp_nested.absolute_moment(2))
    torch.testing.assert_close(lp_nested.stddev, lp_nested.variance.sqrt())


def test_entropy_against_samples(lp_nested):
    if lp_nested.radial is not None:
        with pytest.raises(NotImplementedError, match=r"closed for Eq. 11 only; estimate it as"):
            lp_nested.entropy()
        return
    torch.manual_seed(0)
    surprise = -lp_nested.log_prob(lp_nested.sample((40_000,)).double())
    error = surprise.std(0) / math.sqrt(len(surprise))
    assert lp_nested.entropy().shape == lp_nested.batch_shape
    assert ((surprise.mean(0) - lp_nested.entropy()).abs() < 4.5 * error + 1e-5).all()


def test_the_mode_is_zero_under_eq_11(lp_nested):
    if lp_nested.radial is not None:
        with pytest.raises(NotImplementedError):
            _ = lp_nested.mode
        return
    assert lp_nested.mode.eq(0).all()
    assert (lp_nested.log_prob(lp_nested.mode) >= lp_nested.log_prob(lp_nested.sample((50,)))).all()


# ---- special values


@pytest.mark.parametrize(("p0", "p1", "n", "s"), [(2.1, 2.2, 4, 1.0), (1.3, 0.6, 3, 0.7), (0.5, 9.0, 1, 2.0)])
def test_the_second_moment_of_a_subspace_as_a_formula(p0, p1, n, s):
    wide = torch.tensor(s, dtype=torch.float64)
    prior = isa_prior((n, n + 1), p0=p0, p1=[p1, 1.0], scale=wide)
    expected = [subspace_second_moment(p0, p1, n, s)] * n + [subspace_second_moment(p0, 1.0, n + 1, s)] * (n + 1)
    np.testing.assert_allclose(prior.variance.numpy(), expected, rtol=1e-12)


def test_printed_variances_and_unit_scales():
    assert isa_prior(p0=2.0, p1=2.0).variance[0].item() == pytest.approx(0.5, abs=1e-6)
    assert isa_prior().variance[0].item() == pytest.approx(0.4949, abs=5e-5)
    assert isa_prior(scale="unit").scale.item() == pytest.approx(2.0931, abs=5e-5)
    assert isa_prior((5,) * 5, scale="unit").scale.item() == pytest.approx(2.0761, abs=5e-5)
    assert isa_prior(p0=2.0, p1=2.0, scale="unit").scale.item() == pytest.approx(2.0, abs=1e-6)


@pytest.mark.parametrize("tree", [isa_prior().tree, Node(0.7, 3), Node(3.0, [Node(0.9, [Node(5.0, 2), Node(5.0, 2)])])])
def test_unit_variance(tree):
    prior = LpNested(tree, "unit")
    torch.testing.assert_close(prior.variance, torch.ones(tree.n_leaves))
    same = LpNested(tree, torch.tensor(1.0, dtype=torch.float64) * float(prior.scale))
    z = torch.ones(tree.n_leaves, dtype=torch.float64)
    torch.testing.assert_close(prior.log_prob(z), same.log_prob(z))
    torch.testing.assert_close(prior.expand((2,)).log_prob(z), prior.log_prob(z).expand(2))


def test_no_single_scale_gives_unit_variance_to_unlike_coordinates():
    with pytest.raises(
        ValueError, match=r"^scale = 'unit'; coordinates of this tree differ in variance, 0\.\d+ to 0\.\d+$"
    ):
        isa_prior((2, 3), scale="unit")
    batch = torch.tensor([2.0, 3.0])
    with pytest.raises(ValueError, match="differ in variance"):
        LpNested(Node(2.0, [1, Node(batch, 2)]), "unit")


@pytest.mark.parametrize("order", [-0.5, 0.0, 0.7, 1.0, 4.0, 10.0])
@pytest.mark.parametrize("p", [0.5, 1.0, 2.0, 9.0])
def test_absolute_moments_of_the_generalised_normal_case(p, order):
    moment = LpNested(Node(p, [1, Node(p, 2)]), torch.tensor(0.8, dtype=torch.float64)).absolute_moment(order)
    g = math.lgamma
    expected = math.exp(order / p * math.log(0.8) + g((1 + order) / p) - g(1 / p))
    np.testing.assert_allclose(moment.numpy(), expected, rtol=1e-12)


def test_moments_of_several_orders_at_once():
    prior = LpNested(Node(torch.tensor([1.4, 2.0, 3.0], dtype=torch.float64), [1, Node(2.5, 2)]))
    orders = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    together = prior.absolute_moment(orders)
    for i, order in enumerate(orders.tolist()):
        torch.testing.assert_close(together[i], prior.absolute_moment(order)[i])


@pytest.mark.parametrize("order", [-1, -1.0, -3.5, math.nan])
def test_moments_that_do_not_exist_are_refused(order):
    with pytest.raises(ValueError, match=r"^order = .*; the moment exists for orders above -1$"):
        LpNested(Node(2.0, 2)).absolute_moment(order)


@pytest.mark.parametrize(
    ("radial", "second"),
    [
        (LogNormal(0.2, 0.4), math.exp(0.4 + 2 * 0.16)),
        (HalfNormal(1.5), 2.25),
        (Weibull(1.3, 2.5), 1.69 * math.gamma(1 + 2 / 2.5)),
        (Uniform(0.5, 2.0), 1.75),
    ],
    ids=lambda value: type(value).__name__,
)
def test_the_variance_with_a_radius_of_one_s_own(radial, second):
    spherical = LpNested(Node(2.0, [2, Node(2.0, 2)]), radial=radial)
    torch.testing.assert_close(spherical.variance, torch.full((4,), second / 4))
    torch.manual_seed(0)
    uneven = LpNested(Node(1.5, [2, Node(3.0, 2)]), radial=radial)
    squares = uneven.sample((100_000,)).double().square()
    assert ((squares.mean(0) - uneven.variance).abs() < 4.5 * squares.std(0) / math.sqrt(len(squares))).all()
    with pytest.raises(ValueError, match=r"^order = 1; with another radial density only order 2"):
        uneven.absolute_moment(1)


@pytest.mark.parametrize("n", [1, 3, 20])
def test_the_entropy_of_the_normal_and_laplace_cases(n):
    normal = LpNested(Node(2.0, n), torch.tensor(2.0, dtype=torch.float64)).entropy().item()
    assert normal == pytest.approx(n / 2 * math.log(2 * math.pi * math.e), rel=1e-12)
    laplace = LpNested(Node(1.0, n), torch.tensor(0.7, dtype=torch.float64)).entropy().item()
    assert laplace == pytest.approx(n * (1 + math.log(1.4)), rel=1e-12)


def test_the_entropy_is_the_sum_over_independent_subspaces():
    prior = isa_prior((1, 3, 2), p0=1.6, p1=[0.9, 2.4, 5.0], scale=0.7)
    total = sum(prior.marginal(k).entropy() for k in range(3))
    torch.testing.assert_close(prior.entropy(), total)


# ---- marginals of subspaces


@pytest.mark.parametrize("scale", [0.7, "unit"])
def test_the_density_factorises_into_the_subspaces_marginals(scale):
    prior = isa_prior((2, 2, 2), p0=1.6, p1=2.4, scale=scale)
    if scale != "unit":
        prior = LpNested(DEEP, scale)
    z = torch.randn(50, prior.tree.n_leaves, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    parts = [prior.marginal(k).log_prob(z[:, list(span)]) for k, span in enumerate(prior.subspaces)]
    torch.testing.assert_close(sum(parts), prior.log_prob(z), rtol=1e-11, atol=1e-11)


def test_with_another_radius_the_density_does_not_factorise():
    distribution = LpNested(Node(1.5, [Node(2.0, 2), Node(3.0, 2)]), radial=LogNormal(0.0, 0.5))
    with pytest.raises(NotImplementedError, match=r"the marginal of a subspace is closed for Eq\. 11 only"):
        distribution.marginal(0)


def test_a_marginal_is_the_integral_over_the_other_coordinates():
    prior = LpNested(Node(1.3, [1, Node(2.6, 2)]), 0.7)
    axis = torch.linspace(-9, 9, 721, dtype=torch.float64)
    plane = torch.cartesian_prod(axis, axis)
    for x in (0.0, 0.4, 1.9):
        z = torch.cat([torch.full((len(plane), 1), x, dtype=torch.float64), plane], -1)
        integral = prior.log_prob(z).exp().sum() * 0.025**2
        exact = prior.marginal(0).log_prob(torch.tensor([x], dtype=torch.float64)).exp()
        torch.testing.assert_close(integral, exact, rtol=1e-3, atol=0)


def test_a_marginal_keeps_what_belongs_to_it():
    p0, p1 = torch.tensor([1.4, 2.0]).double().requires_grad_(), torch.tensor(2.5).double()
    prior = LpNested(Node(p0, [1, Node(p1, 2)]), torch.tensor([1.0, 0.3]).double())
    part = prior.marginal(1)
    assert (part.batch_shape, part.event_shape, str(part.tree)) == ((2,), (2,), "<2 exponents>[2.5[2]]")
    torch.testing.assert_close(part.scale, prior.scale)
    assert part.log_prob(torch.ones(2)).requires_grad
    assert prior.expand((3, 2)).marginal(0).batch_shape == (3, 2)
    assert isa_prior((2, 2)).expand((3,)).marginal(0).batch_shape == (3,)
    for k in (-1, 2):
        with pytest.raises(IndexError, match=rf"^subspace = {k}; this distribution has subspaces 0 to 1$"):
            prior.marginal(k)


# ---- marginals of coordinates


@pytest.mark.parametrize("p", [0.3, 1.0, 2.0, 7.0, 50.0])
def test_the_density_of_a_coordinate_in_the_generalised_normal_case(p):
    prior = LpNested(Node(p, [1, Node(p, 2)]), torch.tensor(0.8, dtype=torch.float64))
    law = scipy.stats.gennorm(p, scale=0.8 ** (1 / p))
    x = law.ppf(np.array([0.1, 0.3, 0.45, 0.55, 0.8, 0.99]))
    for leaf in range(3):
        np.testing.assert_allclose(coordinate_pdf(prior, x, leaf), law.pdf(x), rtol=1e-8)


@pytest.mark.parametrize("leaf", [0, 1, 4, 6])
def test_the_density_of_a_coordinate_integrates_to_one_and_has_its_moments(leaf):
    prior = LpNested(DEEP, 1.2)
    u = np.linspace(-25, 7, 1601)
    weight = 2 * coordinate_pdf(prior, np.exp(u), leaf) * np.exp(u)
    # at tiny x the density is taken at a thousandth of the standard deviation: exact where it is flat there
    assert scipy.integrate.trapezoid(weight, u) == pytest.approx(1, abs=5e-3)
    second = scipy.integrate.trapezoid(weight * np.exp(2 * u), u)
    assert second == pytest.approx(float(prior.variance[leaf]), rel=1e-5)


def test_the_density_of_a_coordinate_against_samples():
    prior = isa_prior((4, 4), p0=1.3, p1=[2.5, 0.8])
    torch.manual_seed(0)
    z = prior.sample((100_000,)).double().numpy()
    edges = np.array([-3.0, -1.5, -0.8, -0.2, 0.3, 0.5, 1.0, 2.5])
    for leaf in (0, 5):
        counts = np.histogram(z[:, leaf], edges)[0]
        fine = [np.linspace(a, b, 201) for a, b in pairwise(edges)]
        mass = np.array([scipy.integrate.simpson(coordinate_pdf(prior, x, leaf), x=x) for x in fine])
        assert (np.abs(counts - mass * len(z)) < 4.5 * np.sqrt(mass * len(z))).all()


def test_the_density_of_a_coordinate_at_zero_and_its_symmetry():
    prior = isa_prior()
    x = np.array([[0.0, 0.4], [-0.4, 1e-9]])
    pdf = coordinate_pdf(prior, x)
    assert pdf.shape == (2, 2) and pdf[0, 1] == pdf[1, 0] and pdf[0, 0] == pdf[1, 1] > pdf[0, 1]
    assert (coordinate_pdf(prior, np.array([40.0])) < 1e-12).all()


@pytest.mark.parametrize("leaf", [-1, 4])
def test_coordinate_densities_that_are_refused(leaf):
    with pytest.raises(ValueError, match=r"^prior must have Eq\."):
        coordinate_pdf(isa_prior((2, 2)), np.zeros(1), leaf)
    for other in (isa_prior((2, 2)).expand((2,)), LpNested(Node(2.0, 2), radial=HalfNormal(1.0))):
        with pytest.raises(ValueError, match=r"^prior must have Eq\."):
            coordinate_pdf(other, np.zeros(1))
