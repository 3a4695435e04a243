"""The ELBO's terms and objectives against enumeration, quadrature, closed forms and finite differences."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch
from posteriors import batch, draw, exact, log_density_table
from torch.distributions import Bernoulli, Independent, MultivariateNormal, Normal

from isa import isa_prior, objectives
from isa.aggregate import sampling_weights

# Likelihoods


def test_bernoulli_log_likelihood_is_torchs():
    logits, x = 3 * draw(4, 3, 8, 8), torch.rand(4, 3, 8, 8, dtype=torch.float64).round()
    expected = Bernoulli(logits=logits).log_prob(x).sum((1, 2, 3))
    torch.testing.assert_close(objectives.bernoulli_log_likelihood(logits, x), expected)
    torch.testing.assert_close(objectives.bernoulli_log_likelihood(logits, x.to(torch.uint8)), expected)


def test_bernoulli_log_likelihood_at_grey_values_and_large_logits():
    x = torch.full((1, 1, 2, 2), 0.25, dtype=torch.float64)
    logits = torch.tensor([-800.0, -1.0, 1.0, 800.0], dtype=torch.float64).view(1, 1, 2, 2)
    expected = sum(0.25 * v - max(v, 0) - math.log1p(math.exp(-abs(v))) for v in (-800.0, -1.0, 1.0, 800.0))
    assert objectives.bernoulli_log_likelihood(logits, x).item() == pytest.approx(expected, rel=1e-12)


def test_half_precision_logits_are_summed_in_full():
    logits = (4 * draw(3, 1, 64, 64)).to(torch.bfloat16)
    x = (draw(3, 1, 64, 64, seed=1) > 0).to(torch.bfloat16)
    result = objectives.bernoulli_log_likelihood(logits, x)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result.double(), Bernoulli(logits=logits.double()).log_prob(x.double()).sum((1, 2, 3)))


def test_gaussian_log_likelihood_is_scipys():
    decoded, x = draw(2, 3, 4, 5, 6), draw(2, 3, 4, 5, 6, seed=1)
    expected = scipy.stats.norm.logpdf(x.numpy(), decoded.numpy(), 0.3).sum((2, 3, 4))
    np.testing.assert_allclose(objectives.gaussian_log_likelihood(decoded, x, scale=0.3), expected, rtol=1e-12)


# Divergence


def test_log_density_of_the_posterior():
    z, mean, log_var = batch(2, 7, 3)
    expected = Normal(mean, torch.exp(0.5 * log_var)).log_prob(z).sum(-1)
    torch.testing.assert_close(objectives.gaussian_log_density(z, mean, log_var), expected)


def test_monte_carlo_divergence_agrees_with_the_closed_form():
    n = 40_000
    _, mean, log_var = batch(4, 5, seed=3)
    wide = [v.unsqueeze(1).expand(4, n, 5) for v in (mean, log_var)]
    z = wide[0] + torch.exp(0.5 * wide[1]) * draw(4, n, 5, seed=9)
    prior = objectives.standard_normal(5, dtype=torch.float64)
    estimates = objectives.kl_monte_carlo(z, *wide, prior)
    formula = 0.5 * (mean**2 + torch.exp(log_var) - 1 - log_var).sum(-1)
    torch.testing.assert_close(objectives.kl_closed_form(mean, log_var, prior), formula)
    assert ((estimates.mean(-1) - formula).abs() < 5 * estimates.std(-1) / math.sqrt(n)).all()


def test_monte_carlo_divergence_from_an_isa_prior_by_quadrature():
    prior = isa_prior(subspaces=(2,), p0=2.1, p1=1.2)
    mean, log_var = torch.tensor([0.4, -0.7]).double(), torch.tensor([-0.5, 0.3]).double()
    std = torch.exp(0.5 * log_var)
    u = torch.linspace(-9, 9, 1201, dtype=torch.float64)
    grid = torch.cartesian_prod(u, u)
    q = torch.exp(Normal(0.0, 1.0).log_prob(grid).sum(-1)) * (u[1] - u[0]) ** 2
    z = mean + std * grid
    log_ratio = Normal(mean, std).log_prob(z).sum(-1) - prior.log_prob(z)
    n = 100_000
    wide = mean.expand(n, 2), log_var.expand(n, 2)
    estimates = objectives.kl_monte_carlo(wide[0] + std * draw(n, 2), *wide, prior)
    assert abs(estimates.mean() - (q * log_ratio).sum()) < 5 * estimates.std() / math.sqrt(n)


# The decomposition


@pytest.fixture(scope="module")
def enumerated():
    """Five images, two latents: everything by quadrature on a grid, and 3,000 samples of each posterior."""
    mean = torch.tensor([[-1.2, 0.3], [0.1, -0.9], [0.9, 0.8], [0.4, 1.4], [-0.3, -0.2]], dtype=torch.float64)
    log_var = torch.tensor([[-1.5, -0.2], [-0.8, -2.0], [-2.5, -1.0], [0.1, -1.2], [-0.6, -0.4]], dtype=torch.float64)
    prior = objectives.standard_normal(2, dtype=torch.float64)
    axis = torch.linspace(-7, 7, 1401, dtype=torch.float64)
    cell = axis[1] - axis[0]
    marginal = Normal(mean, torch.exp(0.5 * log_var)).log_prob(axis[:, None, None]).exp()  # (G, N, D)
    each = marginal[:, None, :, 0] * marginal[None, :, :, 1]  # (G, G, N)
    joint = each.mean(-1)
    product = marginal[..., 0].mean(-1)[:, None] * marginal[..., 1].mean(-1)[None, :]
    log_prior = prior.log_prob(torch.cartesian_prod(axis, axis)).view_as(joint)

    def integral(density, ratio):
        return (torch.xlogy(density, ratio).sum() * cell**2).item()

    truth = {
        "index_code_mi": integral(each, each / joint.unsqueeze(-1)) / 5,
        "total_correlation": integral(joint, joint / product),
        "dimension_wise_kl": integral(joint, product / log_prior.exp()),
        "kl": objectives.kl_closed_form(mean, log_var, prior).mean().item(),
    }
    repeats = 3000
    wide = mean.expand(repeats, 5, 2), log_var.expand(repeats, 5, 2)
    z = wide[0] + torch.exp(0.5 * wide[1]) * draw(repeats, 5, 2, seed=4)
    fit = torch.zeros(repeats, 5, dtype=torch.float64)
    terms = objectives.beta_tcvae(fit, z, *wide, prior, 3.0, dataset_size=5, sampling="stratified")
    return truth, terms, (z, *wide, prior)


def test_the_decomposition_of_eq_3_sums_to_the_divergence(enumerated):
    truth, stratified, (z, mean, log_var, prior) = enumerated
    parts = truth["index_code_mi"] + truth["total_correlation"] + truth["dimension_wise_kl"]
    assert parts == pytest.approx(truth["kl"], rel=1e-6)
    few = slice(50)
    weighted = objectives.beta_tcvae(z[few, :, 0], z[few], mean[few], log_var[few], prior, 3.0, dataset_size=5)
    for terms in (weighted, stratified):
        total = terms.index_code_mi + terms.total_correlation + terms.dimension_wise_kl
        torch.testing.assert_close(total, terms.kl)


@pytest.mark.parametrize("term", ["index_code_mi", "total_correlation", "dimension_wise_kl", "kl"])
def test_each_term_of_eq_3_converges_to_its_integral(enumerated, term):
    truth, terms, _ = enumerated
    values = getattr(terms, term)
    assert abs(values.mean().item() - truth[term]) < 5 * values.std().item() / math.sqrt(len(values))


# FactorVAE


def test_permuting_dimensions_keeps_marginals_and_breaks_dependence():
    n = 20_000
    z = draw(n, 1).expand(n, 3) + 0.01 * draw(n, 3, seed=1)
    permuted = objectives.permute_dims(z.clone().requires_grad_(), torch.Generator().manual_seed(0))
    assert not permuted.requires_grad
    assert torch.equal(permuted.sort(0).values, z.sort(0).values)
    correlation = torch.corrcoef(permuted.T)[[0, 0, 1], [1, 2, 2]]
    assert (correlation.abs() < 5 / math.sqrt(n)).all()


def test_stacked_models_are_permuted_within_each():
    z = draw(3, 50, 2)
    permuted = objectives.permute_dims(z, torch.Generator().manual_seed(1))
    assert torch.equal(permuted.sort(1).values, z.sort(1).values)
    assert not torch.equal(permuted, z)


@pytest.fixture(scope="module")
def correlated():
    """Samples of a correlated Gaussian, of its marginals' product, and the log ratio of the two densities."""
    n, rho = 100_000, 0.6
    covariance = torch.tensor([[1, rho], [rho, 1]], dtype=torch.float64)
    z = draw(n, 2) @ torch.linalg.cholesky(covariance).T
    other = draw(n, 2, seed=1)

    def log_ratio(v):
        joint = MultivariateNormal(torch.zeros(2).double(), covariance)
        return joint.log_prob(v) - Normal(0.0, 1.0).log_prob(v).sum(-1)

    return z, other, log_ratio, -0.5 * math.log(1 - rho**2)


