"""Samples against the density (Algorithm 1), and closed forms: moments, entropy, marginals."""

import math

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
from conftest import wide
from torch.distributions import LogNormal, Uniform

from isa import LpNested, Node, isa_prior

ALPHA = 1e-4  # of each Kolmogorov-Smirnov test; seeds are fixed
DEEP = Node(1.5, [1, Node(0.8, [Node(3.0, [2, Node(1.2, 2)]), 1]), Node(2.2, 3)])


def draw(distribution: LpNested, count: int, seed: int = 0) -> np.ndarray:
    torch.manual_seed(seed)
    return distribution.sample((count,)).double().numpy()


def assert_law(sample: np.ndarray, law) -> None:
    assert scipy.stats.kstest(sample, law.cdf).pvalue > ALPHA


def assert_mean(sample: torch.Tensor, expected: torch.Tensor) -> None:
    error = sample.std(0) / math.sqrt(len(sample))
    assert ((sample.mean(0) - expected).abs() < 4.5 * error + 1e-5).all()


def test_samples_and_moments(lp_nested):
    size = (*lp_nested.batch_shape, *lp_nested.event_shape)
    for shape in ((), (3, 2), (0,)):
        assert lp_nested.sample(shape).shape == lp_nested.rsample(shape).shape == (*shape, *size)
    torch.manual_seed(0)
    first = lp_nested.rsample((4,))
    torch.manual_seed(0)
    assert torch.equal(lp_nested.sample((4,)), first)
    z = lp_nested.sample((40_000,))
    assert z.dtype == lp_nested.mean.dtype == lp_nested.variance.dtype and z.isfinite().all() and (z != 0).all()
    assert lp_nested.log_prob(z).isfinite().all()
    z = z.double()
    assert_mean((z > 0).double(), torch.tensor(0.5))
    # high powers of heavy tails converge too slowly to be tested through samples
    order = 2.0 if min(float(torch.as_tensor(p).min()) for p in lp_nested.tree.exponents) > 0.5 else 0.3
    if lp_nested.radial is None or order == 2:
        assert_mean(z.abs() ** order, lp_nested.absolute_moment(order).double())
    assert lp_nested.mean.shape == size and not lp_nested.mean.any()
    torch.testing.assert_close(lp_nested.stddev.square(), lp_nested.absolute_moment(2))
    if lp_nested.radial is None:
        assert lp_nested.entropy().shape == lp_nested.batch_shape
        assert_mean(-lp_nested.log_prob(z), lp_nested.entropy().double())


@pytest.mark.parametrize(
    ("tree", "scale"), [(Node(2.1, [Node(2.2, 4)] * 2), 1e50), (DEEP, 2), (Node(0.2, [Node(3.0, 2), 1]), 0.3)], ids=str
)
def test_energies_are_gamma_and_shares_dirichlet_distributed(tree, scale):
    """The root's energy is a Gamma variable; shares of a node's energy are independent of it."""

    def visit(node: Node, z: np.ndarray) -> np.ndarray:
        parts = zip(node.branches, node.subspaces, strict=True)
        values = [visit(child, z[:, span]) if isinstance(child, Node) else abs(z[:, span[0]]) for child, span in parts]
        log_powers = node.p * np.log(values)
        log_energy, a = scipy.special.logsumexp(log_powers, 0), np.array(node.sizes) / node.p
        for k, log_share in enumerate(log_powers - log_energy if len(a) > 1 else []):
            assert_law(np.exp(log_share), scipy.stats.beta(a[k], a.sum() - a[k]))
            assert scipy.stats.spearmanr(log_share, log_energy).pvalue > ALPHA
        return np.exp(log_energy / node.p)

    f = visit(tree, draw(LpNested(tree, scale), 20_000))
    assert_law(f**tree.p / scale, scipy.stats.gamma(tree.n_leaves / tree.p))


