"""Over-complete ICA: the objective and its derivatives as numbers, the fits as statistics over data sets."""

from __future__ import annotations

from itertools import pairwise

import autograd.numpy as anp
import numpy as np
import pytest
from autograd import elementwise_grad, grad
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.integrate import quad
from scipy.optimize import minimize
from scipy.special import kv, loggamma, wofz

from isa import LpNested, Node, isa_prior
from isa.toys import factor_analysis, ica

W = ica.directions([30.0, 90.0, 150.0])
NOISE = 0.05
X = np.zeros((4, 2))
seeds = st.integers(0, 2**32 - 1)


@pytest.fixture(scope="module")
def fits():
    """Ten data sets: fits at beta = 1 and at beta = 5, started at the truth."""
    data = [ica.sample(400, W, NOISE, seed=seed)[0] for seed in range(10)]
    return [(x, ica.fit(x, W, NOISE), ica.fit(x, W, NOISE, beta=5.0)) for x in data]


def posteriors(seed: int, n: int = 5, k: int = 3):
    rng = np.random.default_rng(seed)
    return 2.0 * rng.normal(size=(n, k)), np.exp(rng.normal(size=(n, k)) - 1.0)


def test_sample_has_the_models_moments_and_is_a_function_of_the_seed():
    weights, noise, n = np.array([[1.0, 0.5, -0.3], [0.2, 1.0, 0.8]]), np.array([0.3, 0.7]), 200_000
    x, z = ica.sample(n, weights, noise, dof=9.0, seed=1)
    assert x.shape == (n, 2) and z.shape == (n, 3)
    assert stats.kstest(z.ravel(), stats.t(9.0).cdf).pvalue > 1e-3
    residual = x - z @ weights.T
    assert np.abs(residual.var(0) - noise).max() < 5 * noise.max() * np.sqrt(2 / n)
    assert np.abs(np.cov(residual.T, z.T)[:2, 2:]).max() < 5 * np.sqrt(noise.max() * z.var() / n)
    first, second, other = (ica.sample(4, W, NOISE, seed=seed)[0] for seed in (3, np.random.default_rng(3), 4))
    assert (first == second).all() and (first != other).all()


def by_quad(mean: float, sd: float, dof: float) -> float:
    """E log(1 + z^2 / v) by adaptive quadrature in the standardised variable, split where the integrand bends."""

    def integrand(e: float) -> float:
        return np.log1p((mean + sd * e) ** 2 / dof) * np.exp(-0.5 * e * e) / np.sqrt(2 * np.pi)

    bends = [(b - mean) / sd for b in (-10 * np.sqrt(dof), -np.sqrt(dof), 0, np.sqrt(dof), 10 * np.sqrt(dof))]
    edges = [-13.0, *sorted(b for b in bends if -13 < b < 13), 13.0]
    return sum(quad(integrand, a, b, epsabs=1e-13, epsrel=1e-12, limit=300)[0] for a, b in pairwise(edges))


@pytest.mark.parametrize("dof", [0.5, 1.0, 3.5, 30.0, 1e4])
def test_quadrature_against_scipy(dof):
    means, sds = np.array([0.0, 1e-2, 0.7, 3.0, 30.0, 100.0]), np.array([1e-3, 0.05, 0.5, 2.0, 8.0, 30.0])
    ours = ica.expected_log1p(means[:, None], sds, dof)
    assert np.abs(ours - [[by_quad(m, s, dof) for s in sds] for m in means]).max() < 1e-9
    without_spread = ica.expected_log1p(means, np.zeros(6), dof)
    assert without_spread == pytest.approx(np.log1p(means**2 / dof), abs=1e-9)


@given(st.floats(-100, 100), st.floats(1e-3, 30), st.floats(0.5, 50))
@settings(max_examples=60, deadline=None)
def test_quadrature_against_scipy_anywhere(mean, sd, dof):
    ours = float(ica.expected_log1p(np.array(mean), np.array(sd), dof))
    assert ours == pytest.approx(by_quad(mean, sd, dof), abs=1e-8)


