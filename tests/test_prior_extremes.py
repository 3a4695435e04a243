"""Values and gradients at zeros, at 1e-30 and at 1e15, for exponents from 0.2 to 50, against 40-digit arithmetic.

A gradient is a product of factors along the tree. Where one of them leaves the range of the dtype, as in a term of the
energy that overflows or a share below the smallest normal number, its digits are lost.
"""

from __future__ import annotations

import itertools
import math
from functools import cache

import mpmath as mp
import numpy as np
import pytest
import torch

from isa import LpNested, Node, isa_prior

EXPONENTS = (0.2, 0.7, 1.0, 2.0, 2.1, 9.0, 50.0)
POINTS = (
    (0.0, 0.0, 0.0),
    (0.0, 0.0, 1.3),
    (0.0, -0.8, 0.0),
    (1.0, 1.0, 1.0),
    (0.4, -0.9, 0.7),
    (1e-30, 1e-30, -1e-30),
    (1e-30, 0.0, 0.6),
    (1e-30, 0.5, 0.0),
    (1e15, 1e15, -1e15),
    (1e15, 0.0, 0.0),
    (1e15, 1e-30, 1.0),
    (-1e-30, 1.0, 1e15),
    (0.0, 1e-30, 1e15),
)
DTYPES = (torch.float32, torch.float64)


@cache
def reference(p0: float, p1: float, point: tuple[float, ...]):
    """log p, energy, log Z, gradients with respect to z, p0 and p1 for ``p0[p1[2], 1]`` at s = 1, and log f and log f_1
    (None for minus infinity).
    """
    with mp.workdps(40):
        q0, q1 = mp.mpf(p0), mp.mpf(p1)
        x = [abs(mp.mpf(z)) for z in point]

        def log(value):
            return mp.log(value) if value else mp.mpf(0)  # multiplied by a vanished power wherever it is used

        powers = [v**q1 if v else mp.mpf(0) for v in x[:2]]
        below = mp.fsum(powers)
        f1 = below ** (1 / q1) if below else mp.mpf(0)
        energy = (f1**q0 if f1 else mp.mpf(0)) + (x[2] ** q0 if x[2] else mp.mpf(0))

        def log_z(a, b):
            lg = mp.loggamma
            inner = 2 * lg(1 / b) - mp.log(b) - lg(2 / b)
            outer = lg(2 / a) + lg(1 / a) - mp.log(a) - lg(3 / a)
            return 3 * mp.log(2) + inner + outer + lg(3 / a) - mp.log(a)

        dz = []
        for j, (value, v) in enumerate(zip(point, x, strict=True)):
            if not v:
                dz.append(mp.mpf(0))
                continue
            size = q0 * f1 ** (q0 - q1) * v ** (q1 - 1) if j < 2 else q0 * v ** (q0 - 1)
            dz.append(-mp.sign(value) * size)
        dp0 = -((f1**q0 if f1 else 0) * log(f1) + (x[2] ** q0 if x[2] else 0) * log(x[2]))
        dp0 -= mp.diff(lambda a: log_z(a, q1), q0)
        dp1 = mp.mpf(0)
        if f1:
            weighted = mp.fsum(w * log(v) for w, v in zip(powers, x, strict=False)) / below
            dp1 = -q0 * f1**q0 * (weighted - log(f1)) / q1
        dp1 -= mp.diff(lambda b: log_z(q0, b), q1)
        z = log_z(q0, q1)
        f = energy ** (1 / q0) if energy else mp.mpf(0)
        return -energy - z, energy, z, dz, (dp0, dp1), log(f), log(f1)


def rounded(value: float, dtype: torch.dtype) -> float:
    return torch.tensor(value, dtype=dtype).item()


