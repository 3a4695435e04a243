"""Rotations of the ISA prior, tests of samples, maps to independent coordinates, and marginal densities."""

import math

import numpy as np
import pytest
import scipy.stats
import torch

from edition.factorise import coordinate_pdf, factorise, mixing_map, preserved, turned, unfactorise
from edition.prior import excess_kurtosis, interaction, rotation_cost, sample_tests
from edition.stats import mean_interval
from isa import LpNested, Node, isa_prior


def draw(prior: LpNested, count: int) -> torch.Tensor:
    torch.manual_seed(0)
    return prior.sample((count,)).double()


@pytest.mark.parametrize("between", [False, True])
def test_rotation_cost_in_closed_form(between):
    laplace = 3 / math.sqrt(2) - 2  # E |x - y| = 3 / 2 for two of them
    np.testing.assert_allclose(rotation_cost(2, 1.0, 1.0, between=between), laplace, rtol=1e-3)
    costs = rotation_cost(3, 2.0, 2.0, np.array([0.3, 1.0]), between=between)
    np.testing.assert_allclose(costs, 0.0, atol=1e-12)  # normal


@pytest.mark.parametrize(("between", "partner"), [(False, 1), (True, 3)])
def test_rotation_cost_by_simulation(between, partner):
    prior, angle = isa_prior((3, 3), 1.3, 3.0), 0.5
    z = draw(prior, 40_000)
    lost = mean_interval((prior.log_prob(z) - prior.log_prob(turned(z, 0, partner, angle))).reshape(40, -1).mean(1))
    assert abs(rotation_cost(3, 1.3, 3.0, angle, between=between) - lost.estimate) < lost.high - lost.low


def test_shape_and_dependence():
    assert excess_kurtosis(4, 2.0, 2.0) == pytest.approx(0.0, abs=1e-9)
    assert excess_kurtosis(1, 1.0, 3.0) == pytest.approx(3.0)  # one coordinate has the root's exponent
    assert interaction(3, 1.5, 1.5) == pytest.approx(0.0, abs=1e-12) and abs(interaction(3, 1.5, 2.0)) > 0.1


def other_directions(prior: LpNested, z: torch.Tensor, p: float) -> torch.Tensor:
    """Return points with the same norms in every subspace, and directions inside of another exponent."""
    torch.manual_seed(1)
    parts = []
    for columns, child in zip(prior.subspaces, prior.tree.branches, strict=True):
        part = isa_prior((len(columns),), float(prior.tree.p), p).sample((len(z),)).double()
        parts.append(part * (child.norm(z[:, list(columns)]) / child.norm(part))[:, None])
    return torch.cat(parts, 1)


PRIOR = isa_prior((4, 4), 2.1, 2.2)
SAMPLES = draw(PRIOR, 10_000)


@pytest.mark.parametrize(
    ("z", "failing"),
    [
        (SAMPLES, set()),
        (other_directions(PRIOR, SAMPLES, 1.3), {"coordinate", "score"}),
        (other_directions(PRIOR, SAMPLES, 1.7), {"score"}),  # too near for single coordinates
        (SAMPLES.abs() * SAMPLES[:, :1].sign(), {"signs"}),
        (SAMPLES.abs(), {"coordinate", "signs"}),
        (SAMPLES * 1.1, {"radius", "coordinate", "score"}),
    ],
)
def test_wrong_samples_fail(z, failing):
    p_values = sample_tests(PRIOR, z)
    assert {name.split()[0] for name, p in p_values.items() if p < 1e-3} == failing
    assert all(p_values[name] < 1e-3 for name in p_values if name.split()[0] in failing - {"score"})


PRIORS = {  # with the exponents above the leaves
    "Eq. 11": (LpNested(Node(1.5, [1, Node(0.8, [Node(3.0, 2), 1]), Node(2.2, 2)]), 0.7), [1.5, 3, 3, 0.8, 2.2, 2.2]),
    "extreme exponents": (LpNested(Node(0.4, [Node(12.0, 2), 1]), 1.3), [12.0, 12.0, 0.4]),
    "equal exponents": (LpNested(Node(1.4, [Node(1.4, 2), 1]), 0.6), [1.4] * 3),
    "chain": (LpNested(Node(2.1, [Node(0.7, [Node(1.4, 2)])])), [1.4, 1.4]),
    "the paper's": (isa_prior(), [2.2] * 20),
}
priors = pytest.mark.parametrize(("prior", "exponents"), PRIORS.values(), ids=PRIORS)


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
def test_coordinates_are_independent_generalised_normals(prior, exponents):
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
