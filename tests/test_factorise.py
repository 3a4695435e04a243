"""Nested radial factorisation: independent, p-generalised normal outputs; inverse; log-determinant."""

from __future__ import annotations

import copy
import math
from itertools import pairwise

import numpy as np
import pytest
import scipy.integrate
import scipy.stats
import torch
from torch.distributions import TransformedDistribution

from edition.factorise import NestedRadialFactorization, coordinate_pdf
from isa import LpNested, Node, isa_prior

ALPHA = 1e-4
TREE = Node(1.5, [1, Node(0.8, [Node(3.0, 2), 1]), Node(2.2, 2)])
LEAF_EXPONENTS = [1.5, 3.0, 3.0, 0.8, 2.2, 2.2]
SOURCES = {
    "Eq. 11": lambda: LpNested(TREE, 0.7),
    "extreme exponents": lambda: LpNested(Node(0.4, [Node(12.0, 2), 1]), 1.3),
    "chain": lambda: LpNested(Node(2.1, [Node(0.7, [Node(1.4, 2)])])),
    "the paper's": lambda: isa_prior(),
}


@pytest.fixture(params=SOURCES)
def source(request) -> LpNested:
    return SOURCES[request.param]()


def draw(source: LpNested, count: int, seed: int = 0) -> torch.Tensor:
    torch.manual_seed(seed)
    return source.sample((count,)).double()


def test_outputs_are_independent_and_generalised_normal():
    source = SOURCES["Eq. 11"]()
    y = NestedRadialFactorization(source)(draw(source, 20_000)).numpy()
    scale = float(source.scale)
    for j, p in enumerate(LEAF_EXPONENTS):
        law = scipy.stats.gennorm(p, scale=scale ** (1 / p))
        assert scipy.stats.kstest(y[:, j], law.cdf).pvalue > ALPHA
    # with standard uniform marginals, independence makes every product of two functions the product of their means
    u = np.stack([scipy.stats.gennorm(p, scale=scale ** (1 / p)).cdf(y[:, j]) for j, p in enumerate(LEAF_EXPONENTS)], 1)
    for function in (lambda v: v - 0.5, lambda v: np.abs(v - 0.5) - 0.25, lambda v: np.cos(8 * v) - np.sin(8) / 8):
        w = function(u)
        correlation = np.corrcoef(w.T)[np.triu_indices(6, 1)]
        assert (np.abs(correlation) < 4.5 / math.sqrt(len(w))).all()


def test_inputs_are_dependent():
    w = draw(SOURCES["Eq. 11"](), 20_000).abs().numpy()
    assert abs(np.corrcoef(w.T)[1, 3]) > 4.5 / math.sqrt(len(w))


def test_equal_exponents_leave_nothing_to_do():
    source = LpNested(Node(1.4, [Node(1.4, 2), 1]), 0.6)
    z = draw(source, 10)
    assert torch.equal(NestedRadialFactorization(source)(z), z)


