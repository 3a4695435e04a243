"""The mutual information gap against the double sum in plain numpy, closed cases, and its invariances."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.stats import ks_2samp
from torch.overrides import TorchFunctionMode

from isa import mig

SIZES = (3, 16, 43)
N = math.prod(SIZES)  # large enough for the fast sums


def draws(n: int, k: int, seed: int) -> np.ndarray:
    """(K, N) standard normal numbers that the estimator draws from a generator with this seed."""
    return torch.randn((k, n), dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).numpy()


def grid(sizes: tuple[int, ...]) -> np.ndarray:
    """(N, F) table of factor values of a full grid."""
    return np.stack(np.unravel_index(np.arange(math.prod(sizes)), sizes), 1)


def slow_entropies(mean, log_var, noise, labels) -> np.ndarray:
    """(1 + F,) entropies by double sums: of all images, and given each row of ``labels`` (F, N); inputs (d, N)."""
    n, found = mean.shape[1], []
    sigma, members = np.exp(0.5 * log_var), [np.zeros((n, 1), int) == 0]
    members += [label[:, None] == np.unique(label) for label in labels]  # (N, V)
    for begin in range(0, n, 256):
        points = slice(begin, begin + 256)
        exponent = 0.0
        for mu, s, e in zip(mean, sigma, noise, strict=True):
            with np.errstate(over="ignore"):  # infinitely far is far
                # mu_n - mu_m first: exact if sigma is below the rounding error of the mean
                t = ((mu[points, None] - mu) + (s * e)[points, None]) / s
                exponent = exponent - 0.5 * t**2 - np.log(s) - 0.5 * np.log(2 * np.pi)
        top = exponent.max(1)
        density = np.exp(exponent - top[:, None])
        found.append([np.log((density @ x)[x[points]] / x.sum(0)[x[points].argmax(1)]) + top for x in members])
    return -np.concatenate(found, 1).mean(1)


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


@pytest.fixture(scope="module")
def exact() -> np.ndarray:
    """(1 + F, K) entropies of the hard posteriors by double sums, for the draws of seed 0."""
    noise, columns = draws(N, len(HARD), 0), range(len(HARD))
    return np.stack(
        [slow_entropies(*(x[j : j + 1] for x in (MEAN.T, LOG_VAR.T, noise)), grid(SIZES).T) for j in columns], 1
    )


@pytest.fixture(scope="module")
def fast() -> mig.MutualInformationGap:
    return gap(MEAN, LOG_VAR)


def gaps(found: np.ndarray) -> np.ndarray:
    """(F,) gaps from (1 + F, K) entropies on the grid."""
    best = np.sort((found[0] - found[1:]).clip(0), 1)
    return (best[:, -1] - best[:, -2]) / np.log(SIZES)


def test_fast_entropies_are_the_double_sums(fast, exact):
    error = np.abs(entropies(fast) - exact)
    assert error.max() < 1e-4
    assert (error <= fast.entropy_error.numpy() + 1e-9).all()
    assert fast.entropy_error.max() < 1e-3 and (fast.entropy_error > 0).all()


def test_error_bounds_of_gaps_hold(fast, exact):
    assert (np.abs(fast.gaps.numpy() - gaps(exact)) <= fast.gaps_error_bound.numpy()).all()
    assert ((fast.gaps_error_bound > 0) & (fast.gaps_error_bound < 1e-3)).all()
    assert fast.error_bound == pytest.approx(float(fast.gaps_error_bound.mean()))
    for j in range(0, len(HARD), 2):  # pairs of latents have gaps of their own
        pair = gap(MEAN[:, j : j + 2], LOG_VAR[:, j : j + 2], seed=1)
        noise = draws(N, 2, 1)
        slow = [slow_entropies(MEAN.T[[k]], LOG_VAR.T[[k]], noise[[k - j]], grid(SIZES).T) for k in (j, j + 1)]
        assert (np.abs(pair.gaps.numpy() - gaps(np.stack(slow, 1))) <= pair.gaps_error_bound.numpy()).all()


@pytest.mark.parametrize("name", ["collapsed", "clusters over decades", "trained"])
def test_bounds_are_not_below_errors_for_any_generator(name):
    for seed in range(5):
        result = gap(*(x[:, None] for x in HARD[name]), seed=seed)
        error = np.abs(
            entropies(result)[:, 0] - slow_entropies(*(x[None] for x in HARD[name]), draws(N, 1, seed), grid(SIZES).T)
        )
        assert (error <= result.entropy_error[:, 0].numpy()).all()


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


GOLDEN = json.loads((Path(__file__).parent / "golden" / "mig.json").read_text())


@pytest.mark.parametrize("case", [x for x in GOLDEN if x["call"].startswith("mutual")], ids=lambda x: str(x["options"]))
def test_results_and_draws_stay_what_they_were(case):
    sizes, generator = tuple(case["sizes"]), torch.Generator().manual_seed(0)
    mean, log_var = posteriors(sizes)
    if case["call"] == "mutual_information_gap_binned":
        found = dict(
            zip(("score", "mutual_information"), mig.mutual_information_gap_binned(mean, sizes, (1, 2)), strict=True)
        )
    else:
        found = asdict(mig.mutual_information_gap(mean, log_var, sizes, generator=generator, **case["options"]))
        found["next"] = float(torch.rand(1, generator=generator, dtype=torch.float64))
    for name in found.keys() & case["result"]:
        tolerance = 1e-9 if math.prod(sizes) < 1000 or name == "next" else 1e-4  # direct sums, fast sums
        np.testing.assert_allclose(np.ravel(found[name]), case["result"][name], rtol=0, atol=tolerance)


@pytest.mark.parametrize("n", [50, 4000])
def test_an_image_alone_in_its_mixture_has_its_posteriors_entropy(n):
    mean, log_var = np.random.default_rng(0).standard_normal((2, n, 2))
    own = 0.5 * draws(n, 2, 0) ** 2 + 0.5 * log_var.T + 0.5 * np.log(2 * np.pi)
    np.testing.assert_allclose(gap(mean, log_var, (n,)).conditional_entropy[0], own.mean(1), atol=1e-6)


@pytest.mark.parametrize("copies", [1, 4])
def test_a_latent_that_names_the_factor_knows_all_of_it(copies):
    sizes = (3, 16, 12 * copies)
    mean = np.zeros((math.prod(sizes), 3))
    mean[:, 1] = np.sqrt(1 + grid(sizes)[:, 1])
    result = gap(mean, np.tile([0.0, -20.0, 0.0], (len(mean), 1)), sizes)
    np.testing.assert_allclose(result.mutual_information[1], [0, math.log(16), 0], atol=1e-5)
    np.testing.assert_allclose(result.mutual_information[[0, 2]], 0, atol=1e-5)
    np.testing.assert_allclose(result.gaps, [0, 1, 0], atol=1e-5)
    assert result.score == pytest.approx(1 / 3, abs=1e-5) and isinstance(result.score, float)
    assert result.factors == (0, 1, 2)


def test_the_gap_is_between_the_two_best_latents():
    value = np.arange(16.0)
    result = gap(np.stack([value, value // 2, 0 * value], 1), np.full((16, 3), -20.0), (16,))
    np.testing.assert_allclose(result.mutual_information, [[math.log(16), math.log(8), 0]], atol=1e-9)
    assert result.score == pytest.approx(math.log(2) / math.log(16)) and result.error_bound == 0.0


def test_closed_forms():
    zero = np.zeros((576, 1))
    own = 0.5 * (draws(576, 1, 0) ** 2).mean() + 0.5 * math.log(2 * math.pi)
    assert float(gap(zero, zero, (24, 24)).entropy) == pytest.approx(own, abs=1e-12)
    far = np.repeat([0.0, 1e3], 288)[:, None]
    assert float(gap(far, zero, (24, 24)).entropy) == pytest.approx(own + math.log(2), abs=1e-12)
    n = 40_000
    normal = torch.special.ndtri((torch.arange(n, dtype=torch.float64) + 0.5) / n)[:, None]
    result = gap(normal, torch.full((n, 1), 2 * math.log(0.5)), (4, n // 4))
    # At the draws of N(0, 1.25) the mean of -log q has the variance 1/2 over n.
    assert float(result.entropy) == pytest.approx(0.5 * math.log(2 * math.pi * math.e * 1.25), abs=4 * (0.5 / n) ** 0.5)


@pytest.mark.parametrize("n", [600, 3000])
def test_tables_with_unequal_counts_are_the_double_sums(n):
    rng = np.random.default_rng(0)
    mean, log_var = rng.standard_normal((n, 2)), rng.uniform(-6, 0, (n, 2))
    rare = np.minimum(rng.geometric(0.05, n), 200)
    table = np.stack(
        [rng.integers(0, 3, n), rare, np.arange(n), rng.integers(0, n // 3, n) * 7 - 5, np.arange(n) == 5], 1
    )
    result = gap(mean, log_var, None, factor_values=table.astype(np.int64))
    for j in range(2):
        slow = slow_entropies(mean.T[[j]], log_var.T[[j]], draws(n, 2, 0)[[j]], table.T)
        np.testing.assert_allclose(entropies(result)[:, j], slow, atol=1e-9 if n == 600 else 5e-5)
    p = np.bincount(table[:, 0]) / n
    best = np.sort(result.mutual_information[0].numpy())
    assert float(result.gaps[0]) == pytest.approx((best[1] - best[0]) / -(p * np.log(p)).sum())


def test_a_grid_as_a_table_in_another_order_is_the_grid():
    sizes, rng = (4, 10, 15), np.random.default_rng(0)
    table = grid(sizes)
    mean, log_var = rng.standard_normal((600, 3)) + table[:, [0, 1, 2]], rng.uniform(-4, 0, (600, 3))
    a, b = gap(mean, log_var, sizes), gap(mean, log_var, None, factor_values=torch.tensor(table))
    np.testing.assert_allclose(a.mutual_information, b.mutual_information, atol=1e-12)
    order, kept = rng.permutation(600), rng.permutation(600)[:400]  # 400 of 600 rows: no grid
    for rows in (order, kept):
        result = gap(mean[rows], log_var[rows], None, factor_values=table[rows])
        noise = draws(len(rows), 3, 0)
        for j in range(3):
            slow = slow_entropies(mean[rows].T[[j]], log_var[rows].T[[j]], noise[[j]], table[rows].T)
            np.testing.assert_allclose(entropies(result)[:, j], slow, atol=1e-9)
    shuffled = gap(mean[order], log_var[order], None, factor_values=table[order])
    assert abs(shuffled.score - a.score) < 4 * math.hypot(shuffled.standard_error, a.standard_error)


@st.composite
def encoders(draw):
    sizes = tuple(draw(st.lists(st.integers(1, 5), min_size=1, max_size=3)))
    sizes = (*sizes, 3) if max(sizes) == 1 else sizes
    n, k = math.prod(sizes), draw(st.integers(1, 4))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    mean = rng.standard_normal((n, k)) * 10.0 ** rng.uniform(-3, 2, k)
    log_var = rng.uniform(-12, 4, (n, 1)) * rng.random((1, k))
    return sizes, mean, log_var, rng


@pytest.fixture
def with_noise(monkeypatch):
    """Run with given noise (K, N) instead of a generator's."""

    def run(noise, *arguments, **options):
        values = torch.tensor(noise)
        with monkeypatch.context() as patch:
            patch.setattr(torch.Tensor, "normal_", lambda x, generator=None: x.copy_(values.flatten()[: x.numel()]))
            return gap(*arguments, **options)

    return run


