"""The aggregate posterior: its weights by enumeration, its densities and total correlation against the full table."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from posteriors import batch, draw, exact, log_density_table
from torch.distributions import MultivariateNormal, Normal

from isa import objectives
from isa.aggregate import aggregate_log_densities, sampling_weights, total_correlation

sizes = st.integers(2, 60).flatmap(lambda b: st.tuples(st.just(b), st.integers(b, 10**6)))


@given(sizes)
@settings(deadline=None)
def test_stratified_weights_average_the_published_ones_over_the_last_image(size):
    b, n = size
    m = b - 1
    published = torch.full((b, b, b), 1 / m, dtype=torch.float64)  # (last, i, m): image i + 1 + last stands last
    rows = torch.arange(b)
    for last in range(m):
        published[last, rows, (rows + 1 + last) % b] = (n - m) / (n * m)
        published[last].fill_diagonal_(1 / n)
    matrix = sampling_weights(b, n, "stratified").matrix(b)
    torch.testing.assert_close(matrix, published[:m].mean(0), rtol=1e-10, atol=0)
    torch.testing.assert_close(matrix.sum(1), torch.ones(b, dtype=torch.float64), rtol=1e-12, atol=0)
    weighted = torch.full((b, b), 1 / (b * n), dtype=torch.float64)
    torch.testing.assert_close(sampling_weights(b, n, "weighted").matrix(b), weighted, rtol=1e-12, atol=0)


@pytest.mark.parametrize(("n", "b"), [(7, 3), (5, 5)])
def test_stratified_estimate_is_unbiased_and_weighted_is_not(n, b):
    z, mean, log_var = batch(n, 2, seed=5)
    truth = [torch.exp(v) for v in exact(z, mean, log_var, torch.full((n, n), 1 / n))]
    for i in range(n):
        others = [m for m in range(n) if m != i]
        found = {}
        for sampling in ("stratified", "weighted"):
            batches = [torch.tensor([i, *chosen]) for chosen in itertools.combinations(others, b - 1)]
            estimates = [aggregate_log_densities(z[r], mean[r], log_var[r], n, sampling) for r in batches]
            found[sampling] = [
                torch.exp(torch.stack([v[0] for v in part])).mean(0) for part in zip(*estimates, strict=True)
            ]
        torch.testing.assert_close(found["stratified"], [truth[0][i], truth[1][i]])
        # Each of the n - 1 others is in the batch with probability (b - 1) / (n - 1), the own image with 1.
        densities = torch.exp(log_density_table(z, mean, log_var)[i].sum(-1))
        expected = (densities[i] + (b - 1) / (n - 1) * densities[others].sum()) / (b * n)
        torch.testing.assert_close(found["weighted"][0], expected)


@pytest.mark.parametrize(("separation", "bias"), [(0.0, math.log(1000)), (1e3, math.log(20))])
def test_known_bias_of_weighted_sampling(separation, bias):
    b, n = 20, 1000
    mean = separation * torch.arange(b, dtype=torch.float64).unsqueeze(-1)
    log_var = torch.zeros(b, 1, dtype=torch.float64)
    z = mean + 0.3
    stratified = aggregate_log_densities(z, mean, log_var, n, "stratified")
    weighted = aggregate_log_densities(z, mean, log_var, n, "weighted")
    torch.testing.assert_close(stratified[0] - weighted[0], torch.full((b,), bias, dtype=torch.float64))


def test_total_correlation_of_a_correlated_gaussian():
    # Narrow posteriors at points of a Gaussian of correlation 0.8: q(z) is that Gaussian, widened a little.
    n, rho, s2 = 2000, 0.8, 0.05
    covariance = torch.tensor([[1, rho], [rho, 1]], dtype=torch.float64)
    mean = draw(n, 2) @ torch.linalg.cholesky(covariance).T
    log_var = torch.full_like(mean, math.log(s2))
    z = mean + math.sqrt(s2) * draw(n, 2, seed=1)
    estimate = total_correlation(z, mean, log_var, n, "stratified")
    wide = covariance + s2 * torch.eye(2, dtype=torch.float64)
    truth = -0.5 * math.log(torch.linalg.det(wide) / wide[0, 0] ** 2)
    per_sample = MultivariateNormal(torch.zeros(2).double(), wide).log_prob(z)
    per_sample -= Normal(0.0, math.sqrt(1 + s2)).log_prob(z).sum(-1)
    # n kernels smooth a sample of n points, which adds the kernel estimate's own error to that of the mean.
    assert abs(estimate.item() - truth) < 5 * per_sample.std().item() / math.sqrt(n) + 0.02


BATCHES = [2, 23, 602]
"""Batch sizes: one block of samples, and several of which the last is not full."""

HARD = {
    "ordinary": lambda b, d: batch(b, d),
    "one latent": lambda b, d: batch(b, 1),
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
def test_values_and_gradients_match_the_full_table(case, sampling, dtype, b):
    n, weights = 5000, sampling_weights(b, 5000, sampling)
    inputs = [v.to(dtype).requires_grad_() for v in HARD[case](b, 4)]
    # The reference is double precision on the same, possibly rounded, inputs.
    double = [v.detach().double().requires_grad_() for v in inputs]
    joint, marginals = exact(*double, weights.matrix(b))
    tolerance = {"rtol": 1e-12, "atol": 1e-12} if dtype == torch.float64 else {"rtol": 3e-6, "atol": 2e-5}
    if dtype == torch.float64:
        torch.testing.assert_close(aggregate_log_densities(*inputs, n, sampling), (joint, marginals), **tolerance)
    correlation, _, log_joint = torch.ops.isa.total_correlation(*(v.detach() for v in inputs), *weights, True)
    assert correlation.dtype == dtype
    torch.testing.assert_close(log_joint.double(), joint.mean(), **tolerance)
    torch.testing.assert_close((log_joint - correlation).double(), marginals.sum(-1).mean(), **tolerance)
    of_joint, of_product = (torch.autograd.grad(v.sum() / b, double, retain_graph=True) for v in (joint, marginals))
    results = torch.autograd.grad(total_correlation(*inputs, n, sampling), inputs)
    for result, first, second in zip(results, of_joint, of_product, strict=True):
        scale = max(1.0, first.abs().max().item(), second.abs().max().item())  # of the parts, which may cancel
        error = (result.double() - (first - second)).abs().max()
        assert error <= scale * (1e-11 if dtype == torch.float64 else 1e-5)


@pytest.mark.parametrize("function", [aggregate_log_densities, total_correlation])
@pytest.mark.parametrize("sampling", ["weighted", "stratified"])
def test_gradients_by_finite_differences(function, sampling):
    inputs = [v.requires_grad_() for v in batch(7, 3, seed=8)]
    assert torch.autograd.gradcheck(lambda *v: function(*v, 30, sampling), inputs, atol=1e-7)


@pytest.mark.parametrize("derivative", [torch.autograd.functional.hessian, lambda f, z: torch.func.hessian(f)(z)])
def test_second_derivatives(derivative):
    z, mean, log_var = batch(4, 2)

    def defined(z):
        joint, marginals = aggregate_log_densities(z, mean, log_var, 10)
        return (joint - marginals.sum(-1)).mean()

    assert derivative(defined, z).abs().sum() > 1
    with pytest.raises((RuntimeError, NotImplementedError), match=r"only once|forward mode"):
        derivative(lambda z: total_correlation(z, mean, log_var, 10), z)


def test_no_gradient_unless_required():
    inputs = batch(6, 2)
    with_gradient = total_correlation(*(v.clone().requires_grad_() for v in inputs), 50)
    torch.testing.assert_close(total_correlation(*inputs, 50), with_gradient.detach())
    with torch.no_grad():
        assert not total_correlation(*(v.requires_grad_() for v in inputs), 50).requires_grad


def test_memory_does_not_grow_as_batch_by_batch_by_latents():
    b, d = 500, 30
    inputs = [v.requires_grad_() for v in batch(b, d)]
    saved = []
    with (
        torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile,
        torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t),
    ):
        total_correlation(*inputs, 1000).backward()
    largest = max(event.self_cpu_memory_usage for event in profile.events()) // 8
    assert b * b < largest < b * b * d / 10
    assert max(saved) <= 3 * b * d


def test_stacked_models_match_each_alone():
    inputs = batch(2, 3, 11, 4)
    together, correlation = aggregate_log_densities(*inputs, 100), total_correlation(*inputs, 100)
    assert together[0].shape == (2, 3, 11) and correlation.shape == (2, 3)
    for i, j in itertools.product(range(2), range(3)):
        alone = aggregate_log_densities(*(v[i, j] for v in inputs), 100)
        torch.testing.assert_close([v[i, j] for v in together], list(alone))
        assert torch.equal(correlation[i, j], total_correlation(*(v[i, j] for v in inputs), 100))


@pytest.mark.parametrize("diverged", [math.nan, math.inf, 1e200])
def test_a_diverged_model_spoils_no_other(diverged):
    inputs = batch(3, 11, 4)
    spoilt = [v.clone() for v in inputs]
    for v in spoilt:
        v[1] = diverged
    operator = torch.ops.isa.total_correlation
    for result, value in zip(operator(*spoilt, 0.1, 0.3, True), operator(*inputs, 0.1, 0.3, True), strict=True):
        assert torch.equal(result[[0, 2]], value[[0, 2]])
        assert not torch.equal(result[1], value[1])


def tcvae_loss(z, mean, log_var):
    prior = objectives.standard_normal(4, dtype=z.dtype)
    fit = z.square().sum(-1)
    return objectives.beta_tcvae(fit, z, mean, log_var, prior, 4.0, dataset_size=100, sampling="stratified").loss


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_mapped_gradients_match_each_alone():
    inputs = batch(3, 11, 4)
    mapped = torch.func.vmap(torch.func.grad(tcvae_loss, (0, 1, 2)))(*inputs)
    for i in range(3):
        alone = [v[i].clone().requires_grad_() for v in inputs]
        torch.testing.assert_close(tuple(v[i] for v in mapped), torch.autograd.grad(tcvae_loss(*alone), alone))


@pytest.mark.parametrize("with_gradient", [True, False])
def test_the_operator_declares_what_it_returns(with_gradient):
    tests = ("test_schema", "test_faketensor")
    arguments = (*batch(2, 5, 3), 0.1, 0.2, with_gradient)
    torch.library.opcheck(torch.ops.isa.total_correlation, arguments, test_utils=tests)


@pytest.mark.usefixtures("fresh_compiler")
def test_a_compiled_loss_is_one_graph():
    inputs = [v.requires_grad_() for v in batch(3, 11, 4)]
    compiled = torch.compile(lambda *v: tcvae_loss(*v).sum(), fullgraph=True, backend="aot_eager")
    results = torch.autograd.grad(compiled(*inputs), inputs)
    torch.testing.assert_close(results, torch.autograd.grad(tcvae_loss(*inputs).sum(), inputs))


LARGE = (1100, 7)
"""A batch and a number of latents from which the sums are compiled."""


@pytest.mark.parametrize("sampling", ["weighted", "stratified"])
def test_large_batches_in_single_precision(sampling):
    inputs = [v.requires_grad_() for v in batch(*LARGE, dtype=torch.float32, spread=3.0)]
    double = [v.detach().double().requires_grad_() for v in inputs]
    joint, marginals = exact(*double, sampling_weights(LARGE[0], 5000, sampling).matrix(LARGE[0]))
    result, value = total_correlation(*inputs, 5000, sampling), (joint - marginals.sum(-1)).mean()
    assert result.item() == pytest.approx(value.item(), abs=2e-5)
    with torch.compiler.set_stance("force_eager"):  # as without a compiler
        torch.testing.assert_close(total_correlation(*inputs, 5000, sampling), result)
    for gradient, expected in zip(torch.autograd.grad(result, inputs), torch.autograd.grad(value, double), strict=True):
        assert (gradient - expected).abs().max() <= 3e-6 * expected.abs().max()
