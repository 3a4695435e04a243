"""The density: Eq. 7 and 8, normalisation, special cases, derivatives, and values at 0, 1e-30 and 1e15."""

import math

import mpmath as mp
import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
import torch.distributions as td
from conftest import wide
from torch.autograd import gradcheck, gradgradcheck

from isa import LpNested, Node, isa_prior


def points(distribution: LpNested, *shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    size = (*shape, *distribution.batch_shape, *distribution.event_shape)
    return torch.randn(size, generator=generator, dtype=torch.float64)


def test_shapes_and_constraints(lp_nested):
    batch, n = lp_nested.batch_shape, lp_nested.tree.n_leaves
    assert lp_nested.event_shape == (n,)
    for shape in [(), (0,), (2, 3)]:
        assert lp_nested.log_prob(points(lp_nested, *shape)).shape == (*shape, *batch)
        assert lp_nested.norm(points(lp_nested, *shape)).shape == (*shape, *batch)
    assert lp_nested.log_prob(torch.zeros(5, *[1] * len(batch), n)).shape == (5, *batch)
    assert lp_nested.exponents.shape == (*batch, len(lp_nested.tree.exponents)) and lp_nested.scale.shape == batch
    for name, constraint in lp_nested.arg_constraints.items():
        assert constraint.check(getattr(lp_nested, name)).all()
    assert lp_nested.support is td.constraints.real_vector and str(lp_nested.tree) in repr(lp_nested)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_log_prob_in_low_precision(lp_nested, dtype):
    z = points(lp_nested, 6)
    z = (0.9 * z / lp_nested.norm(z)[..., None]).to(dtype)
    result = lp_nested.log_prob(z)
    assert result.dtype == lp_nested.norm(z).dtype == torch.float32
    assert torch.equal(result, lp_nested.log_prob(z.float()))
    torch.testing.assert_close(result.double(), lp_nested.log_prob(z.double()), rtol=1e-4, atol=1e-5)


def test_expand(lp_nested):
    wider = lp_nested.expand((4, *lp_nested.batch_shape))
    assert (wider.batch_shape, wider.event_shape) == ((4, *lp_nested.batch_shape), lp_nested.event_shape)
    z = points(lp_nested, 4)
    torch.testing.assert_close(wider.log_prob(z), lp_nested.log_prob(z))
    torch.testing.assert_close(wider.variance, lp_nested.variance.expand(wider.variance.shape))
    assert wider.rsample((2,)).shape == (2, 4, *lp_nested.batch_shape, *lp_nested.event_shape)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LpNested(Node(2.0, 2), -1.0), "Expected parameter scale"),
        (lambda: LpNested(Node(torch.tensor([1.0, -2.0]), 2)), "Expected parameter exponents"),
        (lambda: isa_prior((2, 2), 2.0, [1.0, -1.0]), "p must be positive and finite, got -1.0"),
        (lambda: isa_prior((2, 3), scale="unit"), r"scale = 'unit'; coordinates of .* differ in variance"),
        (lambda: LpNested(Node(2.0, 2), "1.5"), "scale must be a number, .* got '1.5'"),
        (lambda: LpNested(Node(2.0, 2), "unit", radial=td.HalfNormal(1.0)), "'unit' without a radial density"),
        (lambda: Node(2.0, 2).norm(torch.zeros(3, 1)), r"to sum exactly to 1 .* got split_sizes=\[2\]"),
        (lambda: LpNested.fit(Node(2.0, 2), wide([[0.0, math.nan]])), "z must be finite"),
        (lambda: LpNested(Node(2.0, 2)).log_prob(torch.zeros(3, 3)), "must match event_shape"),
        (lambda: LpNested(Node(2.0, 2)).log_prob(torch.tensor([0.0, math.nan])), "within the support"),
    ],
)
def test_bad_input_is_refused(make, message):
    with pytest.raises((ValueError, RuntimeError), match=message):
        make()


def test_isa_prior_is_the_tree_of_eq_9():
    assert isa_prior().tree == Node(2.1, [Node(2.2, 4)] * 5)
    tree, z = Node(1.5, [Node(0.5, 1), Node(3.0, 3)]), wide([1.0, 0.3, -0.2, 0.0])
    assert isa_prior((1, 3), 1.5, [0.5, 3.0]).tree == tree and isa_prior((1, 3)).subspaces == ((0,), (1, 2, 3))
    torch.testing.assert_close(isa_prior((1, 3), 1.5, wide([0.5, 3.0])).log_prob(z), LpNested(tree).log_prob(z))


MIXTURE = td.MixtureSameFamily(td.Categorical(wide([0.3, 0.7])), td.LogNormal(wide([0.2, -0.5]), 0.5))


