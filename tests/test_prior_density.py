"""The density: Eq. 7 and 8, normalisation, special cases, derivatives, and values at 0, 1e-30 and 1e15."""

from __future__ import annotations

import itertools
import math
from functools import cache

import mpmath as mp
import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
import torch.distributions as td
from torch.autograd import gradcheck, gradgradcheck

from isa import LpNested, Node, isa_prior


def wide(values, grad: bool = False) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64, requires_grad=grad)


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
    assert result.dtype == lp_nested.norm(z).dtype == torch.float32 and torch.equal(
        result, lp_nested.log_prob(z.float())
    )
    torch.testing.assert_close(result.double(), lp_nested.log_prob(z.double()), rtol=1e-4, atol=1e-5)


def test_expand(lp_nested):
    wider = lp_nested.expand((4, *lp_nested.batch_shape))
    assert (wider.batch_shape, wider.event_shape) == ((4, *lp_nested.batch_shape), lp_nested.event_shape)
    z = points(lp_nested, 4)
    torch.testing.assert_close(wider.log_prob(z), lp_nested.log_prob(z))
    torch.testing.assert_close(wider.variance, lp_nested.variance.expand(wider.variance.shape))
    assert wider.rsample((2,)).shape == (2, 4, *lp_nested.batch_shape, *lp_nested.event_shape)


def test_density_is_even_and_depends_on_z_through_f(lp_nested):
    z, moved = points(lp_nested, 7), points(lp_nested, 7, seed=1)
    f = lp_nested.norm(z)
    torch.testing.assert_close(lp_nested.norm(3.7 * z), 3.7 * f)
    moved = moved * (f / lp_nested.norm(moved))[..., None]
    torch.testing.assert_close(lp_nested.log_prob(moved), lp_nested.log_prob(z))
    torch.testing.assert_close(lp_nested.log_prob(z), lp_nested.log_prob(z.abs()))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LpNested(Node(2.0, 2), -1.0), "Expected parameter scale"),
        (lambda: LpNested(Node(torch.tensor([1.0, -2.0]), 2)), "Expected parameter exponents"),
        (lambda: isa_prior((2, 2), 2.0, [1.0, -1.0]), "p must be positive and finite, got -1.0"),
        (lambda: isa_prior((2, 3), scale="unit"), r"scale = 'unit'; coordinates of .* differ in variance"),
        (lambda: LpNested(Node(2.0, 2)).log_prob(torch.zeros(3, 3)), "must match event_shape"),
        (lambda: LpNested(Node(2.0, 2)).log_prob(torch.tensor([0.0, math.nan])), "within the support"),
    ],
)
def test_bad_input_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_isa_prior_is_the_tree_of_eq_9():
    assert isa_prior().tree == Node(2.1, [Node(2.2, 4)] * 5)
    tree, z = Node(1.5, [Node(0.5, 1), Node(3.0, 3)]), wide([1.0, 0.3, -0.2, 0.0])
    assert isa_prior((1, 3), 1.5, [0.5, 3.0]).tree == tree and isa_prior((1, 3)).subspaces == ((0,), (1, 2, 3))
    torch.testing.assert_close(isa_prior((1, 3), 1.5, wide([0.5, 3.0])).log_prob(z), LpNested(tree).log_prob(z))


