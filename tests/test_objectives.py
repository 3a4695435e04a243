"""The ELBO's terms and objectives against enumeration, quadrature, closed forms and recorded values."""

import math

import numpy as np
import pytest
import scipy.stats
import torch
from conftest import golden
from posteriors import batch, draw, exact, log_density_table
from torch.distributions import MultivariateNormal, Normal

from isa import isa_prior, objectives
from isa.aggregate import sampling_weights

NORMAL = objectives.standard_normal(4, dtype=torch.float64)
PRIORS = {"normal": NORMAL, "ISA": isa_prior((2, 2), 2.1, [1.9, 2.4])}


@pytest.mark.parametrize(
    ("dtype", "pixels"),
    [(torch.float64, torch.uint8), (torch.float32, torch.float64), (torch.bfloat16, torch.bfloat16)],
)
def test_bernoulli_log_likelihood_and_gradient(dtype, pixels):
    logits = torch.cat([4 * draw(2, 1, 64, 64), 800 * draw(1, 1, 64, 64)]).to(dtype).requires_grad_()
    x = torch.rand(3, 1, 64, 64, generator=torch.Generator().manual_seed(0)).mul(2).to(pixels).clamp_max(1)
    wide = logits.detach().double().requires_grad_()
    result = objectives.bernoulli_log_likelihood(logits, x)
    expected = (x * wide - torch.logaddexp(wide, 0 * wide.detach())).sum((1, 2, 3))
    assert result.dtype == torch.promote_types(dtype, torch.float32)
    torch.testing.assert_close(result.double(), expected, rtol=1e-6, atol=0)
    gradient, truth = (torch.autograd.grad(v.sum(), u)[0] for v, u in ((result, logits), (expected, wide)))
    assert gradient.dtype == dtype
    torch.testing.assert_close(gradient, truth.to(dtype))


def test_gaussian_densities_match_scipy():
    decoded, x = draw(2, 3, 4, 5, 6), draw(2, 3, 4, 5, 6, seed=1)
    expected = scipy.stats.norm.logpdf(x, decoded, 0.3).sum((2, 3, 4))
    np.testing.assert_allclose(objectives.gaussian_log_likelihood(decoded, x, scale=0.3), expected, rtol=1e-12)
    z, mean, log_var = batch(2, 7, 4)
    expected = scipy.stats.norm.logpdf(z, mean, torch.exp(0.5 * log_var)).sum(-1)
    np.testing.assert_allclose(objectives.gaussian_log_density(z, mean, log_var), expected, rtol=1e-12)
    np.testing.assert_allclose(NORMAL.log_prob(z), scipy.stats.norm.logpdf(z).sum(-1), rtol=1e-12)


def test_each_term_of_eq_3_converges_to_its_integral():
    """Five images and two latents: quadrature on a grid, and 400 samples a posterior."""
    mean = torch.tensor([[-1.2, 0.3], [0.1, -0.9], [0.9, 0.8], [0.4, 1.4], [-0.3, -0.2]], dtype=torch.float64)
    log_var = torch.tensor([[-1.5, -0.2], [-0.8, -2.0], [-2.5, -1.0], [0.1, -1.2], [-0.6, -0.4]], dtype=torch.float64)
    prior = objectives.standard_normal(2, dtype=torch.float64)
    axis = torch.linspace(-7, 7, 701, dtype=torch.float64)
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
    wide = mean.expand(400, 5, 2), log_var.expand(400, 5, 2)
    z = wide[0] + torch.exp(0.5 * wide[1]) * draw(400, 5, 2, seed=4)
    terms = objectives.beta_tcvae(z[..., 0], z, *wide, prior, 3.0, dataset_size=5, sampling="stratified")
    assert sum(truth.values()) == pytest.approx(2 * truth["kl"], rel=1e-6)
    for name, integrated in truth.items():
        values = getattr(terms, name)
        assert abs(values.mean().item() - integrated) < 5 * values.std().item() / math.sqrt(len(values)), name


def test_permuted_dimensions_are_independent():
    n = 20_000
    z = draw(2, n, 1).expand(2, n, 3) + 0.01 * draw(2, n, 3, seed=1)
    permuted = objectives.permute_dims(z.clone().requires_grad_(), torch.Generator().manual_seed(0))
    assert not permuted.requires_grad
    assert torch.equal(permuted.sort(1).values, z.sort(1).values)  # models stay separate
    assert all((torch.corrcoef(one.T)[[0, 0, 1], [1, 2, 2]].abs() < 5 / math.sqrt(n)).all() for one in permuted)


