"""The mutual information gap against the double sum in plain numpy, closed cases, and its invariances."""

import math
from dataclasses import asdict

import numpy as np
import pytest
import scipy.stats
import torch
from conftest import golden
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.overrides import TorchFunctionMode

from isa import mig

SIZES = (3, 16, 43)
N = math.prod(SIZES)  # large enough for the fast sums


def grid(sizes: tuple[int, ...]) -> np.ndarray:
    """(N, F) table of factor values of a full grid."""
    return np.stack(np.unravel_index(np.arange(math.prod(sizes)), sizes), 1)


def slow_entropies(mean, log_var, noise, labels) -> np.ndarray:
    """(1 + F,) entropies by double sums: of all images, and given each row of ``labels`` (F, N); inputs (d, N)."""
    n, logs, sigma = mean.shape[1], [], np.exp(0.5 * log_var)
    members = [np.ones((n, 1), bool), *(label[:, None] == np.unique(label) for label in labels)]  # (N, V)
    for begin in range(0, n, 256):
        points, exponent = slice(begin, begin + 256), 0.0
        for mu, s, e in zip(mean, sigma, noise, strict=True):
            with np.errstate(over="ignore"):  # the square of a distance may be infinite
                # mu_n - mu_m first: exact if sigma is below the rounding error of the mean
                t = ((mu[points, None] - mu) + (s * e)[points, None]) / s
                exponent = exponent - 0.5 * t**2 - np.log(s) - 0.5 * np.log(2 * np.pi)
        top = exponent.max(1)
        density = np.exp(exponent - top[:, None])
        logs.append([np.log((density @ x)[x[points]] / x.sum(0)[x[points].argmax(1)]) + top for x in members])
    return -np.concatenate(logs, 1).mean(1)


def entropies(result: mig.MutualInformationGap) -> np.ndarray:
    """(1 + F, K) entropies and conditional entropies."""
    return np.concatenate([result.entropy[None], result.conditional_entropy])


def gap(mean, log_var, sizes=SIZES, seed=0, **options) -> mig.MutualInformationGap:
    generator = torch.Generator().manual_seed(seed)
    tensors = torch.as_tensor(mean), torch.as_tensor(log_var)
    return mig.mutual_information_gap(*tensors, sizes, generator=generator, **options)