@pytest.mark.parametrize(
    ("distribution", "low", "high", "step"),
    [
        (LpNested(Node(0.2, 2)), -25.0, 25.0, 0.2),
        (LpNested(Node(50.0, [Node(0.2, 2)]), 0.7), -60.0, 0.2, 0.03),
        (LpNested(Node(1.3, [1, Node(0.6, 1)])), -17.0, 4.0, 0.1),
        (LpNested(Node(1.3, 2), radial=td.LogNormal(0.2, 0.5)), -20.0, 4.0, 0.1),
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


@pytest.mark.parametrize(
    ("prior", "proposal"),
    [
        (isa_prior(), td.Normal(0.0, 0.78)),
        (LpNested(Node(2.0, [Node(1.7, [Node(2.2, 5), 5]), Node(2.4, 10)])), td.Normal(0.0, 0.8)),
        (LpNested(Node(2.0, [Node(2.2, 10), Node(1.9, 10)]), radial=td.Gamma(20.0, 6.0)), td.Normal(0.0, 0.85)),
    ],
    ids=["the paper's", "deep", "Gamma radius"],
)
def test_log_prob_integrates_to_one_in_twenty_dimensions(prior, proposal):
    torch.manual_seed(1)
    proposal = td.Independent(proposal.expand((20,)), 1)
    z = proposal.sample((100_000,)).double()
    weight = (prior.log_prob(z) - proposal.log_prob(z)).exp()
    error = weight.std().item() / math.sqrt(len(z))
    assert error < 0.03 and abs(weight.mean().item() - 1) < 4 * error


def surface_by_eq_8(node: Node) -> float:
    """log S_f(1) with the product of Beta functions, node by node."""
    total = node.n_leaves * math.log(2)
    for inner in node.nodes():
        counts = inner.sizes
        total -= (len(counts) - 1) * math.log(inner.p)
        total += sum(
            scipy.special.betaln(sum(counts[:k]) / inner.p, counts[k] / inner.p) for k in range(1, len(counts))
        )
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


@pytest.mark.parametrize("p", [0.2, 1.0, 2.0, 9.0, 50.0])
def test_equal_exponents_give_generalised_normals(p):
    z = Z3 if p < 9 else Z3 / 8
    expected = scipy.stats.gennorm.logpdf(z.numpy(), p, scale=0.8 ** (1 / p)).sum(-1)
    for tree in (Node(p, 3), Node(p, [1, Node(p, 2)]), Node(p, [Node(p, [Node(p, 3)])])):
        np.testing.assert_allclose(LpNested(tree, 0.8).log_prob(z).numpy(), expected, rtol=1e-11, atol=1e-11)
    for q, law in ((2.0, td.Normal(0.0, wide(0.4).sqrt())), (1.0, td.Laplace(0.0, wide(0.8)))):
        if p == q:
            torch.testing.assert_close(LpNested(Node(p, 3), 0.8).log_prob(z), law.log_prob(z).sum(-1))


@pytest.mark.parametrize("p", [1e2, 1e6])
def test_large_exponents_approach_the_uniform_cube(p):
    # log td.Gamma(1 + 1/p) = -gamma/p + O(p^-2) is how far the normaliser is from that of the cube
    cube = LpNested(Node(p, 3))
    inside = cube.log_prob(wide([0.0, -0.6, 0.8])).item()
    assert math.isclose(inside + 3 * math.log(2), 3 * np.euler_gamma / p, rel_tol=0.02)
    assert cube.log_prob(wide([0.0, 0.5, 1.2])).item() < -1e7


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


TREES = {
    "Eq. 6": Node(1.3, [1, Node(2.6, [2])]),
    "deep": Node(1.5, [1, Node(0.8, [Node(3.0, [2, Node(1.2, 2)]), 1])]),
    "large": Node(12.0, [Node(30.0, 2), 1]),
}


def check_derivatives(function, *inputs: torch.Tensor) -> None:
    """First and second derivatives, in reverse and forward mode, against finite differences."""
    assert gradcheck(function, inputs, atol=1e-6, check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(function, inputs, atol=1e-4, rtol=1e-4, check_fwd_over_rev=True)


@pytest.mark.parametrize("tree", TREES.values(), ids=TREES)
def test_derivatives_match_finite_differences(tree):
    def log_prob(z, p, s):
        return LpNested(tree.with_exponents(p.unbind()), s, validate_args=False).log_prob(z)

    z = points(LpNested(tree), 2)
    z = (z / tree.norm(z)[:, None]).requires_grad_()  # where large exponents keep their curvature in range
    check_derivatives(log_prob, z, wide(tree.exponents, True), wide(0.8, True))
    check_derivatives(lambda z, p: tree.with_exponents(p.unbind()).norm(z), z, wide(tree.exponents, True))


def test_derivatives_of_batches_match_finite_differences():
    def log_prob(z, p0, p1, s):
        return LpNested(Node(p0, [1, Node(p1, 2)]), s, validate_args=False).log_prob(z)

    z = torch.randn((2, 1, 3), generator=torch.Generator().manual_seed(1), dtype=torch.float64, requires_grad=True)
    check_derivatives(log_prob, z, wide([0.8, 2.3], True), wide(1.7, True), wide([1.0, 0.5], True))


def test_derivatives_with_a_radial_density_match_finite_differences():
    def log_prob(z, p, a, b):
        return LpNested(Node(p[0], [1, Node(p[1], 2)]), radial=td.LogNormal(a, b), validate_args=False).log_prob(z)

    inputs = (Z3[1:2].clone().requires_grad_(), wide([1.5, 2.4], True), wide(0.7, True), wide(1.3, True))
    assert gradcheck(log_prob, inputs) and gradgradcheck(log_prob, inputs, atol=1e-4)


def test_derivatives_of_closed_forms_match_finite_differences():
    def dist(p, s):
        return LpNested(Node(p[0], [1, Node(p[1], 2)]), s, validate_args=False)

    p, s, z = wide([1.4, 2.5], True), wide(0.7, True), torch.linspace(-1, 1, 4).double()
    for moment in (LpNested.entropy, lambda d: d.variance, lambda d: d.absolute_moment(0.7)):
        assert gradcheck(lambda p, s, moment=moment: moment(dist(p, s)), (p, s))
    assert gradcheck(lambda p: dist(p, 1.0).tree.log_surface(), p)
    assert gradcheck(lambda p: isa_prior((2, 2), p[0], p[1], "unit").scale, p)
    assert gradcheck(lambda p: isa_prior((2, 2), p[0], p[1], "unit").log_prob(z), p)


def test_divergence_theorem():
    # E[z . grad log p] = -n for every density that vanishes at infinity
    torch.manual_seed(1)
    prior = LpNested(Node(1.5, [2, Node(3.0, 2)]), radial=td.LogNormal(0.2, 0.4))
    z = prior.sample((40_000,)).double().requires_grad_()
    (gradient,) = torch.autograd.grad(prior.log_prob(z).sum(), z)
    terms = (z.detach() * gradient).sum(-1)
    assert abs(terms.mean().item() + 4) < 4.5 * terms.std().item() / math.sqrt(len(z))


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
both_precisions = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


@cache
def reference(p0: float, p1: float, point: tuple[float, ...]):
    """For ``p0[p1[2], 1]`` at s = 1: log p, energy, log Z, gradients in z and in (p0, p1), log f and log f_1."""
    with mp.workdps(40):
        q0, q1 = mp.mpf(p0), mp.mpf(p1)
        x = [abs(mp.mpf(z)) for z in point]

        def log(value):
            return mp.log(value) if value else mp.mpf(0)  # multiplied by a power that is 0 wherever it is used

        def power(value, p):
            return value**p if value else mp.mpf(0)

        def log_z(a, b):
            lg = mp.loggamma
            inner = 2 * lg(1 / b) - mp.log(b) - lg(2 / b)
            return 3 * mp.log(2) + inner + lg(2 / a) + lg(1 / a) - 2 * mp.log(a)

        powers = [power(v, q1) for v in x[:2]]
        below = mp.fsum(powers)
        f1 = power(below, 1 / q1)
        energy = power(f1, q0) + power(x[2], q0)
        dz = [-mp.sign(z) * q0 * power(f1, q0 - q1) * power(v, q1 - 1) for z, v in zip(point[:2], x, strict=False)]
        dz.append(-mp.sign(point[2]) * q0 * power(x[2], q0 - 1))
        dp0 = -(power(f1, q0) * log(f1) + power(x[2], q0) * log(x[2])) - mp.diff(lambda a: log_z(a, q1), q0)
        dp1 = -mp.diff(lambda b: log_z(q0, b), q1)
        if f1:
            weighted = mp.fsum(w * log(v) for w, v in zip(powers, x, strict=False)) / below
            dp1 -= q0 * f1**q0 * (weighted - log(f1)) / q1
        return -energy - log_z(q0, q1), energy, log_z(q0, q1), dz, (dp0, dp1), log(power(energy, 1 / q0)), log(f1)


def check(got: float, true, error: float, dtype: torch.dtype, what: str) -> None:
    """Compare with a tolerance; beyond the range of the dtype infinity of the right sign is right, and below it 0."""
    info = torch.finfo(dtype)
    assert not math.isnan(got), what
    if abs(true) > info.max * (1 - error):
        assert abs(true) <= info.max * (1 + error) or got == math.copysign(math.inf, true), what
        return
    close = abs(got - float(true)) <= error * float(abs(true)) + info.tiny
    assert close, f"{what}: {got} instead of {mp.nstr(true, 12)}"


@both_precisions
@pytest.mark.parametrize("p0", EXPONENTS)
def test_extreme_values_and_gradients(p0, dtype):
    eps, floor = torch.finfo(dtype).eps, 1e3 * torch.finfo(dtype).tiny
    for p1, point in itertools.product(EXPONENTS, POINTS):
        near = torch.tensor(point, dtype=dtype).tolist()
        q0, q1 = (torch.tensor(p, dtype=dtype, requires_grad=True) for p in (p0, p1))
        log_p, energy, log_z, dz, dp, log_f, log_f1 = reference(q0.item(), q1.item(), tuple(near))
        z = torch.tensor(point, dtype=dtype, requires_grad=True)
        what = f"p0 = {p0}, p1 = {p1}, z = {point}"
        # how rounding errors of the logarithms grow on their way: the sum of the exponents' terms
        logs = max(abs(math.log(abs(v))) for v in (*near, 1.0) if v)
        growth = 4 * eps * (2 + p0 * (float(abs(log_f)) + logs) + p1 * (float(abs(log_f1)) + logs))

        value = LpNested(Node(q0, [Node(q1, 2), 1])).log_prob(z)
        gradients = torch.autograd.grad(value, (z, q0, q1))
        constant = LpNested(Node(q0.item(), [Node(q1.item(), 2), 1])).log_prob(z)
        error = float((growth * energy + 4 * eps * abs(log_z)) / abs(log_p)) + 4 * eps
        check(value.item(), log_p, error, dtype, what)
        check(constant.item(), log_p, error, dtype, what)
        if energy > torch.finfo(dtype).max:
            continue
        logs_below = [math.log(abs(v)) for v in near[:2] if v]
        lost = len(logs_below) == 2 and p1 * abs(logs_below[0] - logs_below[1]) > -math.log(floor)
        for j in range(3):
            if not (lost and j < 2) and abs(dz[j]) * abs(near[j]) > floor:
                check(gradients[0][j].item(), dz[j], growth, dtype, f"{what}, d/dz_{j}")
            assert not gradients[0][j].isnan() and (near[j] != 0 or gradients[0][j] == 0)
        for name, got, true in zip(("p0", "p1"), gradients[1:], dp, strict=True):
            terms = energy * growth * (abs(log_f) + abs(log_f1) + logs + 1) * p0 / min(p0, p1)
            terms += 8 * eps * (abs(true) + 4 / p0 + 4 / p1 + 3 / p0**2 + 3 / p1**2)
            check(got.item(), true, float(terms / abs(true)), dtype, f"{what}, d/d{name}")


@both_precisions
def test_norm_over_the_whole_range(dtype):
    info = torch.finfo(dtype)
    for p0, p1 in itertools.product((0.2, 1.0, 2.2, 50.0), repeat=2):
        tree = Node(p0, [Node(p1, 2), 1])
        sizes = torch.tensor([0.0, 1e-30, 1.0, 1e15, 2 * info.tiny, info.max * 1e-20], dtype=dtype)
        z = sizes[:, None] * torch.tensor([1.0, 2.0, 3.0], dtype=dtype)
        unit = tree.norm(wide([1.0, 2.0, 3.0])).to(dtype)
        rtol = 4 * info.eps * math.log(info.max)  # the relative error of an exponential is its argument's absolute one
        torch.testing.assert_close(tree.norm(z), sizes * unit, rtol=rtol, atol=0)


@pytest.mark.parametrize("p", [0.2, 2.0, 50.0])
def test_derivatives_at_a_cusp(p):
    """A coordinate at 0 has derivatives of 0, and leaves those of the others right."""
    prior, z = LpNested(Node(1.7, [Node(p, 2), 1])), wide([0.0, 1.0, 2.0])
    hessian = torch.func.hessian(prior.log_prob)(z)
    torch.testing.assert_close(hessian[1:, 1:], torch.func.hessian(LpNested(Node(1.7, 2)).log_prob)(z[1:]))
    assert (hessian[0] == 0).all() and (hessian[:, 0] == 0).all()
    assert torch.func.hessian(prior.log_prob)(0 * z).isfinite().all()
    x = torch.tensor([[0.0, 0.7, 0.2], [0.3, 0.0, 0.0], [0.0, 0.0, 0.0]], requires_grad=True)
    (gradient,) = torch.autograd.grad(prior.log_prob(x).sum(), x)
    assert gradient.isfinite().all() and (gradient != 0).equal(x != 0)