@pytest.mark.parametrize(
    ("distribution", "low", "high", "step"),
    [
        (LpNested(Node(0.2, 2)), -25.0, 25.0, 0.2),
        (LpNested(Node(50.0, [Node(0.2, 2)]), 0.7), -22.0, 0.2, 0.03),
        (LpNested(Node(1.3, [1, Node(0.6, 1)])), -17.0, 4.0, 0.1),
        (LpNested(Node(1.3, 2), radial=MIXTURE), -20.0, 4.0, 0.1),
        (LpNested(Node(wide([0.7, 2.0]), 2), torch.tensor([1.0, 0.2])), -17.0, 5.0, 0.1),
        (LpNested(Node(1.3, [1, Node(2.6, [2])]), 0.7), -15.0, 4.0, 0.25),
        (LpNested(Node(2.1, [Node(0.7, [Node(1.5, 2), 1])])), -17.0, 2.0, 0.25),
        (LpNested(Node(1.8, [1, Node(1.2, 2)]), radial=td.HalfNormal(1.0)), -17.0, 2.5, 0.25),
    ],
    ids=lambda value: str(value)[:60] if isinstance(value, LpNested) else "",
)
def test_log_prob_integrates_to_one(distribution, low, high, step):
    """The trapezoidal rule in log |z_j| converges geometrically; by symmetry one orthant is enough."""
    axis, n = torch.arange(low, high, step, dtype=torch.float64), distribution.tree.n_leaves
    last = torch.cartesian_prod(*[axis] * (n - 1)).reshape(-1, n - 1)
    total = torch.zeros(distribution.batch_shape, dtype=torch.float64)
    for first in axis:
        u = torch.cat([first.expand(len(last), 1), last], -1)
        u = u.reshape(-1, *[1] * len(distribution.batch_shape), n)
        total += (distribution.log_prob(u.exp()) + u.sum(-1)).exp().sum(0)
    torch.testing.assert_close(total * (2 * step) ** n, torch.ones_like(total), rtol=0, atol=2e-6 if n == 2 else 1e-5)


def surface_by_eq_8(node: Node) -> float:
    """log S_f(1) with the product of Beta functions, node by node."""
    total = node.n_leaves * math.log(2)
    for inner in node.nodes():
        sizes, p = np.array(inner.sizes), inner.p
        total += scipy.special.betaln(sizes.cumsum()[:-1] / p, sizes[1:] / p).sum() - (len(sizes) - 1) * math.log(p)
    return total


def f_by_eq_6(node: Node, z: np.ndarray) -> np.ndarray:
    """The nested norm, by powers and roots as written."""
    parts = [z[..., list(span)] for span in node.subspaces]
    values = [
        np.abs(part[..., 0]) if isinstance(child, int) else f_by_eq_6(child, part)
        for child, part in zip(node.branches, parts, strict=True)
    ]
    return sum(value**node.p for value in values) ** (1 / node.p)


@pytest.mark.parametrize(
    ("tree", "scale"),
    [
        (Node(2.1, [Node(2.2, 4)] * 5), 1.0),
        (Node(1.3, [1, Node(2.6, [2])]), 0.7),
        (Node(1.5, [1, Node(0.8, [Node(3.0, [2, Node(1.2, 2)]), 1]), Node(2.2, 3)]), 1.2),
        (Node(2.1, [Node(0.7, [Node(3.3, [Node(1.4, 2)])])]), 0.5),
    ],
    ids=str,
)
def test_log_prob_is_eq_7_term_by_term(tree, scale):
    n, p0 = tree.n_leaves, tree.p
    z = np.random.default_rng(0).normal(size=(200, n)) * np.logspace(-2, 1, 200)[:, None]
    v = f_by_eq_6(tree, z)
    log_psi = math.log(p0) + (n - 1) * np.log(v) - math.lgamma(n / p0) - n / p0 * math.log(scale) - v**p0 / scale
    direction = -(n - 1) * np.log(v) - surface_by_eq_8(tree)
    result = LpNested(tree, scale).log_prob(torch.from_numpy(z))
    np.testing.assert_allclose(result.numpy(), log_psi + direction, rtol=1e-12, atol=1e-11)
    np.testing.assert_allclose(tree.norm(torch.from_numpy(z)).numpy(), v, rtol=1e-12)
    assert math.isclose(tree.log_surface().item(), surface_by_eq_8(tree), abs_tol=1e-11)
    law = scipy.stats.lognorm(0.4, scale=math.exp(0.2))
    result = LpNested(tree, radial=td.LogNormal(*wide([0.2, 0.4]))).log_prob(torch.from_numpy(z))
    np.testing.assert_allclose(result.numpy(), law.logpdf(v) + direction, rtol=1e-12, atol=1e-11)


