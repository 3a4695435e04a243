"""The ELBO's terms and objectives against enumeration, quadrature, closed forms and finite differences."""

from __future__ import annotations

import itertools
import math
import os
import subprocess
import sys

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import Bernoulli, Independent, MultivariateNormal, Normal

from isa import objectives
from isa.lpnested import isa_prior


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def batch(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64, spread: float = 1.0):
    """Return samples, means and log-variances of random posteriors."""
    mean, log_var = draw(*shape, seed=seed), spread * draw(*shape, seed=seed + 1) - 1
    z = mean + torch.exp(0.5 * log_var) * draw(*shape, seed=seed + 2)
    return z.to(dtype), mean.to(dtype), log_var.to(dtype)


def log_density_table(z, mean, log_var):
    """Return log q(z_i|x_m) dimension by dimension, shape (..., B, M, D)."""
    std = torch.exp(0.5 * log_var).unsqueeze(-3)
    return Normal(mean.unsqueeze(-3), std).log_prob(z.unsqueeze(-2))


def exact(z, mean, log_var, weights):
    """Return log q(z_i) and log q(z_ij) under a full matrix of weights."""
    table = log_density_table(z, mean, log_var)
    log_weights = weights.to(table).log()
    joint = torch.logsumexp(table.sum(-1) + log_weights, -1)
    return joint, torch.logsumexp(table + log_weights.unsqueeze(-1), -2)


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


# Weights


sizes = st.integers(2, 60).flatmap(lambda b: st.tuples(st.just(b), st.integers(b, 10**6)))


@given(sizes)
def test_stratified_rows_sum_to_one_with_the_own_image_at_one_in_n(size):
    b, n = size
    matrix = objectives.sampling_weights(b, n, "stratified").matrix(b)
    torch.testing.assert_close(matrix.sum(1), torch.ones(b, dtype=torch.float64), rtol=1e-12, atol=0)
    torch.testing.assert_close(matrix.diagonal(), torch.full((b,), 1 / n, dtype=torch.float64), rtol=1e-15, atol=0)
    assert (matrix > 0).all()


@given(sizes)
def test_stratified_weights_are_the_published_ones_averaged_over_the_last_image(size):
    b, n = size
    m = b - 1
    published = torch.full((b, b, b), 1 / m, dtype=torch.float64)  # (last, i, m): image i + 1 + last stands last
    rows = torch.arange(b)
    for last in range(m):
        published[last, rows, (rows + 1 + last) % b] = (n - m) / (n * m)
        published[last].fill_diagonal_(1 / n)
    matrix = objectives.sampling_weights(b, n, "stratified").matrix(b)
    torch.testing.assert_close(matrix, published[:m].mean(0), rtol=1e-10, atol=0)


@given(sizes)
def test_weighted_rows_sum_to_one_in_n(size):
    b, n = size
    matrix = objectives.sampling_weights(b, n, "weighted").matrix(b)
    torch.testing.assert_close(matrix, torch.full((b, b), 1 / (b * n), dtype=torch.float64), rtol=1e-12, atol=0)


def test_stratified_estimate_is_unbiased_and_weighted_is_not():
    n, b, d = 7, 3, 2
    z, mean, log_var = batch(n, d, seed=5)
    truth, truth_marginals = exact(z, mean, log_var, torch.full((n, n), 1 / n))
    for i in range(n):
        others = [m for m in range(n) if m != i]
        for sampling in ("stratified", "weighted"):
            joint, marginals = [], []
            for chosen in itertools.combinations(others, b - 1):
                rows = torch.tensor([i, *chosen])
                estimate = objectives.aggregate_log_densities(z[rows], mean[rows], log_var[rows], n, sampling)
                joint.append(torch.exp(estimate.joint[0]))
                marginals.append(torch.exp(estimate.marginals[0]))
            joint, marginals = torch.stack(joint).mean(), torch.stack(marginals).mean(0)
            if sampling == "stratified":
                torch.testing.assert_close(joint, torch.exp(truth[i]))
                torch.testing.assert_close(marginals, torch.exp(truth_marginals[i]))
            else:
                # Each of the n - 1 others is in the batch with probability (b - 1) / (n - 1), the own image with 1.
                densities = torch.exp(log_density_table(z, mean, log_var)[i].sum(-1))
                expected = (densities[i] + (b - 1) / (n - 1) * densities[others].sum()) / (b * n)
                torch.testing.assert_close(joint, expected)
                assert joint < torch.exp(truth[i]) / b