def test_optimal_discriminator_estimates_the_total_correlation():
    n, rho, prior = 100_000, 0.6, objectives.standard_normal(2)
    covariance = torch.tensor([[1, rho], [rho, 1]], dtype=torch.float64)
    z, permuted = draw(n, 2) @ torch.linalg.cholesky(covariance).T, draw(n, 2, seed=1)
    joint, shift = MultivariateNormal(torch.zeros(2).double(), covariance), draw(n, seed=5)
    ratios = [joint.log_prob(v) - Normal(0.0, 1.0).log_prob(v).sum(-1) for v in (z, permuted)]

    def logits(scale=1.0):  # a softmax classifier's for the posterior of the two classes, shifted at random
        return [torch.stack([shift + scale * ratio, shift], -1) for ratio in ratios]

    terms = objectives.factor_vae(shift, z, 0 * z, 0 * z, prior, 6.0, discriminator_logits=logits()[0])
    truth = -0.5 * math.log(1 - rho**2)
    assert abs(terms.total_correlation.item() - truth) < 5 * ratios[0].std().item() / math.sqrt(n)
    torch.testing.assert_close(objectives.density_ratio(logits()[0]), ratios[0])
    labels = torch.arange(2).repeat_interleave(n)
    expected = torch.nn.functional.cross_entropy(torch.cat(logits()), labels)
    torch.testing.assert_close(objectives.discriminator_loss(*logits()), expected)
    assert expected < min(objectives.discriminator_loss(*logits(wrong)) for wrong in (0.0, 0.5, 2.0))


@pytest.mark.parametrize("prior", PRIORS.values(), ids=PRIORS)
@pytest.mark.parametrize("sampling", ["weighted", "stratified"])
def test_objectives_of_stacked_models_match_their_equations(prior, sampling):
    z, mean, log_var = (v.requires_grad_() for v in batch(3, 6, 4))
    fit, logits, beta = draw(3, 6, seed=9), draw(3, 6, 2), torch.tensor([0.5, 1.0, 4.0], dtype=torch.float64)
    arguments, close = (fit, z, mean, log_var, prior, beta), torch.testing.assert_close
    posterior = log_density_table(z, mean, log_var).sum(-1).diagonal(dim1=1, dim2=2)
    joint, marginals, log_prior = *exact(z, mean, log_var, *sampling_weights(6, 80, sampling)), prior.log_prob(z)
    parts = [v.mean(1) for v in (posterior - joint, joint - marginals.sum(-1), marginals.sum(-1) - log_prior)]
    kl, ratio, fits = (posterior - log_prior).mean(1), (logits[..., 0] - logits[..., 1]).mean(1), fit.mean(1)
    close(objectives.beta_vae(*arguments), (beta * kl - fits, fits - kl, fits, kl))
    terms = objectives.factor_vae(*arguments, discriminator_logits=logits)
    close(terms, (kl + beta * ratio - fits, fits - kl, fits, kl, ratio))
    terms = objectives.beta_tcvae(*arguments, dataset_size=80, sampling=sampling)
    close(terms, (parts[0] + beta * parts[1] + parts[2] - fits, fits - kl, fits, kl, *parts))
    assert not (terms.index_code_mi.requires_grad or terms.dimension_wise_kl.requires_grad)
    if prior is NORMAL:
        kl = objectives.kl_closed_form(mean, log_var, prior).mean(1)
        close(objectives.beta_vae(*arguments, kl="closed_form").loss, beta * kl - fits)
        terms = objectives.factor_vae(*arguments, discriminator_logits=logits, kl="closed_form")
        close(terms[:4], (kl + beta * ratio - fits, fits - kl, fits, kl))


def test_bad_arguments_are_refused():
    _, mean, log_var = batch(6, 4)
    with pytest.raises(ValueError, match="LpNested has no closed-form KL divergence"):
        objectives.kl_closed_form(mean, log_var, PRIORS["ISA"])
    for likelihood in objectives.LIKELIHOODS.values():
        with pytest.raises(ValueError, match=r"x must contain values in \[0, 1\], got 255; divide grey values by 255"):
            likelihood(torch.zeros(6, 1, 4, 4), torch.full((6, 1, 4, 4), 255))


GOLDEN = golden("objectives")


@pytest.mark.parametrize("case", [name for name in GOLDEN if name.startswith("beta-vae")])
def test_golden_terms_and_gradients(case):
    b, d, spread, n, sampling = (int(v) if v.isdigit() else v for v in case.split()[1:])
    mean, log_var = draw(b, d), float(spread) * draw(b, d, seed=1) - 1
    inputs = [v.requires_grad_() for v in (mean + torch.exp(0.5 * log_var) * draw(b, d, seed=2), mean, log_var)]
    fit, prior = draw(b, seed=9), isa_prior((d // 2, d - d // 2), 2.1, [1.7, 2.4])
    normal = objectives.standard_normal(d, dtype=torch.float64)
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