def test_gradient_of_the_quadrature_against_the_faddeeva_function():
    # d/dm E log(v + z^2) = 2 Re E 1 / (z - i sqrt(v)), which the Faddeeva function has in closed form.
    mean, sd = np.meshgrid([0.0, 0.4, 3.0, 50.0], [0.05, 0.6, 4.0, 30.0])
    argument = (-mean + 1j * np.sqrt(3.5)) / (np.sqrt(2) * sd)
    exact = 2 * np.real(1j * np.sqrt(np.pi / 2) / sd * wofz(argument))
    slope = elementwise_grad(lambda m: ica.expected_log1p(m, sd, 3.5))(mean)
    assert np.abs(slope - exact).max() < 1e-9


def test_free_energy_against_monte_carlo():
    x, _ = ica.sample(5, W, 0.4, seed=0)
    mean, sd = posteriors(1)
    z = mean + sd * np.random.default_rng(2).standard_normal((200_000, *mean.shape))
    likelihood = stats.norm.logpdf(x, z @ W.T, np.sqrt(0.4)).sum((1, 2))
    kl = (stats.norm.logpdf(z, mean, sd) - stats.t(3.5).logpdf(z)).sum((1, 2))
    parts = ica.terms(W, mean, sd, x, 0.4)
    values = (ica.free_energy(W, mean, sd, x, 0.4, beta=2.5), parts.reconstruction, parts.kl)
    for value, draws in zip(values, (likelihood - 2.5 * kl, likelihood, kl), strict=True):
        assert abs(value - draws.mean()) < 5 * draws.std() / np.sqrt(len(draws))


@given(seeds, st.floats(0.1, 8.0), st.floats(0.5, 20.0))
@settings(max_examples=25, deadline=None)
def test_gradient_against_finite_differences(seed, beta, dof):
    rng = np.random.default_rng(seed)
    weights, x = rng.normal(size=(2, 3)), rng.normal(size=(5, 2))
    start = (weights, *posteriors(seed))
    ways = tuple(rng.normal(size=part.shape) for part in start)
    ways = (*ways[:2], ways[2] * start[2])

    def objective(parts):
        return ica.free_energy(*parts, x, np.array([0.2, 0.6]), dof, beta)

    def along(t: float) -> float:
        return objective(tuple(part + t * way for part, way in zip(start, ways, strict=True)))

    slope, step = sum((g * w).sum() for g, w in zip(grad(objective)(start), ways, strict=True)), 1e-4
    numeric = (8 * (along(step) - along(-step)) - along(2 * step) + along(-2 * step)) / (12 * step)
    assert slope == pytest.approx(numeric, rel=1e-6, abs=1e-5)


@given(seeds, st.permutations(range(3)), st.tuples(*[st.sampled_from([-1.0, 1.0])] * 3))
@settings(max_examples=25, deadline=None)
def test_permutation_and_sign_leave_the_free_energy(seed, order, signs):
    rng = np.random.default_rng(seed)
    weights, x = rng.normal(size=(2, 3)), rng.normal(size=(5, 2))
    mean, sd = posteriors(seed)
    order, signs = list(order), np.array(signs)
    before = ica.free_energy(weights, mean, sd, x, 0.3, beta=3.0)
    after = ica.free_energy((weights * signs)[:, order], (mean * signs)[:, order], sd[:, order], x, 0.3, beta=3.0)
    assert after == pytest.approx(before, rel=1e-12)


def test_rotating_data_and_weights_leaves_the_fit():
    x, _ = ica.sample(80, W, NOISE, seed=0)
    turn = np.array([[np.cos(0.7), -np.sin(0.7)], [np.sin(0.7), np.cos(0.7)]])
    here, there = ica.fit(x, W, NOISE), ica.fit(x @ turn.T, turn @ W, NOISE)
    assert there.free_energy[-1] == pytest.approx(here.free_energy[-1], rel=1e-7)
    assert there.W[:, ica.survivors(there.W)] == pytest.approx(turn @ here.W[:, ica.survivors(here.W)], abs=1e-3)


DOFS = [0.5, 1.0, 3.5, 8.0, 30.0, 1e3, 1e6]


