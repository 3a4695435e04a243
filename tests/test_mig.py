"""The mutual information gap against the double sum in plain numpy, closed cases, and its invariances."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.special import logsumexp
from scipy.stats import ks_2samp

from isa import mig

SIZES = (3, 16, 12)
N = math.prod(SIZES)


def draws(n: int, k: int, seed: int) -> np.ndarray:
    """(K, N) standard normal numbers that the estimator draws from a generator of this seed."""
    return torch.randn((k, n), dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).numpy()


def slow_log_density(mean, log_var, noise, members, points) -> np.ndarray:
    """Log density of the draws of ``points`` under the mixture of ``members``; all (d, N): joint over the rows."""
    sigma = np.exp(0.5 * log_var)
    exponent = 0.0
    for mu, s, e in zip(mean, sigma, noise, strict=True):
        # mu_n - mu_m first: exact where sigma is below an ulp of the mean
        t = ((mu[points, None] - mu[None, members]) + (s * e)[points, None]) / s[members]
        with np.errstate(over="ignore"):  # infinitely far is far
            exponent = exponent - 0.5 * t**2 - np.log(s[members]) - 0.5 * np.log(2 * np.pi)
    return logsumexp(exponent, axis=1) - np.log(len(members))


def slow_entropies(mean, log_var, noise, sizes, factor=None) -> float:
    """Entropy of all images' mixture, or the mean over a factor's values of their slices' entropies."""
    grid = np.arange(math.prod(sizes)).reshape(sizes)
    slices = [grid.ravel()] if factor is None else [np.take(grid, v, factor).ravel() for v in range(sizes[factor])]
    return float(np.mean([-slow_log_density(mean, log_var, noise, m, m).mean() for m in slices]))


def gap(mean, log_var, sizes=SIZES, seed=0, **kwargs) -> mig.MutualInformationGap:
    generator = torch.Generator().manual_seed(seed)
    return mig.mutual_information_gap(
        torch.as_tensor(mean), torch.as_tensor(log_var), sizes, generator=generator, **kwargs
    )


@pytest.fixture
def grid_only(monkeypatch):
    """No double sums: everything takes the fast path, however small."""
    monkeypatch.setattr(mig, "_DIRECT_PAIRS", 0)
    monkeypatch.setattr(mig, "_DIRECT_MEMBERS", 0)


@pytest.fixture
def gpu_path(monkeypatch):
    """The CPU takes the path of a GPU: no blocks, one tile, sums in whole numbers."""
    monkeypatch.setattr(mig, "_in_blocks", lambda device: False)


def hard_posteriors() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """(N,) means and log variances that are hard on one part of the fast sums or another."""
    rng = np.random.default_rng(3)
    u, v, g = rng.random(N), rng.random(N), rng.standard_normal(N)
    usual = 2 * np.log(0.05 + 0.25 * u)
    sixth = np.floor(6 * v)
    return {
        "trained": (g, usual),
        "collapsed": (0.01 * g, 2 * np.log(0.98 + 0.02 * u)),
        "all equal": (0 * g, 0 * u),
        "tiny and huge": (g, 2 * (18 * u - 12)),
        "half 1e-6, half 1": (g, np.where(u < 0.5, -27.6, 0.0)),
        "few means, narrow": (sixth, np.full(N, -18.4)),
        "few means, mixed": (sixth, 2 * (14 * u - 12)),
        "few means, below an ulp": (sixth + 0.1, np.full(N, -92.0)),
        "one mean far off": (np.append(g[:-1], 1e6), usual),
        "one sigma huge": (g, np.append(usual[:-1], 14.0)),
        "heavy tails": (g / v**3, usual),
        "clusters over decades": (np.exp(30 * v - 20), 2 * u - 12),
        "far from 0": (1e5 + g, usual),
        "tiny, half in a cluster": (np.where(u < 0.5, 1e-7 * g, g), np.full(N, -30.0)),
        "far from 0, below an ulp beside wide ones": (1e18 * g.clip(-1, 1), 20 * (2 * u - 1)),
        "one mean, far from 0": (1e18 + 0 * g, 0 * u),
        "out of all proportion": (1e50 * g, 400 * (2 * u - 1)),
    }


HARD = hard_posteriors()


@pytest.mark.parametrize("name", HARD)
def test_fast_entropies_are_the_double_sums(name, grid_only):
    mean, log_var = HARD[name]
    result = gap(mean[:, None], log_var[:, None], checked_points=64)
    noise = draws(N, 1, 0)
    wanted = [slow_entropies(mean[None], log_var[None], noise, SIZES, f) for f in (None, 0, 1, 2)]
    found = [float(result.entropy), *result.conditional_entropy[:, 0].tolist()]
    reported = [float(result.entropy_error), *result.conditional_entropy_error[:, 0].tolist()]
    error = np.abs(np.subtract(found, wanted))
    assert error.max() < 1e-4
    assert (error <= np.array(reported) + 1e-9).all()
    assert max(reported) < 2e-3


# Entropies of all images and of the slices of three factors, and the number that the generator gives next.
GOLDEN = {
    ("trained", None): (1.376681147113, 1.3618386552894, 1.2552057322849, 1.2965050905256, 0.6377332592520275),
    ("trained", 30): (1.4545741584625, 1.3679960046058, 1.2435145761338, 1.3079865284239, 0.2543339980407757),
    ("collapsed", None): (1.4187212243364, 1.4187756679951, 1.4186296746481, 1.4187427980404, 0.6377332592520275),
    ("collapsed", 30): (1.2401260704368, 1.4039182046393, 1.4181211303761, 1.3976076105153, 0.2543339980407757),
    ("few means, mixed", None): (
        -0.8304624311068,
        -0.8692436051336,
        -1.1138643946785,
        -1.0437644753998,
        0.6377332592520275,
    ),
    ("half 1e-6, half 1", 30): (
        -0.9723077010897,
        -1.9808354718449,
        -3.2189875083384,
        -2.9209180703291,
        0.2543339980407757,
    ),
}