def test_stratified_estimate_is_exact_when_the_batch_is_the_data_set():
    z, mean, log_var = batch(9, 3, seed=6)
    truth = exact(z, mean, log_var, torch.full((9, 9), 1 / 9))
    for estimate, value in zip(
        objectives.aggregate_log_densities(z, mean, log_var, 9, "stratified"), truth, strict=True
    ):
        torch.testing.assert_close(estimate, value)


def test_estimates_converge_with_the_batch():
    n, d, repeats = 512, 3, 40
    z, mean, log_var = batch(n, d, seed=7, spread=0.3)
    truth, _ = exact(z, mean, log_var, torch.full((n, n), 1 / n))
    errors = []
    generator = torch.Generator().manual_seed(0)
    for b in (8, 64, 512):
        squares = []
        for _ in range(repeats):
            rows = torch.randperm(n, generator=generator)[:b]
            joint, _ = objectives.aggregate_log_densities(z[rows], mean[rows], log_var[rows], n, "stratified")
            squares.append((joint - truth[rows]).square().mean())
        errors.append(torch.stack(squares).mean().sqrt().item())
    assert errors[1] < 0.6 * errors[0]
    assert errors[2] < 1e-12


@pytest.mark.parametrize(("separation", "bias"), [(0.0, math.log(1000)), (1e3, math.log(20))])
def test_known_bias_of_weighted_sampling(separation, bias):
    b, n = 20, 1000
    mean = separation * torch.arange(b, dtype=torch.float64).unsqueeze(-1)
    log_var = torch.zeros(b, 1, dtype=torch.float64)
    z = mean + 0.3
    stratified = objectives.aggregate_log_densities(z, mean, log_var, n, "stratified")
    weighted = objectives.aggregate_log_densities(z, mean, log_var, n, "weighted")
    torch.testing.assert_close(stratified.joint - weighted.joint, torch.full((b,), bias, dtype=torch.float64))


# The sum over the batch


BATCHES = [23, 602]
"""Batch sizes: one block of samples, and several of which the last is not full."""

HARD = {
    "ordinary": lambda b, d: batch(b, d),
    "tiny and huge variances mixed": lambda b, d: batch(b, d, spread=6.0),
    "variances over thirty orders of magnitude": lambda b, d: batch(b, d, spread=15.0),
    "collapsed": lambda b, d: (draw(b, d), *torch.zeros(2, b, d, dtype=torch.float64)),
    "discrete means": lambda b, d: (draw(b, d).round() + 1e-3, draw(b, d).round(), torch.full((b, d), -12.0).double()),
    "samples far from every posterior": lambda b, d: (30 + draw(b, d), *batch(b, d)[1:]),
}