@pytest.mark.parametrize("dof", DOFS)
@pytest.mark.parametrize("noise", [1e-3, 0.25, 20.0])
def test_log_likelihood_of_one_source_against_scipy(dof, noise):
    x, sd = np.array([0.0, 0.7, 4.0]), np.sqrt(noise)
    for point, ours in zip(x, ica.log_likelihood(x[:, None], np.array([[1.0]]), noise, dof), strict=True):
        edges = {point + k * sd for k in (-40, -10, -5, -2, 0, 2, 5, 10, 40)} | {-8, -4, -2, 0, 2, 4, 8}
        edges = sorted(e for e in edges if abs(e - point) <= 40 * sd)
        direct = sum(
            quad(lambda z, p=point: stats.t.pdf(z, dof) * stats.norm.pdf(p, z, sd), a, b, epsabs=0, epsrel=1e-10)[0]
            for a, b in pairwise(edges)
        )
        assert ours == pytest.approx(np.log(direct), abs=1e-6)


@pytest.mark.parametrize("dof", DOFS)
def test_log_likelihood_of_three_sources_against_their_characteristic_function(dof):
    # One observation of three sources: the density is the Fourier transform of a product.
    def log_characteristic(t):
        s = np.sqrt(dof) * t
        return np.log(kv(dof / 2, s)) + dof / 2 * np.log(s / 2) + np.log(2) - loggamma(dof / 2)

    weights, noise, x = np.array([[1.0, 0.6, -0.3]]), 0.3, np.array([[0.0], [1.5]])
    ours = ica.log_likelihood(x, weights, noise, dof)
    for point, value in zip(x[:, 0], ours, strict=True):

        def integrand(t, p=point):
            # SciPy's Bessel function overflows at high order: there the first cumulants suffice.
            logs = [log_characteristic(w * t) if dof < 100 else expansion(w * t) for w in np.abs(weights[0])]
            return np.cos(t * p) * np.exp(sum(logs) - 0.5 * noise * t * t) / np.pi

        def expansion(t):
            variance = dof / (dof - 2)
            kurtosis, sixth = 6 / (dof - 4), 240 / (dof - 4) / (dof - 6)
            s = variance * t**2
            return -s / 2 + kurtosis * s**2 / 24 - sixth * s**3 / 720

        direct = sum(quad(integrand, a, b, epsabs=1e-11)[0] for a, b in pairwise([1e-12, 0.01, 0.1, 1.0, 5.0, 12.0]))
        assert value == pytest.approx(np.log(direct), abs=1e-6)


def test_light_tails_narrow_the_precisions():
    assert ica.log_likelihood(np.zeros((1, 1)), np.array([[1.0]]), 0.25, 1000.0) == pytest.approx(-1.03083, abs=1e-5)
    assert ica.log_likelihood(np.zeros((1, 1)), np.array([[1.0]]), 0.25, 1e6) == pytest.approx(-1.03051, abs=1e-5)


@pytest.mark.parametrize("noise", [np.array([0.3, 0.3]), np.array([0.5, 1.2])])
def test_log_likelihood_against_brute_force(noise):
    grid = np.arange(-30.0, 30.0, 0.3)
    density = stats.t(3.5).pdf(grid) * 0.3
    x = np.array([[0.5, 1.0], [4.0, -3.0], [0.0, 0.0]])
    total = np.zeros(len(x))
    for z, mass in zip(grid, density, strict=True):
        centre = W[:, 0] * z
        spread = [grid[:, None] * W[row, 1] + grid[None, :] * W[row, 2] for row in (0, 1)]
        for i, point in enumerate(x):
            square = sum((point[row] - centre[row] - spread[row]) ** 2 / noise[row] for row in (0, 1))
            total[i] += mass * (density @ np.exp(-0.5 * square) @ density)
    brute = np.log(total / (2 * np.pi * np.sqrt(noise.prod())))
    assert ica.log_likelihood(x, W, noise) == pytest.approx(brute, abs=5e-6)