@pytest.mark.parametrize(("name", "n_samples"), GOLDEN)
def test_entropies_and_draws_stay_what_they_were(name, n_samples, grid_only):
    mean, log_var = (torch.tensor(x[:, None]) for x in HARD[name])
    generator = torch.Generator().manual_seed(0)
    bootstrap = 0 if n_samples is None else 2
    result = mig.mutual_information_gap(mean, log_var, SIZES, None, n_samples, None, generator, n_bootstrap=bootstrap)
    found = [*result.entropy.tolist(), *result.conditional_entropy[:, 0].tolist()]
    found.append(float(torch.rand(1, dtype=torch.float64, generator=generator)))
    np.testing.assert_allclose(found, GOLDEN[name, n_samples], atol=1e-9)


def test_the_path_of_a_gpu_gives_what_the_cpu_gives(grid_only, monkeypatch):
    mean, log_var = (np.stack([values[i] for values in HARD.values()], 1) for i in (0, 1))
    cpu = gap(mean, log_var)
    monkeypatch.setattr(mig, "_in_blocks", lambda device: False)
    gpu = gap(mean, log_var)
    np.testing.assert_allclose(gpu.entropy, cpu.entropy, atol=1e-7)
    np.testing.assert_allclose(gpu.conditional_entropy, cpu.conditional_entropy, atol=1e-7)
    np.testing.assert_allclose(gpu.entropy_error, cpu.entropy_error, atol=1e-6)


def test_deposits_of_a_gpu_do_not_depend_on_their_order(gpu_path):
    generator = torch.Generator().manual_seed(0)
    at = torch.randint(3, (10_000,), generator=generator)
    first, second = torch.rand(2, 10_000, dtype=torch.complex128, generator=generator)
    sums = torch.zeros(2, 4, dtype=torch.complex128)
    order = torch.randperm(10_000, generator=generator)
    mig._deposit(sums[0], at, first, second)
    mig._deposit(sums[1], at[order], first[order], second[order])
    assert torch.equal(sums[0], sums[1])
    exact = [complex(first[at == i].sum() + second[at == i - 1].sum()) for i in range(4)]
    np.testing.assert_allclose(sums[0], exact, rtol=1e-12)


def test_error_bounds_of_gaps_hold(monkeypatch):
    mean, log_var = (np.stack([values[i] for values in HARD.values()], 1) for i in (0, 1))
    results = []
    for direct in (0, 10**12):
        monkeypatch.setattr(mig, "_DIRECT_PAIRS", direct)
        monkeypatch.setattr(mig, "_DIRECT_MEMBERS", direct)
        results.append(gap(mean, log_var))
    fast, slow = results
    assert ((fast.gaps - slow.gaps).abs() <= fast.gaps_error_bound).all()
    assert ((fast.gaps_error_bound > 0) & (fast.gaps_error_bound < 5e-3)).all() and not slow.gaps_error_bound.any()
    assert fast.error_bound == pytest.approx(float(fast.gaps_error_bound.mean()))


def test_double_sums_are_taken_where_they_are_cheap():
    mean, log_var = (np.stack([values[i] for values in HARD.values()], 1) for i in (0, 1))
    result = gap(mean, log_var, factors=(1,))
    noise = draws(N, len(HARD), 0)
    for j in range(len(HARD)):
        column = (mean.T[j : j + 1], log_var.T[j : j + 1], noise[j : j + 1], SIZES)
        assert float(result.entropy[j]) == pytest.approx(slow_entropies(*column), abs=1e-6)
        assert float(result.conditional_entropy[0, j]) == pytest.approx(slow_entropies(*column, 1), abs=1e-6)
    assert result.error_bound == 0.0
    assert not result.entropy_error.any() and not result.conditional_entropy_error.any()


def test_an_image_alone_in_its_slice_has_its_posteriors_entropy():
    rng = np.random.default_rng(0)
    mean, log_var = rng.standard_normal((2, 50, 2))
    result = gap(mean, log_var, (50,))
    own = 0.5 * draws(50, 2, 0) ** 2 + 0.5 * log_var.T + 0.5 * np.log(2 * np.pi)
    np.testing.assert_allclose(result.conditional_entropy[0], own.mean(1), atol=1e-12)


def test_slices_of_one_image_on_the_grid(grid_only):
    rng = np.random.default_rng(0)
    mean, log_var = rng.standard_normal((2, 50, 2))
    result = gap(mean, log_var, (50,))
    own = 0.5 * draws(50, 2, 0) ** 2 + 0.5 * log_var.T + 0.5 * np.log(2 * np.pi)
    np.testing.assert_allclose(result.conditional_entropy[0], own.mean(1), atol=5e-4)