FEW = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@FEW
@given(encoders())
def test_information_is_not_negative_and_scores_are_shares(encoder):
    sizes, mean, log_var, _ = encoder
    result = gap(mean, log_var, sizes)
    scored = [s for s in sizes if s > 1]
    assert result.mutual_information.shape == (len(scored), mean.shape[1])
    assert (result.mutual_information >= 0).all() and (result.gaps >= 0).all()
    # log q(z | value) - log q(z) is at most the log of the number of values, draw by draw.
    assert (result.mutual_information <= torch.tensor(scored).log()[:, None] + 1e-6).all()
    assert 0 <= result.score <= 1 + 1e-9


@FEW
@given(encoders(), st.floats(0.01, 100), st.booleans(), st.floats(-10, 10))
def test_order_scale_and_sign_do_not_matter(with_noise, encoder, scale, flip, shift):
    sizes, mean, log_var, rng = encoder
    noise = rng.standard_normal(mean.T.shape)
    a = with_noise(noise, mean, log_var, sizes)
    order = rng.permutation(mean.shape[1])
    b = with_noise(noise[order], mean[:, order], log_var[:, order], sizes)
    np.testing.assert_allclose(a.mutual_information[:, order.copy()], b.mutual_information, atol=1e-9)
    images = np.arange(len(mean)).reshape(sizes)
    for axis, size in enumerate(sizes):
        images = np.take(images, rng.permutation(size), axis)
    images = images.ravel()
    b = with_noise(noise[:, images], mean[images], log_var[images], sizes)
    np.testing.assert_allclose(a.mutual_information, b.mutual_information, atol=1e-9)
    sign = -1.0 if flip else 1.0
    b = with_noise(sign * noise, sign * scale * mean + shift, log_var + 2 * math.log(scale), sizes)
    np.testing.assert_allclose(a.mutual_information, b.mutual_information, atol=1e-6)
    np.testing.assert_allclose(a.entropy + math.log(scale), b.entropy, atol=1e-6)


