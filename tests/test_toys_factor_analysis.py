"""Factor analysis under mean-field inference: closed forms against brute force, and the paper's three experiments."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.stats import multivariate_normal, norm

from isa.toys import factor_analysis as fa

BETAS = [0.3, 1.0, 4.0]


def problem(seed: int, n_observed: int = 3, n_latents: int = 2, n: int = 6):
    """Random weights, anisotropic noise and data that the model does not fit."""
    rng = np.random.default_rng(seed)
    W = rng.normal(size=(n_observed, n_latents))
    noise = rng.uniform(0.2, 2.0, n_observed)
    x = 1.5 * rng.normal(size=(n, n_observed)) + rng.normal(size=n_observed)
    return W, noise, x


seeds = st.integers(0, 2**32 - 1)
shapes = st.tuples(st.integers(1, 5), st.integers(1, 5))
weights_of_kl = st.floats(0.05, 20.0)


@pytest.mark.parametrize("shape", [(3, 2), (2, 3), (1, 1), (4, 4)])
def test_log_likelihood_is_the_density_of_the_data(shape):
    W, noise, x = problem(0, *shape)
    direct = multivariate_normal(np.zeros(len(W)), W @ W.T + np.diag(noise)).logpdf(x).sum()
    assert fa.log_likelihood(W, noise, fa.second_moment(x), len(x)) == pytest.approx(direct, rel=1e-12)


def expected_free_energy(means, log_var, W, noise, x, beta):
    """Eq. 13 point by point: Gauss-Hermite nodes for E_q log p(x|z), the KL as E_q[log q - log p] of each latent."""
    nodes, mass = np.polynomial.hermite_e.hermegauss(4)  # exact for polynomials up to degree 7
    mass = mass / mass.sum()
    total = 0.0
    for point, mean, sd in zip(x, means, np.exp(log_var / 2), strict=True):
        grid = np.stack(np.meshgrid(*(m + s * nodes for m, s in zip(mean, sd, strict=True)), indexing="ij"), -1)
        grid_mass = np.multiply.outer(mass, mass)
        total += (grid_mass * norm.logpdf(point, grid @ W.T, np.sqrt(noise)).sum(-1)).sum()
        for m, s in zip(mean, sd, strict=True):
            z = m + s * nodes
            total -= beta * (mass * (norm.logpdf(z, m, s) - norm.logpdf(z))).sum()
    return total


@pytest.mark.parametrize("beta", BETAS)
def test_mean_field_is_the_best_factorised_gaussian(beta):
    # Every data point has means and variances of its own here: that they are linear and shared has to come out.
    W, noise, x = problem(1, n=3)
    n, n_latents = len(x), W.shape[1]

    def loss(flat):
        means, log_var = flat.reshape(2, n, n_latents)
        return -expected_free_energy(means, log_var, W, noise, x, beta)

    found = minimize(loss, np.zeros(2 * n * n_latents), method="BFGS", options={"gtol": 1e-5})
    means, log_var = found.x.reshape(2, n, n_latents)
    q = fa.mean_field(W, noise, beta)
    np.testing.assert_allclose(means, x @ q.recognition.T, atol=1e-5)
    np.testing.assert_allclose(np.exp(log_var), np.tile(q.var, (n, 1)), atol=1e-5)
    assert fa.free_energy(W, noise, fa.second_moment(x), n, beta) == pytest.approx(-found.fun, rel=1e-9)


@pytest.mark.parametrize("beta", BETAS)
def test_terms_are_expectations_under_q(beta):
    W, noise, x = problem(2)
    q = fa.mean_field(W, noise, beta)
    means, log_var = x @ q.recognition.T, np.tile(np.log(q.var), (len(x), 1))
    terms = fa.free_energy_terms(W, noise, fa.second_moment(x), len(x), beta)
    reconstruction = expected_free_energy(means, log_var, W, noise, x, 0.0)
    assert terms.reconstruction == pytest.approx(reconstruction, rel=1e-11)
    assert terms.kl == pytest.approx(reconstruction - expected_free_energy(means, log_var, W, noise, x, 1.0), rel=1e-10)


@pytest.mark.parametrize("beta", BETAS)
def test_posterior_and_replicated_likelihood_by_integration(beta):
    W, noise, x = problem(3, n=1)
    point, sd = x[0], np.sqrt(noise)

    nodes, mass = np.polynomial.legendre.leggauss(200)
    z = 9 * np.stack(np.meshgrid(nodes, nodes, indexing="ij"), -1)
    log_density = norm.logpdf(point, z @ W.T, sd).sum(-1) / beta + norm.logpdf(z).sum(-1)
    density = 81 * np.multiply.outer(mass, mass) * np.exp(log_density)

    def integral(moment):
        return (density * moment(z[..., 0], z[..., 1])).sum()

    evidence = integral(lambda a, b: 1.0)
    posterior = fa.posterior(W, noise, beta)
    mean = posterior.recognition @ point
    log_evidence = fa.replicated_log_likelihood(W, noise, fa.second_moment(x), 1, beta)
    assert log_evidence == pytest.approx(np.log(evidence), rel=1e-10)
    assert integral(lambda a, b: a) / evidence == pytest.approx(mean[0], abs=1e-10)
    product = integral(lambda a, b: a * b) / evidence
    assert product == pytest.approx(posterior.cov[0, 1] + mean[0] * mean[1], abs=1e-10)


def test_posterior_of_the_paper_is_the_conditional_gaussian():
    # p(z | x) by conditioning the joint Gaussian of (z, x), which never forms Eq. 15's precision.
    W, noise, _ = problem(4)
    marginal = W @ W.T + np.diag(noise)
    posterior = fa.posterior(W, noise)
    np.testing.assert_allclose(posterior.recognition, W.T @ np.linalg.inv(marginal), rtol=1e-11)
    np.testing.assert_allclose(posterior.cov, np.eye(2) - W.T @ np.linalg.solve(marginal, W), rtol=1e-10)
    np.testing.assert_array_equal(fa.recognition_weights(W, noise), fa.mean_field(W, noise).recognition)


def test_replicas_of_the_data_are_beta_below_one():
    # B.1: beta = 1/M is the same as M copies of every observation of one latent.
    W, noise, x = problem(5)
    copies = 3
    stacked = fa.posterior(np.vstack([W] * copies), np.tile(noise, copies))
    scaled = fa.posterior(W, noise, 1 / copies)
    np.testing.assert_allclose(scaled.cov, stacked.cov, rtol=1e-12)
    np.testing.assert_allclose(x @ scaled.recognition.T, np.hstack([x] * copies) @ stacked.recognition.T, rtol=1e-11)
    free_energy = fa.free_energy(
        np.vstack([W] * copies), np.tile(noise, copies), fa.second_moment(np.hstack([x] * copies)), len(x)
    )
    assert fa.replicated_free_energy(W, noise, fa.second_moment(x), len(x), 1 / copies) == pytest.approx(free_energy)


def test_second_moment_holds_all_that_matters_of_the_data():
    W, noise, x = problem(6)
    np.testing.assert_allclose(fa.second_moment(x), np.cov(x.T, bias=True) + np.outer(x.mean(0), x.mean(0)), rtol=1e-12)
    single = sum(fa.free_energy(W, noise, np.outer(point, point), 1, 2.0) for point in x)
    assert fa.free_energy(W, noise, fa.second_moment(x), len(x), 2.0) == pytest.approx(single, rel=1e-12)


@given(seeds, shapes, weights_of_kl)
@settings(max_examples=60, deadline=None)
def test_both_conventions_and_both_bounds(seed, shape, beta):
    W, noise, x = problem(seed, *shape)
    cov, n = fa.second_moment(x), len(x)
    eq13 = fa.free_energy(W, noise, cov, n, beta)
    eq16 = fa.replicated_free_energy(W, noise, cov, n, beta)
    terms = fa.free_energy_terms(W, noise, cov, n, beta)
    assert eq16 == pytest.approx(eq13 / beta, rel=1e-12)
    assert eq13 == pytest.approx(terms.reconstruction - beta * terms.kl, rel=1e-12)
    bound, gap = fa.replicated_log_likelihood(W, noise, cov, n, beta), fa.mean_field_gap(W, noise, n, beta)
    assert gap >= 0
    assert bound - gap == pytest.approx(eq16, rel=1e-9)
    evidence_bound = terms.reconstruction - terms.kl
    log_likelihood = fa.log_likelihood(W, noise, cov, n)
    assert evidence_bound <= log_likelihood + 1e-9 * abs(log_likelihood)
    assert terms.kl >= 0
    if beta >= 1:
        assert eq13 <= evidence_bound


@given(seeds, shapes, weights_of_kl)
@settings(max_examples=60, deadline=None)
def test_gap_is_the_divergence_between_two_gaussians(seed, shape, beta):
    W, noise, _ = problem(seed, *shape)
    q, p = fa.mean_field(W, noise, beta), fa.posterior(W, noise, beta)
    log_det = np.linalg.slogdet(p.cov)[1] - np.log(q.var).sum()
    divergence = (np.trace(np.linalg.solve(p.cov, np.diag(q.var))) - len(q.var) + log_det) / 2
    assert fa.mean_field_gap(W, noise, 7, beta) == pytest.approx(7 * divergence, abs=1e-9)


@given(seeds, st.integers(2, 5), st.integers(1, 5), weights_of_kl)
@settings(max_examples=60, deadline=None)
def test_orthogonal_weights_are_tight(seed, n_observed, n_latents, beta):
    W, noise, x = problem(seed, n_observed, n_latents)
    left, singular, _ = np.linalg.svd(W, full_matrices=False)
    orthogonal = np.zeros_like(W)
    orthogonal[:, : len(singular)] = np.sqrt(noise)[:, None] * left * singular
    cov, n = fa.second_moment(x), len(x)
    bound = fa.replicated_log_likelihood(orthogonal, noise, cov, n, beta)
    assert fa.mean_field_gap(orthogonal, noise, n, beta) == pytest.approx(0, abs=1e-11)
    assert fa.replicated_free_energy(orthogonal, noise, cov, n, beta) == pytest.approx(bound, rel=1e-11)
    if beta == 1:
        assert bound == fa.log_likelihood(orthogonal, noise, cov, n)


@given(seeds, st.integers(1, 4), st.integers(2, 5), weights_of_kl)
@settings(max_examples=60, deadline=None)
def test_invariances(seed, n_observed, n_latents, beta):
    W, noise, x = problem(seed, n_observed, n_latents)
    cov, n = fa.second_moment(x), len(x)
    rng = np.random.default_rng(seed)
    rotation = np.linalg.qr(rng.normal(size=(n_latents, n_latents)))[0]
    assert fa.log_likelihood(W @ rotation.T, noise, cov, n) == pytest.approx(
        fa.log_likelihood(W, noise, cov, n), rel=1e-10
    )
    shuffled = W[:, rng.permutation(n_latents)] * rng.choice([-1, 1], n_latents)
    assert fa.free_energy(shuffled, noise, cov, n, beta) == pytest.approx(
        fa.free_energy(W, noise, cov, n, beta), rel=1e-12
    )


@given(seeds, weights_of_kl, st.floats(-10, 10))
@settings(max_examples=40, deadline=None)
def test_rotation_acts_on_the_latents(seed, beta, angle):
    W, noise, x = problem(seed, 3, 3)
    cos, sin = np.cos(angle), np.sin(angle)
    turned = fa.rotate(W, angle, latents=(0, 2))
    z_turn = np.array([[cos, 0, -sin], [0, 1, 0], [sin, 0, cos]])
    np.testing.assert_allclose(turned, W @ z_turn.T, atol=1e-12)
    np.testing.assert_allclose(turned @ turned.T, W @ W.T, atol=1e-12)
    before, after = fa.posterior(W, noise, beta), fa.posterior(turned, noise, beta)
    np.testing.assert_allclose(after.cov, z_turn @ before.cov @ z_turn.T, atol=1e-10)
    quarter = fa.rotate(W, np.pi / 2, latents=(0, 2))
    cov = fa.second_moment(x)
    assert fa.free_energy(quarter, noise, cov, 6, beta) == pytest.approx(fa.free_energy(W, noise, cov, 6, beta))


@given(seeds, shapes, weights_of_kl)
@settings(max_examples=30, deadline=None)
def test_gradient_is_that_of_the_free_energy(seed, shape, beta):
    W, noise, x = problem(seed, *shape)
    cov = fa.second_moment(x)

    def energy(flat):
        return fa.free_energy(flat.reshape(W.shape), noise, cov, 1, beta)

    step = 1e-6
    numeric = [(energy(W.ravel() + step * e) - energy(W.ravel() - step * e)) / (2 * step) for e in np.eye(W.size)]
    gradient = fa.gradient(W, noise, cov, 1, beta)
    np.testing.assert_allclose(gradient.ravel(), numeric, rtol=1e-5, atol=1e-5 * np.abs(gradient).max() + 1e-7)


@pytest.mark.parametrize("beta", BETAS)
def test_a_stack_of_weights_is_the_single_calls(beta):
    rng = np.random.default_rng(7)
    W = rng.normal(size=(2, 4, 3, 2))
    _, noise, x = problem(7)
    cov, n = fa.second_moment(x), len(x)
    for f in (fa.log_likelihood, fa.free_energy, fa.replicated_free_energy, fa.replicated_log_likelihood):
        arguments = () if f is fa.log_likelihood else (beta,)
        expected = [[f(w, noise, cov, n, *arguments) for w in row] for row in W]
        np.testing.assert_allclose(f(W, noise, cov, n, *arguments), expected, rtol=1e-12)
    np.testing.assert_allclose(
        fa.gradient(W, noise, cov, n, beta)[1, 2], fa.gradient(W[1, 2], noise, cov, n, beta), rtol=1e-12
    )
    assert isinstance(fa.free_energy(W[0, 0], noise, cov, n, beta), float)
    assert isinstance(fa.log_likelihood(W[0, 0], noise, cov, n), float)


def test_beta_broadcasts_with_the_stack():
    W, noise, x = problem(8)
    turned = fa.rotate(W, np.linspace(0, 1, 5))
    cov, n = fa.second_moment(x), len(x)
    grid = fa.free_energy(turned, noise, cov, n, np.array(BETAS)[:, None])
    assert grid.shape == (3, 5)
    for row, beta in zip(grid, BETAS, strict=True):
        np.testing.assert_allclose(row, fa.free_energy(turned, noise, cov, n, beta), rtol=1e-13)
    gap = fa.mean_field_gap(turned, noise, n, np.array(BETAS)[:, None])
    np.testing.assert_allclose(gap[2], fa.mean_field_gap(turned, noise, n, BETAS[2]), rtol=1e-12)
    assert fa.posterior(turned, noise, np.array(BETAS)[:, None]).cov.shape == (3, 5, 2, 2)
    assert fa.latent_use(W, noise, cov, np.array(BETAS)).kl.shape == (3, 2)


def test_latent_use_adds_up():
    W, noise, x = problem(9, 3, 4)
    cov, n = fa.second_moment(x), len(x)
    use = fa.latent_use(W, noise, cov, 2.0)
    assert n * use.kl.sum() == pytest.approx(fa.free_energy_terms(W, noise, cov, n, 2.0).kl, rel=1e-12)
    q = fa.mean_field(W, noise, 2.0)
    np.testing.assert_allclose(use.mean_power, ((x @ q.recognition.T) ** 2).mean(0), rtol=1e-12)
    np.testing.assert_allclose(use.var, q.var)
    np.testing.assert_allclose(use.exact_var, np.diag(fa.posterior(W, noise, 2.0).cov), rtol=1e-12)
    assert (use.var <= use.exact_var + 1e-12).all()


def test_sample_has_the_model_covariance():
    W, noise, _ = problem(10)
    n = 40_000
    x = fa.sample(W, noise, n, 10)
    np.testing.assert_array_equal(x, fa.sample(W, noise, n, np.random.default_rng(10)))
    marginal = W @ W.T + np.diag(noise)
    # Var of a product of two Gaussian coordinates: c_ii c_jj + c_ij^2
    standard_error = np.sqrt((np.outer(np.diag(marginal), np.diag(marginal)) + marginal**2) / n)
    assert (np.abs(fa.second_moment(x) - marginal) < 5 * standard_error).all()


@pytest.mark.parametrize(("n", "noise"), [(50, 0.01), (100, 0.01), (100, 0.02), (1000, 0.04)])
def test_experiment_1_gives_the_printed_values(n, noise):
    W = fa.aligned_weights(n, noise)
    cov = W @ W.T + noise * np.eye(2)
    assert fa.log_likelihood(W, noise, cov, n) == pytest.approx(-17.82, abs=1e-8)
    assert fa.free_energy(W, noise, cov, n) == pytest.approx(-17.82, abs=1e-8)
    rotated = fa.rotate(W, np.pi / 4)
    assert fa.log_likelihood(rotated, noise, cov, n) == pytest.approx(-17.82, abs=1e-8)
    assert fa.free_energy(rotated, noise, cov, n) == pytest.approx(-57.16, abs=1e-8)


def test_other_targets_and_angles_and_the_data_covariance_whatever_the_noise():
    W = fa.aligned_weights(30, 0.001, log_likelihood=5.0, free_energy=-3.0, angle=0.3)
    cov = W @ W.T + 0.001 * np.eye(2)
    assert fa.free_energy(W, 0.001, cov, 30) == pytest.approx(5.0, abs=1e-9)
    assert fa.free_energy(fa.rotate(W, 0.3), 0.001, cov, 30) == pytest.approx(-3.0, abs=1e-9)
    low, high = (fa.aligned_weights(100, noise) for noise in (0.005, 0.02))
    np.testing.assert_allclose(low @ low.T + 0.005 * np.eye(2), high @ high.T + 0.02 * np.eye(2), rtol=1e-10)


@pytest.mark.parametrize("beta", [0.25, 1.0, 3.0, 10.0])
def test_experiments_1_and_3_free_energy_is_best_where_weights_are_orthogonal(beta):
    W = fa.aligned_weights()
    cov = W @ W.T + 0.01 * np.eye(2)
    angles = np.linspace(0, np.pi, 181)
    curve = fa.free_energy(fa.rotate(W, angles), 0.01, cov, 100, beta)
    np.testing.assert_allclose(curve[[0, 90, 180]], curve.max(), rtol=1e-12)
    assert (np.diff(curve)[:45] < 0).all() and (np.diff(curve)[45:90] > 0).all()
    log_likelihood = fa.log_likelihood(fa.rotate(W, angles), 0.01, cov, 100)
    np.testing.assert_allclose(log_likelihood, log_likelihood[0], rtol=1e-12)
    # With isotropic noise, columns of equal length stay orthogonal in every rotation: nothing is left to choose.
    np.testing.assert_allclose(fa.mean_field_gap(fa.rotate(0.7 * np.eye(2), angles), 0.1, 100, beta), 0, atol=1e-11)


@pytest.mark.parametrize("beta", [1.0, 4.0])
def test_experiments_2_and_3_prune(beta):
    alpha = np.linspace(0, 0.5, 51)
    W = fa.overcomplete_weights(alpha, rho=0.8)
    cov = W[0] @ W[0].T + 0.1 * np.eye(2)
    log_likelihood = fa.log_likelihood(W, 0.1, cov, 100)
    np.testing.assert_allclose(log_likelihood, log_likelihood[0], rtol=1e-12)
    curve = fa.free_energy(W, 0.1, cov, 100, beta)
    assert (np.diff(curve) < 0).all()
    if beta == 1:
        assert curve[0] == pytest.approx(log_likelihood[0], rel=1e-12)
    # Hadamard's ratio for the two latents that share a direction, worked out by hand
    s = 0.1 * beta
    gap = 50 * np.log1p(alpha**2 * (1 - alpha**2) / (s * (s + 1)))
    np.testing.assert_allclose(fa.mean_field_gap(W, 0.1, 100, beta), gap, atol=1e-10)


def test_equation_17():
    W = fa.overcomplete_weights(0.3, rho=0.5)
    expected = np.array([[0.3, np.sqrt(0.91), 0.5], [0.3, np.sqrt(0.91), -0.5]]) / np.sqrt(2)
    np.testing.assert_allclose(W, expected, rtol=1e-15)
    assert fa.overcomplete_weights(np.zeros((4, 5))).shape == (4, 5, 2, 3)


def test_beta_shrinks_the_amplitude_in_the_convention_of_eq_16():
    betas = np.geomspace(0.01, 100, 60)
    rotated = fa.rotate(fa.aligned_weights(), np.pi / 4)
    amplitude = fa.mean_field_gap(rotated, 0.01, 100, betas)
    assert (np.diff(amplitude) < 0).all()
    # In the convention of Eq. 13 it rises first: with next to no weight on the KL there is nothing to lose.
    peak = (betas * amplitude).argmax()
    assert 0 < peak < len(betas) - 1
    assert (np.diff(betas * amplitude)[:peak] > 0).all() and (np.diff(betas * amplitude)[peak:] < 0).all()


@pytest.mark.parametrize("n_latents", [1, 2, 3, 5])
@pytest.mark.parametrize("beta", [0.5, 1.0, 2.5])
def test_no_start_climbs_above_the_optimal_weights(n_latents, beta):
    _, noise, x = problem(11, n=20)
    cov, n = fa.second_moment(x), len(x)
    best = fa.optimal_weights(cov, noise, n_latents, beta)
    top = fa.free_energy(best, noise, cov, n, beta)
    np.testing.assert_allclose(fa.gradient(best, noise, cov, 1, beta), 0, atol=1e-10)
    assert fa.mean_field_gap(best, noise, n, beta) == pytest.approx(0, abs=1e-9)
    rng = np.random.default_rng(12)
    reached = [fa.fit(rng.normal(size=best.shape), noise, cov, n, beta).free_energy for _ in range(4)]
    assert max(reached) == pytest.approx(top, rel=1e-10)


def test_an_optimiser_prunes_what_is_too_many():
    W = fa.overcomplete_weights(0.4, rho=0.8)
    cov = W @ W.T + 0.1 * np.eye(2)
    result = fa.fit(W, 0.1, cov, 100)
    length = np.sort(np.linalg.norm(result.W, axis=0))
    np.testing.assert_allclose(length, [0, 0.8, 1], atol=1e-5)
    assert result.free_energy == pytest.approx(fa.log_likelihood(W, 0.1, cov, 100), rel=1e-10)


def test_beta_shortens_and_prunes_at_the_eigenvalue():
    cov = np.diag([3.0, 1.0, 0.5])
    lengths = [np.linalg.norm(fa.optimal_weights(cov, 0.2, 3, beta), axis=0) for beta in (1.0, 4.0, 14.9, 15.0)]
    np.testing.assert_allclose(lengths[0] ** 2, [2.8, 0.8, 0.3])
    np.testing.assert_allclose(lengths[1] ** 2, [2.2, 0.2, 0.0], atol=1e-12)
    np.testing.assert_allclose(lengths[2] ** 2, [0.02, 0, 0], atol=1e-12)
    np.testing.assert_allclose(lengths[3], 0, atol=1e-7)


@pytest.mark.parametrize(("n_latents", "beta"), [(1, 1.0), (2, 0.6), (2, 1.0), (2, 1.7), (4, 1.2), (6, 1.4), (3, 3.0)])
def test_optimal_noise_against_a_search(n_latents, beta):
    _, _, x = problem(13, n_observed=4, n=30)
    cov = fa.second_moment(x)

    def energy(log_noise):
        noise = np.exp(log_noise)
        return fa.free_energy(fa.optimal_weights(cov, noise, n_latents, beta), noise, cov, 1, beta)

    found = fa.optimal_noise(cov, n_latents, beta)
    grid = np.linspace(np.log(found) - 3, np.log(found) + 3, 601)
    values = np.array([energy(t) for t in grid])
    assert grid[values.argmax()] == pytest.approx(np.log(found), abs=1e-9)
    assert (np.diff(values / beta, 2) < 1e-10).all()  # concave in the logarithm of the noise


def test_optimal_noise_limits():
    cov = np.diag([4.0, 2.0, 1.0, 1.0])
    assert fa.optimal_noise(cov, 2, 1.0) == pytest.approx(1.0)  # mean of the eigenvalues left out
    assert fa.optimal_noise(cov, 2, 2.0) == pytest.approx(2.0)  # beta = largest / mean: all pruned
    assert not fa.optimal_weights(cov, 2.0, 2, 2.0).any()
    assert fa.optimal_noise(cov, 4, 9.0) == pytest.approx(2.0)
    with pytest.raises(ValueError, match="beta must be above 1"):
        fa.optimal_noise(cov, 4, 1.0)
    with pytest.raises(ValueError, match="variance outside"):
        fa.optimal_noise(np.diag([1.0, 0.0]), 1, 0.5)


def test_beta_path_is_the_optimal_model_of_each_beta():
    _, _, x = problem(18, n_observed=4, n=30)
    cov, betas = fa.second_moment(x), np.array([1.2, 2.0, 30.0])
    held, learned = fa.beta_path(cov, 3, betas, noise_var=0.3), fa.beta_path(cov, 3, betas)
    np.testing.assert_array_equal(held.noise_var, 0.3)
    eigenvalues = np.linalg.eigvalsh(cov)[::-1][:3]
    for path in (held, learned):
        expected = np.maximum(eigenvalues - (betas * path.noise_var)[:, None], 0)
        np.testing.assert_allclose(path.squared_lengths, expected, atol=1e-12)
    assert learned.noise_var[1] == fa.optimal_noise(cov, 3, 2.0)
    assert not learned.squared_lengths[2].any()
    assert learned.noise_var[2] == pytest.approx(np.trace(cov) / 4)


@pytest.mark.parametrize("beta", [1.0, 3.0])
def test_beta_does_not_move_the_directions(beta):
    _, noise, x = problem(11, n=20)
    cov = 10 * fa.second_moment(x)
    found = fa.fit(np.random.default_rng(19).normal(size=(3, 2)), noise, cov, 20, beta).W
    assert fa.misalignment(found, noise, cov).max() < 1e-3
    assert fa.misalignment(fa.optimal_weights(cov, noise, 4, beta), noise, cov).max() < 1e-6
    turned = fa.misalignment(fa.rotate(found, 0.3), noise, cov)
    assert turned.min() > 1


def test_misalignment_by_hand():
    # cov maps (1, 1) to (3, 1): atan2(1, 3) and 45 degrees apart
    angle = fa.misalignment(np.array([[1.0, 1.0, 0.0], [0.0, 1.0, 0.0]]), 1.0, np.diag([3.0, 1.0]))
    np.testing.assert_allclose(angle, [0, 45 - np.degrees(np.arctan2(1, 3)), 0], atol=1e-12)


def test_one_data_point_is_enough():
    W, noise, _ = problem(14)
    point = np.array([0.5, -1.0, 2.0])
    direct = multivariate_normal(np.zeros(3), W @ W.T + np.diag(noise)).logpdf(point)
    cov = fa.second_moment(point[None])
    assert fa.log_likelihood(W, noise, cov, 1) == pytest.approx(direct)
    assert fa.free_energy(W, noise, cov, 1) <= direct


@pytest.mark.parametrize("beta", BETAS)
def test_a_zero_column_is_a_pruned_latent(beta):
    W, noise, x = problem(15, 3, 3)
    W[:, 1] = 0
    cov, n = fa.second_moment(x), len(x)
    posterior = fa.posterior(W, noise, beta)
    np.testing.assert_array_equal(posterior.cov[1], [0, 1, 0])
    use = fa.latent_use(W, noise, cov, beta)
    assert (use.var[1], use.exact_var[1], use.mean_power[1], use.kl[1]) == (1, 1, 0, 0)
    without = W[:, [0, 2]]
    assert fa.free_energy(W, noise, cov, n, beta) == pytest.approx(fa.free_energy(without, noise, cov, n, beta))
    nothing = np.zeros_like(W)
    assert fa.free_energy(nothing, noise, cov, n, beta) == pytest.approx(fa.log_likelihood(nothing, noise, cov, n))


def test_extreme_betas_tend_to_least_squares_and_to_the_prior():
    W, noise, x = problem(16)
    sd, cov, n = np.sqrt(noise), fa.second_moment(x), len(x)
    fitted = W @ np.linalg.lstsq(W / sd[:, None], (x / sd).T, rcond=None)[0]
    assert fa.free_energy(W, noise, cov, n, 1e-9) == pytest.approx(norm.logpdf(x, fitted.T, sd).sum(), abs=1e-5)
    q = fa.mean_field(W, noise, 1e9)
    np.testing.assert_allclose(q.var, 1, atol=1e-7)
    np.testing.assert_allclose(q.recognition, 0, atol=1e-7)
    blurred = norm.logpdf(x, 0, sd).sum() - n / 2 * (W**2 / noise[:, None]).sum()
    assert fa.free_energy(W, noise, cov, n, 1e9) == pytest.approx(blurred, abs=1e-5)


def test_tiny_noise_and_long_weights_stay_finite():
    W = np.array([[1e6, 1.0], [1e6, -1.0]])
    for noise in (1e-14, 1e-100):
        value = fa.log_likelihood(W, noise, np.eye(2), 10)
        assert np.isfinite(value)
    exact = multivariate_normal([0, 0], [[2.0, 0], [0, 0.5]]).logpdf([0.3, 0.2])
    tiny = fa.log_likelihood(np.diag([np.sqrt(2.0), np.sqrt(0.5)]), 1e-14, np.outer([0.3, 0.2], [0.3, 0.2]), 1)
    assert tiny == pytest.approx(exact, rel=1e-10)


GOOD = {"W": np.eye(2), "noise_var": 0.1, "cov": np.eye(2), "n": 10, "beta": 1.0}
NAMES = {
    ("W", "noise_var", "cov", "n", "beta"): (
        fa.free_energy,
        fa.free_energy_terms,
        fa.replicated_free_energy,
        fa.replicated_log_likelihood,
        fa.gradient,
    ),
    ("W", "noise_var", "cov", "n"): (fa.log_likelihood,),
    ("W", "noise_var", "beta"): (fa.posterior, fa.mean_field, fa.recognition_weights),
}


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ({"W": np.ones(3)}, "W must have the shape"),
        ({"W": np.ones((2, 0))}, "W must have the shape"),
        ({"W": [[1, np.nan], [0, 1]]}, "W must be finite"),
        ({"W": "weights"}, "W must be a real number or an array"),
        ({"noise_var": [0.1, -1.0]}, "noise_var must be positive, got -1"),
        ({"noise_var": [0.1, 0.1, 0.1]}, "noise_var must be a number or have the shape"),
        ({"noise_var": np.inf}, "noise_var must be finite"),
        ({"noise_var": {}}, "noise_var must be a real number"),
        ({"cov": np.ones((2, 3))}, "cov must be a square matrix"),
        ({"cov": np.eye(3)}, "to go with W"),
        ({"cov": [[1, 0.5], [0.4, 1]]}, "cov must be symmetric"),
        ({"cov": [[1, 2], [2, 1]]}, "positive semi-definite"),
        ({"cov": [[1, np.nan], [np.nan, 1]]}, "cov must be finite"),
        ({"n": 0}, "n must be a whole number"),
        ({"n": 2.5}, "n must be a whole number"),
        ({"beta": 0}, "beta must be positive, got 0"),
        ({"beta": np.nan}, "beta must be finite"),
        ({"W": np.ones((4, 2, 2)), "beta": np.ones(3)}, "beta must broadcast"),
    ],
)
def test_bad_input_is_named(bad, says):
    for names, functions in NAMES.items():
        for function in functions if set(bad) <= set(names) else ():
            with pytest.raises((ValueError, TypeError), match=says):
                function(**{name: {**GOOD, **bad}[name] for name in names})


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: fa.overcomplete_weights([0.2, -1.5]), r"alpha must lie in \[-1, 1\], got -1.5"),
        (lambda: fa.rotate(np.eye(2), 0.1, latents=(0, 2)), "latents must name two different columns"),
        (lambda: fa.rotate(np.eye(2), 0.1, latents=(1, 1)), "latents must name two different columns"),
        (lambda: fa.second_moment(np.ones(3)), "x must have two dimensions"),
        (lambda: fa.aligned_weights(100, 0.1), r"noise_var must be below 0\.0271"),
        (lambda: fa.aligned_weights(free_energy=0.0), "free_energy must be below log_likelihood"),
        (lambda: fa.aligned_weights(angle=np.pi / 2), "multiple of pi / 2"),
        (lambda: fa.beta_path(np.eye(2), 1, [1.0, 0.0], 0.1), "beta must be positive"),
        (lambda: fa.optimal_weights(np.eye(2), 0.1, 0), "n_latents must be a whole number"),
        (lambda: fa.optimal_weights(np.eye(2), 0.1, 2, [1.0, 2.0]), "beta must be a number"),
        (lambda: fa.fit(np.ones((2, 2, 2)), 0.1, np.eye(2), 10), "W must have two dimensions"),
        (lambda: fa.sample(np.ones((2, 2, 2)), 0.1, 5), "W must have two dimensions"),
        (
            lambda: fa.fit(np.ones((2, 2)) + np.eye(2), 0.1, np.diag([3.0, 1.0]), 10, max_iterations=2),
            "did not converge within max_iterations = 2",
        ),
    ],
)
def test_bad_input_of_the_other_functions(call, says):
    with pytest.raises((ValueError, TypeError, RuntimeError), match=says):
        call()