def optimal_logits(log_ratio):
    """Return a softmax classifier's logits for the optimal posterior of the two classes, shifted at random."""
    shift = draw(*log_ratio.shape, seed=5)
    return torch.stack([shift + log_ratio, shift], -1)


def test_the_density_ratio_of_the_best_discriminator_is_the_total_correlation(correlated):
    z, _, log_ratio, truth = correlated
    values = objectives.density_ratio(optimal_logits(log_ratio(z)))
    torch.testing.assert_close(values, log_ratio(z))
    error = 5 * values.std().item() / math.sqrt(len(values))
    assert abs(values.mean().item() - truth) < error
    unit = torch.zeros_like(z)
    terms = objectives.factor_vae(
        torch.zeros(len(z)), z, unit, unit, objectives.standard_normal(2), 6.0,
        discriminator_logits=optimal_logits(log_ratio(z)),
    )  # fmt: skip
    assert abs(terms.total_correlation.item() - truth) < error
    torch.testing.assert_close(terms.loss, terms.kl + 6.0 * terms.total_correlation)


def test_the_discriminator_loss_is_least_at_the_true_ratio(correlated):
    z, other, log_ratio, _ = correlated
    n = len(z)

    def loss(scale, z, other):
        logits = [optimal_logits(scale * log_ratio(v)) for v in (z, other)]
        return objectives.discriminator_loss(*logits)

    scale = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    parts = [torch.autograd.grad(loss(scale, z[i::50], other[i::50]), scale)[0] for i in range(50)]
    slopes = torch.stack(parts)
    assert abs(slopes.mean()) < 5 * slopes.std() / math.sqrt(50)
    assert loss(1.0, z, other) < min(loss(0.5, z, other), loss(2.0, z, other))
    blind = torch.zeros(n, 2)
    assert objectives.discriminator_loss(blind, blind).item() == pytest.approx(math.log(2))