def two_latents(n: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    value = np.arange(n) % 12
    mean = np.stack([0.3 * value + 0.2 * rng.standard_normal(n), np.sin(value) * rng.standard_normal(n)], 1)
    return torch.tensor(mean), torch.tensor(np.log(rng.uniform(0.05, 0.3, (n, 2)) ** 2))


@pytest.mark.parametrize("sizes", [(5, 20, 12), (5, 40, 12)])
def test_fewer_samples(sizes):
    mean, log_var = two_latents(math.prod(sizes))
    every, some = gap(mean, log_var, sizes), gap(mean, log_var, sizes, n_samples=230)
    # Smaller mixtures are used whole, and the draws are the same.
    small = [f for f, size in enumerate(sizes) if len(mean) // size <= 230]
    np.testing.assert_allclose(some.conditional_entropy[small], every.conditional_entropy[small], atol=1e-9)
    difference, error = some.mutual_information - every.mutual_information, some.mutual_information_standard_error
    assert (difference != 0).all() and (difference.abs() < 4 * error).all()
    assert (error > every.mutual_information_standard_error).all()
    whole = gap(mean, log_var, sizes, n_samples=len(mean))
    np.testing.assert_array_equal(whole.mutual_information, every.mutual_information)


def test_standard_errors_cover_the_scatter_of_draws():
    mean, log_var = two_latents(480)
    runs = [gap(mean, log_var, (40, 12), seed=s) for s in range(200)]
    # Images are not drawn anew, so the scatter is smaller, but of the same order. The scatter is known to 5 %.
    for name in ("mutual_information", "gaps"):
        scatter = torch.stack([getattr(r, name) for r in runs]).std(0)
        reported = torch.stack([getattr(r, f"{name}_standard_error") for r in runs]).mean(0)
        assert ((scatter < 1.15 * reported) & (scatter > 0.2 * reported)).all()
    assert np.std([r.score for r in runs]) < 1.15 * np.mean([r.standard_error for r in runs])
    assert runs[0].standard_error == pytest.approx(float(runs[0].gaps_standard_error.mean()))
    assert torch.equal(gap(mean, log_var, (40, 12)).gaps, runs[0].gaps) and runs[0].score != runs[1].score


def test_a_subsample_leaves_the_rest_alone():
    mean, log_var = two_latents(480)
    generators = [torch.Generator().manual_seed(3) for _ in range(4)]
    without, some, every, again = (
        mig.mutual_information_gap(mean, log_var, (40, 12), generator=g, subsample=count)
        for g, count in zip(generators, (None, 100, 480, 100), strict=True)
    )
    assert without.subsampled_score is None and without.score == some.score == every.score
    assert every.subsampled_score == pytest.approx(every.score, abs=1e-12)
    assert some.subsampled_score != some.score and again.subsampled_score == some.subsampled_score
    assert torch.equal(generators[0].get_state(), generators[1].get_state())


def test_a_subsampled_score_is_that_of_fewer_samples():
    mean, log_var = two_latents(480)
    subsampled = [gap(mean, log_var, (4, 10, 12), seed=s, subsample=30).subsampled_score for s in range(200)]
    drawn = [gap(mean, log_var, (4, 10, 12), seed=s, n_samples=30).score for s in range(200, 400)]
    assert ks_2samp(subsampled, drawn).pvalue > 1e-3


@pytest.mark.parametrize("n_samples", [None, 30])
@pytest.mark.parametrize("sizes", [(3, 16, 12), SIZES])
def test_unscored_factors_are_measured_and_change_nothing(n_samples, sizes):
    mean, log_var = two_latents(math.prod(sizes))
    results, states = [], []
    for unscored in ((), (2, 1)):
        generator = torch.Generator().manual_seed(0)
        arguments = (mean, log_var, sizes, (0,), n_samples, None, generator)
        results.append(mig.mutual_information_gap(*arguments, unscored=unscored))
        states.append(generator.get_state())
    without, result = results
    assert torch.equal(*states)
    for name in ("entropy", "conditional_entropy", "mutual_information", "gaps"):
        np.testing.assert_allclose(getattr(without, name), getattr(result, name), atol=1e-4)
    assert without.unscored == () and without.unscored_mutual_information.shape == (0, 2)
    assert result.unscored == (2, 1)
    every = gap(mean, log_var, sizes, factors=(2, 1))
    error = gap(mean, log_var, sizes, n_samples=30, factors=(2, 1)).mutual_information_standard_error
    limit = 1e-5 if n_samples is None else 4 * error
    assert ((result.unscored_mutual_information - every.mutual_information).abs() <= limit).all()


@pytest.mark.parametrize("scale", [1.0, 1e-9])
def test_groups_are_joint_double_sums(scale):
    rng = np.random.default_rng(1)
    sizes, groups = (4, 30), ((3, 1), (0,), (2,))
    mean, log_var = rng.standard_normal((120, 4)), rng.uniform(-6, 0, (120, 4)) + 2 * math.log(scale)
    result, noise = gap(mean, log_var, sizes, groups=groups), draws(120, 4, 0)
    assert result.mutual_information.shape == (2, 3)
    for c, group in enumerate(map(list, groups)):
        slow = slow_entropies(mean.T[group], log_var.T[group], noise[group], grid(sizes).T)
        np.testing.assert_allclose(entropies(result)[:, c], slow, atol=1e-7)
    table = gap(mean, log_var, None, groups=groups, factor_values=grid(sizes))
    np.testing.assert_allclose(table.mutual_information, result.mutual_information, atol=1e-12)


def test_joint_densities_out_of_all_proportion():
    # Draws of the one wide posterior lie where narrow ones are e^800 times as dense.
    mean, log_var = np.zeros((40, 2)), np.full((40, 2), -490.0)
    log_var[7] = 400.0
    result = gap(mean, log_var, (4, 10), groups=[(0, 1)])
    slow = slow_entropies(mean.T, log_var.T, draws(40, 2, 0), grid((4, 10)).T)
    np.testing.assert_allclose(entropies(result)[:, 0], slow, rtol=1e-12)


def test_groups_with_an_idle_latent_fewer_samples_and_latents_left_out():
    mean, log_var = two_latents(480)
    mean, log_var = torch.cat([mean, 0 * mean], 1), torch.cat([log_var, 0 * log_var], 1)
    alone = gap(mean, log_var, (40, 12))
    joint = gap(mean[:, [0, 2]], log_var[:, [0, 2]], (40, 12), groups=[(0, 1)])
    # A latent that is the same in every posterior adds no information.
    np.testing.assert_allclose(joint.mutual_information[:, 0], alone.mutual_information[:, 0], atol=1e-10)
    every, some = (gap(mean, log_var, (40, 12), groups=[(0, 3)], n_samples=m) for m in (None, 100))
    difference = (some.mutual_information - every.mutual_information).abs()
    assert ((difference < 4 * some.mutual_information_standard_error) & (difference > 0)).all()


class EmulatedGPU(TorchFunctionMode):
    """Tensors of the CPU say that they are on another device; calls are counted by name."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function == torch.Tensor.is_cpu.__get__:
            return False
        name = getattr(function, "__name__", "")
        if name == "__getitem__" and isinstance(args[1], torch.Tensor) and args[1].dtype == torch.bool:
            name = "nonzero"
        self.calls[name] += name != "__get__"
        return function(*args, **kwargs or {})

    @property
    def reads(self) -> int:
        """Calls for which the host waits."""
        names = ("item", "tolist", "cpu", "nonzero", "numpy", "__bool__", "__int__", "__float__", "__index__", "unique")
        return sum(self.calls[name] for name in names)


def test_the_path_of_a_gpu_gives_what_the_cpu_gives(fast):
    with EmulatedGPU():
        emulated = gap(MEAN, LOG_VAR)
    np.testing.assert_allclose(entropies(emulated), entropies(fast), atol=1e-6)
    np.testing.assert_allclose(emulated.entropy_error, fast.entropy_error, atol=1e-5)


def test_a_gpu_is_not_waited_for_in_a_loop():
    sizes, counts = (5, 16, 24, 24), []
    posteriors = [np.tile(x[:, None], 3) for x in hard_posteriors(math.prod(sizes))["trained"]]
    for k in (1, 3):
        with EmulatedGPU() as device:
            gap(*(x[:, :k] for x in posteriors), sizes)
        counts.append((device.reads, device.calls.total()))
    (few, operations), (many, more) = counts
    assert few == many  # reads do not grow with the latents
    assert (more - operations) / 2 < 500  # operations per latent


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gives_what_the_cpu_gives(fast):
    first, again = (gap(torch.tensor(MEAN, device="cuda"), torch.tensor(LOG_VAR, device="cuda")) for _ in range(2))
    assert first.entropy.device.type == "cpu"
    np.testing.assert_allclose(entropies(first), entropies(fast), atol=1e-5)
    np.testing.assert_array_equal(entropies(first), entropies(again))


def test_another_default_device_or_dtype_changes_nothing():
    mean, log_var = two_latents(N)
    options = {"subsample": 50, "n_samples": 100, "unscored": (0,), "factors": (1, 2)}
    plain = gap(mean, log_var, **options)
    with torch.device("meta"):
        elsewhere = mig.mutual_information_gap(
            mean, log_var, SIZES, generator=torch.Generator("cpu").manual_seed(0), **options
        )
        binned = mig.mutual_information_gap_binned(mean, SIZES)
    torch.set_default_dtype(torch.bfloat16)
    try:
        coarse = gap(mean, log_var, **options)
        half = gap(mean.bfloat16(), log_var.bfloat16())
    finally:
        torch.set_default_dtype(torch.float32)
    assert plain.score == elsewhere.score == coarse.score and plain.subsampled_score == coarse.subsampled_score
    assert binned[0] == mig.mutual_information_gap_binned(mean, SIZES)[0]
    rounded = gap(mean.bfloat16().double(), log_var.bfloat16().double())
    np.testing.assert_allclose(half.mutual_information, rounded.mutual_information, atol=1e-9)


def test_threads_single_precision_and_inputs_left_alone():
    mean, log_var = two_latents(N)
    leaf, kept, before = mean.float().requires_grad_(), mean.float(), torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(gap(leaf, log_var.float()))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(results[0].mutual_information, results[1].mutual_information, rtol=0, atol=1e-9)
    assert torch.equal(leaf.detach(), kept) and not results[0].entropy.requires_grad
    np.testing.assert_allclose(results[0].entropy, gap(mean, log_var).entropy, atol=1e-5)
    some = gap(mean, log_var, factors=(2, 0))
    np.testing.assert_allclose(some.mutual_information, gap(mean, log_var).mutual_information[[2, 0]], atol=1e-5)


def test_the_binned_gap_is_discrete_information():
    sizes, rng = (3, 16, 12), np.random.default_rng(0)
    value = grid(sizes)
    mean = rng.standard_normal((576, 4)) + value[:, 2:] * [0.0, 0.2, 0.5, 1.0]
    score, information = mig.mutual_information_gap_binned(torch.tensor(mean), sizes)
    gaps = []
    for f, size in enumerate(sizes):
        wanted = []
        for j in range(4):
            code = np.digitize(mean[:, j], np.histogram_bin_edges(mean[:, j], 20)[:-1]) - 1
            joint = np.zeros((size, 20))
            np.add.at(joint, (value[:, f], code), 1 / 576)
            independent, filled = joint.sum(1, keepdims=True) * joint.sum(0), joint > 0
            wanted.append((joint[filled] * np.log(joint[filled] / independent[filled])).sum())
        np.testing.assert_allclose(information[f], wanted, atol=1e-12)
        gaps.append(np.subtract(*sorted(wanted)[:-3:-1]) / math.log(size))
    assert score == pytest.approx(np.mean(gaps))
    code = torch.stack([torch.arange(10.0).repeat(3), torch.zeros(30)], 1)
    assert mig.mutual_information_gap_binned(code, (3, 10), (1,))[0] == pytest.approx(1.0)
    assert float(mig.mutual_information_gap_binned(code, (3, 10), (1,), bins=5)[1][0, 0]) == pytest.approx(math.log(5))


def test_active_units():
    mean = torch.tensor([[0.0, 0.0, 5.0], [0.0, 0.199, 5.3], [0.0, 0.0, 5.0], [0.0, 0.199, 5.3]])
    assert mig.active_units(mean).tolist() == [False, False, True]
    assert mig.active_units(mean, 0.0099).tolist() == mig.active_units(mean, 0).tolist() == [False, True, True]


TABLE = {"factor_sizes": None, "factor_values": torch.zeros(12, 1).long()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mean": torch.zeros(11, 3)}, r"mean and log_var must have one shape \(N, K\), got \(11, 3\)"),
        ({"mean": torch.full((12, 3), math.nan)}, "mean must be finite"),
        ({"log_var": torch.full((12, 3), -501.0)}, "log_var must lie between -500 and 500"),
        ({"factor_sizes": (3, 5)}, r"the product of factor_sizes must be N = 12, got \(3, 5\)"),
        ({"factor_sizes": None}, "give either factor_sizes or factor_values"),
        (TABLE | {"factor_sizes": (3, 4)}, "give either factor_sizes or factor_values"),
        (TABLE | {"factor_values": torch.zeros(12, 1)}, "factor_values must be integers"),
        (TABLE, "factors must be different factors of more than one value"),
        ({"factors": (2,)}, r"factors must be different factors of more than one value, got \(2,\)"),
        ({"factors": (0, 0)}, "factors must be different"),
        ({"factors": ()}, "factors must be different"),
        ({"unscored": (2,)}, "factors must be different"),
        ({"n_samples": 13}, "n_samples must be from 1 to N = 12"),
        ({"groups": [(0, 1), (1, 2)]}, "groups must be disjoint, non-empty groups of latents from 0 to 2"),
        ({"groups": [(0, 3)]}, "groups must be disjoint"),
        ({"groups": [(0,), ()]}, "groups must be disjoint"),
    ],
)
def test_bad_input_is_refused(change, message):
    arguments = {"mean": torch.zeros(12, 3), "log_var": torch.zeros(12, 3), "factor_sizes": (3, 4)} | change
    with pytest.raises((TypeError, ValueError), match=message):
        mig.mutual_information_gap(**arguments)