Z3 = wide([[0.0, 0.0, 0.0], [0.3, -1.7, 2.0], [1e-12, 4.0, -0.5], [0.0, 1.0, 8.0]])


@pytest.mark.parametrize("p", [0.2, 1.0, 2.0, 9.0, 50.0, 1e4])
def test_equal_exponents_give_generalised_normals(p):
    z = Z3 if p < 9 else Z3 / 8
    expected = scipy.stats.gennorm.logpdf(z.numpy(), p, scale=0.8 ** (1 / p)).sum(-1)
    for tree in (Node(p, 3), Node(p, [1, Node(p, 2)]), Node(p, [Node(p, [Node(p, 3)])])):
        np.testing.assert_allclose(LpNested(tree, 0.8).log_prob(z).numpy(), expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(
    ("law", "parameters", "finite"),
    [(td.Pareto, (1.0, 3.0), [False, True, True]), (td.Beta, (2.0, 2.0), [True, False, False])],
)
def test_density_is_zero_outside_the_support_of_the_radius(law, parameters, finite):
    distribution = LpNested(Node(2.0, 2), radial=law(*parameters))
    z = wide([[0.0, 0.1], [0.0, 1.5], [0.0, 30.0]], grad=True)
    result = distribution.log_prob(z)
    assert result.isfinite().tolist() == finite and (result[~result.isfinite()] == -math.inf).all()
    (gradient,) = torch.autograd.grad(result[result.isfinite()].sum(), z)
    assert gradient.isfinite().all() and not distribution.log_prob(torch.zeros(2)).isnan()


def with_radius(z, p, a, b):
    return LpNested(Node(p[0], [1, Node(p[1], 2)]), radial=td.LogNormal(a, b), validate_args=False).log_prob(z)


def with_batch(z, p0, p1, s):
    return LpNested(Node(p0, [1, Node(p1, 2)]), s, validate_args=False).log_prob(z)


def on_tree(tree: Node):
    z = points(LpNested(tree), 1)
    z = z / tree.norm(z)[:, None]  # where large exponents keep their curvature in range

    def log_prob(z, p, s):
        return LpNested(tree.with_exponents(p.unbind()), s, validate_args=False).log_prob(z)

    return log_prob, z, wide(tree.exponents), wide(0.8)


@pytest.mark.parametrize(
    "case",
    [
        on_tree(Node(1.3, [1, Node(2.6, [2])])),
        on_tree(Node(1.5, [1, Node(0.8, [Node(3.0, [2, Node(1.2, 2)]), 1])])),
        on_tree(Node(12.0, [Node(30.0, 2), 1])),
        (lambda z, p: Node(p[0], [1, Node(p[1], 2)]).norm(z), Z3[1], wide([1.5, 2.4])),
        (with_batch, wide([[[0.3, -1.7, 0.9]], [[1.2, 0.4, -0.5]]]), wide([0.8, 2.3]), wide(1.7), wide([1.0, 0.5])),
        (with_radius, Z3[1:2], wide([1.5, 2.4]), wide(0.7), wide(1.3)),
    ],
    ids=["Eq. 6", "deep", "large exponents", "norm", "batch", "radial density"],
)
def test_derivatives_match_finite_differences(case):
    """First and second derivatives, in reverse and in forward mode."""
    function, *inputs = case[0], *(x.clone().requires_grad_() for x in case[1:])
    assert gradcheck(function, inputs, atol=1e-6, check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(function, inputs, atol=1e-4, rtol=1e-4, check_fwd_over_rev=True)


def test_derivatives_of_closed_forms_match_finite_differences():
    def dist(p, s):
        return LpNested(Node(p[0], [1, Node(p[1], 2)]), s, validate_args=False)

    p, s, z = wide([1.4, 2.5], True), wide(0.7, True), torch.linspace(-1, 1, 4).double()
    for moment in (LpNested.entropy, lambda d: d.variance, lambda d: d.absolute_moment(0.7)):
        assert gradcheck(lambda p, s, moment=moment: moment(dist(p, s)), (p, s))
    assert gradcheck(lambda p: dist(p, 1.0).tree.log_surface(), p)
    assert gradcheck(lambda p: isa_prior((2, 2), p[0], p[1], "unit").scale, p)
    assert gradcheck(lambda p: isa_prior((2, 2), p[0], p[1], "unit").log_prob(z), p)


# Extremes, against 40-digit arithmetic.
# A gradient is a product of factors along the tree. Where one of them leaves the range of the dtype, as in a term of
# the energy that overflows or a share below the smallest normal number, its digits are lost.

EXPONENTS = (0.2, 1.0, 2.1, 50.0)
POINTS = (
    (0.0, 0.0, 0.0),
    (0.0, 0.0, 1.3),
    (0.4, -0.9, 0.7),
    (1e-30, 1e-30, -1e-30),
    (1e-30, 0.0, 0.6),
    (1e-30, 0.5, 0.0),
    (1e15, 1e15, -1e15),
    (1e15, 1e-30, 1.0),
    (0.0, 1e-30, 1e15),
)


def exact_density(p0, p1, z1, z2, z3):
    """Energy, log Z and f_1 of ``p0[p1[2], 1]`` at s = 1, for numbers of mpmath."""
    lg = mp.loggamma
    f1 = (abs(z1) ** p1 + abs(z2) ** p1) ** (1 / p1)
    log_z = 3 * mp.log(2) + 2 * lg(1 / p1) - mp.log(p1) - lg(2 / p1) + lg(2 / p0) + lg(1 / p0) - 2 * mp.log(p0)
    return f1**p0 + abs(z3) ** p0, log_z, f1


def assert_close(value: float, true, error: float, info: torch.finfo) -> None:
    """Infinity of the right sign stands for numbers beyond the range of the dtype, and 0 for those below it."""
    if abs(true) > info.max * (1 - error):
        assert abs(true) <= info.max * (1 + error) or value == math.copysign(math.inf, true)
    else:
        assert abs(value - float(true)) <= error * float(abs(true)) + info.tiny


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("p1", EXPONENTS)
@pytest.mark.parametrize("p0", EXPONENTS)
@mp.workdps(40)
def test_extreme_values_and_gradients(p0, p1, dtype):
    info, p = torch.finfo(dtype), torch.tensor([p0, p1], dtype=dtype, requires_grad=True)
    for point in POINTS:
        z = torch.tensor(point, dtype=dtype, requires_grad=True)
        prior = LpNested(Node(p[0], [Node(p[1], 2), 1]))
        value = prior.log_prob(z)
        dz, dp = torch.autograd.grad(value, (z, p))
        arguments = q0, q1, *x = [mp.mpf(number) for number in (*p.tolist(), *z.tolist())]
        energy, log_z, f1 = exact_density(*arguments)
        # rounding errors of the logarithms grow with the exponents that multiply them
        logs = max(abs(mp.log(abs(v))) for v in (*x, 1) if v)
        log_f, log_f1 = (abs(mp.log(f)) if f else 0 for f in (energy ** (1 / q0), f1))
        growth = 4 * info.eps * float(2 + p0 * (log_f + logs) + p1 * (log_f1 + logs))
        error = float((growth * energy + 4 * info.eps * abs(log_z)) / abs(energy + log_z)) + 4 * info.eps
        constant = LpNested(Node(p[0].item(), [Node(p[1].item(), 2), 1])).log_prob(z)
        for result in (value, constant):
            assert_close(result.item(), -energy - log_z, error, info)
        assert_close(prior.norm(z).item(), energy ** (1 / q0), 4 * info.eps * math.log(info.max), info)
        if energy > info.max:
            continue
        assert not dz.isnan().any() and (dz[z == 0] == 0).all()
        terms = [q0 * f1 ** (q0 - q1) * abs(v) ** q1 if v else 0 for v in x[:2]] + [q0 * abs(x[2]) ** q0]
        floor = 1e3 * info.tiny
        lost = x[0] and x[1] and (min(map(abs, x[:2])) / f1) ** q1 < floor
        for j, (v, term) in enumerate(zip(x, terms, strict=True)):
            if term > floor and not (lost and j < 2):
                assert_close(dz[j].item(), -term / v, growth, info)
        for k, result in enumerate(dp.tolist()):
            true = mp.diff(lambda *a: -sum(exact_density(*a)[:2]), arguments, [int(i == k) for i in range(5)])
            error = float(energy * growth * (log_f + log_f1 + logs + 1) * p0 / min(p0, p1))
            error += 8 * info.eps * float(abs(true) + 4 / p0 + 4 / p1 + 3 / p0**2 + 3 / p1**2)
            assert_close(result, true, error / float(abs(true)), info)


@pytest.mark.parametrize("p", [0.2, 2.0, 50.0])
def test_second_derivatives_at_a_cusp(p):
    """A coordinate at 0 has derivatives of 0, and leaves those of the others right."""
    prior, z = LpNested(Node(1.7, [Node(p, 2), 1])), wide([0.0, 1.0, 2.0])
    hessian = torch.func.hessian(prior.log_prob)(z)
    torch.testing.assert_close(hessian[1:, 1:], torch.func.hessian(LpNested(Node(1.7, 2)).log_prob)(z[1:]))
    assert (hessian[0] == 0).all() and (hessian[:, 0] == 0).all()
    assert torch.func.hessian(prior.log_prob)(0 * z).isfinite().all()