def test_the_discriminator_loss_is_the_mean_cross_entropy():
    first, second = draw(30, 2), draw(30, 2, seed=1)
    labels = torch.cat([torch.zeros(30), torch.ones(30)]).long()
    expected = torch.nn.functional.cross_entropy(torch.cat([first, second]), labels)
    torch.testing.assert_close(objectives.discriminator_loss(first, second), expected)


# Objectives


def priors():
    yield "normal", objectives.standard_normal(4, dtype=torch.float64)
    yield "ISA", isa_prior(subspaces=(2, 2), p0=2.1, p1=2.2)
    exponents = torch.tensor([1.9, 2.4], dtype=torch.float64, requires_grad=True)
    yield "ISA, learned", isa_prior(subspaces=(2, 2), p0=2.1, p1=exponents)


PRIORS = dict(priors())


@pytest.mark.parametrize("prior", PRIORS.values(), ids=PRIORS)
@pytest.mark.parametrize("beta", [0.5, 1.0, 4.0])
def test_beta_vae_is_eq_2(prior, beta):
    z, mean, log_var = batch(6, 4)
    fit = draw(6, seed=9)
    terms = objectives.beta_vae(fit, z, mean, log_var, prior, beta)
    kl = (Normal(mean, torch.exp(0.5 * log_var)).log_prob(z).sum(-1) - prior.log_prob(z)).mean()
    torch.testing.assert_close(terms.loss, beta * kl - fit.mean())
    torch.testing.assert_close(terms.elbo, fit.mean() - kl)
    torch.testing.assert_close((terms.log_likelihood, terms.kl), (fit.mean(), kl))