@pytest.mark.parametrize("case", HARD)
@pytest.mark.parametrize("sampling", ["weighted", "stratified"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("b", BATCHES)
def test_aggregate_log_densities_against_the_full_table(case, sampling, dtype, b):
    d, n = 4, 5000
    inputs = [v.to(dtype) for v in HARD[case](b, d)]
    weights = objectives.sampling_weights(b, n, sampling).matrix(b)
    # The reference is double precision on the same, possibly rounded, inputs.
    expected = exact(*(v.double() for v in inputs), weights)
    tolerance = {"rtol": 1e-12, "atol": 1e-12} if dtype == torch.float64 else {"rtol": 3e-6, "atol": 2e-5}
    estimate = objectives.aggregate_log_densities(*inputs, n, sampling)
    assert estimate.joint.dtype == dtype
    for result, value in zip(estimate, expected, strict=True):
        torch.testing.assert_close(result.double(), value, **tolerance)
    mean = objectives.mean_aggregate_log_densities(*inputs, n, sampling)
    torch.testing.assert_close(mean.joint.double(), expected[0].mean(), **tolerance)
    torch.testing.assert_close(mean.marginals.double(), expected[1].mean(0), **tolerance)


def check_gradients(b, d, seed, sampling):
    inputs = [v.requires_grad_() for v in batch(b, d, seed=seed)]
    n = b + 5
    joint, marginals = exact(*inputs, objectives.sampling_weights(b, n, sampling).matrix(b))
    of_joint, of_marginals = draw(b, seed=seed + 3), draw(b, d, seed=seed + 4)
    estimate = objectives.aggregate_log_densities(*inputs, n, sampling)
    means = objectives.mean_aggregate_log_densities(*inputs, n, sampling)
    correlation = objectives.total_correlation(*inputs, n, sampling)
    for result, value in (
        (
            (estimate.joint * of_joint).sum() + (estimate.marginals * of_marginals).sum(),
            (joint * of_joint).sum() + (marginals * of_marginals).sum(),
        ),
        (
            means.joint + (means.marginals * of_marginals[0]).sum(),
            joint.mean() + (marginals.mean(0) * of_marginals[0]).sum(),
        ),
        (3 * correlation, 3 * (joint - marginals.sum(-1)).mean()),
    ):
        torch.testing.assert_close(result, value)
        results, values = (torch.autograd.grad(loss, inputs, retain_graph=True) for loss in (result, value))
        torch.testing.assert_close(results, values, rtol=1e-9, atol=1e-11)


@given(
    b=st.integers(2, 12),
    d=st.integers(1, 5),
    seed=st.integers(0, 10**6),
    sampling=st.sampled_from(["weighted", "stratified"]),
)
@settings(deadline=None, max_examples=40)
def test_gradients_against_autograd_through_the_full_table(b, d, seed, sampling):
    check_gradients(b, d, seed, sampling)


@pytest.mark.parametrize("sampling", ["weighted", "stratified"])
def test_gradients_of_several_blocks(sampling):
    check_gradients(602, 4, 1, sampling)


@pytest.mark.parametrize(
    "function",
    [objectives.aggregate_log_densities, objectives.mean_aggregate_log_densities, objectives.total_correlation],
)
@pytest.mark.parametrize("sampling", ["weighted", "stratified"])
def test_gradients_by_finite_differences(function, sampling):
    inputs = [v.requires_grad_() for v in batch(7, 3, seed=8)]
    assert torch.autograd.gradcheck(lambda *v: function(*v, 30, sampling), inputs, atol=1e-7)


@pytest.mark.parametrize("case", HARD)
@pytest.mark.parametrize("b", BATCHES)
def test_single_precision_gradients(case, b):
    n = 5000
    single = [v.float().requires_grad_() for v in HARD[case](b, 4)]
    double = [v.detach().double().requires_grad_() for v in single]
    joint, marginals = exact(*double, objectives.sampling_weights(b, n, "stratified").matrix(b))
    of_joint, of_product = (torch.autograd.grad(v.sum() / b, double, retain_graph=True) for v in (joint, marginals))
    means = objectives.mean_aggregate_log_densities(*single, n, "stratified")
    correlation = objectives.total_correlation(*single, n, "stratified")
    for estimate, parts in (
        (means.joint, [of_joint]),
        (means.marginals.sum(), [of_product]),
        (correlation, [of_joint, [-v for v in of_product]]),
    ):
        results = torch.autograd.grad(estimate, single, retain_graph=True)
        for result, *values in zip(results, *parts, strict=True):
            scale = max(1.0, *(v.abs().max().item() for v in values))  # of the parts, which may cancel
            assert (result.double() - sum(values)).abs().max() <= 1e-5 * scale


def test_without_gradients_none_is_formed():
    inputs = batch(6, 2)
    with_gradient = objectives.total_correlation(*(v.clone().requires_grad_() for v in inputs), 50)
    torch.testing.assert_close(objectives.total_correlation(*inputs, 50), with_gradient.detach())
    with torch.no_grad():
        assert not objectives.total_correlation(*(v.requires_grad_() for v in inputs), 50).requires_grad
    joint, marginals, gradient = torch.ops.isa.total_correlation(*(v.detach() for v in inputs), 0.1, 0.2, False)
    assert (joint.shape, marginals.shape, gradient.numel()) == ((), (2,), 0)


def test_memory_does_not_grow_as_batch_by_batch_by_latents():
    b, d = 500, 30
    inputs = [v.requires_grad_() for v in batch(b, d)]
    saved = []
    with (
        torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile,
        torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t),
    ):
        joint, marginals = objectives.aggregate_log_densities(*inputs, 1000)
        (joint.sum() - marginals.sum() + objectives.total_correlation(*inputs, 1000)).backward()
    largest = max(event.self_cpu_memory_usage for event in profile.events()) // 8
    assert b * b < largest < b * b * d / 10
    assert max(saved) <= 3 * b * d


# Several models, compilation


def test_stacked_models_equal_each_alone():
    inputs = batch(2, 3, 11, 4)
    together = objectives.aggregate_log_densities(*inputs, 100)
    means = objectives.mean_aggregate_log_densities(*inputs, 100)
    correlation = objectives.total_correlation(*inputs, 100)
    assert together.joint.shape == (2, 3, 11) and means.marginals.shape == (2, 3, 4) and correlation.shape == (2, 3)
    for i, j in itertools.product(range(2), range(3)):
        alone = objectives.aggregate_log_densities(*(v[i, j] for v in inputs), 100)
        assert torch.equal(together.joint[i, j], alone.joint)
        assert torch.equal(together.marginals[i, j], alone.marginals)
        torch.testing.assert_close(means.joint[i, j], alone.joint.mean())
        torch.testing.assert_close(means.marginals[i, j], alone.marginals.mean(0))
        assert torch.equal(correlation[i, j], objectives.total_correlation(*(v[i, j] for v in inputs), 100))


@pytest.mark.parametrize("diverged", [math.nan, math.inf, 1e200])
def test_a_model_that_has_diverged_spoils_no_other(diverged):
    inputs = batch(3, 11, 4)
    spoilt = [v.clone() for v in inputs]
    for v in spoilt:
        v[1] = diverged
    for result, value in zip(
        torch.ops.isa.total_correlation(*spoilt, 0.1, 0.3, True),
        torch.ops.isa.total_correlation(*inputs, 0.1, 0.3, True),
        strict=True,
    ):
        assert torch.equal(result[[0, 2]], value[[0, 2]])
        assert not torch.equal(result[1], value[1])


def densities_loss(*inputs):
    joint, marginals = objectives.aggregate_log_densities(*inputs, 100, "stratified")
    return joint.square().sum() - marginals.sum()


def tcvae_loss(z, mean, log_var):
    fit = z.square().sum(-1)
    prior = objectives.standard_normal(4, dtype=z.dtype)
    return objectives.beta_tcvae(fit, z, mean, log_var, prior, 4.0, dataset_size=100, sampling="stratified").loss


@pytest.mark.parametrize("loss", [densities_loss, tcvae_loss])
def test_mapped_gradients_equal_each_alone(loss):
    inputs = batch(3, 11, 4)
    mapped = torch.func.vmap(torch.func.grad(loss, (0, 1, 2)))(*inputs)
    shared = torch.func.vmap(torch.func.grad(loss), in_dims=(0, None, None))(inputs[0], inputs[1][0], inputs[2][0])
    for i in range(3):
        alone = [v[i].clone().requires_grad_() for v in inputs]
        for result, value in zip(mapped, torch.autograd.grad(loss(*alone), alone), strict=True):
            torch.testing.assert_close(result[i], value)
    torch.testing.assert_close(shared[0], mapped[0][0])


@pytest.mark.parametrize("with_gradients", [True, False])
def test_operators_declare_what_they_return(with_gradients):
    inputs = [v.requires_grad_(False) for v in batch(2, 5, 3)]
    tests = ("test_schema", "test_faketensor")
    torch.library.opcheck(torch.ops.isa.log_densities, (*inputs, 0.1, 0.2), test_utils=tests)
    torch.library.opcheck(torch.ops.isa.total_correlation, (*inputs, 0.1, 0.2, with_gradients), test_utils=tests)
    upstream = draw(2, 5), draw(2, 5, 3)
    torch.library.opcheck(torch.ops.isa.log_densities_gradient, (*inputs, *upstream, 0.1, 0.2), test_utils=tests)


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("loss", [densities_loss, tcvae_loss])
def test_a_compiled_step_takes_the_sum_as_one_node(loss):
    inputs = [v.requires_grad_() for v in batch(11, 4)]
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    results = torch.autograd.grad(compiled(*inputs), inputs)
    for result, value in zip(results, torch.autograd.grad(loss(*inputs), inputs), strict=True):
        torch.testing.assert_close(result, value)


@pytest.mark.usefixtures("fresh_compiler")
def test_a_compiled_step_over_mapped_models():
    inputs = batch(3, 11, 4)
    step = torch.func.vmap(torch.func.grad(tcvae_loss, (0, 1, 2)))
    for result, value in zip(
        torch.compile(step, fullgraph=True, backend="aot_eager")(*inputs), step(*inputs), strict=True
    ):
        torch.testing.assert_close(result, value)


LARGE = (1100, 7)
"""A batch and a number of latents from which the sums are compiled."""


@pytest.mark.parametrize("sampling", ["weighted", "stratified"])
def test_large_batches_in_single_precision(sampling):
    inputs = [v.requires_grad_() for v in batch(*LARGE, dtype=torch.float32, spread=3.0)]
    double = [v.detach().double().requires_grad_() for v in inputs]
    joint, marginals = exact(*double, objectives.sampling_weights(LARGE[0], 5000, sampling).matrix(LARGE[0]))
    result, value = objectives.total_correlation(*inputs, 5000, sampling), (joint - marginals.sum(-1)).mean()
    assert result.item() == pytest.approx(value.item(), abs=2e-5)
    for gradient, expected in zip(torch.autograd.grad(result, inputs), torch.autograd.grad(value, double), strict=True):
        assert (gradient - expected).abs().max() <= 3e-6 * expected.abs().max()


WITHOUT_COMPILER = """
import logging, sys, torch
from isa import objectives
logging.basicConfig(format="%(message)s")
inputs = torch.load(sys.argv[1])
torch.save([objectives.total_correlation(*inputs, 5000) for _ in range(2)], sys.argv[1])
"""


def test_large_batches_without_a_compiler(tmp_path):
    inputs = batch(*LARGE, dtype=torch.float32)
    torch.save(inputs, tmp_path / "tensors.pt")
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_COMPILER, str(tmp_path / "tensors.pt")],
        env={**os.environ, "CXX": "no-such-compiler", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("the aggregate posterior runs uncompiled:") == 1
    first, second = torch.load(tmp_path / "tensors.pt")
    assert torch.equal(first, second)
    torch.testing.assert_close(first, objectives.total_correlation(*inputs, 5000))


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


def test_total_correlation_of_a_correlated_gaussian():
    # Narrow posteriors at points of a Gaussian of correlation 0.8: q(z) is that Gaussian, widened a little.
    n, rho, s2 = 2000, 0.8, 0.05
    covariance = torch.tensor([[1, rho], [rho, 1]], dtype=torch.float64)
    mean = draw(n, 2) @ torch.linalg.cholesky(covariance).T
    log_var = torch.full_like(mean, math.log(s2))
    z = mean + math.sqrt(s2) * draw(n, 2, seed=1)
    estimate = objectives.total_correlation(z, mean, log_var, n, "stratified")
    wide = covariance + s2 * torch.eye(2, dtype=torch.float64)
    truth = -0.5 * math.log(torch.linalg.det(wide) / wide[0, 0] ** 2)
    per_sample = MultivariateNormal(torch.zeros(2).double(), wide).log_prob(z)
    per_sample -= Normal(0.0, math.sqrt(1 + s2)).log_prob(z).sum(-1)
    # n kernels smooth a sample of n points, which adds the kernel estimate's own error to that of the mean.
    assert abs(estimate.item() - truth) < 5 * per_sample.std().item() / math.sqrt(n) + 0.02


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
    joint, marginals = exact(z, mean, log_var, objectives.sampling_weights(6, 80, sampling).matrix(6))
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
    prior, weights = PRIORS["ISA"], objectives.sampling_weights(40, 80, sampling)

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
        (lambda: objectives.beta_vae(FIT, *GOOD, NORMAL, -0.1), "beta must be a finite number of at least 0, got -0.1"),
        (
            lambda: objectives.beta_vae(FIT, *GOOD, NORMAL, math.nan),
            "beta must be a finite number of at least 0, got nan",
        ),
        (lambda: objectives.beta_vae(FIT, *GOOD, NORMAL, kl="exact"), "kl must be 'monte_carlo' or 'closed_form', got"),
        (lambda: objectives.beta_vae(FIT[:5], *GOOD, NORMAL), r"log_likelihood must have shape \(6,\)"),
        (lambda: objectives.beta_vae(FIT, *GOOD, objectives.standard_normal(3)), r"event_shape \(4,\), one entry a"),
        (lambda: objectives.beta_vae(FIT, *GOOD, Normal(0.0, 1.0)), r"got \(\); wrap a univariate distribution"),
        (lambda: objectives.kl_monte_carlo(GOOD[0][:5], *GOOD[1:], NORMAL), r"one shape \(..., B, D\), got \(5, 4\)"),
        (
            lambda: objectives.kl_closed_form(*GOOD[1:], objectives.standard_normal(3)),
            r"event_shape \(4,\), got \(3,\)",
        ),
        (
            lambda: objectives.kl_closed_form(*GOOD[1:], torch.distributions.Dirichlet(torch.ones(4))),
            "Dirichlet has no registered closed-form",
        ),
        (lambda: objectives.kl_closed_form(*GOOD[1:], PRIORS["ISA"]), "LpNested has no registered closed-form"),
        (
            lambda: objectives.beta_tcvae(FIT, *GOOD, NORMAL, dataset_size=5),
            "dataset_size must be at least the batch size 6, got 5",
        ),
        (
            lambda: objectives.beta_tcvae(FIT, *GOOD, NORMAL, dataset_size=9, sampling="mss"),
            "sampling must be 'weighted' or 'stratified', got 'mss'",
        ),
        (lambda: objectives.sampling_weights(1, 9, "stratified"), "needs a batch of at least 2, got 1"),
        (
            lambda: objectives.factor_vae(FIT, *GOOD, NORMAL, discriminator_logits=torch.zeros(6)),
            r"discriminator_logits must have shape \(6, 2\), got \(6,\)",
        ),
        (
            lambda: objectives.factor_vae(FIT, *GOOD, NORMAL, -1.0, discriminator_logits=torch.zeros(6, 2)),
            "gamma must be a finite number of at least 0, got -1.0",
        ),
        (lambda: objectives.density_ratio(torch.zeros(6, 3)), r"last dimension of 2, got shape \(6, 3\)"),
        (
            lambda: objectives.bernoulli_log_likelihood(torch.zeros(6, 1, 4, 4), torch.zeros(6, 3, 4, 4)),
            r"logits and x must have one shape \(..., B, C, H, W\)",
        ),
        (
            lambda: objectives.gaussian_log_likelihood(torch.zeros(6, 1, 4, 4), torch.zeros(6, 1, 4, 4), -0.1),
            "scale must be a positive number, got -0.1",
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