def check(got: float, true, error: float, dtype: torch.dtype, what: str) -> None:
    """Compare with a tolerance; beyond the range of the dtype infinity of the right sign is right, and below it 0."""
    info = torch.finfo(dtype)
    assert not math.isnan(got), what
    if abs(true) > info.max * (1 - error):
        if abs(true) > info.max * (1 + error):
            assert got == math.copysign(math.inf, true), what
        return
    assert abs(got - float(true)) <= error * float(abs(true)) + info.tiny, (
        f"{what}: {got} instead of {mp.nstr(true, 12)}"
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("p0", EXPONENTS)
def test_values_and_gradients(p0, dtype):
    eps, floor = torch.finfo(dtype).eps, 1e3 * torch.finfo(dtype).tiny
    for p1, point in itertools.product(EXPONENTS, POINTS):
        near = tuple(rounded(z, dtype) for z in point)
        q0, q1 = (torch.tensor(p, dtype=dtype, requires_grad=True) for p in (p0, p1))
        log_p, energy, log_z, dz, dp, log_f, log_f1 = reference(q0.item(), q1.item(), near)
        z = torch.tensor(point, dtype=dtype, requires_grad=True)
        what = f"p0 = {p0}, p1 = {p1}, z = {point}"
        # how rounding errors of the logarithms grow on their way: the sum of the exponents' terms
        logs = max(abs(math.log(abs(v))) for v in (*near, 1.0) if v)
        growth = 4 * eps * (2 + p0 * (float(abs(log_f)) + logs) + p1 * (float(abs(log_f1)) + logs))

        value = LpNested(Node(q0, [Node(q1, 2), 1])).log_prob(z)
        gradients = torch.autograd.grad(value, (z, q0, q1))
        with torch.no_grad():
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


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("p0", "p1"), list(itertools.product((0.2, 1.0, 2.0, 50.0), repeat=2)))
def test_no_path_to_a_derivative_gives_nan_where_it_is_finite(p0, p1, dtype):
    prior = LpNested(Node(p0, [Node(p1, 2), 1]))
    for point in POINTS:
        z = torch.tensor(point, dtype=dtype)
        if prior.log_prob(z) == -math.inf:
            continue
        x = z.clone().requires_grad_()
        (plain,) = torch.autograd.grad(prior.log_prob(x), x)
        (twice,) = torch.autograd.grad(prior.log_prob(x), x, create_graph=True)
        nested = torch.func.grad(prior.log_prob)(z)
        slope = torch.func.jvp(prior.log_prob, (z,), (torch.ones_like(z),))[1]
        logs = max(abs(math.log(abs(v))) for v in (*point, 1.0) if v)
        rtol = 16 * torch.finfo(dtype).eps * (2 + (p0 + p1) * 2 * logs)
        torch.testing.assert_close(twice, plain, rtol=rtol, atol=1e-30)
        torch.testing.assert_close(nested, plain, rtol=rtol, atol=1e-30)
        torch.testing.assert_close(slope, plain.sum(), rtol=rtol, atol=rtol * plain.abs().max().item())


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_gradient_is_zero_at_every_cusp(dtype):
    for p0, p1 in itertools.product((0.2, 1.0, 50.0), repeat=2):
        z = torch.tensor([[0.0, 0.7, 0.2], [0.3, 0.0, 0.0], [0.0, 0.0, 0.0]], dtype=dtype, requires_grad=True)
        LpNested(Node(p0, [Node(p1, 2), 1])).log_prob(z).sum().backward()
        assert (z.grad[z == 0] == 0).all() and z.grad.isfinite().all()
        assert (z.grad[z != 0] != 0).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_norm_is_exact_over_the_whole_range(dtype):
    info = torch.finfo(dtype)
    for p0, p1 in itertools.product((0.2, 1.0, 2.2, 50.0), repeat=2):
        tree = Node(p0, [Node(p1, 2), 1])
        sizes = torch.tensor([0.0, 1e-30, 1.0, 1e15, 2 * info.tiny, info.max * 1e-20], dtype=dtype)
        z = sizes[:, None] * torch.tensor([1.0, 2.0, 3.0], dtype=dtype)
        unit = tree.norm(torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)).to(dtype)
        rtol = 4 * info.eps * math.log(info.max)  # the relative error of an exponential is its argument's absolute one
        torch.testing.assert_close(tree.norm(z), sizes * unit, rtol=rtol, atol=0)


def test_infinite_coordinates_have_density_zero():
    z = torch.tensor([[math.inf, 0.0, 1.0], [-math.inf, math.inf, 0.0]])
    for tree in (Node(2.0, 3), Node(0.2, [Node(50.0, 2), 1])):
        assert (LpNested(tree).log_prob(z) == -math.inf).all()


@pytest.mark.parametrize("p", EXPONENTS)
def test_at_zero_the_density_is_the_reciprocal_of_the_normaliser(p):
    prior = isa_prior((4,) * 5, p0=p, p1=2.2)
    zero = torch.zeros(20, dtype=torch.float64)
    assert prior.log_prob(zero).item() == pytest.approx(prior.entropy().double().neg().item() + 20 / p, rel=1e-5)
    assert (prior.log_prob(zero) > prior.log_prob(zero + 0.5)).item()


@pytest.mark.parametrize("p", [0.2, 2.0, 50.0])
def test_samples_of_extreme_exponents_are_finite_and_in_proportion(p):
    torch.manual_seed(0)
    for tree in (Node(p, 3), Node(p, [Node(1.0, 2), 1]), Node(1.0, [Node(p, 2), 1])):
        prior = LpNested(tree)
        z = prior.sample((20_000,))
        assert z.isfinite().all() and (z != 0).all()
        assert prior.log_prob(z).isfinite().all()
        order = 0.5 * min(tree.exponents)
        power = z.abs().double() ** order
        error = power.std(0) / math.sqrt(len(z))
        assert ((power.mean(0) - prior.absolute_moment(order)).abs() < 4.5 * error).all()


@pytest.mark.parametrize("p", [1.0, 2.0, 50.0])
def test_a_vanished_coordinate_leaves_the_second_derivatives_of_the_others_right(p):
    z = torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64)
    prior = LpNested(Node(1.7, [Node(p, 2), 1]))
    hessian = torch.func.hessian(prior.log_prob)(z)
    torch.testing.assert_close(hessian[1:, 1:], torch.func.hessian(LpNested(Node(1.7, 2)).log_prob)(z[1:]))
    assert (hessian[0] == 0).all() and (hessian[:, 0] == 0).all()
    assert torch.func.hessian(prior.log_prob)(0 * z).isfinite().all()


def test_a_million_to_one_range_within_one_point_does_not_disturb_single_precision():
    rng = np.random.default_rng(0)
    z = torch.from_numpy(rng.normal(size=(500, 20)) * 10.0 ** rng.uniform(-30, 0, size=(500, 20)))
    prior = isa_prior()
    torch.testing.assert_close(prior.log_prob(z.float()).double(), prior.log_prob(z), rtol=1e-5, atol=1e-5)