@pytest.mark.parametrize("prior", PRIORS.values(), ids=PRIORS)
@pytest.mark.parametrize("beta", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("sampling", ["weighted", "stratified"])
def test_beta_tcvae_is_eq_3_term_by_term(prior, beta, sampling):
    z, mean, log_var = batch(6, 4)
    fit = draw(6, seed=9)
    terms = objectives.beta_tcvae(fit, z, mean, log_var, prior, beta, dataset_size=80, sampling=sampling)
    joint, marginals = exact(z, mean, log_var, sampling_weights(6, 80, sampling).matrix(6))
    posterior = log_density_table(z, mean, log_var).sum(-1).diagonal()
    product = marginals.sum(-1)
    expected = fit - (posterior - joint) - beta * (joint - product) - (product - prior.log_prob(z))
    torch.testing.assert_close(terms.loss, -expected.mean())
    torch.testing.assert_close(terms.index_code_mi, (posterior - joint).mean())
    torch.testing.assert_close(terms.total_correlation, (joint - product).mean())
    torch.testing.assert_close(terms.dimension_wise_kl, (product - prior.log_prob(z)).mean())
    torch.testing.assert_close(terms.elbo, (fit - posterior + prior.log_prob(z)).mean())


def test_at_beta_one_every_objective_has_the_same_loss():
    z, mean, log_var = batch(6, 4)
    fit, prior = draw(6, seed=9), PRIORS["ISA"]
    plain = objectives.beta_vae(fit, z, mean, log_var, prior)
    split = objectives.beta_tcvae(fit, z, mean, log_var, prior, dataset_size=80)
    indifferent = torch.zeros(6, 2, dtype=torch.float64)
    adversarial = objectives.factor_vae(fit, z, mean, log_var, prior, discriminator_logits=indifferent)
    for terms in (plain, split, adversarial):
        torch.testing.assert_close(terms.loss, -terms.elbo)
        torch.testing.assert_close(terms.loss, plain.loss)


def test_closed_form_on_request():
    z, mean, log_var = batch(6, 4)
    fit, prior = draw(6, seed=9), PRIORS["normal"]
    exact_kl = objectives.kl_closed_form(mean, log_var, prior).mean()
    logits = draw(6, 2)
    for terms in (
        objectives.beta_vae(fit, z, mean, log_var, prior, 2.0, kl="closed_form"),
        objectives.factor_vae(fit, z, mean, log_var, prior, 2.0, discriminator_logits=logits, kl="closed_form"),
    ):
        torch.testing.assert_close(terms.kl, exact_kl)
        torch.testing.assert_close(terms.elbo, fit.mean() - exact_kl)


def objective_of(name, logits):
    options = {"beta-vae": {}, "beta-tcvae": {"dataset_size": 80}, "factor-vae": {"discriminator_logits": logits}}
    return lambda *arguments: objectives.OBJECTIVES[name](*arguments, **options[name])


@pytest.mark.parametrize("name", objectives.OBJECTIVES)
def test_a_weight_for_each_of_several_models(name):
    z, mean, log_var = batch(3, 6, 4)
    fit, logits, prior = draw(3, 6, seed=9), draw(3, 6, 2), PRIORS["ISA"]
    beta = torch.tensor([0.5, 1.0, 4.0], dtype=torch.float64)
    together = objective_of(name, logits)(fit, z, mean, log_var, prior, beta)
    for i in range(3):
        alone = objective_of(name, logits[i])(fit[i], z[i], mean[i], log_var[i], prior, beta[i].item())
        for result, value in zip(together, alone, strict=True):
            torch.testing.assert_close(result[i], value)


@pytest.mark.parametrize("sampling", ["weighted", "stratified"])
def test_the_gradient_of_beta_tcvae_is_that_of_eq_3(sampling):
    inputs = [v.requires_grad_() for v in (draw(40, seed=9), *batch(40, 4))]
    prior, weights = PRIORS["ISA"], sampling_weights(40, 80, sampling)

    def eq_3(fit, z, mean, log_var):
        joint, marginals = exact(z, mean, log_var, weights.matrix(40))
        posterior, product = log_density_table(z, mean, log_var).sum(-1).diagonal(), marginals.sum(-1)
        return (posterior - joint + 4.0 * (joint - product) + product - prior.log_prob(z) - fit).mean()

    terms = objectives.beta_tcvae(*inputs, prior, 4.0, dataset_size=80, sampling=sampling)
    results, values = (torch.autograd.grad(loss, inputs) for loss in (terms.loss, eq_3(*inputs)))
    torch.testing.assert_close(results, values, rtol=1e-9, atol=1e-11)
    assert not (terms.index_code_mi.requires_grad or terms.dimension_wise_kl.requires_grad)


@pytest.mark.parametrize("name", objectives.OBJECTIVES)
def test_loss_gradients_by_finite_differences(name):
    exponents = torch.tensor([1.9, 2.4], dtype=torch.float64, requires_grad=True)
    inputs = [v.requires_grad_() for v in (draw(6, seed=9), *batch(6, 4))]
    logits = draw(6, 2)

    def loss(fit, z, mean, log_var, p1):
        prior = isa_prior(subspaces=(2, 2), p0=2.1, p1=p1)
        return objective_of(name, logits)(fit, z, mean, log_var, prior, 0.5).loss

    assert torch.autograd.gradcheck(loss, (*inputs, exponents), atol=1e-6, check_undefined_grad=False)


def test_half_precision_posteriors_are_computed_in_full():
    half = [v.to(torch.bfloat16) for v in batch(9, 4)]
    full = [v.float() for v in half]
    fit, prior = draw(9).float(), objectives.standard_normal(4)
    results = [objectives.beta_tcvae(fit, *v, prior, 4.0, dataset_size=80) for v in (half, full)]
    for result, value in zip(*results, strict=True):
        assert result.dtype == torch.float32
        torch.testing.assert_close(result, value)


# Refusals


GOOD = batch(6, 4)
NORMAL = objectives.standard_normal(4)
FIT = torch.zeros(6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: objectives.beta_vae(FIT, *GOOD, NORMAL, kl="exact"), "kl must be 'monte_carlo' or 'closed_form', got"),
        (lambda: objectives.beta_vae(FIT, *GOOD, objectives.standard_normal(3)), r"event_shape \(4,\), one entry a"),
        (lambda: objectives.beta_vae(FIT, *GOOD, Normal(0.0, 1.0)), r"got \(\); wrap a univariate distribution"),
        (lambda: objectives.kl_monte_carlo(GOOD[0][:5], *GOOD[1:], NORMAL), r"one shape \(..., B, D\), got \(5, 4\)"),
        (lambda: objectives.kl_closed_form(*GOOD[1:], PRIORS["ISA"]), "LpNested has no closed-form KL divergence"),
        (
            lambda: objectives.beta_tcvae(FIT, *GOOD, NORMAL, dataset_size=5),
            "dataset_size must be at least the batch size 6, got 5",
        ),
        (
            lambda: objectives.beta_tcvae(FIT, *GOOD, NORMAL, dataset_size=9, sampling="mss"),
            "sampling must be 'weighted' or 'stratified', got 'mss'",
        ),
        (lambda: sampling_weights(1, 9, "stratified"), "needs a batch of at least 2, got 1"),
        (
            lambda: objectives.bernoulli_log_likelihood(torch.zeros(6, 1, 4, 4), torch.zeros(6, 3, 4, 4)),
            r"decoded images and x must have one shape \(..., B, C, H, W\)",
        ),
        (
            lambda: objectives.gaussian_log_likelihood(torch.zeros(6, 1, 4, 4), torch.full((6, 1, 4, 4), 255)),
            r"x must contain values in \[0, 1\], got 255; divide grey values by 255",
        ),
    ],
)
def test_bad_arguments_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_the_standard_normal_prior():
    z = draw(5, 3)
    prior = objectives.standard_normal(3, dtype=torch.float64)
    assert isinstance(prior, Independent) and prior.event_shape == (3,)
    np.testing.assert_allclose(prior.log_prob(z), scipy.stats.norm.logpdf(z).sum(-1), rtol=1e-12)


