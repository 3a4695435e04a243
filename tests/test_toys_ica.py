"""Over-complete ICA: the objective and its derivatives as numbers, the fits as statistics over data sets."""

from itertools import pairwise

import autograd.numpy as anp
import numpy as np
import pytest
from autograd import grad
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.integrate import quad
from scipy.optimize import minimize
from scipy.special import gamma, kv, wofz

from isa import LpNested, Node
from isa.toys import factor_analysis, ica

W, NOISE = ica.directions([30.0, 90.0, 150.0]), 0.05


def integral(function, edges, **options):
    return sum(quad(function, a, b, limit=300, **options)[0] for a, b in pairwise(sorted(edges)))


def test_sample_has_the_moments_of_the_model():
    weights, noise, n = np.array([[1.0, 0.5, -0.3], [0.2, 1.0, 0.8]]), np.array([0.3, 0.7]), 100_000
    x, z = ica.sample(n, weights, noise, dof=9.0, seed=1)
    assert stats.kstest(z.ravel(), stats.t(9.0).cdf).pvalue > 1e-3
    residual = x - z @ weights.T
    assert (np.abs(residual.var(0) - noise) < 5 * noise * np.sqrt(2 / n)).all()
    assert np.abs(np.cov(residual.T, z.T)[:2, 2:]).max() < 5 * np.sqrt(noise.max() * z.var() / n)
    np.testing.assert_array_equal(x, ica.sample(n, weights, noise, dof=9.0, seed=np.random.default_rng(1))[0])


def log1p_by_quadrature(mean: float, sd: float, dof: float) -> float:
    """E log(1 + z^2 / v) by adaptive quadrature in the standardised variable, split where the integrand bends."""
    bends = [(b * np.sqrt(dof) - mean) / sd for b in (-10, -1, 0, 1, 10)]
    edges = np.clip([-13.0, *bends, 13.0], -13.0, 13.0)
    return integral(lambda e: np.log1p((mean + sd * e) ** 2 / dof) * stats.norm.pdf(e), edges, epsrel=1e-12)


@given(st.floats(-100, 100), st.floats(1e-3, 30), st.floats(0.5, 1e4))
@settings(max_examples=10, deadline=None)
def test_expected_log1p_and_its_slope(mean, sd, dof):
    ours = ica.expected_log1p(np.array(mean), np.array([sd, 0.0]), dof)
    assert ours == pytest.approx([log1p_by_quadrature(mean, sd, dof), np.log1p(mean**2 / dof)], abs=1e-8)
    # d/dm E log(v + z^2) = 2 Re E 1 / (z - i sqrt(v)), which the Faddeeva function has in closed form
    exact = 2 * np.real(1j * np.sqrt(np.pi / 2) / sd * wofz((-mean + 1j * np.sqrt(dof)) / (np.sqrt(2) * sd)))
    assert grad(lambda m: ica.expected_log1p(m, sd, dof))(mean) == pytest.approx(exact, abs=1e-8)


@pytest.mark.parametrize("dof", [0.5, 3.5, 30.0])
def test_log_likelihood_matches_characteristic_function(dof):
    # Three sources on a line: the density along it is the Fourier transform of a product, across it is noise.
    def integrand(t, point):
        s = np.sqrt(dof) * t * np.array([1.0, 0.6, 0.3])
        factors = kv(dof / 2, s) * (s / 2) ** (dof / 2) * 2 / gamma(dof / 2)
        return np.cos(t * point) * factors.prod() * np.exp(-0.15 * t * t) / np.pi

    line, across = np.array([[0.8], [0.6]]), np.array([-0.6, 0.8])
    x = [[0.0], [1.5]] @ line.T + 0.7 * across
    ours = ica.log_likelihood(x, line @ [[1.0, 0.6, -0.3]], 0.3, dof) - stats.norm(0, np.sqrt(0.3)).logpdf(0.7)
    edges = [1e-12, 0.01, 0.1, 1.0, 5.0, 12.0]
    direct = [integral(lambda t, p=p: integrand(t, p), edges, epsabs=1e-11) for p in (0.0, 1.5)]
    assert ours == pytest.approx(np.log(direct), abs=1e-6)