def test_nearly_parallel_columns_explain_what_lies_across():
    # Only sources of 100 and -100 explain (0, 1): integrate the one that is left when x fixes their sum.
    weights, noise = np.array([[1.0, 1.0], [0.0, 0.01]]), 1e-4
    ours = ica.log_likelihood(np.array([[0.0, 1.0]]), weights, noise, 1.0)[0]
    finer = ica.log_likelihood(np.array([[0.0, 1.0]]), weights, noise, 1.0, step=0.2, digits=9.0)[0]
    z = np.linspace(90, 110, 4001)
    square = [(0.0 - z[:, None] - z[None, ::1] * -1) ** 2, (1.0 - 0.01 * z[:, None]) ** 2]
    log_p = stats.t(1.0).logpdf(z)[:, None] + stats.t(1.0).logpdf(z) - sum(square) / (2 * noise)
    brute = np.log(np.exp(log_p).sum() * (z[1] - z[0]) ** 2 / (2 * np.pi * noise))
    assert ours == pytest.approx(finer, abs=1e-6) and ours == pytest.approx(brute, abs=1e-4)


def test_light_tails_are_factor_analysis():
    # For many degrees of freedom the prior is N(0, 1): orthogonal weights close the gap to the likelihood.
    x = np.random.default_rng(0).normal(size=(20, 2)) * [2.0, 1.0]
    weights, noise, turn = np.diag([1.5, 0.6]), 0.4, np.array([[0.8, -0.6], [0.6, 0.8]])
    cov = x.T @ x / len(x)
    gaussian = factor_analysis.log_likelihood(weights, noise, cov, len(x))
    assert ica.log_likelihood(x, weights, noise, dof=1e6).sum() == pytest.approx(gaussian, abs=1e-3)
    aligned, turned = (
        ica.free_energy(w, *ica.infer(x, w, noise, dof=1e6), x, noise, dof=1e6) for w in (weights, weights @ turn)
    )
    assert aligned == pytest.approx(gaussian, abs=1e-3)
    assert turned == pytest.approx(factor_analysis.free_energy(weights @ turn, noise, cov, len(x)), abs=1e-3)
    assert turned < gaussian - 1.0


@given(seeds)
@settings(max_examples=5, deadline=None)
def test_free_energy_is_never_above_the_log_likelihood(seed):
    weights = np.random.default_rng(seed).normal(size=(2, 3))
    x, _ = ica.sample(15, weights, 0.3, seed=seed)
    exact = ica.log_likelihood(x, weights, 0.3).sum()
    best = ica.free_energy(weights, *ica.infer(x, weights, 0.3), x, 0.3)
    assert ica.free_energy(weights, *posteriors(seed, 15), x, 0.3) < best < exact


@pytest.mark.parametrize("method", ["newton", "em"])
@pytest.mark.parametrize("beta", [0.5, 1.0, 5.0])
def test_every_step_improves_what_is_returned(method, beta):
    x, _ = ica.sample(150, W, NOISE, seed=7)
    result = ica.fit(x, W, NOISE, beta=beta, method=method, max_iter=60)
    value = ica.free_energy(result.W, result.mean, result.sd, x, NOISE, beta=beta)
    assert (np.diff(result.free_energy) > 0).all() and result.free_energy[-1] == pytest.approx(value, rel=1e-10)
    assert len(result.path) == len(result.free_energy) == result.n_iter + 1
    assert (result.path[0] == W).all() and (result.path[-1] == result.W).all()


def test_the_fit_is_a_stationary_point_that_newton_reaches_in_few_steps(fits):
    for _, *results in fits:
        for result in results:
            assert result.converged and result.n_iter < 60
            assert result.gradient_norm < 1e-3 * abs(result.free_energy[-1])
    x, plain, _ = fits[0]
    close = ica.fit(x, plain.W, NOISE, tol=1e-13)
    # Convergence in a few steps to rounding needs the right second derivatives too.
    assert close.gradient_norm < 1e-2 and close.n_iter < 10


def test_the_posterior_is_at_least_as_good_as_scipys():
    x, _ = ica.sample(6, W, 0.2, seed=3)
    rng = np.random.default_rng(0)
    for point in x[:, None]:

        def loss(flat, point=point):
            return -ica.free_energy(W, flat[None, :3], anp.exp(flat[None, 3:]), point, 0.2)

        starts = [np.r_[3 * rng.normal(size=3), -np.ones(3)] for _ in range(6)]
        best = min(minimize(loss, start, jac=grad(loss)).fun for start in starts)
        assert -ica.free_energy(W, *ica.infer(point, W, 0.2), point, 0.2) <= best + 1e-6


