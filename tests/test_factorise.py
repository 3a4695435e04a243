"""Maps to independent coordinates: p-generalised normal outputs, inverse, log determinant; marginal densities."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import scipy.integrate
import scipy.stats
import torch

from edition.factorise import coordinate_pdf, factorise, mixing_map, preserved, unfactorise
from isa import LpNested, Node, isa_prior

ALPHA = 1e-4
TREE = Node(1.5, [1, Node(0.8, [Node(3.0, 2), 1]), Node(2.2, 2)])
PRIORS = {  # with the exponents above the leaves
    "Eq. 11": (LpNested(TREE, 0.7), [1.5, 3.0, 3.0, 0.8, 2.2, 2.2]),
    "extreme exponents": (LpNested(Node(0.4, [Node(12.0, 2), 1]), 1.3), [12.0, 12.0, 0.4]),
    "chain": (LpNested(Node(2.1, [Node(0.7, [Node(1.4, 2)])])), [1.4, 1.4]),
    "the paper's": (isa_prior(), [2.2] * 20),
}
priors = pytest.mark.parametrize(("prior", "exponents"), PRIORS.values(), ids=PRIORS)


def draw(prior: LpNested, count: int) -> torch.Tensor:
    torch.manual_seed(0)
    return prior.sample((count,)).double()


def gennorm(p: float, scale: float) -> scipy.stats.rv_frozen:
    return scipy.stats.gennorm(p, scale=scale ** (1 / p))


def test_coordinates_are_independent_and_generalised_normal():
    prior, exponents = PRIORS["Eq. 11"]
    z = draw(prior, 20_000)
    assert abs(np.corrcoef(z.abs().numpy().T)[1, 3]) > 4.5 / math.sqrt(len(z))  # before, they are not
    y = factorise(prior, z)[0].numpy()
    u = np.stack([gennorm(p, 0.7).cdf(column) for p, column in zip(exponents, y.T, strict=True)], 1)
    assert all(scipy.stats.kstest(column, scipy.stats.uniform.cdf).pvalue > ALPHA for column in u.T)
    # with standard uniform marginals, independence makes every product of two functions the product of their means
    for function in (lambda v: v - 0.5, lambda v: np.abs(v - 0.5) - 0.25, lambda v: np.cos(8 * v) - np.sin(8) / 8):
        correlation = np.corrcoef(function(u).T)[np.triu_indices(6, 1)]
        assert (np.abs(correlation) < 4.5 / math.sqrt(len(u))).all()


def test_equal_exponents_leave_nothing_to_do():
    prior = LpNested(Node(1.4, [Node(1.4, 2), 1]), 0.6)
    z = draw(prior, 10)
    assert torch.equal(factorise(prior, z)[0], z)


@priors
def test_inverse_and_signs(prior, exponents):
    z = draw(prior, 400).reshape(20, 20, -1)
    y = factorise(prior, z)[0]
    assert y.shape == z.shape and torch.equal(y.sign(), z.sign())
    torch.testing.assert_close(unfactorise(prior, y), z, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(factorise(prior, unfactorise(prior, 0.9 * y))[0], 0.9 * y, rtol=1e-7, atol=1e-9)


@priors
def test_log_determinant_matches_finite_differences(prior, exponents):
    z = draw(prior, 4)
    shifts = 1e-6 * torch.eye(z.shape[1], dtype=torch.float64)
    ahead, behind = (factorise(prior, z[:, None] + sign * shifts)[0] for sign in (1, -1))
    expected = torch.linalg.slogdet((ahead - behind) / 2e-6).logabsdet
    torch.testing.assert_close(factorise(prior, z)[1], expected, rtol=1e-4, atol=1e-4)


@priors
def test_densities_transform_into_each_other(prior, exponents):
    """The prior's density is that of independent generalised normals, pulled back."""
    z = draw(prior, 200)
    y, log_det = factorise(prior, z)
    pieces = [gennorm(p, float(prior.scale)).logpdf(column) for p, column in zip(exponents, y.numpy().T, strict=True)]
    torch.testing.assert_close(
        prior.log_prob(z), torch.from_numpy(np.sum(pieces, axis=0)) + log_det, rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("size", [1e-6, 1e-3, 1.0, 10.0])
def test_inverse_at_small_and_large_radii(size):
    prior, _ = PRIORS["Eq. 11"]
    z = size * torch.tensor([0.5, -1.0, 0.3, 0.8, 0.1, -0.2], dtype=torch.float64)
    torch.testing.assert_close(unfactorise(prior, factorise(prior, z)[0]), z, rtol=1e-8, atol=0)


def test_mixing_map_keeps_the_prior():
    """The samples that it moves keep their law, which a plain rotation of them does not."""
    prior = isa_prior((2, 2), 1.0, 4.0)
    generator = torch.Generator().manual_seed(0)
    z = 0.2 + 0.5 * torch.rand(20, 4, dtype=torch.float64, generator=generator)
    error, mixing = preserved(prior, z, 0.7)
    assert error < 1e-5 and mixing > 0.1
    assert torch.allclose(mixing_map(prior, mixing_map(prior, z, 0.7), -0.7), z)
    torch.manual_seed(0)
    samples = mixing_map(prior, prior.sample((4000,)).double(), 0.7)
    fresh = prior.sample((4000,)).double()
    for moved, kept in [
        *zip(samples.T[:2], fresh.T[:2], strict=True),
        (prior.log_prob(samples), prior.log_prob(fresh)),
    ]:
        assert scipy.stats.ks_2samp(moved.numpy(), kept.numpy()).pvalue > 0.001


# --- marginal densities of coordinates --------------------------------------------------------------------------------


@pytest.mark.parametrize("p", [0.3, 2.0, 50.0])
def test_coordinate_pdf_of_the_generalised_normal_case(p):
    prior, law = LpNested(Node(p, [1, Node(p, 2)]), torch.tensor(0.8).double()), gennorm(p, 0.8)
    x = law.ppf(np.array([0.1, 0.3, 0.45, 0.55, 0.8, 0.99]))
    for leaf in range(3):
        np.testing.assert_allclose(coordinate_pdf(prior, x, leaf), law.pdf(x), rtol=2e-6)


@pytest.mark.parametrize("leaf", [0, 1, 4])
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