@pytest.mark.parametrize(
    ("radial", "law"),
    [
        (LogNormal(0.2, 0.4), scipy.stats.lognorm(0.4, scale=math.exp(0.2))),
        (Uniform(0.5, 2.0), scipy.stats.uniform(0.5, 1.5)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_radial_density(radial, law):
    distribution = LpNested(DEEP, radial=radial)
    z = torch.from_numpy(draw(distribution, 20_000))
    assert_law(distribution.norm(z).numpy(), law)
    assert_mean(z.square(), distribution.variance.double())
    spherical = LpNested(Node(2.0, [2, Node(2.0, 2)]), radial=radial)
    torch.testing.assert_close(spherical.variance.double(), wide([(law.var() + law.mean() ** 2) / 4] * 4))
    for closed in (distribution.entropy, lambda: distribution.marginal(0), lambda: distribution.absolute_moment(1)):
        with pytest.raises(NotImplementedError, match="closed"):
            closed()


@pytest.mark.parametrize("order", [1.0, 3.0])
def test_gradients_of_samples_are_those_of_moments(order):
    def build(p0, p1, q, s):
        return LpNested(Node(p0, [1, Node(p1, [Node(q, 2), 1])]), s)

    parameters = [wide(v, True) for v in (1.4, 2.6, 0.9, 0.8)]
    exact = torch.stack(torch.autograd.grad(build(*parameters).absolute_moment(order).sum(), parameters))
    torch.manual_seed(0)
    batches = []
    for _ in range(40):  # the spread of independent batches gives the standard error
        z = build(*parameters).rsample((1000,))
        batches.append(torch.stack(torch.autograd.grad((z.abs() ** order).sum(-1).mean(), parameters)))
    assert_mean(torch.stack(batches), exact)
    assert (torch.stack(batches).std(0) / math.sqrt(40) < 0.1 * exact.abs()).sum() >= 2


@pytest.mark.parametrize(
    ("tree", "scale"),
    [(isa_prior().tree, 2.0931), (Node(2.0, 3), 2.0), (Node(3.0, [Node(0.9, [Node(5.0, 2), Node(5.0, 2)])]), None)],
)
def test_unit_variance(tree, scale):
    prior, z = LpNested(tree, "unit"), torch.ones(tree.n_leaves, dtype=torch.float64)
    torch.testing.assert_close(prior.variance, torch.ones(tree.n_leaves))
    assert isa_prior().variance[0].item() == pytest.approx(0.4949, abs=5e-5)
    assert scale is None or prior.scale.item() == pytest.approx(scale, abs=5e-5)
    torch.testing.assert_close(prior.log_prob(z), LpNested(tree, prior.scale.double()).log_prob(z), rtol=1e-6, atol=0)


@pytest.mark.parametrize("p", [0.5, 1.0, 2.0, 9.0])
def test_moments_and_entropy_of_the_generalised_normal_case(p):
    prior, orders, g = LpNested(Node(p, [1, Node(p, 2)]), wide(0.8)), (-0.5, 0.7, 4.0), math.lgamma
    for order in orders:
        expected = math.exp(order / p * math.log(0.8) + g((1 + order) / p) - g(1 / p))
        np.testing.assert_allclose(prior.absolute_moment(order).numpy(), expected, rtol=1e-12)
    assert prior.entropy().item() == pytest.approx(3 * scipy.stats.gennorm(p, scale=0.8 ** (1 / p)).entropy())


@pytest.mark.parametrize("prior", [isa_prior((2, 2, 2), 1.6, 2.4, "unit"), LpNested(DEEP, 0.7)], ids=str)
def test_subspaces_factorise(prior):
    z = torch.randn(50, prior.tree.n_leaves, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    marginals = [prior.marginal(k) for k in range(len(prior.subspaces))]
    parts = [marginal.log_prob(z[:, span]) for marginal, span in zip(marginals, prior.subspaces, strict=True)]
    torch.testing.assert_close(sum(parts), prior.log_prob(z), rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(prior.entropy(), sum(marginal.entropy() for marginal in marginals))


def test_marginal_of_a_batch():
    prior = LpNested(Node(wide([1.4, 2.0], True), [1, Node(wide(2.5), 2)]), wide([1.0, 0.3]))
    part = prior.marginal(1)
    assert (part.batch_shape, part.event_shape, str(part.tree)) == ((2,), (2,), "[1.4, 2.0][2.5[2]]")
    torch.testing.assert_close(part.scale, prior.scale)
    assert part.log_prob(torch.ones(2)).requires_grad and prior.expand((3, 2)).marginal(0).batch_shape == (3, 2)