def test_variational_inference_is_more_orthogonal_than_the_truth_and_beta_five_prunes(fits):
    """The truth has 60 degrees between any two directions; the two longest columns that are found come near 90."""
    widest, strong = (np.array([ica.widest_pair(fit[i].W) for fit in fits]) for i in (1, 2))
    assert widest.mean() - 60.0 > 10 * widest.std(ddof=1) / np.sqrt(len(widest)) and widest.min() > 75.0
    assert max(ica.explaining_away(plain.W) for _, plain, _ in fits) < 0.5 * ica.explaining_away(W)
    assert np.mean([ica.survivors(fit[2].W).sum() == 2 for fit in fits]) >= 0.9 and abs(strong - 90.0).mean() < 8.0


def test_on_the_way_beta_five_prunes_sooner():
    for seed in range(4):
        x, _ = ica.sample(300, W, 0.1, seed=seed)
        paths = [ica.fit(x, W, 0.1, beta=beta, method="em", max_iter=60).path for beta in (1.0, 5.0)]
        ratios = [np.array([ica.lengths(w).min() / ica.lengths(w).max() for w in path]) for path in paths]
        plain, strong = (int(np.argmax(r < 0.5)) if (r < 0.5).any() else len(r) for r in ratios)
        assert plain > strong


def test_exact_likelihood_recovers_the_directions():
    x, _ = ica.sample(1000, W, NOISE, seed=0)
    exact = ica.fit_exact(x, W, NOISE)
    assert exact.converged and (np.diff(exact.log_likelihood) >= 0).all()
    gain = exact.log_likelihood[-1] - exact.log_likelihood[0]
    assert 0 < gain < stats.chi2(6).ppf(0.9999) / 2  # six parameters fitted to noise
    assert exact.log_likelihood[-1] == pytest.approx(ica.log_likelihood(x, exact.W, NOISE).sum(), rel=1e-10)
    for index in ((0, 0), (1, 2)):  # a maximum, by differences of the likelihood itself
        move = np.zeros((2, 3))
        move[index] = 1e-3
        low, high = (ica.log_likelihood(x, exact.W + m, NOISE).sum() for m in (-move, move))
        assert abs(high - low) / 2e-3 < 2.0 and max(low, high) < exact.log_likelihood[-1]
    assert np.abs(ica.angle_between(np.sort(ica.angles(exact.W)), [30.0, 90.0, 150.0])).max() < 10.0
    pruned = ica.fit(x, W, NOISE)
    assert exact.log_likelihood[-1] - ica.log_likelihood(x, pruned.W, NOISE).sum() > 20.0


def test_one_data_point():
    result = ica.fit(np.array([[1.0, -2.0]]), W, NOISE)
    assert np.isfinite(result.W).all() and (np.diff(result.free_energy) > 0).all()


def test_a_zero_column_stays_zero_and_its_posterior_is_the_best_gaussian_for_the_prior():
    x, _ = ica.sample(60, W, NOISE, seed=0)
    with_zero = np.column_stack([W[:, :2], np.zeros(2)])
    three, two = ica.fit(x, with_zero, NOISE, beta=2.0), ica.fit(x, W[:, :2], NOISE, beta=2.0)
    assert np.abs(three.W[:, 2]).max() < 1e-12 and np.abs(three.mean[:, 2]).max() < 1e-4
    assert np.ptp(three.sd[:, 2]) < 1e-4
    sd = three.sd[0, 2]
    gap = -0.5 * np.log(2 * np.pi * np.e * sd**2) - stats.t.logpdf(0.0, 3.5) + 2.25 * by_quad(0.0, sd, 3.5)
    assert gap > 0
    assert three.free_energy[-1] == pytest.approx(two.free_energy[-1] - 2.0 * 60 * gap, rel=1e-7)
    assert ica.log_likelihood(x, with_zero, NOISE) == pytest.approx(ica.log_likelihood(x, W[:, :2], NOISE), abs=1e-6)