def test_light_tails_are_factor_analysis():
    # For many degrees of freedom the prior is N(0, 1): orthogonal weights close the gap to the likelihood.
    x = np.random.default_rng(0).normal(size=(20, 2)) * [2.0, 1.0]
    weights, noise, cov = np.diag([1.5, 0.6]), 0.4, factor_analysis.second_moment(x)
    gaussian = factor_analysis.log_likelihood(weights, noise, cov, len(x))
    assert ica.log_likelihood(x, weights, noise, dof=1e6).sum() == pytest.approx(gaussian, abs=1e-3)
    for w in (weights, weights @ [[0.8, -0.6], [0.6, 0.8]]):
        ours = ica.free_energy(w, *ica.fit(x, w, noise, dof=1e6, max_iter=0)[3:5], x, noise, dof=1e6)
        assert ours == pytest.approx(factor_analysis.free_energy(w, noise, cov, len(x)), abs=1e-3)


@pytest.mark.parametrize(("method", "beta", "n"), [("newton", 0.5, 80), ("em", 5.0, 80), ("newton", 1.0, 1)])
def test_every_step_improves_the_free_energy(method, beta, n):
    x, _ = ica.sample(n, W, NOISE, seed=7)
    result = ica.fit(x, W, NOISE, beta=beta, method=method, max_iter=30)
    value = ica.free_energy(result.W, result.mean, result.sd, x, NOISE, beta=beta)
    assert (np.diff(result.free_energy) > 0).all() and result.free_energy[-1] == pytest.approx(value, rel=1e-10)
    assert len(result.path) == len(result.free_energy) == result.n_iter + 1
    assert (result.path[0] == W).all() and (result.path[-1] == result.W).all()


def test_newton_reaches_a_stationary_point_in_few_steps():
    x, _ = ica.sample(150, W, NOISE, seed=0)
    close = ica.fit(x, ica.fit(x, W, NOISE).W, NOISE, tol=1e-13)
    slopes = [grad(lambda *p: ica.free_energy(*p, x, NOISE), i)(close.W, close.mean, close.sd) for i in range(3)]
    # Convergence in a few steps to rounding needs the right second derivatives too.
    assert max(np.abs(slope).max() for slope in slopes) < 1e-2 and close.n_iter < 10


def test_posteriors_are_at_least_as_good_as_those_of_scipy():
    x, rng = ica.sample(3, W, 0.2, seed=3)[0], np.random.default_rng(0)
    for point in x[:, None]:

        def loss(flat, point=point):
            return -ica.free_energy(W, flat[None, :3], anp.exp(flat[None, 3:]), point, 0.2)

        best = min(minimize(loss, np.r_[3 * rng.normal(size=3), -np.ones(3)], jac=grad(loss)).fun for _ in range(4))
        assert -ica.free_energy(W, *ica.fit(point, W, 0.2, max_iter=0)[3:5], point, 0.2) <= best + 1e-6


def test_orthogonal_directions_and_pruning():
    # The truth has 60 degrees between any two directions.
    data = [ica.sample(200, W, NOISE, seed=seed)[0] for seed in range(4)]
    plain, strong = ([ica.fit(x, W, NOISE, beta=beta).W for x in data] for beta in (1.0, 5.0))
    widest = np.array([ica.widest_pair(w) for w in plain])
    assert widest.mean() - 60.0 > 5 * widest.std(ddof=1) / np.sqrt(len(widest)) and widest.min() > 70.0
    assert np.mean([ica.survivors(w).sum() == 2 for w in strong]) > 0.7
    assert np.mean([90.0 - ica.widest_pair(w) for w in strong]) < 10.0


