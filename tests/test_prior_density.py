"""The density: shapes, dtypes, validation, normalisation, Eq. 7 term by term, special cases."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
from torch.distributions import (
    Beta,
    Gamma,
    HalfNormal,
    Independent,
    Laplace,
    LogNormal,
    Normal,
    Pareto,
    Poisson,
    Uniform,
    constraints,
)

from isa import LpNested, Node, isa_prior

cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def points(distribution: LpNested, *shape: int, seed: int = 0, dtype=torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    size = (*shape, *distribution.batch_shape, *distribution.event_shape)
    return torch.randn(size, generator=generator, dtype=torch.float64).to(dtype)


# ---- a torch distribution, over the table


def test_shapes(lp_nested):
    n = lp_nested.tree.n_leaves
    assert lp_nested.event_shape == (n,)
    for shape in [(), (4,), (2, 3)]:
        z = points(lp_nested, *shape)
        assert lp_nested.log_prob(z).shape == (*shape, *lp_nested.batch_shape)
        assert lp_nested.norm(z).shape == (*shape, *lp_nested.batch_shape)
    assert lp_nested.log_prob(torch.zeros(5, *[1] * len(lp_nested.batch_shape), n)).shape == (5, *lp_nested.batch_shape)
    assert lp_nested.log_prob(torch.zeros(0, *lp_nested.batch_shape, n)).shape == (0, *lp_nested.batch_shape)
    for parameter, trailing in [(lp_nested.exponents, (len(lp_nested.tree.exponents),)), (lp_nested.scale, ())]:
        assert parameter.shape == (*lp_nested.batch_shape, *trailing)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=cuda)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_result_has_the_dtype_and_device_of_the_value(lp_nested, dtype, device):
    if device == "cuda" and (lp_nested.batch_shape or lp_nested.radial is not None):
        pytest.skip("what is made of tensors is where they are")
    z = points(lp_nested, 6)
    z = (0.9 * z / lp_nested.norm(z)[..., None]).to(dtype).to(device)
    result = lp_nested.log_prob(z)
    assert (result.dtype, result.device.type, lp_nested.norm(z).dtype) == (dtype, device, dtype)
    wide = lp_nested.log_prob(z.double().cpu())
    torch.testing.assert_close(result.double().cpu(), wide, rtol=1e-4 if dtype == torch.float32 else 1e-10, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_values_are_evaluated_in_single_precision(dtype):
    prior = isa_prior((2, 2))
    z = torch.tensor([0.1, -0.7, 1.3, 0.0], dtype=dtype)
    assert torch.equal(prior.log_prob(z), prior.log_prob(z.float()))
    assert prior.log_prob(z).dtype == torch.float32


def test_parameters_satisfy_their_constraints(lp_nested):
    for name, constraint in lp_nested.arg_constraints.items():
        assert constraint.check(getattr(lp_nested, name)).all()
    assert lp_nested.support is constraints.real_vector
    assert lp_nested.support.check(points(lp_nested, 3)).all()
    assert str(lp_nested.tree) in repr(lp_nested)


def test_expanding_repeats_the_distribution(lp_nested):
    wider = lp_nested.expand((4, *lp_nested.batch_shape))
    assert wider.batch_shape == (4, *lp_nested.batch_shape)
    assert wider.event_shape == lp_nested.event_shape
    z = points(lp_nested, 4)
    torch.testing.assert_close(wider.log_prob(z), lp_nested.log_prob(z))
    assert wider.variance.shape == (4, *lp_nested.batch_shape, *lp_nested.event_shape)
    torch.testing.assert_close(wider.variance[0], lp_nested.variance)
    assert wider.rsample((2,)).shape == (2, 4, *lp_nested.batch_shape, *lp_nested.event_shape)
    assert lp_nested.expand(lp_nested.batch_shape).log_prob(z).equal(lp_nested.log_prob(z))
    assert wider.tree == lp_nested.tree


def test_the_density_is_even_in_every_coordinate_and_invariant_where_children_are_alike(lp_nested):
    z = points(lp_nested, 5)
    torch.testing.assert_close(lp_nested.log_prob(z), lp_nested.log_prob(z.abs()))
    paper = isa_prior((2, 2))
    z = points(paper, 9)
    torch.testing.assert_close(paper.log_prob(z), paper.log_prob(z[:, [2, 3, 0, 1]]))
    torch.testing.assert_close(paper.log_prob(z), paper.log_prob(z[:, [1, 0, 2, 3]]))


def test_f_is_positively_homogeneous_and_the_density_depends_on_z_through_it_alone(lp_nested):
    z = points(lp_nested, 7)
    f = lp_nested.norm(z)
    torch.testing.assert_close(lp_nested.norm(3.7 * z), 3.7 * f)
    moved = points(lp_nested, 7, seed=1)
    moved = moved * (f / lp_nested.norm(moved))[..., None]
    torch.testing.assert_close(lp_nested.log_prob(moved), lp_nested.log_prob(z))


def test_the_root_s_exponent_has_no_part_in_f_where_it_has_a_single_child():
    z = torch.tensor([0.3, -1.2], dtype=torch.float64)
    assert Node(9.0, [Node(1.5, 2)]).norm(z) == Node(0.4, [Node(1.5, 2)]).norm(z)


def test_lists_of_integers_are_taken_as_points():
    assert LpNested(Node(2.0, 2)).log_prob(torch.tensor([1, -2])).isfinite()


def test_repeated_calls_in_several_dtypes_do_not_mix():
    prior = isa_prior((2, 2), p1=2.2)
    z = points(prior, 4)
    before = prior.log_prob(z)
    assert prior.log_prob(z.float()).dtype == torch.float32
    assert torch.equal(prior.log_prob(z), before)


# ---- bad input

TENSOR = torch.tensor([1.0, 2.0])


@pytest.mark.parametrize("z", [None, [0.0, 0.0], torch.zeros(3, 3), torch.tensor(1.0), torch.zeros(2).cfloat()])
def test_a_z_that_is_no_real_tensor_of_the_right_width_is_refused(z):
    for method in (LpNested(Node(2.0, 2)).log_prob, LpNested(Node(2.0, 2)).norm):
        with pytest.raises(ValueError, match=r"^z must be a real tensor of shape \(\.\.\., 2\), got "):
            method(z)


def test_nan_is_refused_while_validating_and_otherwise_concerns_its_own_point_only():
    tree, z = Node(2.0, [1, Node(1.0, 2)]), torch.tensor([[0.0, math.nan, 1.0], [0.0, 1.0, 1.0]])
    with pytest.raises(ValueError, match="z holds NaN"):
        LpNested(tree).log_prob(z)
    assert LpNested(tree, validate_args=False).log_prob(z).isnan().tolist() == [True, False]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        *[((Node(2.0, 2), scale), "^scale = .*; it must be a positive finite number, a tensor, or 'unit'$")
          for scale in (0, -1.0, math.inf, math.nan, None, True, "one")],
        ((Node(torch.tensor([1.0, -2.0]), 2),), "Expected parameter exponents"),
        ((Node(2.0, 2), torch.tensor([1.0, math.nan])), "Expected parameter scale"),
    ],
)  # fmt: skip
def test_parameters_that_are_not_positive_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        LpNested(*arguments)


@pytest.mark.parametrize("tree", [None, "2[3]"])
def test_a_tree_that_is_no_node_is_refused(tree):
    with pytest.raises(TypeError, match=r"^tree = .*; it must be a Node \(Node.parse reads the text form\)$"):
        LpNested(tree)


@pytest.mark.parametrize("radial", [Normal(0.0, 1.0), Poisson(3.0), Independent(Gamma(TENSOR, 1.0), 1), 1.0])
def test_radial_densities_that_are_not_of_a_positive_number_are_refused(radial):
    with pytest.raises(ValueError, match=r"^radial = .*; it must be a continuous distribution of one positive number$"):
        LpNested(Node(2.0, 2), radial=radial)


@pytest.mark.parametrize("scale", [2.0, "unit", TENSOR])
def test_a_radial_density_has_its_own_scale(scale):
    with pytest.raises(ValueError, match=r"^scale = .*; a radial density has its own scale"):
        LpNested(Node(2.0, 2), scale, radial=HalfNormal(1.0))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        *[((subspaces,), "^subspaces = .*; it must be a sequence of ints") for subspaces in (4, "44", ())],
        (((2, 2, 2), 2.0, [1.0, 2.0]), r"^p1 has 2 exponents; there are 3 subspaces$"),
        (((2, 0),), "every int must be at least 1"),
        (((2, 2), 2.0, [1.0, -1.0]), r"^p = -1.0; an exponent must be positive and finite"),
    ],
)
def test_isa_prior_refuses_what_does_not_fit(arguments, message):
    with pytest.raises(ValueError, match=message):
        isa_prior(*arguments)


def test_isa_prior_is_the_tree_of_eq_9():
    assert isa_prior().tree == Node(2.1, [Node(2.2, 4)] * 5)
    assert isa_prior((1, 3), p0=1.5, p1=[0.5, 3.0]).tree == Node(1.5, [Node(0.5, 1), Node(3.0, 3)])
    assert isa_prior((1, 3), p1=np.array([0.5, 3.0])).tree == isa_prior((1, 3), p1=(0.5, 3.0)).tree
    p1 = torch.tensor([0.5, 3.0], dtype=torch.float64)
    z = torch.tensor([1.0, 0.3, -0.2, 0.0], dtype=torch.float64)
    torch.testing.assert_close(isa_prior((1, 3), p1=p1).log_prob(z), isa_prior((1, 3), p1=[0.5, 3.0]).log_prob(z))
    assert isa_prior((1, 3)).subspaces == ((0,), (1, 2, 3))


# ---- normalisation


def integral_over_logarithms(distribution: LpNested, low: float, high: float, step: float) -> torch.Tensor:
    """The integral of the density by the trapezoidal rule in log |z_j|, which converges geometrically; by symmetry one
    orthant is enough.
    """
    axis = torch.arange(low, high, step, dtype=torch.float64)
    n = distribution.tree.n_leaves
    last = torch.cartesian_prod(*[axis] * (n - 1)).reshape(-1, n - 1)
    total = torch.zeros(distribution.batch_shape, dtype=torch.float64)
    for first in axis:
        u = torch.cat([first.expand(len(last), 1), last], -1)
        u = u.reshape(-1, *[1] * len(distribution.batch_shape), n)
        total += (distribution.log_prob(u.exp()) + u.sum(-1)).exp().sum(0)
    return total * 2**n * step**n


@pytest.mark.parametrize(
    ("distribution", "low", "high", "step"),
    [
        (LpNested(Node(2.0, 2), 2.0), -17.0, 3.0, 0.1),
        (LpNested(Node(1.0, 2), 1.5), -17.0, 5.0, 0.1),
        (LpNested(Node(0.2, 2)), -25.0, 25.0, 0.2),
        (LpNested(Node(50.0, 2)), -16.0, 0.2, 0.02),
        (LpNested(Node(0.2, [Node(50.0, 2)]), 0.7), -17.0, 25.0, 0.05),
        (LpNested(Node(50.0, [Node(0.2, 2)]), 0.7), -60.0, 0.2, 0.03),
        (LpNested(Node(1.3, [1, Node(0.6, 1)])), -17.0, 4.0, 0.1),
        (LpNested(Node(1.3, 2), radial=LogNormal(0.2, 0.5)), -20.0, 4.0, 0.1),
        (LpNested(Node(0.8, 2), radial=Gamma(torch.tensor([2.5, 4.0]), 1.0)), -18.0, 5.0, 0.1),
        (LpNested(Node(torch.tensor([0.7, 2.0]).double(), 2), torch.tensor([1.0, 0.2])), -17.0, 5.0, 0.1),
    ],
    ids=lambda value: str(value)[:60] if isinstance(value, LpNested) else "",
)
def test_the_density_integrates_to_one_in_two_dimensions(distribution, low, high, step):
    total = integral_over_logarithms(distribution, low, high, step)
    torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    ("distribution", "low", "high", "step"),
    [
        (LpNested(Node(2.0, 3), 2.0), -15.0, 2.5, 0.25),
        (LpNested(Node(1.3, [1, Node(2.6, [2])]), 0.7), -15.0, 4.0, 0.25),
        (LpNested(Node(2.1, [Node(1.1, 2), Node(0.7, 1)])), -15.0, 2.0, 0.25),
        (LpNested(Node(2.1, [Node(0.7, [Node(1.5, 2), 1])])), -17.0, 2.0, 0.25),
        (LpNested(Node(1.8, [1, Node(1.2, 2)]), radial=HalfNormal(1.0)), -17.0, 2.5, 0.25),
    ],
    ids=lambda value: str(value)[:60] if isinstance(value, LpNested) else "",
)
def test_the_density_integrates_to_one_in_three_dimensions(distribution, low, high, step):
    total = integral_over_logarithms(distribution, low, high, step)
    assert abs(total.item() - 1) < 1e-5


def test_a_radius_with_bounds_integrates_to_one_in_two_dimensions():
    # the density is discontinuous: the midpoint rule on a fine grid of one quadrant
    distribution = LpNested(Node(1.0, 2), radial=Uniform(0.5, 2.0))
    axis = (torch.arange(1200, dtype=torch.float64) + 0.5) / 600
    density = distribution.log_prob(torch.cartesian_prod(axis, axis)).exp()
    assert abs(4 * density.sum().item() / 600**2 - 1) < 5e-3
    assert (density == 0).any() and (density > 0).any()


@pytest.mark.parametrize(
    ("prior", "proposal"),
    [
        (isa_prior(), Normal(0.0, 0.78)),
        (isa_prior(scale="unit"), Normal(0.0, 1.1)),
        (isa_prior((5, 5, 5, 5), p0=1.5, p1=[1.3, 1.8, 2.5, 2.0]), Laplace(0.0, 0.65)),
        (LpNested(Node(2.0, [Node(1.7, [Node(2.2, 5), 5]), Node(2.4, 10)])), Normal(0.0, 0.8)),
        (LpNested(Node(2.0, [Node(2.2, 10), Node(1.9, 10)]), radial=Gamma(20.0, 6.0)), Normal(0.0, 0.85)),
    ],
    ids=["the paper's", "unit variance", "four exponents", "deep", "Gamma radius"],
)
def test_the_density_integrates_to_one_in_twenty_dimensions_by_importance_sampling(prior, proposal):
    torch.manual_seed(1)
    proposal = Independent(proposal.expand((20,)), 1)
    z = proposal.sample((100_000,)).double()
    weight = (prior.log_prob(z) - proposal.log_prob(z)).exp()
    error = weight.std().item() / math.sqrt(len(z))
    assert error < 0.03
    assert abs(weight.mean().item() - 1) < 4 * error


# ---- Eq. 7 and Eq. 8 as printed


def surface_by_eq_8(node: Node) -> float:
    """log S_f(1) with the product of Beta functions, node by node."""
    total = node.n_leaves * math.log(2)
    for inner in node.nodes():
        counts = [c if isinstance(c, int) else c.n_leaves for c in inner.branches]
        total -= (len(counts) - 1) * math.log(inner.p)
        for k in range(1, len(counts)):
            total += scipy.special.betaln(sum(counts[:k]) / inner.p, counts[k] / inner.p)
    return total


def f_by_eq_6(node: Node, z: np.ndarray) -> np.ndarray:
    """The nested norm, by powers and roots as written."""
    first, total = 0, 0.0
    for child in node.branches:
        below = child if isinstance(child, int) else child.n_leaves
        part = z[..., first : first + below]
        value = np.abs(part[..., 0]) if isinstance(child, int) else f_by_eq_6(child, part)
        total = total + value**node.p
        first += below
    return total ** (1 / node.p)


@pytest.mark.parametrize(
    ("tree", "scale"),
    [
        (Node(2.1, [Node(2.2, 4)] * 5), 1.0),
        (Node(1.3, [1, Node(2.6, [2])]), 0.7),
        (Node(1.5, [1, Node(0.8, [Node(3.0, [2, Node(1.2, 2)]), 1]), Node(2.2, 3)]), 1.2),
        (Node(0.4, [Node(7.0, 3), 2]), 2.5),
        (Node(2.1, [Node(0.7, [Node(3.3, [Node(1.4, 2)])])]), 0.5),
    ],
    ids=str,
)
def test_the_collapsed_form_is_eq_7_term_by_term(tree, scale):
    n, p0 = tree.n_leaves, tree.p
    z = np.random.default_rng(0).normal(size=(200, n)) * np.logspace(-2, 1, 200)[:, None]
    v = f_by_eq_6(tree, z)
    log_psi = math.log(p0) + (n - 1) * np.log(v) - math.lgamma(n / p0) - n / p0 * math.log(scale) - v**p0 / scale
    expected = log_psi - (n - 1) * np.log(v) - surface_by_eq_8(tree)
    result = LpNested(tree, scale).log_prob(torch.from_numpy(z))
    np.testing.assert_allclose(result.numpy(), expected, rtol=1e-12, atol=1e-11)
    np.testing.assert_allclose(tree.norm(torch.from_numpy(z)).numpy(), v, rtol=1e-12)
    assert math.isclose(tree.log_surface().item(), surface_by_eq_8(tree), abs_tol=1e-11)


def test_eq_7_with_a_radial_density_of_one_s_own_term_by_term():
    tree, law = Node(1.5, [2, Node(3.0, 2)]), scipy.stats.lognorm(0.4, scale=math.exp(0.2))
    z = np.random.default_rng(0).normal(size=(200, 4))
    v = f_by_eq_6(tree, z)
    expected = law.logpdf(v) - 3 * np.log(v) - surface_by_eq_8(tree)
    wide = torch.tensor([0.2, 0.4], dtype=torch.float64)
    result = LpNested(tree, radial=LogNormal(*wide)).log_prob(torch.from_numpy(z))
    np.testing.assert_allclose(result.numpy(), expected, rtol=1e-12, atol=1e-12)


# ---- special cases

Z3 = torch.tensor([[0.0, 0.0, 0.0], [0.3, -1.7, 2.0], [1e-12, 4.0, -0.5], [0.0, 1.0, 8.0]], dtype=torch.float64)


@pytest.mark.parametrize("tree", [Node(2.0, 3), Node(2.0, [1, Node(2.0, [2])]), Node(2.0, [Node(2.0, [Node(2.0, 3)])])])
def test_p_2_is_the_normal_distribution(tree):
    for variance in (1.0, 0.3):
        expected = Normal(0.0, torch.tensor(variance, dtype=torch.float64).sqrt()).log_prob(Z3).sum(-1)
        torch.testing.assert_close(LpNested(tree, 2 * variance).log_prob(Z3), expected, rtol=1e-12, atol=1e-12)


def test_p_1_is_the_laplace_distribution():
    expected = Laplace(0.0, torch.tensor(1.5).double()).log_prob(Z3).sum(-1)
    torch.testing.assert_close(LpNested(Node(1.0, 3), 1.5).log_prob(Z3), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(LpNested(Node(1.0, [2, Node(1.0, 1)]), 1.5).log_prob(Z3), expected)


@pytest.mark.parametrize("p", [0.2, 0.7, 1.5, 3.0, 9.0, 50.0])
def test_one_exponent_is_the_generalised_normal_distribution_in_every_coordinate(p):
    z = Z3 if p < 9 else Z3 / 8
    expected = scipy.stats.gennorm.logpdf(z.numpy(), p, scale=0.8 ** (1 / p)).sum(-1)
    result = LpNested(Node(p, [1, Node(p, 2)]), 0.8).log_prob(z)
    np.testing.assert_allclose(result.numpy(), expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("p", [1e2, 1e4, 1e6])
def test_the_limit_of_large_exponents_is_uniform_on_the_cube(p):
    # log Gamma(1 + 1/p) = -gamma/p + O(p^-2) is how far the normaliser is from that of the cube
    cube = LpNested(Node(p, 3))
    inside = cube.log_prob(torch.tensor([0.0, -0.6, 0.8], dtype=torch.float64)).item()
    assert math.isclose(inside + 3 * math.log(2), 3 * np.euler_gamma / p, rel_tol=0.02)
    assert cube.log_prob(torch.tensor([0.0, 0.5, 1.2], dtype=torch.float64)).item() < -1e7


def test_a_spherical_radius_can_be_student_s():
    # a multivariate t with nu degrees of freedom has R^2 / n ~ F(n, nu); here n = 2, for which R is a Burr variable
    nu, z = 5.0, Z3[1:, :2]

    class Burr(Gamma):  # R = sqrt(nu (U^(-2/nu) - 1)): density r (1 + r^2/nu)^(-(nu+2)/2)
        def log_prob(self, value):
            return value.log() - (nu + 2) / 2 * torch.log1p(value.square() / nu)

    result = LpNested(Node(2.0, 2), radial=Burr(1.0, 1.0)).log_prob(z)
    expected = scipy.stats.multivariate_t.logpdf(z.numpy(), loc=np.zeros(2), shape=np.eye(2), df=nu)
    np.testing.assert_allclose(result.numpy(), expected, rtol=1e-10)


@pytest.mark.parametrize("validate", [True, False])
@pytest.mark.parametrize(
    ("law", "parameters", "finite"),
    [
        (Uniform, (0.5, 2.0), [False, True, False]),
        (Pareto, (1.0, 3.0), [False, True, True]),
        (Beta, (2.0, 2.0), [True, False, False]),
        (LogNormal, (0.0, 1.0), [True, True, True]),
    ],
)
def test_outside_the_support_of_the_radius_the_density_is_zero(law, parameters, finite, validate):
    distribution = LpNested(Node(2.0, 2), radial=law(*parameters, validate_args=validate))
    z = torch.tensor([[0.0, 0.1], [0.0, 1.5], [0.0, 30.0]], dtype=torch.float64, requires_grad=True)
    result = distribution.log_prob(z)
    assert result.isfinite().tolist() == finite
    assert (result[~result.isfinite()] == -math.inf).all()
    (gradient,) = torch.autograd.grad(result[result.isfinite()].sum(), z)
    assert gradient.isfinite().all()
    assert not distribution.log_prob(torch.zeros(2)).isnan()
