"""The aggregate posterior: its weights by enumeration, its densities and total correlation against the full table."""

from __future__ import annotations

import itertools
import math
import os
import subprocess
import sys

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
def test_stratified_rows_sum_to_one_with_the_own_image_at_one_in_n(size):
    b, n = size
    matrix = sampling_weights(b, n, "stratified").matrix(b)
    torch.testing.assert_close(matrix.sum(1), torch.ones(b, dtype=torch.float64), rtol=1e-12, atol=0)
    torch.testing.assert_close(matrix.diagonal(), torch.full((b,), 1 / n, dtype=torch.float64), rtol=1e-15, atol=0)
    assert (matrix > 0).all()


@given(sizes)
@settings(deadline=None)
def test_stratified_weights_are_the_published_ones_averaged_over_the_last_image(size):
    b, n = size
    m = b - 1
    published = torch.full((b, b, b), 1 / m, dtype=torch.float64)  # (last, i, m): image i + 1 + last stands last
    rows = torch.arange(b)
    for last in range(m):
        published[last, rows, (rows + 1 + last) % b] = (n - m) / (n * m)
        published[last].fill_diagonal_(1 / n)
    matrix = sampling_weights(b, n, "stratified").matrix(b)
    torch.testing.assert_close(matrix, published[:m].mean(0), rtol=1e-10, atol=0)


@given(sizes)
@settings(deadline=None)
def test_weighted_rows_sum_to_one_in_n(size):
    b, n = size
    matrix = sampling_weights(b, n, "weighted").matrix(b)
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
                estimate = aggregate_log_densities(z[rows], mean[rows], log_var[rows], n, sampling)
                joint.append(torch.exp(estimate[0][0]))
                marginals.append(torch.exp(estimate[1][0]))
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
    for estimate, value in zip(aggregate_log_densities(z, mean, log_var, 9, "stratified"), truth, strict=True):
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
            joint, _ = aggregate_log_densities(z[rows], mean[rows], log_var[rows], n, "stratified")
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
def test_densities_against_the_full_table(case, sampling, dtype, b):
    d, n = 4, 5000
    inputs = [v.to(dtype) for v in HARD[case](b, d)]
    weights = sampling_weights(b, n, sampling)
    # The reference is double precision on the same, possibly rounded, inputs.
    joint, marginals = exact(*(v.double() for v in inputs), weights.matrix(b))
    tolerance = {"rtol": 1e-12, "atol": 1e-12} if dtype == torch.float64 else {"rtol": 3e-6, "atol": 2e-5}
    if dtype == torch.float64:
        torch.testing.assert_close(aggregate_log_densities(*inputs, n, sampling), (joint, marginals), **tolerance)
    correlation, log_joint, _ = torch.ops.isa.total_correlation(*inputs, *weights, True)
    assert correlation.dtype == dtype
    torch.testing.assert_close(log_joint.double(), joint.mean(), **tolerance)
    torch.testing.assert_close((log_joint - correlation).double(), marginals.sum(-1).mean(), **tolerance)


def check_gradients(b, d, seed, sampling):
    inputs = [v.requires_grad_() for v in batch(b, d, seed=seed)]
    n = b + 5
    joint, marginals = exact(*inputs, sampling_weights(b, n, sampling).matrix(b))
    result, value = 3 * total_correlation(*inputs, n, sampling), 3 * (joint - marginals.sum(-1)).mean()
    torch.testing.assert_close(result, value)
    results, values = (torch.autograd.grad(loss, inputs) for loss in (result, value))
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


@pytest.mark.parametrize("function", [aggregate_log_densities, total_correlation])
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
    joint, marginals = exact(*double, sampling_weights(b, n, "stratified").matrix(b))
    of_joint, of_product = (torch.autograd.grad(v.sum() / b, double, retain_graph=True) for v in (joint, marginals))
    results = torch.autograd.grad(total_correlation(*single, n, "stratified"), single)
    for result, first, second in zip(results, of_joint, of_product, strict=True):
        scale = max(1.0, first.abs().max().item(), second.abs().max().item())  # of the parts, which may cancel
        assert (result.double() - (first - second)).abs().max() <= 1e-5 * scale


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
    assert torch.ops.isa.total_correlation(*(v.detach() for v in inputs), 0.1, 0.2, False)[2].numel() == 0


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


def test_stacked_models_equal_each_alone():
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


def test_mapped_gradients_equal_each_alone():
    inputs = batch(3, 11, 4)
    mapped = torch.func.vmap(torch.func.grad(tcvae_loss, (0, 1, 2)))(*inputs)
    shared = torch.func.vmap(torch.func.grad(tcvae_loss), in_dims=(0, None, None))(
        inputs[0], inputs[1][0], inputs[2][0]
    )
    for i in range(3):
        alone = [v[i].clone().requires_grad_() for v in inputs]
        for result, value in zip(mapped, torch.autograd.grad(tcvae_loss(*alone), alone), strict=True):
            torch.testing.assert_close(result[i], value)
    torch.testing.assert_close(shared[0], mapped[0][0])


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
    for gradient, expected in zip(torch.autograd.grad(result, inputs), torch.autograd.grad(value, double), strict=True):
        assert (gradient - expected).abs().max() <= 3e-6 * expected.abs().max()


WITHOUT_COMPILER = """
import logging, sys, torch
from isa.aggregate import total_correlation
logging.basicConfig(format="%(message)s")
inputs = torch.load(sys.argv[1])
torch.save([total_correlation(*inputs, 5000) for _ in range(2)], sys.argv[1])
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
    assert done.stderr.count("the total correlation runs uncompiled:") == 1
    first, second = torch.load(tmp_path / "tensors.pt")
    assert torch.equal(first, second)
    torch.testing.assert_close(first, total_correlation(*inputs, 5000))