GOLDEN = json.loads((Path(__file__).parent / "golden" / "objectives.json").read_text())


@pytest.mark.parametrize("case", [name for name in GOLDEN if name.startswith("beta-vae")])
def test_terms_and_gradients_of_golden_cases(case):
    b, d, spread, n, sampling = (int(v) if v.isdigit() else v for v in case.split()[1:])
    mean, log_var = draw(b, d), float(spread) * draw(b, d, seed=1) - 1
    inputs = [v.requires_grad_() for v in (mean + torch.exp(0.5 * log_var) * draw(b, d, seed=2), mean, log_var)]
    fit, prior, normal = (
        draw(b, seed=9),
        isa_prior((d // 2, d - d // 2), 2.1, [1.7, 2.4]),
        objectives.standard_normal(d, dtype=torch.float64),
    )
    logits = torch.stack([inputs[0].sum(-1), mean.sum(-1)], -1)
    found = {
        "beta-vae": objectives.beta_vae(fit, *inputs, prior, 3.0),
        "beta-tcvae": objectives.beta_tcvae(fit, *inputs, prior, 3.0, dataset_size=n, sampling=sampling),
        "factor-vae": objectives.factor_vae(fit, *inputs, prior, 3.0, discriminator_logits=logits),
        "closed": objectives.beta_vae(fit, *inputs, normal, 3.0, kl="closed_form"),
    }
    for name, terms in found.items():
        golden = GOLDEN[case.replace("beta-vae", name)]
        gradients = torch.autograd.grad(terms.loss, inputs, retain_graph=True, materialize_grads=True)
        assert [v.item() for v in terms] == pytest.approx(golden["terms"], rel=1e-9)
        sums = [(v * draw(b, d, seed=5)).sum().item() for v in gradients]
        assert sums == pytest.approx(golden["gradients"], rel=1e-7, abs=1e-12)


def test_golden_likelihoods_and_permutation():
    x = torch.rand(2, 3, 1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64).round()
    logits = 3 * draw(2, 3, 1, 4, 4, seed=3)
    found = {
        "bernoulli": objectives.bernoulli_log_likelihood(logits, x),
        "gaussian": objectives.gaussian_log_likelihood(logits, x, 0.3),
        "permute": objectives.permute_dims(draw(4, 3), torch.Generator().manual_seed(0)),
    }
    for name, values in found.items():
        assert values.flatten().tolist() == pytest.approx(GOLDEN[name]["terms"], rel=1e-9)
