"""The aggregate posterior: its weights by enumeration, its total correlation against the full table."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from posteriors import batch, draw, exact, log_density_table, weight_matrix
from torch.distributions import MultivariateNormal, Normal

from isa import objectives
from isa.aggregate import sampling_weights, total_correlation


@given(st.integers(2, 40), st.integers(0, 10**6))
@settings(max_examples=15)
def test_stratified_weights_average_published_ones(b, rest):
    n, m = b + rest, b - 1
    published = torch.full((b, b, b), 1 / m, dtype=torch.float64)  # (last, i, m): image i + 1 + last stands last
    rows = torch.arange(b)
    for last in range(m):
        published[last, rows, (rows + 1 + last) % b] = (n - m) / (n * m)
        published[last].fill_diagonal_(1 / n)
    matrix = weight_matrix(b, *sampling_weights(b, n, "stratified"))
    torch.testing.assert_close(matrix, published[:m].mean(0), rtol=1e-10, atol=0)
    torch.testing.assert_close(matrix.sum(1), torch.ones(b, dtype=torch.float64), rtol=1e-12, atol=0)
    assert sampling_weights(b, n, "weighted") == pytest.approx((1 / (b * n), 1 / (b * n)), rel=1e-12)


@pytest.mark.parametrize(("n", "b"), [(7, 3), (5, 5)])
def test_stratified_estimate_is_unbiased_and_weighted_is_not(n, b):
    z, mean, log_var = batch(n, 2, seed=5)
    densities = log_density_table(z, mean, log_var).sum(-1).exp()
    for i in range(n):
        others = [m for m in range(n) if m != i]
        batches = [torch.tensor([i, *chosen]) for chosen in itertools.combinations(others, b - 1)]
        estimates = []
        for sampling in ("stratified", "weighted"):
            weights = sampling_weights(b, n, sampling)
            joints = [exact(z[r], mean[r], log_var[r], *weights)[0][0] for r in batches]
            estimates.append(torch.stack(joints).exp().mean())
        # Each of the n - 1 others is in the batch with probability (b - 1) / (n - 1), the own image with 1.
        weighted = (densities[i, i] + (b - 1) / (n - 1) * densities[i, others].sum()) / (b * n)
        torch.testing.assert_close(torch.stack(estimates), torch.stack([densities[i].mean(), weighted]))


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


HARD = {
    "ordinary": lambda b: batch(b, 4),
    "one latent": lambda b: batch(b, 1),
    "tiny and huge variances mixed": lambda b: batch(b, 4, spread=6.0),
    "variances over thirty orders of magnitude": lambda b: batch(b, 4, spread=15.0),
    "collapsed": lambda b: (draw(b, 4), *torch.zeros(2, b, 4, dtype=torch.float64)),
    "discrete means": lambda b: (draw(b, 4).round() + 1e-3, draw(b, 4).round(), 0 * draw(b, 4) - 12),
    "samples far from every posterior": lambda b: (30 + draw(b, 4), *batch(b, 4)[1:]),
}


WIDE = ("ordinary", "variances over thirty orders of magnitude", "samples far from every posterior")
BLOCKS = [(case, b) for case in HARD for b in (2, 23)] + [(case, 400) for case in WIDE]  # one block of samples, or two


@pytest.mark.parametrize(("case", "b"), BLOCKS)
@pytest.mark.parametrize("sampling", ["weighted", "stratified"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_values_and_gradients_match_the_full_table(case, sampling, dtype, b):
    inputs = [v.to(dtype).requires_grad_() for v in HARD[case](b)]
    # The reference is double precision on the same, possibly rounded, inputs.
    double = [v.detach().double().requires_grad_() for v in inputs]
    weights = sampling_weights(b, 5000, sampling)
    joint, marginals = (v.sum() / b for v in exact(*double, *weights))
    correlation, _, log_joint = torch.ops.isa.total_correlation(*inputs, *weights)
    tolerance = {"rtol": 1e-12, "atol": 1e-12} if dtype == torch.float64 else {"rtol": 3e-6, "atol": 2e-5}
    torch.testing.assert_close(log_joint.double(), joint, **tolerance)
    torch.testing.assert_close((log_joint - correlation).double(), marginals, **tolerance)
    assert torch.equal(correlation, total_correlation(*inputs, 5000, sampling)) and correlation.dtype == dtype
    of_joint, of_product = (torch.autograd.grad(v, double, retain_graph=True) for v in (joint, marginals))
    results = torch.autograd.grad(correlation, inputs)
    for result, first, second in zip(results, of_joint, of_product, strict=True):
        scale = max(1.0, first.abs().max().item(), second.abs().max().item())  # of the parts, which may cancel
        error = (result.double() - (first - second)).abs().max()
        assert error <= scale * (1e-11 if dtype == torch.float64 else 1e-5)


def test_second_derivatives_are_refused():
    z, mean, log_var = batch(4, 2)
    with pytest.raises(RuntimeError):
        torch.autograd.functional.hessian(lambda z: total_correlation(z, mean, log_var, 10), z)


def test_memory_does_not_grow_as_batch_by_batch_by_latents():
    (b, d), saved = (500, 30), []
    inputs = [v.requires_grad_() for v in batch(b, d)]
    with (
        torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile,
        torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t),
    ):
        total_correlation(*inputs, 1000).backward()
    largest = max(event.self_cpu_memory_usage for event in profile.events()) // 8
    assert b * b < largest < b * b * d / 10
    assert max(saved) <= 3 * b * d


@pytest.mark.parametrize("diverged", [math.nan, math.inf, 1e200])
def test_stacked_models_match_each_alone_whatever_the_others(diverged):
    inputs = batch(3, 11, 4)
    alone = [[v[i].clone().requires_grad_() for v in inputs] for i in range(3)]
    for v in inputs:
        v[1] = diverged
        v.requires_grad_()
    together = total_correlation(*inputs, 100)
    gradients = torch.autograd.grad(together.sum(), inputs)
    for i in (0, 2):
        one = total_correlation(*alone[i], 100)
        assert torch.equal(together[i], one)
        torch.testing.assert_close([v[i] for v in gradients], list(torch.autograd.grad(one, alone[i])), rtol=0, atol=0)


@pytest.mark.usefixtures("fresh_compiler")
def test_a_compiled_loss_is_one_graph():
    inputs, prior = [v.requires_grad_() for v in batch(3, 11, 4)], objectives.standard_normal(4, dtype=torch.float64)

    def loss(z, mean, log_var):
        return objectives.beta_tcvae(z.sum(-1), z, mean, log_var, prior, 4.0, dataset_size=100).loss.sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    results = torch.autograd.grad(compiled(*inputs), inputs)
    torch.testing.assert_close(results, torch.autograd.grad(loss(*inputs), inputs))
    torch.library.opcheck(torch.ops.isa.total_correlation, (*batch(2, 5, 3), 0.1, 0.2), test_utils="test_faketensor")


def test_compiled_sums_of_a_large_batch_in_single_precision():
    inputs = [v.requires_grad_() for v in batch(1100, 7, dtype=torch.float32, spread=3.0)]
    double = [v.detach().double().requires_grad_() for v in inputs]
    joint, marginals = exact(*double, *sampling_weights(1100, 5000, "stratified"))
    result, value = total_correlation(*inputs, 5000, "stratified"), (joint - marginals.sum(-1)).mean()
    assert result.item() == pytest.approx(value.item(), abs=2e-5)
    with torch.compiler.set_stance("force_eager"):  # as without a compiler
        torch.testing.assert_close(total_correlation(*inputs, 5000, "stratified"), result)
    for gradient, expected in zip(torch.autograd.grad(result, inputs), torch.autograd.grad(value, double), strict=True):
        assert (gradient - expected).abs().max() <= 3e-6 * expected.abs().max()
