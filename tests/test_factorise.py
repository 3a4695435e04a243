"""Maps to independent coordinates: p-generalised normal outputs, inverse, log determinant; marginal densities."""

import numpy as np
import pytest
import scipy.stats
import torch

from edition.factorise import coordinate_pdf, factorise, mixing_map, preserved, unfactorise
from isa import LpNested, Node, isa_prior

PRIORS = {  # with the exponents above the leaves
    "Eq. 11": (LpNested(Node(1.5, [1, Node(0.8, [Node(3.0, 2), 1]), Node(2.2, 2)]), 0.7), [1.5, 3, 3, 0.8, 2.2, 2.2]),
    "extreme exponents": (LpNested(Node(0.4, [Node(12.0, 2), 1]), 1.3), [12.0, 12.0, 0.4]),
    "equal exponents": (LpNested(Node(1.4, [Node(1.4, 2), 1]), 0.6), [1.4] * 3),
    "chain": (LpNested(Node(2.1, [Node(0.7, [Node(1.4, 2)])])), [1.4, 1.4]),
    "the paper's": (isa_prior(), [2.2] * 20),
}
priors = pytest.mark.parametrize(("prior", "exponents"), PRIORS.values(), ids=PRIORS)


def draw(prior: LpNested, count: int) -> torch.Tensor:
    torch.manual_seed(0)
    return prior.sample((count,)).double()


def gennorm(p: float, scale: float) -> scipy.stats.distributions.rv_frozen:
    return scipy.stats.gennorm(p, scale=scale ** (1 / p))


@priors
@pytest.mark.parametrize("size", [1e-6, 1.0, 3.0])
def test_inverse_and_signs(prior, exponents, size):
    z = size * draw(prior, 100).reshape(10, 10, -1)
    y = factorise(prior, z)[0]
    assert torch.equal(y.sign(), z.sign())
    torch.testing.assert_close(unfactorise(prior, y), z, rtol=1e-7, atol=0)


@priors
def test_log_determinant_matches_finite_differences(prior, exponents):
    z = draw(prior, 4)
    shifts = 1e-6 * torch.eye(z.shape[1], dtype=torch.float64)
    ahead, behind = (factorise(prior, z[:, None] + sign * shifts)[0] for sign in (1, -1))
    expected = torch.linalg.slogdet((ahead - behind) / 2e-6).logabsdet
    torch.testing.assert_close(factorise(prior, z)[1], expected, rtol=1e-4, atol=1e-4)


@priors
def test_coordinates_have_the_density_of_independent_generalised_normals(prior, exponents):
    z = draw(prior, 200)
    y, log_det = factorise(prior, z)
    pieces = [gennorm(p, float(prior.scale)).logpdf(column) for p, column in zip(exponents, y.numpy().T, strict=True)]
    expected = torch.from_numpy(np.sum(pieces, axis=0)) + log_det
    torch.testing.assert_close(prior.log_prob(z), expected, rtol=1e-6, atol=1e-6)


def test_mixing_map_keeps_the_prior():
    prior = isa_prior((2, 2), 1.0, 4.0)
    generator = torch.Generator().manual_seed(0)
    z = 0.2 + 0.5 * torch.rand(20, 4, dtype=torch.float64, generator=generator)
    error, mixing = preserved(prior, z, 0.7)
    assert error < 1e-5 and mixing > 0.1
    torch.testing.assert_close(mixing_map(prior, mixing_map(prior, z, 0.7), -0.7), z)
    fresh = draw(prior, 8000)
    moved, others = mixing_map(prior, fresh[:4000], 0.7), fresh[4000:]
    pairs = [(moved[:, 0], others[:, 0]), (moved[:, 1], others[:, 1]), (prior.log_prob(moved), prior.log_prob(others))]
    assert all(scipy.stats.ks_2samp(one.numpy(), other.numpy()).pvalue > 0.001 for one, other in pairs)


@pytest.mark.parametrize("p", [0.3, 2.0, 50.0])
def test_coordinate_pdf_of_the_generalised_normal(p):
    prior, law = LpNested(Node(p, [1, Node(p, 2)]), torch.tensor(0.8).double()), gennorm(p, 0.8)
    x = law.ppf(np.array([0.1, 0.3, 0.45, 0.55, 0.8, 0.99]))
    for leaf in range(3):
        np.testing.assert_allclose(coordinate_pdf(prior, x, leaf), law.pdf(x), rtol=2e-6)


@pytest.mark.parametrize("tree", [Node(1.3, [1, Node(2.5, 2)]), Node(2.1, [Node(0.7, [Node(1.4, 2), 1])])])
@pytest.mark.parametrize("leaf", [0, 2])
def test_coordinate_pdf_matches_quadrature(tree, leaf):
    prior, x = LpNested(tree, 1.2), np.array([[0.0, 0.4], [-0.4, 2.0]])
    node, weight = np.polynomial.legendre.leggauss(80)
    t, weight = (1 + node) / 2, weight / 2
    side, weight = 16 * t**4, 64 * t**3 * weight  # dense where the density has its kinks
    z = np.stack(np.broadcast_arrays(x[..., None, None], side[:, None], side), -1)
    density = prior.log_prob(torch.from_numpy(np.roll(z, leaf, -1))).exp().numpy()
    expected = 4 * np.einsum("abij, i, j -> ab", density, weight, weight)
    rtol = np.where(x == 0, 0.02, 1e-5)  # at 0 the limit is taken at a thousandth of the standard deviation
    assert (np.abs(coordinate_pdf(prior, x, leaf) / expected - 1) < rtol).all()