def test_a_latent_that_names_the_factor_knows_all_of_it():
    value = np.arange(N).reshape(SIZES)
    mean = np.zeros((N, 3))
    mean[:, 1] = np.sqrt(1 + (value // 12 % 16)).ravel()
    log_var = np.tile([0.0, -20.0, 0.0], (N, 1))
    result = gap(mean, log_var)
    np.testing.assert_allclose(result.mutual_information[1], [0, math.log(16), 0], atol=1e-9)
    np.testing.assert_allclose(result.mutual_information[[0, 2]], 0, atol=1e-9)
    np.testing.assert_allclose(result.gaps, [0, 1, 0], atol=1e-9)
    assert result.score == pytest.approx(1 / 3, abs=1e-9)
    assert isinstance(result.score, float)
    assert result.factors == (0, 1, 2) and result.columns == ((0,), (1,), (2,))


def test_the_gap_is_between_the_two_best_latents():
    value = np.arange(16.0)
    mean = np.stack([value, value // 2, 0 * value], 1)
    result = gap(mean, np.full((16, 3), -20.0), (16,))
    np.testing.assert_allclose(result.mutual_information, [[math.log(16), math.log(8), 0]], atol=1e-9)
    assert result.score == pytest.approx(math.log(2) / math.log(16))


def test_closed_forms():
    equal = gap(np.zeros((N, 1)), np.zeros((N, 1)))
    own = 0.5 * (draws(N, 1, 0) ** 2).mean() + 0.5 * math.log(2 * math.pi)
    assert float(equal.entropy) == pytest.approx(own, abs=1e-12)
    assert equal.score == pytest.approx(0.0, abs=1e-12)
    far = np.repeat([0.0, 1e3], N // 2)[:, None]
    assert float(gap(far, np.zeros((N, 1))).entropy) == pytest.approx(own + math.log(2), abs=1e-12)


def test_means_at_normal_quantiles_give_a_normal_mixture():
    n = 40_000
    mean = torch.special.ndtri((torch.arange(n, dtype=torch.float64) + 0.5) / n)[:, None]
    result = gap(mean, torch.full((n, 1), 2 * math.log(0.5)), (4, n // 4))
    # At the draws of N(0, 1.25) the mean of -log q has the variance 1/2 over n.
    assert float(result.entropy) == pytest.approx(0.5 * math.log(2 * math.pi * math.e * 1.25), abs=4 * (0.5 / n) ** 0.5)


# --- properties ------------------------------------------------------------------------------------------------------


@st.composite
def encoders(draw):
    sizes = tuple(draw(st.lists(st.integers(1, 5), min_size=1, max_size=3)))
    if max(sizes) == 1:
        sizes = (*sizes, 3)
    n, k = math.prod(sizes), draw(st.integers(1, 4))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    mean = rng.standard_normal((n, k)) * 10.0 ** rng.uniform(-3, 2, k)
    log_var = rng.uniform(-12, 4, (n, 1)) * rng.random((1, k))
    return sizes, mean, log_var, rng


@pytest.fixture
def with_noise(monkeypatch):
    def run(noise, *args, **kwargs):
        monkeypatch.setattr(mig, "_randn", lambda shape, generator, device: torch.tensor(noise))
        return gap(*args, **kwargs)

    return run


FEW = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@FEW
@given(encoders())
def test_information_is_not_negative_and_scores_are_shares(encoder):
    sizes, mean, log_var, _ = encoder
    result = gap(mean, log_var, sizes)
    scored = [s for s in sizes if s > 1]
    assert result.mutual_information.shape == (len(scored), mean.shape[1])
    assert (result.mutual_information >= 0).all()
    assert (result.gaps >= 0).all()
    # log q(z | slice) - log q(z) is at most the log of the number of slices, draw by draw.
    assert (result.mutual_information <= torch.tensor(scored).log()[:, None] + 1e-9).all()
    assert 0 <= result.score <= 1 + 1e-9


@FEW
@given(encoders())
def test_the_order_of_latents_does_not_matter(with_noise, encoder):
    sizes, mean, log_var, rng = encoder
    noise = rng.standard_normal(mean.T.shape)
    order = rng.permutation(mean.shape[1])
    a = with_noise(noise, mean, log_var, sizes)
    b = with_noise(noise[order], mean[:, order], log_var[:, order], sizes)
    np.testing.assert_allclose(a.mutual_information[:, order.copy()], b.mutual_information, atol=1e-9)
    assert a.score == pytest.approx(b.score, abs=1e-9)


@FEW
@given(encoders())
def test_the_order_of_a_factors_values_does_not_matter(with_noise, encoder):
    sizes, mean, log_var, rng = encoder
    noise = rng.standard_normal(mean.T.shape)
    images = np.arange(len(mean)).reshape(sizes)
    for axis, size in enumerate(sizes):
        images = np.take(images, rng.permutation(size), axis)
    images = images.ravel()
    a = with_noise(noise, mean, log_var, sizes)
    b = with_noise(noise[:, images], mean[images], log_var[images], sizes)
    np.testing.assert_allclose(a.mutual_information, b.mutual_information, atol=1e-9)


@FEW
@given(encoders(), st.floats(0.01, 100), st.booleans(), st.floats(-10, 10))
def test_affine_changes_of_a_latent_leave_its_information(with_noise, encoder, scale, flip, shift):
    sizes, mean, log_var, rng = encoder
    noise = rng.standard_normal(mean.T.shape)
    a = with_noise(noise, mean, log_var, sizes)
    sign = -1.0 if flip else 1.0
    b = with_noise(sign * noise, sign * scale * mean + shift, log_var + 2 * math.log(scale), sizes)
    np.testing.assert_allclose(a.mutual_information, b.mutual_information, atol=1e-6)
    np.testing.assert_allclose(a.entropy + math.log(scale), b.entropy, atol=1e-6)


@pytest.mark.parametrize("name", ["trained", "tiny and huge", "few means, mixed"])
def test_affine_changes_on_the_grid(name, grid_only, with_noise):
    mean, log_var = (x[:, None] for x in HARD[name])
    noise = draws(N, 1, 5)
    a = with_noise(noise, mean, log_var)
    b = with_noise(-noise, 3.7 - 12.3 * mean, log_var + 2 * math.log(12.3))
    np.testing.assert_allclose(a.entropy + math.log(12.3), b.entropy, atol=1e-4)
    np.testing.assert_allclose(a.mutual_information, b.mutual_information, atol=1e-4)


# --- samples, uncertainty --------------------------------------------------------------------------------------------


def two_latents(n: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    value = np.arange(n) % 12
    mean = np.stack([0.3 * value + 0.2 * rng.standard_normal(n), np.sin(value) * rng.standard_normal(n)], 1)
    return torch.tensor(mean), torch.tensor(np.log(rng.uniform(0.05, 0.3, (n, 2)) ** 2))


@pytest.mark.parametrize("direct", [0, 10**12])
def test_fewer_samples(direct, monkeypatch):
    sizes = (5, 40, 12)
    mean, log_var = two_latents(2400)
    monkeypatch.setattr(mig, "_DIRECT_PAIRS", direct)
    monkeypatch.setattr(mig, "_DIRECT_MEMBERS", direct)
    every = gap(mean, log_var, sizes)
    some = gap(mean, log_var, sizes, n_samples=300)
    # Slices of 240 and 60 images are used whole, and the draws are the same.
    np.testing.assert_allclose(some.conditional_entropy[[1, 2]], every.conditional_entropy[[1, 2]], atol=1e-9)
    difference = some.mutual_information - every.mutual_information
    assert (difference != 0).all()
    assert (difference.abs() < 4 * some.mutual_information_standard_error).all()
    assert (some.mutual_information_standard_error > every.mutual_information_standard_error).all()
    whole = gap(mean, log_var, sizes, n_samples=2400)
    np.testing.assert_array_equal(whole.mutual_information, every.mutual_information)


def test_few_samples_on_the_grid_are_those_of_the_double_sum(monkeypatch):
    mean, log_var = two_latents(2400)
    results = []
    for direct in (0, 10**12):
        monkeypatch.setattr(mig, "_DIRECT_PAIRS", direct)
        monkeypatch.setattr(mig, "_DIRECT_MEMBERS", direct)
        results.append(gap(mean, log_var, (5, 40, 12), n_samples=50))
    fast, slow = results
    np.testing.assert_allclose(fast.entropy, slow.entropy, atol=1e-4)
    np.testing.assert_allclose(fast.conditional_entropy, slow.conditional_entropy, atol=1e-4)


def test_standard_errors_cover_the_scatter_of_draws():
    mean, log_var = two_latents(480)
    runs = [gap(mean, log_var, (40, 12), seed=s) for s in range(200)]
    scatter = torch.stack([r.mutual_information for r in runs]).std(0)
    reported = torch.stack([r.mutual_information_standard_error for r in runs]).mean(0)
    # Images are not drawn anew, so the scatter is smaller, but of the same order. The scatter is known to 5 %.
    assert (scatter < 1.15 * reported).all()
    assert (scatter > 0.2 * reported).all()
    gaps, errors = (torch.stack([getattr(r, name) for r in runs]) for name in ("gaps", "gaps_standard_error"))
    assert (gaps.std(0) < 1.15 * errors.mean(0)).all() and (gaps.std(0) > 0.2 * errors.mean(0)).all()
    scores = torch.tensor([r.score for r in runs])
    assert float(scores.std()) < 1.15 * np.mean([r.standard_error for r in runs])
    assert runs[0].standard_error == pytest.approx(float(errors[0].mean()))


def test_bootstrap_scatter_is_the_standard_error():
    mean, log_var = two_latents(2400)
    result = gap(mean, log_var, (200, 12), factors=(1,), n_bootstrap=400)
    assert result.bootstrap_scores.shape == (400,)
    # 400 replicates know their scatter to 3.5 %; the latents' errors are correlated through shared images.
    assert float(result.bootstrap_scores.std()) == pytest.approx(result.standard_error, rel=0.25)
    mean_error = float(result.bootstrap_scores.std()) / 20
    assert float(result.bootstrap_scores.mean()) == pytest.approx(result.score, abs=4 * mean_error)
    some = gap(mean, log_var, (200, 12), factors=(1,), n_samples=150, n_bootstrap=200)
    assert float(some.bootstrap_scores.std()) == pytest.approx(some.standard_error, rel=0.25)
    assert gap(mean, log_var, (200, 12)).bootstrap_scores.shape == (0,)


def test_one_generator_state_gives_one_result():
    mean, log_var = two_latents(480)
    a, b, c = (gap(mean, log_var, (40, 12), seed=s, n_samples=30, n_bootstrap=3) for s in (1, 1, 2))
    torch.testing.assert_close(a.mutual_information, b.mutual_information, rtol=0, atol=0)
    torch.testing.assert_close(a.bootstrap_scores, b.bootstrap_scores, rtol=0, atol=0)
    assert a.score != c.score


def test_threads_change_nothing():
    sizes = (8, 40, 32)
    mean, log_var = two_latents(math.prod(sizes))
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(gap(mean, log_var, sizes))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(results[0].mutual_information, results[1].mutual_information, rtol=0, atol=1e-9)


def test_factors_progress_precision_and_inputs_left_alone():
    mean, log_var = two_latents(480)
    sizes = (4, 10, 1, 12)
    every = gap(mean, log_var, sizes)
    assert every.factors == (0, 1, 3)
    seen = []
    some = gap(mean, log_var, sizes, factors=(3, 0), progress=lambda done, total: seen.append((done, total)))
    torch.testing.assert_close(some.mutual_information, every.mutual_information[[2, 0]])
    assert some.score == pytest.approx(float(every.gaps[[2, 0]].mean()))
    assert seen == [(1, 2), (2, 2)]
    leaf, kept = mean.float().requires_grad_(), mean.float()
    single = gap(leaf, log_var.float(), sizes)
    assert torch.equal(leaf.detach(), kept)
    assert not single.entropy.requires_grad and single.entropy.dtype == torch.float64
    np.testing.assert_allclose(single.entropy, every.entropy, atol=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gives_what_the_cpu_gives(grid_only):
    mean, log_var = (np.stack([values[i] for values in HARD.values()], 1) for i in (0, 1))
    cpu = gap(mean, log_var)
    gpu = gap(torch.tensor(mean, device="cuda"), torch.tensor(log_var, device="cuda"))
    assert gpu.entropy.device.type == "cpu"
    np.testing.assert_allclose(gpu.entropy, cpu.entropy, atol=1e-6)
    np.testing.assert_allclose(gpu.conditional_entropy, cpu.conditional_entropy, atol=1e-6)
    again = gap(torch.tensor(mean, device="cuda"), torch.tensor(log_var, device="cuda"))
    assert torch.equal(again.entropy, gpu.entropy) and torch.equal(again.conditional_entropy, gpu.conditional_entropy)
    mean, log_var = (torch.tensor(x, dtype=torch.float32) for x in five_latents())
    cpu, gpu = (information(mean.to(d), log_var.to(d), [[[0, 3], [1, 2]]], n_draws=20) for d in ("cpu", "cuda"))
    np.testing.assert_allclose(gpu.mutual_information, cpu.mutual_information, atol=1e-4)


# --- factors that are not scored, subsamples --------------------------------------------------------------------------


@pytest.mark.parametrize("n_samples", [None, 30])
def test_unscored_factors_are_measured_and_change_nothing(n_samples, grid_only):
    mean, log_var = (
        np.stack([HARD[name][i] for name in ("trained", "collapsed", "few means, narrow")], 1) for i in (0, 1)
    )
    results, states = [], []
    for unscored in ((), (2, 1)):
        generator = torch.Generator().manual_seed(0)
        arguments = (torch.tensor(mean), torch.tensor(log_var), SIZES, (0,), n_samples, None, generator)
        results.append(mig.mutual_information_gap(*arguments, n_bootstrap=2, unscored=unscored))
        states.append(generator.get_state())
    without, result = results
    assert torch.equal(*states)
    for name in ("entropy", "conditional_entropy", "entropy_error", "mutual_information", "bootstrap_scores"):
        assert torch.equal(getattr(without, name), getattr(result, name))
    assert without.unscored == () and without.unscored_mutual_information.shape == (0, 3)
    assert result.unscored == (2, 1)
    every = gap(mean, log_var, factors=(2, 1))
    deviation = (result.unscored_mutual_information - every.mutual_information).abs()
    error = (
        1e-4
        if n_samples is None
        else 4 * gap(mean, log_var, n_samples=30, factors=(2, 1)).mutual_information_standard_error
    )
    assert (deviation <= error).all()


def test_unscored_information_is_the_double_sums():
    mean, log_var = two_latents(480)
    result = gap(mean, log_var, (4, 10, 12), factors=(1,), unscored=(2, 0))
    noise = draws(480, 2, 0)
    for j in range(2):
        column = (mean.T[j : j + 1].numpy(), log_var.T[j : j + 1].numpy(), noise[j : j + 1], (4, 10, 12))
        for row, f in enumerate((2, 0)):
            wanted = max(0.0, slow_entropies(*column) - slow_entropies(*column, f))
            assert float(result.unscored_mutual_information[row, j]) == pytest.approx(wanted, abs=1e-7)


def test_a_subsample_leaves_the_rest_alone():
    mean, log_var = two_latents(480)
    generators = [torch.Generator().manual_seed(3) for _ in range(3)]
    without, some, every = (
        mig.mutual_information_gap(mean, log_var, (40, 12), generator=g, subsample=count)
        for g, count in zip(generators, (None, 100, 480), strict=True)
    )
    assert without.subsampled_score is None
    assert without.score == some.score == every.score
    assert every.subsampled_score == pytest.approx(every.score, abs=1e-12)
    assert some.subsampled_score != some.score
    assert torch.equal(generators[0].get_state(), generators[1].get_state())
    again = gap(mean, log_var, (40, 12), seed=3, subsample=100)
    assert again.subsampled_score == some.subsampled_score


def test_a_subsampled_score_is_that_of_fewer_samples():
    mean, log_var = two_latents(480)
    subsampled = [gap(mean, log_var, (4, 10, 12), seed=s, subsample=30).subsampled_score for s in range(200)]
    drawn = [gap(mean, log_var, (4, 10, 12), seed=s, n_samples=30).score for s in range(200, 400)]
    assert ks_2samp(subsampled, drawn).pvalue > 1e-3


# --- groups ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1.0, 1e-9])
def test_groups_are_joint_double_sums(scale):
    rng = np.random.default_rng(1)
    sizes = (4, 30)
    mean, log_var = rng.standard_normal((120, 4)), rng.uniform(-6, 0, (120, 4)) + 2 * math.log(scale)
    groups = ((3, 1), (0,), (2,))
    result = gap(mean, log_var, sizes, groups=groups)
    assert result.columns == groups and result.mutual_information.shape == (2, 3)
    noise = draws(120, 4, 0)
    for c, group in enumerate(map(list, groups)):
        parts = (mean.T[group], log_var.T[group], noise[group], sizes)
        assert float(result.entropy[c]) == pytest.approx(slow_entropies(*parts), abs=1e-7)
        for f in (0, 1):
            assert float(result.conditional_entropy[f, c]) == pytest.approx(slow_entropies(*parts, f), abs=1e-7)
    best = np.sort(result.mutual_information.numpy())[:, ::-1]
    np.testing.assert_allclose(result.gaps, (best[:, 0] - best[:, 1]) / np.log(sizes))


def test_joint_densities_out_of_all_proportion():
    # Draws of the one wide posterior lie where narrow ones are e^800 times as dense.
    mean = np.zeros((40, 2))
    log_var = np.full((40, 2), -490.0)
    log_var[7] = 400.0
    noise = np.zeros((2, 40))
    found = mig._joint_log_densities(
        *(torch.tensor(x) for x in (mean.T, log_var.T, noise)),
        [mig._mixtures((40,), None, 40, None, torch.device("cpu"))],
    )[0]
    np.testing.assert_allclose(found, slow_log_density(mean.T, log_var.T, noise, np.arange(40), np.arange(40)))


def test_a_posterior_has_one_weight_in_a_group():
    mean, log_var = two_latents(480)
    mean[:, 1], log_var[:, 1] = 0.0, 0.0
    alone = gap(mean, log_var, (40, 12))
    joint = gap(mean, log_var, (40, 12), groups=[(0, 1)])
    # A latent that is the same in every posterior adds its entropy and no information.
    assert float(joint.entropy) == pytest.approx(float(alone.entropy.sum()), abs=1e-10)
    np.testing.assert_allclose(joint.mutual_information[:, 0], alone.mutual_information[:, 0], atol=1e-10)


def test_groups_with_fewer_samples_and_latents_left_out():
    mean, log_var = two_latents(480)
    mean, log_var = torch.cat([mean, mean.flip(0)], 1), torch.cat([log_var, log_var], 1)
    every = gap(mean, log_var, (40, 12), groups=[(0, 3)])
    some = gap(mean, log_var, (40, 12), groups=[(0, 3)], n_samples=100)
    difference = (some.mutual_information - every.mutual_information).abs()
    assert (difference < 4 * some.mutual_information_standard_error).all()
    assert (difference > 0).all()


def test_long_joint_sums_are_announced(monkeypatch):
    monkeypatch.setattr(mig, "_SLOW_PAIRS", 1e4)
    mean, log_var = two_latents(480)
    with pytest.warns(UserWarning, match="groups: 1 joint entropies over N = 480"):
        gap(mean, log_var, (40, 12), groups=[(0, 1)])


# --- subspaces --------------------------------------------------------------------------------------------------------


def information(mean, log_var, groupings, sizes=SIZES, seed=0, **kwargs) -> mig.SubspaceInformation:
    generator = torch.Generator().manual_seed(seed)
    tensors = (torch.as_tensor(mean), torch.as_tensor(log_var))
    return mig.subspace_information(*tensors, groupings, sizes, generator=generator, **kwargs)


def slow_information(mean, log_var, groups, sizes, seed, n_draws) -> np.ndarray:
    """(n_draws, F, S) differences of log densities, for the draws that the estimator makes from this seed."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randperm(len(mean), generator=generator)[:n_draws].numpy()
    noise = torch.randn(n_draws, mean.shape[1], dtype=torch.float64, generator=generator).numpy()
    value = np.unravel_index(np.arange(len(mean)), sizes)
    out = np.empty((n_draws, len(sizes), len(groups)))
    for i, (image, e) in enumerate(zip(images, noise, strict=True)):
        z = mean[image] + np.exp(0.5 * log_var[image]) * e
        density = -0.5 * (z - mean) ** 2 * np.exp(-log_var) - 0.5 * log_var
        for s, group in enumerate(groups):
            joint = density[:, group].sum(1)
            for f in range(len(sizes)):
                inside = value[f] == value[f][image]
                out[i, f, s] = logsumexp(joint[inside]) - np.log(inside.sum()) - logsumexp(joint) + np.log(len(mean))
    return out


def five_latents(n: int = N, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    value = np.arange(n)[:, None] % 12
    mean = np.sin(value * [0.5, 0.3, 0.0, 1.0, 2.0]) + 0.5 * rng.standard_normal((n, 5))
    return mean, 2 * np.log(rng.uniform(0.1, 0.5, (n, 5)))


@pytest.mark.parametrize("single", [False, True])
@pytest.mark.parametrize("sizes", [SIZES, (N,), (4, 1, 144)])
def test_subspace_information_is_the_double_sums(sizes, single, monkeypatch):
    mean, log_var = (x.astype(np.float32) for x in five_latents())
    groupings = [[[0, 3], [1, 2, 4]], [[4], [0, 1]]]
    wanted = [slow_information(mean.astype(float), log_var.astype(float), g, sizes, 0, 40) for g in groupings]
    kept = [f for f, size in enumerate(sizes) if size > 1]
    for boxes in (None, 20 * 14, 1):
        if boxes is not None:
            monkeypatch.setattr(mig, "_BOX", boxes)
        cast = np.float32 if single else np.float64
        result = information(mean.astype(cast), log_var.astype(cast), groupings, sizes, n_draws=40)
        assert result.factors == tuple(kept) and result.n_draws == 40
        for g, differences in enumerate(wanted):
            tolerance = 1e-5 if single else 1e-10
            np.testing.assert_allclose(result.mutual_information[g], differences.mean(0)[kept], atol=tolerance)
            error = differences.std(0, ddof=1)[kept] / 40**0.5
            np.testing.assert_allclose(result.standard_error[g], error, atol=tolerance)


def test_subspace_information_on_the_path_of_a_gpu_and_by_threads(monkeypatch):
    sizes = (8, 40, 32)
    mean, log_var = (torch.tensor(x, dtype=torch.float32) for x in five_latents(math.prod(sizes)))
    groupings = [[[0, 3], [1, 2, 4]]]
    cpu = information(mean, log_var, groupings, sizes, n_draws=5)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3 - min(before, 2))
        other = information(mean, log_var, groupings, sizes, n_draws=5)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(cpu.mutual_information, other.mutual_information)
    monkeypatch.setattr(mig, "_in_blocks", lambda device: False)
    gpu = information(mean, log_var, groupings, sizes, n_draws=5)
    np.testing.assert_allclose(gpu.mutual_information, cpu.mutual_information, atol=1e-5)


def test_a_factor_that_lives_in_one_subspace():
    angle = 2 * np.pi * np.unravel_index(np.arange(N), SIZES)[1] / 16
    other = np.unravel_index(np.arange(N), SIZES)[2]
    mean = np.stack([np.cos(angle), np.sin(angle), 0 * angle, 0.5 * other], 1)
    log_var = np.tile([-12.0, -12.0, 0.0, 0.0], (N, 1))
    for dtype in (torch.float32, torch.float64):
        tensors = (torch.tensor(x, dtype=dtype) for x in (mean, log_var))
        result = information(*tensors, [[[0, 1], [2, 3]]], n_draws=50)
        found, error = result.mutual_information[0], result.standard_error[0]
        np.testing.assert_allclose(found[:, 0], [0, math.log(16), 0], atol=1e-5)
        np.testing.assert_allclose(found[:2, 1], 0, atol=1e-5)  # slices of other factors are the whole mixture
        assert 5 * float(error[2, 1]) < float(found[2, 1]) < math.log(12)


def test_independent_latents_know_nothing():
    sizes = (4, 5000)
    rng = np.random.default_rng(0)
    mean = rng.standard_normal((20_000, 4))
    result = information(mean, np.zeros((20_000, 4)), [[[0, 1], [2, 3]]], sizes, n_draws=100)
    assert (result.mutual_information[0, 0].abs() < 4 * result.standard_error[0, 0]).all()
    assert (result.standard_error[0, 0] < 0.01).all()


def test_groups_of_one_latent_have_its_information():
    mean, log_var = five_latents()
    result = information(mean, log_var, [[[j] for j in range(5)]], seed=1, n_draws=N)
    single = gap(mean, log_var)
    error = torch.hypot(result.standard_error[0], single.mutual_information_standard_error)
    unclamped = single.entropy - single.conditional_entropy
    assert ((result.mutual_information[0] - unclamped).abs() < 4 * error).all()


def test_subspace_standard_errors_are_the_scatter_of_generators():
    mean, log_var = five_latents()
    runs = [information(mean, log_var, [[[0, 3], [1, 2, 4]]], seed=s, n_draws=25) for s in range(400)]
    scatter = torch.stack([r.mutual_information for r in runs]).std(0)
    reported = torch.stack([r.standard_error for r in runs]).square().mean(0).sqrt()
    np.testing.assert_allclose(scatter / reported, 1.0, atol=0.15)  # the scatter of 400 is known to 3.5 %


def test_the_order_of_groupings_does_not_matter():
    mean, log_var = five_latents()
    groupings = mig.random_groupings((2, 3), 4, torch.Generator().manual_seed(0))
    a = information(mean, log_var, groupings, n_draws=20)
    b = information(mean, log_var, [grouping[::-1] for grouping in groupings[::-1]], n_draws=20)
    assert a.mutual_information.shape == a.standard_error.shape == (4, 3, 2)
    np.testing.assert_allclose(b.mutual_information.flip(0, 2), a.mutual_information, atol=1e-12)


def test_densities_out_of_all_proportion_stay_finite():
    mean, log_var = (np.stack([values[i] for values in HARD.values()], 1) for i in (0, 1))
    for dtype, limit in ((torch.float32, 99), (torch.float32, 500), (torch.float64, 500)):
        tensors = (torch.tensor(x, dtype=dtype) for x in (mean.clip(-1e30, 1e30), log_var.clip(-limit, limit)))
        result = information(*tensors, [[list(range(5)), list(range(5, 10)), list(range(10, len(HARD)))]], n_draws=50)
        assert result.mutual_information.isfinite().all() and result.standard_error.isfinite().all()


def test_random_groupings():
    groupings = mig.random_groupings((4, 3, 1), 300, torch.Generator().manual_seed(0))
    assert len(groupings) == 300
    for grouping in groupings:
        assert [len(group) for group in grouping] == [4, 3, 1]
        assert sorted(j for group in grouping for j in group) == list(range(8))
    share = np.mean([grouping[0].count(5) for grouping in groupings])
    assert share == pytest.approx(0.5, abs=4 * 0.5 / 300**0.5)
    assert groupings == mig.random_groupings((4, 3, 1), 300, torch.Generator().manual_seed(0))


# --- the binned variant, active units --------------------------------------------------------------------------------


def test_the_binned_gap_is_discrete_information():
    rng = np.random.default_rng(0)
    mean = rng.standard_normal((N, 4)) + np.arange(N)[:, None] % 12 * [0.0, 0.2, 0.5, 1.0]
    result = mig.mutual_information_gap_binned(torch.tensor(mean), SIZES)
    for f, size in enumerate(SIZES):
        value = np.unravel_index(np.arange(N), SIZES)[f]
        wanted = []
        for j in range(4):
            edges = np.histogram_bin_edges(mean[:, j], 20)
            code = np.digitize(mean[:, j], edges[:-1]) - 1
            joint = np.zeros((size, 20))
            np.add.at(joint, (value, code), 1 / N)
            independent = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
            filled = joint > 0
            wanted.append((joint[filled] * np.log(joint[filled] / independent[filled])).sum())
        np.testing.assert_allclose(result.mutual_information[f], wanted, atol=1e-12)
        first, second = sorted(wanted)[:-3:-1]
        assert float(result.gaps[f]) == pytest.approx((first - second) / math.log(size))
    assert result.score == pytest.approx(float(result.gaps.mean()))


def test_the_binned_gap_of_a_perfect_code_is_one():
    mean = torch.stack([torch.arange(10.0).repeat(3), torch.zeros(30)], 1)
    assert mig.mutual_information_gap_binned(mean, (3, 10), (1,)).score == pytest.approx(1.0)
    coarse = mig.mutual_information_gap_binned(mean, (3, 10), (1,), bins=5)
    assert float(coarse.mutual_information[0, 0]) == pytest.approx(math.log(5))


def test_active_units():
    mean = torch.tensor([[0.0, 0.0, 5.0], [0.0, 0.199, 5.3], [0.0, 0.0, 5.0], [0.0, 0.199, 5.3]])
    assert mig.active_units(mean).tolist() == [False, False, True]
    assert mig.active_units(mean, 0.0099).tolist() == [False, True, True]
    assert mig.active_units(mean, 0).tolist() == [False, True, True]


# --- bad input -------------------------------------------------------------------------------------------------------

GOOD = torch.zeros(12, 3)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"mean": torch.zeros(11, 3)}, ValueError, "mean has 11 rows, but the product of factor_sizes is 12"),
        ({"mean": torch.zeros(12)}, ValueError, r"mean must have shape \(N, K\)"),
        ({"mean": torch.zeros(12, 0)}, ValueError, r"mean must have shape \(N, K\)"),
        ({"mean": torch.zeros(12, 3, dtype=torch.int64)}, TypeError, "mean must be of a real floating-point type"),
        ({"mean": torch.full((12, 3), math.nan)}, ValueError, "mean must be finite, got 36 values"),
        ({"log_var": torch.full((12, 3), -math.inf)}, ValueError, "log_var must be finite"),
        ({"log_var": torch.zeros(12, 2)}, ValueError, "mean and log_var must have one shape"),
        ({"log_var": torch.full((12, 3), -501.0)}, ValueError, "log_var must lie within ±500, got a magnitude of 501"),
        ({"factor_sizes": ()}, ValueError, "factor_sizes must name at least one factor"),
        ({"factor_sizes": (0, 12)}, ValueError, "factor_sizes must be positive integers, got 0"),
        ({"factor_sizes": (3.0, 4)}, TypeError, "factor_sizes must be an integer, got 3.0"),
        ({"factors": (2,)}, ValueError, "factors must be indices from 0 to 1, got 2"),
        ({"factors": (-1,)}, ValueError, "factors must be indices from 0 to 1, got -1"),
        ({"factors": (0, 0)}, ValueError, "factors must name at least one factor and none twice"),
        ({"factors": ()}, ValueError, "factors must name at least one factor"),
        ({"factor_sizes": (12, 1), "factors": (1,)}, ValueError, "factor 1 of .* has one"),
        ({"n_samples": 13}, ValueError, "n_samples must be 1 to N = 12, got 13"),
        ({"n_samples": 0}, ValueError, "n_samples must be 1 to N = 12, got 0"),
        ({"n_samples": 2.5}, TypeError, "n_samples must be an integer, got 2.5"),
        ({"groups": [(0, 1), (1, 2)]}, ValueError, "groups must not overlap, got latent 1 twice"),
        ({"groups": [(0, 3)]}, ValueError, "groups must be latents from 0 to 2, got 3"),
        ({"groups": [(0,), ()]}, ValueError, "groups must hold at least one group and no empty one"),
        ({"n_bootstrap": -1}, ValueError, "n_bootstrap must be 0 or more, got -1"),
        ({"checked_points": 0}, ValueError, "checked_points must be 1 or more, got 0"),
        ({"unscored": (2,)}, ValueError, "factors must be indices from 0 to 1, got 2"),
    ],
)
def test_bad_input_is_refused(change, error, message):
    arguments = {"mean": GOOD, "log_var": GOOD, "factor_sizes": (3, 4)} | change
    with pytest.raises(error, match=message):
        mig.mutual_information_gap(**arguments)


def test_bad_input_to_the_others_is_refused():
    with pytest.raises(ValueError, match="factor_sizes must hold a factor of more than one value"):
        mig.mutual_information_gap(torch.zeros(1, 2), torch.zeros(1, 2), (1,))
    with pytest.raises(ValueError, match="bins must be 2 or more, got 1"):
        mig.mutual_information_gap_binned(GOOD, (3, 4), bins=1)
    with pytest.raises(ValueError, match="mean has 12 rows"):
        mig.mutual_information_gap_binned(GOOD, (3, 5))
    for n_draws in (1, 13):
        with pytest.raises(ValueError, match="n_draws must be 2 to N = 12"):
            mig.subspace_information(GOOD, GOOD, [[[0], [1]]], (3, 4), n_draws=n_draws)
    with pytest.raises(ValueError, match=r"groupings must have one number of groups, got \[1, 3\]"):
        mig.subspace_information(GOOD, GOOD, [[[0]], [[0], [1], [2]]], (3, 4), n_draws=2)
    for threshold in (-1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="threshold must be a finite number"):
            mig.active_units(GOOD, threshold)


def test_large_tables_are_cut_into_blocks_alike(grid_only, monkeypatch):
    mean, log_var = (np.stack([values[i] for values in list(HARD.values())[:5]], 1) for i in (0, 1))
    whole = gap(mean, log_var, n_samples=200)
    for name, value in (("_BLOCK", 100), ("_TILE", 300), ("_LINE_CELLS", 500)):
        monkeypatch.setattr(mig, name, value)
    blocks = gap(mean, log_var, n_samples=200)
    np.testing.assert_allclose(whole.entropy, blocks.entropy, atol=1e-6)
    np.testing.assert_allclose(whole.conditional_entropy, blocks.conditional_entropy, atol=1e-6)
