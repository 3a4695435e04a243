"""Factor analysis under mean-field inference: closed forms against brute force, and the paper's three experiments."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from scipy.optimize import minimize
from scipy.stats import multivariate_normal, norm

from isa.toys import factor_analysis as fa

betas = pytest.mark.parametrize("beta", [0.3, 1.0, 4.0])
anything = given(st.integers(0, 2**32 - 1), st.tuples(st.integers(1, 5), st.integers(1, 5)), st.floats(0.05, 20.0))
few = settings(max_examples=40, deadline=None)


def problem(seed: int, n_observed: int = 3, n_latents: int = 2, n: int = 6):
    """Random weights, anisotropic noise and data that the model does not fit, with their second moments."""
    rng = np.random.default_rng(seed)
    W, noise = rng.normal(size=(n_observed, n_latents)), rng.uniform(0.2, 2.0, n_observed)
    x = 1.5 * rng.normal(size=(n, n_observed)) + rng.normal(size=n_observed)
    return W, noise, x, fa.second_moment(x)


@pytest.mark.parametrize("shape", [(3, 2, 6), (2, 3, 6), (1, 1, 1)])
def test_log_likelihood_is_the_density_of_the_data(shape):
    W, noise, x, cov = problem(0, *shape)
    direct = multivariate_normal(np.zeros(len(W)), W @ W.T + np.diag(noise)).logpdf(x).sum()
    assert fa.log_likelihood(W, noise, cov, len(x)) == pytest.approx(direct, rel=1e-12)


def expected_free_energy(means, sd, W, noise, x, beta):
    """Eq. 13 for two latents by Gauss-Hermite quadrature: E_q log p(x|z) - beta E_q[log q(z) - log p(z)]."""
    nodes, mass = np.polynomial.hermite_e.hermegauss(4)  # exact for polynomials up to degree 7
    z = means + sd * np.stack(np.meshgrid(nodes, nodes), -1).reshape(-1, 1, 2)
    kl = (norm.logpdf(z, means, sd) - norm.logpdf(z)).sum((1, 2))
    likelihood = norm.logpdf(x, z @ W.T, np.sqrt(noise)).sum((1, 2))
    return np.outer(mass, mass).ravel() @ (likelihood - beta * kl) / (2 * np.pi)


@betas
def test_mean_field_is_the_best_factorised_gaussian(beta):
    # Every data point has its own means and variances here: that they are linear and shared is a result.
    W, noise, x, cov = problem(1, n=3)

    def loss(flat):
        means, log_sd = flat.reshape(2, 3, 2)
        return -expected_free_energy(means, np.exp(log_sd), W, noise, x, beta)

    best = minimize(loss, np.zeros(12), method="BFGS", options={"gtol": 1e-5})
    means, log_sd = best.x.reshape(2, 3, 2)
    q, terms = fa.mean_field(W, noise, beta), fa.free_energy_terms(W, noise, cov, 3, beta)
    assert_allclose(means, x @ q.recognition.T, atol=1e-5)
    assert_allclose(np.exp(2 * log_sd), np.tile(q.var, (3, 1)), atol=1e-5)
    assert fa.free_energy(W, noise, cov, 3, beta) == pytest.approx(-best.fun, rel=1e-9)
    likelihood, bound = (
        expected_free_energy(x @ q.recognition.T, np.sqrt(q.var), W, noise, x, weight) for weight in (0.0, 1.0)
    )
    assert terms.reconstruction == pytest.approx(likelihood, rel=1e-11)
    assert terms.kl == pytest.approx(likelihood - bound, rel=1e-10)


@betas
def test_posterior_and_replicated_likelihood_match_quadrature(beta):
    W, noise, x, cov = problem(3, n=1)
    nodes, mass = np.polynomial.legendre.leggauss(200)
    z = 9 * np.stack(np.meshgrid(nodes, nodes, indexing="ij"), -1)
    log_density = norm.logpdf(x[0], z @ W.T, np.sqrt(noise)).sum(-1) / beta + norm.logpdf(z).sum(-1)
    density = 81 * np.outer(mass, mass) * np.exp(log_density)
    evidence, posterior = density.sum(), fa.posterior(W, noise, beta)
    mean = posterior.recognition @ x[0]
    assert fa.replicated_log_likelihood(W, noise, cov, 1, beta) == pytest.approx(np.log(evidence), rel=1e-10)
    assert_allclose(np.einsum("ab,abi->i", density, z) / evidence, mean, atol=1e-10)
    second = np.einsum("ab,abi,abj->ij", density, z, z) / evidence
    assert_allclose(second, posterior.cov + np.outer(mean, mean), atol=1e-10)


@anything
@few
def test_conventions_bounds_and_gap(seed, shape, beta):
    W, noise, _, cov = problem(seed, *shape)
    eq13, eq16 = fa.free_energy(W, noise, cov, 6, beta), fa.replicated_free_energy(W, noise, cov, 6, beta)
    terms, gap = fa.free_energy_terms(W, noise, cov, 6, beta), fa.mean_field_gap(W, noise, 6, beta)
    assert eq16 == pytest.approx(eq13 / beta, rel=1e-12)
    assert eq13 == pytest.approx(terms.reconstruction - beta * terms.kl, rel=1e-12)
    assert fa.replicated_log_likelihood(W, noise, cov, 6, beta) - gap == pytest.approx(eq16, rel=1e-9)
    q, p = fa.mean_field(W, noise, beta), fa.posterior(W, noise, beta)
    log_det = np.linalg.slogdet(p.cov)[1] - np.log(q.var).sum()
    divergence = (np.trace(np.linalg.solve(p.cov, np.diag(q.var))) - len(q.var) + log_det) / 2
    assert gap == pytest.approx(6 * divergence, abs=1e-9) and gap >= 0
    left, singular, _ = np.linalg.svd(W, full_matrices=False)
    orthogonal = np.sqrt(noise)[:, None] * left * singular
    assert fa.mean_field_gap(orthogonal, noise, 6, beta) == pytest.approx(0, abs=1e-11)


@anything
@few
def test_gradient_matches_finite_differences(seed, shape, beta):
    W, noise, _, cov = problem(seed, *shape)
    steps = 1e-6 * np.eye(W.size).reshape(-1, *W.shape)
    above, below = (fa.free_energy(weights, noise, cov, 1, beta) for weights in (W + steps, W - steps))
    gradient, numeric = fa.gradient(W, noise, cov, 1, beta), (above - below).reshape(W.shape) / 2e-6
    assert_allclose(gradient, numeric, rtol=1e-5, atol=1e-5 * np.abs(gradient).max() + 1e-7)


def test_rotation_acts_on_the_latents():
    W, noise, _, cov = problem(2, 3, 3)
    cos, sin = np.cos(0.7), np.sin(0.7)
    turned, turn = fa.rotate(W, 0.7, latents=(0, 2)), np.array([[cos, 0, -sin], [0, 1, 0], [sin, 0, cos]])
    assert_allclose(turned, W @ turn.T, atol=1e-12)
    assert_allclose(fa.posterior(turned, noise).cov, turn @ fa.posterior(W, noise).cov @ turn.T, atol=1e-10)
    assert_allclose(*(fa.log_likelihood(weights, noise, cov, 6) for weights in (W, turned)), rtol=1e-12)


def test_latent_use_adds_up_and_is_zero_for_a_zero_column():
    W, noise, x, cov = problem(9, 3, 4)
    W[:, 1] = 0
    use, q = fa.latent_use(W, noise, cov, 2.0), fa.mean_field(W, noise, 2.0)
    assert 6 * use.kl.sum() == pytest.approx(fa.free_energy_terms(W, noise, cov, 6, 2.0).kl, rel=1e-12)
    assert_allclose(use.mean_power, ((x @ q.recognition.T) ** 2).mean(0), rtol=1e-12)
    assert_allclose(use.exact_var, np.diag(fa.posterior(W, noise, 2.0).cov), rtol=1e-12)
    assert (use.var <= use.exact_var + 1e-12).all()
    assert (use.var[1], use.exact_var[1], use.mean_power[1], use.kl[1]) == (1, 1, 0, 0)


def test_sample_has_the_model_covariance():
    (W, noise, *_), n = problem(10), 40_000
    x, marginal = fa.sample(W, noise, n, 10), W @ W.T + np.diag(noise)
    # Var of a product of two Gaussian coordinates: c_ii c_jj + c_ij^2
    standard_error = np.sqrt((np.outer(np.diag(marginal), np.diag(marginal)) + marginal**2) / n)
    assert (np.abs(fa.second_moment(x) - marginal) < 5 * standard_error).all()


@pytest.mark.parametrize(
    ("n", "noise", "likelihood", "energy", "angle"),
    [(50, 0.01, -17.82, -57.16, np.pi / 4), (1000, 0.04, -17.82, -57.16, np.pi / 4), (30, 0.001, 5.0, -3.0, 0.3)],
)
def test_aligned_weights_have_the_given_values(n, noise, likelihood, energy, angle):
    W = fa.aligned_weights(n, noise, likelihood, energy, angle)
    cov, shown = W @ W.T + noise * np.eye(2), fa.rotate(W, [0.0, angle])
    assert_allclose(fa.log_likelihood(shown, noise, cov, n), likelihood, atol=1e-8)
    assert_allclose(fa.free_energy(shown, noise, cov, n), [likelihood, energy], atol=1e-8)


@betas
def test_experiments_1_and_3_prefer_orthogonal_weights(beta):
    W, angles = fa.aligned_weights(), np.linspace(0, np.pi, 181)
    cov = W @ W.T + 0.01 * np.eye(2)
    curve = fa.free_energy(fa.rotate(W, angles), 0.01, cov, 100, beta)
    assert_allclose(curve[[0, 90, 180]], curve.max(), rtol=1e-12)
    assert (np.diff(curve)[:45] < 0).all() and (np.diff(curve)[45:90] > 0).all()
    # With isotropic noise, columns of equal length stay orthogonal in every rotation: nothing is left to choose.
    assert_allclose(fa.mean_field_gap(fa.rotate(0.7 * np.eye(2), angles), 0.1, 100, beta), 0, atol=1e-11)


@betas
def test_experiments_2_and_3_prune(beta):
    alpha = np.linspace(0, 0.5, 51)
    W = fa.overcomplete_weights(alpha, rho=0.8)
    assert_allclose(W[30], np.array([[0.3, np.sqrt(0.91), 0.8], [0.3, np.sqrt(0.91), -0.8]]) / np.sqrt(2), rtol=1e-15)
    cov = W[0] @ W[0].T + 0.1 * np.eye(2)
    assert np.ptp(fa.log_likelihood(W, 0.1, cov, 100)) < 1e-9
    assert (np.diff(fa.free_energy(W, 0.1, cov, 100, beta)) < 0).all()
    # Hadamard's ratio for the two latents that share a direction, worked out by hand.
    s = 0.1 * beta
    gap = 50 * np.log1p(alpha**2 * (1 - alpha**2) / (s * (s + 1)))
    assert_allclose(fa.mean_field_gap(W, 0.1, 100, beta), gap, atol=1e-10)


@pytest.mark.parametrize("n_latents", [1, 3, 5])
@pytest.mark.parametrize("beta", [0.5, 2.5])
def test_no_start_climbs_above_the_optimal_weights(n_latents, beta):
    _, noise, _, cov = problem(11, n=20)
    best, rng = fa.optimal_weights(cov, noise, n_latents, beta), np.random.default_rng(12)
    assert_allclose(fa.gradient(best, noise, cov, 1, beta), 0, atol=1e-10)
    assert fa.mean_field_gap(best, noise, 20, beta) == pytest.approx(0, abs=1e-9)
    fits = [fa.fit(rng.normal(size=best.shape), noise, cov, 20, beta) for _ in range(3)]
    assert max(fit.free_energy for fit in fits) == pytest.approx(fa.free_energy(best, noise, cov, 20, beta), rel=1e-10)
    assert fa.misalignment(best, noise, cov).max() < 1e-6


def test_misalignment_by_hand():
    # cov maps (1, 1), at 45 degrees, to (3, 1)
    angle = fa.misalignment(np.array([[1.0, 1.0, 0.0], [0.0, 1.0, 0.0]]), 1.0, np.diag([3.0, 1.0]))
    assert_allclose(angle, [0, 45 - np.degrees(np.arctan2(1, 3)), 0], atol=1e-12)


@pytest.mark.parametrize(("n_latents", "beta"), [(1, 1.0), (2, 0.6), (4, 1.2), (3, 3.0)])
def test_optimal_noise_against_a_search(n_latents, beta):
    cov = problem(13, n_observed=4, n=30)[3]
    found = fa.optimal_noise(cov, n_latents, beta)
    grid = np.log(found) + np.linspace(-3, 3, 101)
    models = [(fa.optimal_weights(cov, noise, n_latents, beta), noise) for noise in np.exp(grid)]
    values = np.array([fa.free_energy(W, noise, cov, 1, beta) for W, noise in models])
    assert values.argmax() == 50
    assert (np.diff(values / beta, 2) < 1e-10).all()  # concave in the logarithm of the noise


def test_beta_path_shortens_and_prunes_at_the_eigenvalues():
    cov = np.diag([4.0, 2.0, 1.0, 1.0])
    fixed = fa.beta_path(cov, 3, [1.0, 4.0, 19.9, 20.0], noise_var=0.2)
    lengths = [[3.8, 1.8, 0.8], [3.2, 1.2, 0.2], [0.02, 0, 0], [0, 0, 0]]
    assert_allclose(fixed.squared_lengths, lengths, atol=1e-12)
    learned = fa.beta_path(cov, 2, [1.0, 2.0, 9.0])
    assert_allclose(learned.noise_var, [1.0, 2.0, 2.0])  # mean of the eigenvalues left out; all pruned from beta = 2
    assert_allclose(learned.squared_lengths, [[3, 1], [0, 0], [0, 0]], atol=1e-12)


def test_problems_without_a_solution_are_named():
    with pytest.raises(ValueError, match=r"noise_var must be below 0\.0271"):
        fa.aligned_weights(100, 0.1)
    with pytest.raises(ValueError, match="beta must be above 1"):
        fa.optimal_noise(np.eye(2), 2, 1.0)
    with pytest.raises(RuntimeError, match="did not converge within"):
        fa.fit(np.eye(2) + 1, 0.1, np.diag([3.0, 1.0]), 10, max_iterations=2)