def test_exact_likelihood_recovers_the_directions():
    x, _ = ica.sample(500, W, NOISE, seed=0)
    exact, start = ica.fit_exact(x, W, NOISE), ica.log_likelihood(x, W, NOISE).sum()
    best = exact.log_likelihood[-1]
    assert exact.converged and (np.diff(exact.log_likelihood) >= 0).all()
    assert 0 < best - start < stats.chi2(6).ppf(0.9999) / 2  # six parameters fitted to noise
    assert np.abs(ica.angle_between(np.sort(ica.angles(exact.W)), [30.0, 90.0, 150.0])).max() < 10.0
    assert best - ica.log_likelihood(x, ica.fit(x, W, NOISE).W, NOISE).sum() > 5.0


def test_zero_column_and_its_posterior():
    x, _ = ica.sample(60, W, NOISE, seed=0)
    with_zero = np.column_stack([W[:, :2], np.zeros(2)])
    three, two = ica.fit(x, with_zero, NOISE, beta=2.0), ica.fit(x, W[:, :2], NOISE, beta=2.0)
    assert np.abs(three.W[:, 2]).max() < 1e-12 and np.abs(three.mean[:, 2]).max() < 1e-4
    sd = three.sd[0, 2]
    gap = -0.5 * np.log(2 * np.pi * np.e * sd**2) - stats.t.logpdf(0.0, 3.5) + 2.25 * log1p_by_quadrature(0, sd, 3.5)
    assert gap > 0 and three.free_energy[-1] == pytest.approx(two.free_energy[-1] - 120 * gap, rel=1e-7)
    assert ica.log_likelihood(x, with_zero, NOISE) == pytest.approx(ica.log_likelihood(x, W[:, :2], NOISE), abs=1e-6)


def test_symmetries_of_the_fit():
    x, _ = ica.sample(80, W, NOISE, seed=0)
    turn = np.array([[0.8, -0.6], [0.6, 0.8]])
    here, there = ica.fit(x, W, NOISE, beta=4.0), ica.fit(x @ turn.T, turn @ W, NOISE, beta=4.0)
    assert there.free_energy[-1] == pytest.approx(here.free_energy[-1], rel=1e-7)
    # F_beta at noise D is beta times F_1 at noise beta D, up to a constant: only their product shapes the optimum.
    noisy = ica.fit(x, W, 4.0 * NOISE)
    constants = -len(x) * np.log(2 * np.pi * NOISE) + 4.0 * len(x) * np.log(2 * np.pi * 4.0 * NOISE)
    assert here.free_energy[-1] == pytest.approx(4.0 * noisy.free_energy[-1] + constants, rel=1e-6)


def test_lp_nested_with_exponents_two_is_factor_analysis():
    # p0 = p1 = 2 at scale 1 is N(0, 1/2): factor analysis with columns shorter by sqrt(2).
    x = np.random.default_rng(0).normal(size=(60, 2)) * [2.0, 1.0]
    result = ica.fit_lp_nested(x, W, 0.2, LpNested(Node(2.0, 3)), tol=1e-12)
    reference = factor_analysis.free_energy(result.W / np.sqrt(2.0), 0.2, factor_analysis.second_moment(x), len(x))
    assert (np.diff(result.free_energy) > 0).all() and result.free_energy[-1] == pytest.approx(reference, abs=0.05)


def test_measures_of_directions():
    right = np.array([[2.0, 0.0, 0.1], [0.0, 1.0, 0.1]])
    assert ica.angles(right) == pytest.approx([0.0, 90.0, 45.0])
    assert ica.lengths(right) == pytest.approx([2.0, 1.0, np.sqrt(0.02)])
    assert ica.survivors(right).tolist() == [True, True, False]
    assert not ica.survivors(1e-3 * right, reference=right).any()
    assert ica.widest_pair(right) == pytest.approx(90.0) and ica.angle_between(170.0, 10.0) == pytest.approx(20.0)