def test_beta_scales_the_noise():
    # F_beta at noise D is beta times F_1 at noise beta D, up to a constant: only their product shapes the optimum.
    x, _ = ica.sample(100, W, NOISE, seed=2)
    here, there = ica.fit(x, W, NOISE, beta=4.0), ica.fit(x, W, 4.0 * NOISE)
    constants = -len(x) * np.log(2 * np.pi * NOISE) + 4.0 * len(x) * np.log(2 * np.pi * 4.0 * NOISE)
    assert here.free_energy[-1] == pytest.approx(4.0 * there.free_energy[-1] + constants, rel=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"noise_var": 0.0}, "noise_var must be positive"),
        ({"noise_var": np.array([0.1, -1.0])}, "noise_var must be positive"),
        ({"noise_var": np.ones(3)}, r"noise_var must be a number or have the shape \(2,\)"),
        ({"dof": 0.0}, "dof must be positive"),
        ({"beta": np.inf}, "beta must be positive and finite"),
        ({"beta": "one"}, "beta must be a number, got 'one'"),
        ({"tol": 0.0}, "tol must be positive"),
        ({"max_iter": 0}, "max_iter must be a whole number of at least 1"),
        ({"method": "adam"}, "method must be 'newton' or 'em', got 'adam'"),
        ({"x": np.zeros((4, 3))}, r"x must have the shape \(N, 2\)"),
        ({"x": np.zeros((0, 2))}, "at least one entry"),
        ({"x": np.full((4, 2), np.nan)}, "x must be finite"),
        ({"W": np.ones(3)}, "W must have two dimensions"),
        ({"W": np.full((2, 3), np.inf)}, "W must be finite"),
    ],
)
def test_bad_input_is_named(change, message):
    with pytest.raises((ValueError, TypeError), match=message):
        ica.fit(**{"x": X, "W": W, "noise_var": NOISE, **change})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ica.sample(2.5, W, NOISE), r"n must be a whole number of at least 1, got 2\.5"),
        (lambda: ica.fit_lp_nested(X, W, 1.0, isa_prior((2,))), "as many sources"),
        (lambda: ica.fit_lp_nested(X, W, 1.0, isa_prior((3,)), draws=100), "power of two"),
    ],
)
def test_bad_input_of_the_other_functions(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_lp_nested_with_exponents_two_is_factor_analysis():
    # p0 = p1 = 2 at scale 1 is N(0, 1/2): factor analysis with columns shorter by sqrt(2).
    x = np.random.default_rng(0).normal(size=(60, 2)) * [2.0, 1.0]
    result = ica.fit_lp_nested(x, W, 0.2, LpNested(Node(2.0, 3)), tol=1e-12)
    reference = factor_analysis.free_energy(result.W / np.sqrt(2.0), 0.2, x.T @ x / len(x), len(x))
    assert (np.diff(result.free_energy) > 0).all()
    assert result.free_energy[-1] == pytest.approx(reference, abs=0.05)


def test_lp_nested_prior_prunes_as_well():
    rng = np.random.default_rng(0)
    z = rng.normal(size=(100, 3)) * np.sqrt(0.49)  # the prior's variance; its exponents are close to 2
    x = z @ (2.0 * W).T + np.sqrt(NOISE) * rng.standard_normal((100, 2))
    result = ica.fit_lp_nested(x, 2.0 * W, NOISE, isa_prior((3,)), beta=5.0, draws=128)
    assert ica.survivors(result.W).sum() == 2


def test_measures_of_directions():
    right = np.array([[2.0, 0.0, 0.1], [0.0, 1.0, 0.1]])
    assert ica.angles(right) == pytest.approx([0.0, 90.0, 45.0])
    assert ica.lengths(right) == pytest.approx([2.0, 1.0, np.sqrt(0.02)])
    assert ica.survivors(right).tolist() == [True, True, False]
    assert ica.widest_pair(right) == pytest.approx(90.0)
    assert ica.angle_between(170.0, 10.0) == pytest.approx(20.0)
    assert ica.explaining_away(right[:, :2]) == 0.0 and ica.explaining_away(W) == pytest.approx(0.25)
    assert not ica.survivors(np.zeros((2, 3))).any()
    assert not ica.survivors(1e-3 * right, reference=right).any()