def test_inverse(source):
    transform = NestedRadialFactorization(source)
    z = draw(source, 400)
    y = transform(z)
    assert y.shape == z.shape and y.isfinite().all()
    assert torch.equal(y.sign(), z.sign())
    torch.testing.assert_close(transform.inv(y), z, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(transform(transform.inv(0.9 * y)), 0.9 * y, rtol=1e-7, atol=1e-9)


def test_log_determinant_matches_the_jacobian(source):
    transform = NestedRadialFactorization(source)
    for z in draw(source, 4):
        jacobian = torch.autograd.functional.jacobian(transform, z)
        expected = torch.linalg.slogdet(jacobian).logabsdet
        torch.testing.assert_close(transform.log_abs_det_jacobian(z, transform(z)), expected, rtol=1e-6, atol=1e-6)


def test_jacobian_matches_finite_differences(source):
    transform = NestedRadialFactorization(source)
    z = draw(source, 2).requires_grad_()
    assert torch.autograd.gradcheck(transform, z, eps=1e-7, atol=1e-5, rtol=1e-4)
    inverse = transform.inv
    assert torch.autograd.gradcheck(inverse, transform(z).detach().requires_grad_(), eps=1e-7, atol=1e-5, rtol=1e-4)


def test_densities_transform_into_each_other(source):
    # the source's density is that of independent generalised normals, pulled back
    transform = NestedRadialFactorization(source)
    z = draw(source, 200)
    y, scale = transform(z), float(source.scale)
    exponents = []

    def visit(node: Node) -> None:
        for child in node.branches:
            if isinstance(child, Node):
                visit(child)
            else:
                exponents.append(node.p)

    visit(source.tree)
    pieces = [scipy.stats.gennorm(p, scale=scale ** (1 / p)).logpdf(y[:, j].numpy()) for j, p in enumerate(exponents)]
    expected = torch.from_numpy(np.sum(pieces, axis=0)) + transform.log_abs_det_jacobian(z, y)
    torch.testing.assert_close(source.log_prob(z), expected, rtol=1e-6, atol=1e-6)


def test_transformed_distribution():
    source = SOURCES["Eq. 11"]()
    transform = NestedRadialFactorization(source, cache_size=1)
    outputs = TransformedDistribution(source, [transform])
    torch.manual_seed(0)
    y = outputs.sample((300,)).double()
    pieces = [
        scipy.stats.gennorm(p, scale=0.7 ** (1 / p)).logpdf(y[:, j].numpy()) for j, p in enumerate(LEAF_EXPONENTS)
    ]
    np.testing.assert_allclose(outputs.log_prob(y).numpy(), np.sum(pieces, axis=0), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [0.0, 1e-30, 1e-3, 1.0, 1e3])
def test_any_radius_is_mapped_to_a_finite_point(size):
    transform = NestedRadialFactorization(SOURCES["Eq. 11"]())
    z = size * torch.tensor([0.5, -1.0, 0.3, 0.8, 0.0, -0.2], dtype=torch.float64)
    y = transform(z)
    assert y.isfinite().all() and torch.equal(y.sign(), z.sign())
    assert transform.log_abs_det_jacobian(z, y).isfinite()


@pytest.mark.parametrize("size", [0.0, 1e-30, 1e-6, 1e-3, 1.0, 30.0, 1e4])
def test_inverse_at_small_and_large_radii(size):
    transform = NestedRadialFactorization(SOURCES["Eq. 11"]())
    z = size * torch.tensor([0.5, -1.0, 0.3, 0.8, 0.0, -0.2], dtype=torch.float64)
    torch.testing.assert_close(transform.inv(transform(z)), z, rtol=1e-8, atol=0)


def test_vanished_subspaces_stay_where_they_are():
    transform = NestedRadialFactorization(SOURCES["Eq. 11"]())
    z = torch.tensor([[0.5, 0.0, 0.0, 0.0, 0.3, -0.2], [0.0] * 6], dtype=torch.float64)
    y = transform(z)
    assert torch.equal(y == 0, z == 0) and y.isfinite().all()
    assert transform.log_abs_det_jacobian(z, y).isfinite().all()
    torch.testing.assert_close(transform.inv(y), z, rtol=1e-8, atol=0)


def test_batches_and_single_precision():
    transform = NestedRadialFactorization(SOURCES["Eq. 11"]())
    z = draw(transform.source, 6).reshape(2, 3, 6)
    y = transform(z)
    assert y.shape == (2, 3, 6) and transform.log_abs_det_jacobian(z, y).shape == (2, 3)
    single = transform(z.float())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), y, rtol=1e-4, atol=1e-5)


def test_equality_and_caches():
    source = SOURCES["Eq. 11"]()
    one = NestedRadialFactorization(source)
    assert one == NestedRadialFactorization(source)
    assert one != NestedRadialFactorization(copy.deepcopy(source))
    assert one.with_cache(1) == one and one.with_cache(1)._cache_size == 1
    assert one.bijective and one.inv.inv is one


# ---- marginal densities of coordinates


@pytest.mark.parametrize("p", [0.3, 1.0, 2.0, 7.0, 50.0])
def test_coordinate_pdf_of_the_generalised_normal_case(p):
    prior, law = (
        LpNested(Node(p, [1, Node(p, 2)]), torch.tensor(0.8).double()),
        scipy.stats.gennorm(p, scale=0.8 ** (1 / p)),
    )
    x = law.ppf(np.array([0.1, 0.3, 0.45, 0.55, 0.8, 0.99]))
    for leaf in range(3):
        np.testing.assert_allclose(coordinate_pdf(prior, x, leaf), law.pdf(x), rtol=2e-6)


@pytest.mark.parametrize("leaf", [0, 1, 4, 5])
def test_coordinate_pdf_integrates_to_one_and_has_its_moments(leaf):
    prior, u = LpNested(TREE, 1.2), np.linspace(-25, 7, 1601)
    weight = 2 * coordinate_pdf(prior, np.exp(u), leaf) * np.exp(u)
    # at tiny x the density is taken at a thousandth of the standard deviation: exact where it is flat there
    assert scipy.integrate.trapezoid(weight, u) == pytest.approx(1, abs=5e-3)
    second = scipy.integrate.trapezoid(weight * np.exp(2 * u), u)
    assert second == pytest.approx(float(prior.variance[leaf]), rel=1e-5)
    pdf = coordinate_pdf(prior, np.array([[0.0, 0.4], [-0.4, 1e-9]]), leaf)
    assert pdf.shape == (2, 2) and pdf[0, 1] == pdf[1, 0] and pdf[0, 0] == pdf[1, 1] > pdf[0, 1]


def test_coordinate_pdf_against_samples():
    prior, edges = isa_prior((4, 4), p0=1.3, p1=[2.5, 0.8]), np.array([-3.0, -1.5, -0.8, -0.2, 0.3, 0.5, 1.0, 2.5])
    z = draw(prior, 100_000).numpy()
    for leaf in (0, 5):
        fine = [np.linspace(a, b, 201) for a, b in pairwise(edges)]
        mass = np.array([scipy.integrate.simpson(coordinate_pdf(prior, x, leaf), x=x) for x in fine])
        counts = np.histogram(z[:, leaf], edges)[0]
        assert (np.abs(counts - mass * len(z)) < 4.5 * np.sqrt(mass * len(z))).all()
