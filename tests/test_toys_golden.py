"""Toy models: values for fixed seeds, recorded before the code was shortened."""

import numpy as np
import pytest
from conftest import golden

from isa import isa_prior
from isa.toys import factor_analysis as fa
from isa.toys import ica

GOLDEN = golden("toys")
W = ica.directions([30.0, 90.0, 150.0])


def flat(value):
    return np.hstack([flat(part) for part in value]) if isinstance(value, (tuple, list)) else np.ravel(value)


def compare(value, golden, **tolerances):
    np.testing.assert_allclose(flat(value), flat(golden), **tolerances)


def test_factor_analysis():
    rng = np.random.default_rng(5)
    weights, noise = rng.normal(size=(3, 2)), rng.uniform(0.2, 2.0, 3)
    x = fa.sample(weights, noise, 30, np.random.default_rng(6)) + 0.5
    cov, n, betas = fa.second_moment(x), 30, np.array([0.3, 1.0, 4.0])
    turned = fa.rotate(weights, [0.0, 0.4, 1.1])
    values = {
        "sample": x[:3],
        "log_likelihood": fa.log_likelihood(turned, noise, cov, n),
        "mean_field_gap": fa.mean_field_gap(turned, noise, n, betas),
        "latent_use": fa.latent_use(turned, noise, cov, betas),
        "optimal_weights": fa.optimal_weights(cov, noise, 2, 1.7),
        "optimal_noise": [fa.optimal_noise(cov, k, 1.4) for k in (1, 2, 3, 5)],
        "beta_path": fa.beta_path(cov, 2, [1.2, 2.0, 9.0]),
        "misalignment": fa.misalignment(turned, noise, cov),
        "aligned_weights": fa.aligned_weights(50, 0.02),
        "overcomplete_weights": fa.overcomplete_weights([0.1, 0.3], 0.8),
        "fit": fa.fit(weights, noise, cov, n, 1.7).free_energy,
    }
    for name in ("replicated_log_likelihood", "free_energy", "replicated_free_energy", "free_energy_terms", "gradient"):
        values[name] = getattr(fa, name)(turned, noise, cov, n, betas)
    values["posterior"], values["mean_field"] = (f(turned, noise, betas) for f in (fa.posterior, fa.mean_field))
    values["recognition_weights"] = values["mean_field"].recognition
    assert values.keys() == GOLDEN["factor_analysis"].keys()
    for name, value in values.items():
        compare(value, GOLDEN["factor_analysis"][name], rtol=1e-8, atol=1e-9, err_msg=name)


def test_ica():
    golden, noise = GOLDEN["ica"], np.array([0.05, 0.2])
    x, z = ica.sample(60, W, noise, 3.5, seed=3)
    mean, log_sd = np.random.default_rng(0).normal(size=(2, 60, 3))
    sd = np.exp(log_sd - 1.0)
    parts = ica.terms(W, mean, sd, x, noise)
    exact = ica.fit_exact(x, W, noise)
    free_energy = [ica.free_energy(W, mean, sd, x, noise, dof, beta) for dof in (1.0, 9.0) for beta in (0.5, 4.0)]
    compare(x[:3], golden["sample"], rtol=1e-9)
    compare(z[:3], golden["sources"], rtol=1e-9)
    compare([parts.reconstruction, parts.entropy, parts.log_prior, parts.kl], golden["terms"], rtol=1e-9)
    compare(ica.expected_log1p(mean[:5], sd[:5], 3.5), golden["expected_log1p"], atol=1e-10)
    compare(free_energy, golden["free_energy"], rtol=1e-9)
    for dof, values in zip((1.0, 2.0, 3.5, 5.0), golden["log_likelihood"], strict=True):
        compare(ica.log_likelihood(x[:6], W, noise, dof), values, atol=3e-6)
    for method in ("newton", "em"):
        for beta in (1.0, 5.0):
            result, expected = ica.fit(x, W, noise, 3.5, beta, method, max_iter=40), golden[f"fit {method} {beta:g}"]
            compare([*result.free_energy[:3], result.free_energy[-1]], expected["free_energy"], rtol=1e-7)
            compare(result.W, expected["W"], atol=1e-4)
    compare(exact.log_likelihood[-1], golden["fit_exact"]["log_likelihood"], atol=1e-4)
    compare(exact.W, golden["fit_exact"]["W"], atol=1e-3)
    measures = [*ica.lengths(exact.W), *ica.angles(exact.W), ica.widest_pair(exact.W)]
    compare(measures, golden["measures"][:-1], atol=0.05)  # the last is of a measure that is gone


@pytest.mark.parametrize("name", GOLDEN["lp_nested"])
def test_lp_nested(name):
    p0, p1, sizes = name.split()
    prior = isa_prior([int(size) for size in sizes.split("+")], float(p0), float(p1))
    x, _ = ica.sample(40, W, 0.1, seed=4)
    result, expected = ica.fit_lp_nested(x, 2 * W, 0.1, prior, 2.0, draws=64, tol=1e-9), GOLDEN["lp_nested"][name]
    compare(prior.variance.numpy(), expected["variance"], rtol=1e-6)
    compare(result.free_energy[[0, -1]], [expected["start"], expected["end"]], rtol=1e-4)
    compare(ica.lengths(result.W), expected["lengths"], atol=0.01)