def hard_posteriors(n: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """(N,) means and log variances, each difficult for one part of the fast sums."""
    rng = np.random.default_rng(3)
    u, v, g, i = rng.random(n), rng.random(n), rng.standard_normal(n), np.arange(n)
    usual, sixth = 2 * np.log(0.05 + 0.25 * u), np.floor(6 * v)
    return {
        "trained": (g, usual),
        "collapsed": (0.01 * g, 2 * np.log(0.98 + 0.02 * u)),
        "all equal": (0 * g, 0 * u),
        "one mean, sigma 0.5 to 1": (0 * g, 2 * np.log(0.5 + 0.5 * u)),
        "tiny and huge": (g, 2 * (18 * u - 12)),
        "half 1e-6, half 1": (g, np.where(u < 0.5, -27.6, 0.0)),
        "few means, narrow": (sixth, np.full(n, -18.4)),
        "few means, mixed": (sixth, 2 * (14 * u - 12)),
        "few means, below an ulp": (sixth + 0.1, np.full(n, -92.0)),
        "one mean far off": (np.append(g[:-1], 1e6), usual),
        "one sigma huge": (g, np.append(usual[:-1], 14.0)),
        "one sigma tiny": (g, np.append(usual[:-1], -40.0)),
        "heavy tails": (g / v**3, usual),
        "clusters over decades": (np.exp(30 * v - 20), 2 * u - 12),
        "far from 0": (1e5 + g, usual),
        "offset 1e6": (1e6 + g, usual),
        "offset 1e6, spikes": (1e6 + g, np.full(n, -20.0)),
        "tiny, half in a cluster": (np.where(u < 0.5, 1e-7 * g, g), np.full(n, -30.0)),
        "1e18, below an ulp and wide": (1e18 * g.clip(-1, 1), 20 * (2 * u - 1)),
        "one mean, far from 0": (1e18 + 0 * g, 0 * u),
        "out of all proportion": (1e50 * g, 400 * (2 * u - 1)),
        "spikes 1e-3": (g, np.full(n, 2 * math.log(1e-3))),
        "ties by pairs": (g[i // 2], usual[i // 2]),
        "value coded": ((i // 12 % 16) + 1e-3 * g, np.full(n, 2 * math.log(2e-3))),
    }


HARD = hard_posteriors(N)
MEAN, LOG_VAR = (np.stack([values[i] for values in HARD.values()], 1) for i in (0, 1))


def double_sums(mean, log_var, table, groups=None, seed=0) -> np.ndarray:
    """(1 + F, K) entropies by double sums, for the draws of this seed, of latents or of groups of latents."""
    groups = [[j] for j in range(mean.shape[1])] if groups is None else groups
    used = sorted(j for group in groups for j in group)
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn((len(used), len(mean)), dtype=torch.float64, generator=generator).numpy()
    columns = [(mean.T[group], log_var.T[group], [noise[used.index(j)] for j in group]) for group in groups]
    return np.stack([slow_entropies(*column, table.T) for column in columns], 1)


def gaps(entropies: np.ndarray, table: np.ndarray) -> np.ndarray:
    """(F,) gaps from (1 + F, K) entropies."""
    best = np.sort(np.pad((entropies[0] - entropies[1:]).clip(0), ((0, 0), (1, 0))), 1)
    sizes = [scipy.stats.entropy(np.unique(values, return_counts=True)[1]) for values in table.T]
    return (best[:, -1] - best[:, -2]) / sizes


@pytest.mark.parametrize("names", [list(HARD)[j : j + 2] for j in range(0, len(HARD), 2)])
def test_fast_sums_match_double_sums_within_their_bounds(names):
    mean, log_var = (np.stack([HARD[name][i] for name in names], 1) for i in (0, 1))
    result, exact = gap(mean, log_var), double_sums(mean, log_var, grid(SIZES))
    error, bound = np.abs(entropies(result) - exact), result.entropy_error.numpy()
    assert error.max() < 1e-4 and (error <= bound + 1e-9).all() and bound.max() < 1e-3
    error, bound = np.abs(result.gaps.numpy() - gaps(exact, grid(SIZES))), result.gaps_error_bound.numpy()
    assert (error <= bound + 1e-9).all() and bound.max() < 1e-3
    assert result.error_bound == pytest.approx(bound.mean())


def random_posteriors(n, k):
    rng = np.random.default_rng(n + k)
    return rng.standard_normal((n, k)), rng.uniform(-6, 0, (n, k))


def unequal_counts(n):
    """(N, F) table of factor values: common, rare and single ones, and a factor that singles out an image."""
    rng = np.random.default_rng(0)
    rare, third = np.minimum(rng.geometric(0.05, n), 200), rng.integers(0, n // 3, n) * 7 - 5
    return np.stack([rng.integers(0, 3, n), rare, np.arange(n), third, np.arange(n) == 5], 1)


ORDER = np.random.default_rng(0).permutation(600)
GROUPS = [[4, 1], [0], [2]]  # a latent is left out
# Draws of the one wide posterior lie where narrow ones are e^800 times as dense.
EXTREME = np.zeros((40, 2)), np.where(np.arange(40) == 7, 400.0, -490.0)[:, None].repeat(2, 1)
TABLES = {  # mean and log variance, sizes of a grid or table of factor values, groups, tolerance
    "unequal counts, direct sums": (random_posteriors(600, 2), unequal_counts(600), None, 1e-9),
    "unequal counts, fast sums": (random_posteriors(2100, 2), unequal_counts(2100), None, 5e-5),
    "grid": (random_posteriors(600, 3), (4, 10, 15), None, 1e-9),
    "part of a grid": (random_posteriors(400, 3), grid((4, 10, 15))[ORDER[:400]], None, 1e-9),
    "groups": (random_posteriors(120, 5), (4, 30), GROUPS, 1e-7),
    "narrow groups": (np.array(random_posteriors(120, 5)) - [[[0.0]], [[40.0]]], (4, 30), GROUPS, 1e-7),
    "groups of extreme ratio": (EXTREME, (4, 10), [[0, 1]], 1e-9),
}


@pytest.mark.parametrize("case", TABLES)
def test_grids_tables_and_groups_match_double_sums(case):
    (mean, log_var), factors, groups, tolerance = TABLES[case]
    of_grid = isinstance(factors, tuple)
    sizes, values = (factors, None) if of_grid else (None, torch.tensor(factors))
    table = grid(factors) if of_grid else factors
    result = gap(mean, log_var, sizes, groups=groups, factor_values=values)
    order = np.lexsort(table.T[::-1])  # images get their draws in the order of a grid
    exact = double_sums(mean[order], log_var[order], table[order], groups)
    np.testing.assert_allclose(entropies(result), exact, rtol=0, atol=tolerance)
    np.testing.assert_allclose(result.gaps, gaps(exact, table), rtol=0, atol=10 * tolerance)


@settings(max_examples=20)
@given(st.integers(2, 60), st.integers(1, 3), st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_any_table_matches_double_sums_in_any_order(n, k, f, seed):
    rng = np.random.default_rng(seed)
    mean, log_var = random_posteriors(n, k)
    columns = [np.arange(n), *rng.integers(0, rng.integers(1, n + 1, f - 1)[:, None], (f - 1, n))]
    table = rng.permuted(np.stack(columns), axis=1).T  # one factor has as many values as there are images
    copies = rng.permutation(np.repeat(np.arange(n), rng.integers(1, 4, n)))  # equal rows, which are weights
    mean, log_var, table = mean[copies], log_var[copies], table[copies]
    every = gap(mean, log_var, None, 3, factor_values=table)
    varying = [j for j in range(f) if len(np.unique(table[:, j])) > 1]
    order = np.lexsort(table.T[::-1])
    exact = double_sums(mean[order], log_var[order], table[order][:, varying], seed=3)
    assert every.factors == tuple(varying)  # constant factors are left out
    np.testing.assert_allclose(entropies(every), exact, rtol=0, atol=1e-9)
    coarse = table // 2  # rows of equal factors
    if coarse.max(0).min() > 0 and (coarse != coarse[0]).any(0).all():
        orders = np.arange(len(table)), rng.permutation(len(table))
        first, second = (gap(mean[x], log_var[x], None, 3, factor_values=coarse[x]) for x in orders)
        np.testing.assert_allclose(entropies(first), entropies(second), rtol=0, atol=1e-12)


def test_resampled_gaps_scatter_as_data_sets_do():
    rng, runs = np.random.default_rng(0), []
    for seed in range(100):
        table = rng.choice(4, (400, 1), p=[0.4, 0.3, 0.2, 0.1])
        mean = table * [1.0, 0.4] + rng.standard_normal((400, 2))
        options = {"factor_values": table, "resamples": 100}
        runs.append(gap(mean, np.full(mean.shape, -2.0), None, seed, **options))
    scatter = torch.stack([run.gaps for run in runs]).std(0)
    reported = torch.stack([run.resampled_gaps.std(0) for run in runs]).mean(0)
    np.testing.assert_allclose(reported / scatter, 1.0, atol=4 * (2 * 100) ** -0.5)
    assert runs[0].resampled_gaps.shape == (100, 1)
    np.testing.assert_allclose(runs[0].resampled_gaps.mean(0), runs[0].gaps, atol=float(4 * reported[0] / 10))
    none = gap(np.zeros((9, 1)), np.zeros((9, 1)), (3, 3), resamples=5, n_samples=2)
    assert none.resampled_gaps is None


def test_a_deterministic_encoder_is_scored_with_noise():
    rng = np.random.default_rng(0)
    table = rng.integers(0, 5, (500, 1))
    mean = np.stack([table[:, 0], rng.standard_normal(500), np.full(500, 0.3)], 1)
    sigma = np.where(mean.std(0) > 1e-9, mean.std(0) / 20, 1.0)
    given = gap(mean, np.tile(2 * np.log(sigma), (500, 1)), None, factor_values=table)
    result = mig.mutual_information_gap(mean, None, factor_values=table, generator=torch.Generator().manual_seed(0))
    np.testing.assert_allclose(result.mutual_information, given.mutual_information, atol=1e-9)
    size = scipy.stats.entropy(np.bincount(table[:, 0]))
    np.testing.assert_allclose(result.mutual_information[0, [0, 2]], [size, 0], atol=1e-9)


def posteriors(sizes) -> tuple[torch.Tensor, torch.Tensor]:
    """(N, 6) means and log variances that are the same on every machine: codes, a collapsed latent, spikes."""
    n = math.prod(sizes)
    value = grid(sizes)
    u = np.sin(np.arange(n)[:, None] * [1.1, 2.3, 3.7, 4.1, 5.3, 0.7])
    v = np.cos(np.arange(n)[:, None] * [0.3, 1.7, 2.9, 4.9, 6.1, 7.3])
    mean = np.array([1, 1, 0.01, 1, 1, 1]) * u
    mean[:, 0] += value[:, 1] * 0.7
    mean[:, 1] += np.sin(value[:, 2] * 1.3) * 3
    mean[:, 3] = np.floor(3 * mean[:, 3])
    log_var = np.array([1.0, 1.5, 0.02, 0.1, 9.0, 2.0]) * v + [-3.0, -4.0, -0.02, -18.0, -9.0, -1.0]
    return torch.tensor(mean), torch.tensor(log_var)


GOLDEN = golden("mig")


@pytest.mark.parametrize("case", [x for x in GOLDEN if x["call"].startswith("mutual")], ids=lambda x: str(x["options"]))
def test_golden_results_and_draws(case):
    sizes, generator = tuple(case["sizes"]), torch.Generator().manual_seed(0)
    mean, log_var = posteriors(sizes)
    if case["call"] == "mutual_information_gap_binned":
        score, information = mig.mutual_information_gap_binned(mean, sizes, (1, 2))
        result = {"score": score, "mutual_information": information}
    else:
        result = asdict(mig.mutual_information_gap(mean, log_var, sizes, generator=generator, **case["options"]))
        result["next"] = float(torch.rand(1, generator=generator, dtype=torch.float64))
    for name in result.keys() & case["result"]:
        tolerance = 1e-9 if math.prod(sizes) < 1000 or name == "next" else 1e-4  # direct sums, fast sums
        np.testing.assert_allclose(np.ravel(result[name]), case["result"][name], rtol=0, atol=tolerance)


@pytest.mark.parametrize("copies", [1, 4])  # direct sums, fast sums
def test_a_latent_that_names_the_factor_has_its_entropy(copies):
    sizes = (3, 16, 12 * copies)
    value = grid(sizes)[:, 1]
    mean = np.stack([0 * value, np.sqrt(1 + value), 3.0 * (value // 2)], 1)
    result = gap(mean, np.tile([0.0, -20.0, -20.0], (len(mean), 1)), sizes)
    wanted = np.outer([0, 1, 0], [0, math.log(16), math.log(8)])
    np.testing.assert_allclose(result.mutual_information, wanted, atol=1e-5)
    np.testing.assert_allclose(result.gaps, [0, 0.25, 0], atol=1e-5)  # the best two: log 16 and log 8
    np.testing.assert_allclose(result.factor_entropy, np.log(sizes), atol=1e-12)
    code = result.disentanglement  # one factor a latent
    assert (code.mig, code.info_modularity) == pytest.approx((result.score, 1), abs=1e-5)
    assert result.score == pytest.approx(1 / 12, abs=1e-5) and (result.error_bound == 0) == (copies == 1)


def with_noise(noise, *arguments) -> mig.MutualInformationGap:
    """Run with this noise (K, N) instead of a generator's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "randn", lambda *shape, **options: torch.tensor(noise).view(shape))
        return gap(*arguments)


@settings(max_examples=15)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=2), st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_information_is_bounded_and_invariant(sizes, k, seed):
    sizes, rng = (*sizes, 3), np.random.default_rng(seed)
    mean = rng.standard_normal((math.prod(sizes), k)) * 10.0 ** rng.uniform(-3, 2, k)
    log_var = rng.uniform(-12, 4, (len(mean), 1)) * rng.random((1, k))
    noise = rng.standard_normal(mean.T.shape)
    a = with_noise(noise, mean, log_var, sizes)
    # log q(z | value) - log q(z) is at most the log of the number of values, draw by draw.
    most = torch.tensor([size for size in sizes if size > 1]).log()[:, None] + 1e-6
    assert ((a.mutual_information >= 0) & (a.mutual_information <= most)).all() and 0 <= a.score <= 1 + 1e-9
    order, images = rng.permutation(k), np.arange(len(mean)).reshape(sizes)
    for axis, size in enumerate(sizes):
        images = np.take(images, rng.permutation(size), axis)
    select = np.ix_(images.ravel(), order)
    b = with_noise(noise.T[select].T, mean[select], log_var[select], sizes)
    np.testing.assert_allclose(a.mutual_information[:, order.copy()], b.mutual_information, atol=1e-9)
    scale, sign = 10.0 ** rng.uniform(-2, 2), rng.choice([-1.0, 1.0])
    b = with_noise(sign * noise, sign * scale * mean + rng.uniform(-10, 10), log_var + 2 * math.log(scale), sizes)
    np.testing.assert_allclose(a.mutual_information, b.mutual_information, atol=1e-6)
    np.testing.assert_allclose(a.entropy + math.log(scale), b.entropy, atol=1e-6)


def two_latents(n: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    value = np.arange(n) % 12
    mean = np.stack([0.3 * value + 0.2 * rng.standard_normal(n), np.sin(value) * rng.standard_normal(n)], 1)
    return torch.tensor(mean), torch.tensor(np.log(rng.uniform(0.05, 0.3, (n, 2)) ** 2))


@pytest.mark.parametrize(("sizes", "groups"), [((2, 20, 12), None), ((5, 35, 12), None), ((2, 20, 12), [(0, 1)])])
def test_fewer_samples(sizes, groups):
    mean, log_var = two_latents(math.prod(sizes))
    every, some, whole = (gap(mean, log_var, sizes, groups=groups, n_samples=m) for m in (None, 100, len(mean)))
    # Smaller mixtures are used whole, and the draws are the same.
    small = [f for f, size in enumerate(sizes) if len(mean) // size <= 100]
    np.testing.assert_allclose(some.conditional_entropy[small], every.conditional_entropy[small], atol=1e-9)
    difference, error = some.mutual_information - every.mutual_information, some.mutual_information_standard_error
    assert ((difference != 0) & (difference.abs() < 4 * error)).all()
    assert (error > every.mutual_information_standard_error).all()
    np.testing.assert_array_equal(whole.mutual_information, every.mutual_information)


def test_standard_errors_cover_the_scatter_of_draws():
    mean, log_var = two_latents(240)
    runs = [gap(mean, log_var, (20, 12), seed=s) for s in range(100)]
    # Images are not drawn again, so the scatter is smaller, but of the same order. It is known to 7 %.
    for name in ("mutual_information", "gaps"):
        scatter = torch.stack([getattr(r, name) for r in runs]).std(0)
        reported = torch.stack([getattr(r, f"{name}_standard_error") for r in runs]).mean(0)
        assert ((scatter < 1.2 * reported) & (scatter > 0.2 * reported)).all()
    assert np.std([r.score for r in runs]) < 1.2 * np.mean([r.standard_error for r in runs])
    assert runs[0].standard_error == pytest.approx(float(runs[0].gaps_standard_error.mean()))
    assert torch.equal(gap(mean, log_var, (20, 12)).gaps, runs[0].gaps) and runs[0].score != runs[1].score


def test_subsample_scores_fewer_draws():
    mean, log_var = two_latents(240)
    without, some, every = (gap(mean, log_var, (20, 12), subsample=count) for count in (None, 50, 240))
    assert without.subsampled_score is None and without.score == some.score == every.score != some.subsampled_score
    assert every.subsampled_score == pytest.approx(every.score, abs=1e-12)
    subsampled = [gap(mean, log_var, (20, 12), seed=s, subsample=9).subsampled_score for s in range(80)]
    drawn = [gap(mean, log_var, (20, 12), seed=s, n_samples=9).score for s in range(80, 160)]
    assert scipy.stats.ks_2samp(subsampled, drawn).pvalue > 1e-3


@pytest.mark.parametrize("n_samples", [None, 30])
def test_unscored_factors_are_measured_and_change_nothing(n_samples):
    mean, log_var = two_latents(N)
    without, result, every = (
        gap(mean, log_var, n_samples=n_samples, factors=factors, unscored=unscored)
        for factors, unscored in (((0,), ()), ((0,), (2, 1)), ((2, 1), ()))
    )
    for name in ("entropy", "conditional_entropy", "mutual_information", "gaps"):
        np.testing.assert_allclose(getattr(without, name), getattr(result, name), atol=1e-4)
    assert result.unscored == (2, 1) and without.unscored_mutual_information.shape == (0, 2)
    limit = 1e-5 if n_samples is None else 5 * every.mutual_information_standard_error
    assert ((result.unscored_mutual_information - every.mutual_information).abs() <= limit).all()


class EmulatedGPU(TorchFunctionMode):
    """Tensors of the CPU say that they are on another device."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        return function != torch.Tensor.is_cpu.__get__ and function(*args, **kwargs or {})


def test_the_path_of_a_gpu_matches_the_cpu():
    tensors = torch.tensor(MEAN[:, ::3]), torch.tensor(LOG_VAR[:, ::3])
    fast = gap(*tensors)
    with EmulatedGPU():
        emulated = gap(*tensors)
    np.testing.assert_allclose(entropies(emulated), entropies(fast), atol=1e-6)
    if torch.cuda.is_available():
        first, again = (gap(*(x.cuda() for x in tensors)) for _ in range(2))
        np.testing.assert_allclose(entropies(first), entropies(fast), atol=1e-5)
        np.testing.assert_array_equal(entropies(first), entropies(again))


def test_half_precision_is_computed_in_double():
    mean, log_var = (x.bfloat16() for x in two_latents(N))
    half, double = (gap(mean.to(d), log_var.to(d), subsample=50) for d in (torch.bfloat16, torch.float64))
    assert (half.score, half.subsampled_score) == (double.score, double.subsampled_score)
    binned = [mig.mutual_information_gap_binned(mean.to(d), SIZES)[0] for d in (torch.bfloat16, torch.float64)]
    assert binned[0] == binned[1]


def test_the_binned_gap_is_discrete_information():
    sizes, rng = (3, 16, 12), np.random.default_rng(0)
    value = grid(sizes)
    mean = rng.standard_normal((576, 4)) + value[:, 2:] * [0.0, 0.2, 0.5, 1.0]
    subset = np.sort(rng.permutation(576)[:400])  # unequal counts
    for rows, factors in ((slice(None), {"factor_sizes": sizes}), (subset, {"factor_values": value[subset]})):
        score, information = mig.mutual_information_gap_binned(mean[rows], **factors)
        gaps = []
        for f, size in enumerate(sizes):
            joints = [np.histogram2d(value[rows, f], mean[rows, j], (size, 20))[0] for j in range(4)]
            joints = [p / p.sum() for p in joints]
            wanted = [scipy.stats.entropy(p.ravel(), np.outer(p.sum(1), p.sum(0)).ravel()) for p in joints]
            np.testing.assert_allclose(information[f], wanted, atol=1e-12)
            gaps.append(np.subtract(*sorted(wanted)[:-3:-1]) / scipy.stats.entropy(joints[0].sum(1)))
        assert score == pytest.approx(np.mean(gaps))
    code = torch.stack([torch.arange(10.0).repeat(3), torch.zeros(30)], 1)
    assert float(mig.mutual_information_gap_binned(code, (3, 10), (1,), bins=5)[1][0, 0]) == pytest.approx(math.log(5))


def test_active_units():
    mean = torch.tensor([[0.0, 0.0, 5.0], [0.0, 0.199, 5.3], [0.0, 0.0, 5.0], [0.0, 0.199, 5.3]])
    assert mig.active_units(mean).tolist() == [False, False, True]
    assert mig.active_units(mean, 0.0099).tolist() == mig.active_units(mean, 0).tolist() == [False, True, True]


@pytest.mark.parametrize(
    ("log_var", "options", "message"),
    [
        (-501.0, {"factor_sizes": (3, 4)}, "log_var must lie between"),
        (0.0, {"factor_sizes": (3, 5)}, r"of factor_sizes must be N = 12, got \(3, 5\)"),
        (0.0, {"factor_sizes": (3, 1, 4), "factors": (0, 1)}, r"more than one value, got factors \(0, 1\) of \[3, 1"),
        *((0.0, {"factor_values": torch.zeros(n).int()}, "must be .12, F. integers") for n in ((11, 2), (12,))),
        (0.0, {"factor_values": torch.zeros(12, 2)}, "must be .12, F. integers"),
    ],
)
def test_bad_input_is_refused(log_var, options, message):
    with pytest.raises(ValueError, match=message):
        mig.mutual_information_gap(torch.zeros(12, 3), torch.full((12, 3), log_var), **options)
