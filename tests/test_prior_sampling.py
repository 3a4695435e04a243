"""Samples against the density (Algorithm 1): radius, directions, independence, reproducibility, pathwise gradients."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
import torch
from scipy.spatial.distance import pdist, squareform
from torch.distributions import Gamma, HalfNormal, LogNormal, Uniform, Weibull

from isa import LpNested, Node, isa_prior

ALPHA = 1e-4  # of each Kolmogorov-Smirnov test; seeds are fixed
DEEP = Node(1.5, [1, Node(0.8, [Node(3.0, [2, Node(1.2, 2)]), 1]), Node(2.2, 3)])


def draw(distribution: LpNested, count: int, seed: int = 0) -> np.ndarray:
    torch.manual_seed(seed)
    return distribution.sample((count,)).double().numpy()


def p_value(sample: np.ndarray, cdf) -> float:
    return scipy.stats.kstest(sample, cdf).pvalue


def node_values(tree: Node, z: np.ndarray) -> list[tuple[Node, np.ndarray, np.ndarray]]:
    """For each inner node its value and those of its children, by the definition."""
    result = []

    def visit(node: Node, part: np.ndarray) -> np.ndarray:
        children, first = [], 0
        place = len(result)
        result.append(None)
        for child in node.branches:
            below = child if isinstance(child, int) else child.n_leaves
            slab = part[:, first : first + below]
            children.append(np.abs(slab[:, 0]) if isinstance(child, int) else visit(child, slab))
            first += below
        children = np.stack(children, -1)
        value = (children**node.p).sum(-1) ** (1 / node.p)
        result[place] = (node, value, children)
        return value

    visit(tree, z)
    return result


# ---- a torch distribution, over the table


def test_shapes_dtypes_and_signs(lp_nested):
    torch.manual_seed(0)
    size = (*lp_nested.batch_shape, *lp_nested.event_shape)
    assert lp_nested.sample().shape == size
    assert lp_nested.rsample((3, 2)).shape == (3, 2, *size)
    assert lp_nested.sample((0,)).shape == (0, *size)
    z = lp_nested.sample((2000,))
    assert z.dtype == lp_nested.mean.dtype == lp_nested.variance.dtype
    assert z.isfinite().all() and lp_nested.support.check(z).all()
    positive = (z > 0).double().mean(0)
    assert ((positive - 0.5).abs() < 4.5 * 0.5 / math.sqrt(2000)).all()
    assert lp_nested.log_prob(z).isfinite().all()


def test_seeds_decide(lp_nested):
    torch.manual_seed(5)
    first = lp_nested.sample((4,))
    torch.manual_seed(5)
    assert torch.equal(lp_nested.rsample((4,)), first)
    assert not torch.equal(lp_nested.sample((4,)), first)


def test_many_samples_are_drawn_in_blocks_to_the_same_law():
    prior = LpNested(Node(torch.tensor([1.4, 2.0]).double(), [1, Node(2.5, 2)]))
    torch.manual_seed(0)
    z = prior.sample((3, 50_000))
    assert z.shape == (3, 50_000, 2, 3) and z[0, 0, 0, 0] != z[1, 0, 0, 0]
    assert len(z.unique()) == z.numel()  # no block twice
    for row in z:
        error = row.square().std(0) / math.sqrt(50_000)
        assert ((row.square().mean(0) - prior.variance).abs() < 4.5 * error).all()


def test_tensor_parameters_decide_the_dtype():
    assert LpNested(Node(2.0, 2)).sample().dtype == torch.float32
    wide = torch.tensor(2.0, dtype=torch.float64)
    assert LpNested(Node(2.0, 2), wide).sample().dtype == torch.float64
    assert LpNested(Node(torch.tensor(2.0), [1, Node(wide, 2)])).sample().dtype == torch.float64
    assert not LpNested(Node(torch.tensor(2.0, requires_grad=True), 2)).sample().requires_grad


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_tensor_parameters_decide_the_device():
    torch.manual_seed(0)
    p0 = torch.tensor(1.4, device="cuda", requires_grad=True)
    prior = LpNested(Node(p0, [1, Node(2.5, 3)]), 0.8)
    z = prior.rsample((50_000,))
    assert {x.device.type for x in (z, prior.mean, prior.variance, prior.entropy(), prior.log_prob(z))} == {"cuda"}
    error = z.square().std(0) / math.sqrt(len(z))
    assert ((z.square().mean(0) - prior.variance).abs() < 4.5 * error).all()
    prior.log_prob(z).mean().backward()
    assert p0.grad.isfinite()


# ---- radius and directions


@pytest.mark.parametrize(
    ("tree", "scale"),
    [(isa_prior().tree, 1.0), (DEEP, 1.2), (Node(0.2, [Node(50.0, 2), 1]), 0.3), (Node(50.0, [Node(0.2, 2), 1]), 3.0)],
    ids=str,
)
def test_the_radius_to_the_power_p0_is_gamma_distributed(tree, scale):
    prior = LpNested(tree, scale)
    torch.manual_seed(0)
    energy = prior.norm(prior.sample((20_000,)).double()) ** tree.p / scale
    assert p_value(energy.numpy(), scipy.stats.gamma(tree.n_leaves / tree.p).cdf) > ALPHA


@pytest.mark.parametrize(
    ("radial", "law"),
    [
        (LogNormal(0.2, 0.4), scipy.stats.lognorm(0.4, scale=math.exp(0.2))),
        (HalfNormal(1.5), scipy.stats.halfnorm(scale=1.5)),
        (Weibull(1.3, 2.5), scipy.stats.weibull_min(2.5, scale=1.3)),
        (Uniform(0.5, 2.0), scipy.stats.uniform(0.5, 1.5)),
        (Gamma(3.0, 2.0), scipy.stats.gamma(3.0, scale=0.5)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_radius_of_one_s_own_has_its_law(radial, law):
    distribution = LpNested(DEEP, radial=radial)
    torch.manual_seed(0)
    z = distribution.sample((20_000,))
    assert p_value(distribution.norm(z.double()).numpy(), law.cdf) > ALPHA
    assert distribution.log_prob(z).isfinite().float().mean() > 0.9999  # but for rounding at the edge of a support


@pytest.mark.parametrize("radial", [None, LogNormal(0.2, 0.4)], ids=["Eq. 11", "log-normal"])
def test_at_every_node_the_children_s_shares_are_dirichlet_and_independent_of_the_node_s_value(radial):
    z = draw(LpNested(DEEP, radial=radial), 20_000)
    for node, value, children in node_values(DEEP, z):
        shares = children**node.p / (value**node.p)[:, None]
        counts = np.array([c if isinstance(c, int) else c.n_leaves for c in node.branches]) / node.p
        for k, count in enumerate(counts):
            assert p_value(shares[:, k], scipy.stats.beta(count, counts.sum() - count).cdf) > ALPHA
            assert scipy.stats.spearmanr(shares[:, k], value).pvalue > ALPHA
        if len(counts) > 2:  # the covariance of Dirichlet shares
            expected = -counts[0] * counts[1] / (counts.sum() ** 2 * (counts.sum() + 1))
            products = (shares[:, 0] - counts[0] / counts.sum()) * (shares[:, 1] - counts[1] / counts.sum())
            assert abs(products.mean() - expected) < 4.5 * products.std() / math.sqrt(len(products))


def test_each_subspace_s_energy_is_a_gamma_variable_of_its_own():
    prior = isa_prior((1, 3, 4), p0=1.6, p1=[0.9, 2.4, 5.0], scale=0.7)
    z = draw(prior, 20_000)
    for span, p1 in zip(prior.subspaces, [0.9, 2.4, 5.0], strict=True):
        energy = (np.abs(z[:, span]) ** p1).sum(-1) ** (1.6 / p1) / 0.7
        assert p_value(energy, scipy.stats.gamma(len(span) / 1.6).cdf) > ALPHA


@pytest.mark.parametrize("p", [0.2, 1.0, 2.0, 50.0])
def test_coordinates_of_the_generalised_normal_case(p):
    z = draw(LpNested(Node(p, [1, Node(p, 2)]), 0.8), 20_000)
    for j in range(3):
        assert p_value(z[:, j], scipy.stats.gennorm(p, scale=0.8 ** (1 / p)).cdf) > ALPHA


# ---- independence


def centred(x: np.ndarray) -> np.ndarray:
    d = squareform(pdist(x))
    return d - d.mean(0) - d.mean(1)[:, None] + d.mean()


def dependence_p_value(x: np.ndarray, y: np.ndarray, permutations: int = 199) -> float:
    """Permutation p-value of the distance covariance (Szekely, Rizzo and Bakirov 2007)."""
    a, b = centred(x), centred(y)
    rng = np.random.default_rng(0)
    observed = (a * b).sum()
    orders = (rng.permutation(len(x)) for _ in range(permutations))
    greater = sum((a * b[np.ix_(order, order)]).sum() >= observed for order in orders)
    return (1 + greater) / (1 + permutations)


def test_subspaces_are_independent_and_coordinates_within_one_are_not():
    prior = isa_prior((3, 3), p0=0.8, p1=[8.0, 2.5])
    z = draw(prior, 500)
    assert dependence_p_value(z[:, :3], z[:, 3:]) > 0.05
    assert dependence_p_value(z[:, :3] ** 2, z[:, 3:] ** 2) > 0.05
    for pair in ([0, 1], [3, 4]):
        assert dependence_p_value(np.abs(z[:, pair[:1]]), np.abs(z[:, pair[1:]])) <= 0.01


def test_another_radius_makes_subspaces_dependent():
    z = draw(LpNested(Node(1.2, [Node(4.0, 3), Node(0.6, 3)]), radial=LogNormal(0.0, 0.8)), 500)
    assert dependence_p_value(z[:, :3] ** 2, z[:, 3:] ** 2) <= 0.01


def test_equal_exponents_make_all_coordinates_independent():
    z = draw(LpNested(Node(1.4, [Node(1.4, 2), 1])), 500)
    assert dependence_p_value(z[:, :1], z[:, 1:]) > 0.05
    assert dependence_p_value(z[:, :1] ** 2, z[:, 1:] ** 2) > 0.05


# ---- pathwise gradients


@pytest.mark.parametrize("order", [1.0, 2.0, 3.0])
def test_gradients_of_samples_are_those_of_closed_form_moments(order):
    def build(p0, p1, q, s):
        return LpNested(Node(p0, [1, Node(p1, [Node(q, 2), 1])]), s)

    start = [1.4, 2.6, 0.9, 0.8]
    parameters = [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in start]
    exact = torch.autograd.functional.jacobian(lambda *a: build(*a).absolute_moment(order).sum(), tuple(parameters))
    torch.manual_seed(0)
    batches = []
    for _ in range(40):  # the spread of independent batches gives the standard error
        z = build(*parameters).rsample((1000,))
        batches.append(torch.stack(torch.autograd.grad((z.abs() ** order).sum(-1).mean(), parameters)))
    batches = torch.stack(batches)
    error = batches.std(0) / math.sqrt(len(batches))
    assert ((batches.mean(0) - torch.stack(exact)).abs() < 4.5 * error).all()
    assert (error < 0.1 * torch.stack(exact).abs()).sum() >= 2


def test_gradients_of_samples_reach_a_radial_density_s_parameters():
    torch.manual_seed(0)
    mu = torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
    p = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
    distribution = LpNested(Node(p, [2, Node(3.0, 2)]), radial=LogNormal(mu, 0.4))
    exact = torch.autograd.grad(distribution.variance.sum(), (mu, p))
    squares = distribution.rsample((100_000,)).square().sum(-1)
    got = torch.autograd.grad(squares.mean(), (mu, p))
    # d/dmu of squares is 2 squares
    assert abs(got[0] - exact[0]) < 4.5 * 2 * squares.std() / math.sqrt(100_000)
    torch.testing.assert_close(got[1], exact[1], rtol=0.05, atol=0)


def test_gradients_of_samples_are_finite_for_extreme_exponents():
    torch.manual_seed(0)
    for p0, p1 in [(0.2, 50.0), (50.0, 0.2), (50.0, 50.0)]:
        p = torch.tensor([p0, p1], requires_grad=True)
        LpNested(Node(p[0], [1, Node(p[1], 3)])).rsample((2000,)).abs().mean().backward()
        assert p.grad.isfinite().all()
