"""Statistics over records: cases by hand, slow definitions, properties, and coverage on simulated data."""

import itertools
import math
import statistics

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from edition import stats

numbers = st.integers(-1000, 1000).map(lambda number: number / 64)  # sums of these are exact in any order
pairs = st.lists(st.tuples(numbers, numbers), min_size=1, max_size=15)
samples = st.lists(numbers, min_size=1, max_size=5)


def shortfall(intervals, truth: float = 0.0, level: float = 0.95) -> float:
    """Return by how many standard errors the share of intervals that contain the truth is below the level."""
    covered = [interval.low <= truth <= interval.high for interval in intervals]
    return (level - np.mean(covered)) / math.sqrt(level * (1 - level) / len(covered))


def t_interval(values: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    return scipy.stats.t.interval(level, len(values) - 1, np.mean(values), scipy.stats.sem(values))


def test_too_few_values_have_no_interval():
    for values, mean in (([], math.nan), ([1.0], 1.0), ([1.0, 2.0], 1.5)):
        assert stats.mean_interval(values) == pytest.approx((mean, math.nan, math.nan, len(values)), nan_ok=True)
    empty, single = stats.compare([], [1.0]), stats.compare([1.0], [2.0])
    assert all(map(math.isnan, empty[:4])) and empty[4:6] == (0, 1) and empty.direction == 0
    assert single.difference == 1 and math.isnan(single.low) and single.p_value == 1


@pytest.mark.parametrize(("value", "n"), [(0.25, 3), (0.1 + 0.2, 7), (-2839.123456, 40), (1e-9, 7)])
def test_interval_of_equal_values_has_width_zero(value, n):
    values = np.full(n, value)
    values[::2] = np.nextafter(value, 1)  # rounding is not a difference
    interval = stats.mean_interval(values)
    assert interval == (interval.estimate, interval.estimate, interval.estimate, n)
    assert stats.compare(values, values[::-1])[:3] == pytest.approx((0, 0, 0), abs=1e-12)
    different = stats.mean_interval(np.append(values, value * (1 + 1e-9)))
    assert different.high > different.low


def test_few_values_have_student_interval():
    """Between n values the mean of a symmetric distribution lies with probability 1 - 2^(1 - n)."""
    rng = np.random.default_rng(0)
    for n, level in ((3, 0.9), (5, 0.9), (5, 0.95), (6, 0.95), (7, 0.99), (8, 0.99)):
        values = rng.normal(size=n)
        interval = stats.mean_interval(values, level)
        is_t = (interval.low, interval.high) == pytest.approx(t_interval(values, level), rel=1e-9)
        assert is_t == (1 - 2.0 ** (1 - n) < level), (n, level)


def test_bootstrap_interval_follows_skew():
    quantiles = (np.arange(20) + 0.5) / 20
    symmetric = scipy.stats.norm.ppf(quantiles)
    assert stats.mean_interval(symmetric)[1:3] == pytest.approx(t_interval(symmetric), rel=0.06)
    skewed = stats.mean_interval(scipy.stats.expon.ppf(quantiles))  # a long tail to the right
    assert skewed.high - skewed.estimate > 1.2 * (skewed.estimate - skewed.low)


def test_mean_interval_covers():
    rng = np.random.default_rng(1)
    for n in (4, 10):
        two_modes = (np.where(rng.random(n) < 0.5, 0.1, 0.2) + 0.01 * rng.normal(size=n) for _ in range(100))
        assert shortfall((stats.mean_interval(values, 0.9) for values in two_modes), 0.15, 0.9) <= 3
        skewed = (rng.gamma(2.0, size=n) for _ in range(100))
        assert shortfall((stats.mean_interval(values, 0.9) for values in skewed), 2.0, 0.9) <= 5


def test_compare_by_hand():
    """Of the 20 assignments of six values to two sides, only the observed one and its mirror image are as extreme."""
    found = stats.compare([1.0, 2.0, 3.0], [4.0, 5.0, 7.0])
    assert found.difference == pytest.approx(16 / 3 - 2) and found.p_value == pytest.approx(2 / 20)
    assert (found.n_first, found.n_second, found.direction) == (3, 3, 1)
    welch = scipy.stats.ttest_ind([4.0, 5.0, 7.0], [1.0, 2.0, 3.0], equal_var=False).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx(welch)


def all_permutations(first: list[float], second: list[float]) -> float:
    """Return the p-value by its definition."""
    sums, total = np.array([*map(sum, itertools.combinations(first + second, len(first)))]), sum(first) + sum(second)
    differences = (total - sums) / len(second) - sums / len(first)
    observed = np.mean(second) - np.mean(first)
    return min(1.0, 2 * min((differences <= observed + 1e-9).mean(), (differences >= observed - 1e-9).mean()))


@settings(max_examples=25)
@given(samples, samples)
def test_p_value_counts_every_permutation(first, second):
    assert stats.compare(first, second).p_value == pytest.approx(all_permutations(first, second))


def test_p_value_of_random_permutations():
    rng = np.random.default_rng(3)
    first, second = rng.normal(size=20), rng.normal(size=20) + 0.6
    exact = scipy.stats.ttest_ind(first, second).pvalue  # which the permutation test approximates
    assert stats.compare(first, second).p_value == pytest.approx(exact, rel=0.2)
    assert 0 < stats.compare(first, second + 10).p_value <= 2 / 10_000


def test_text_of_numbers():
    assert f"{stats.Interval(0.1234, 0.1, 0.15, 50):.3f}" == "0.123 (0.100 to 0.150; n = 50)"
    assert f"{stats.Interval(0.1234, math.nan, math.nan, 2):.2f}" == "0.12 (n = 2)"
    assert f"{stats.mean_interval([]):.2f}" == f"{stats.compare([], [])}" == "not recorded"
    comparison = stats.Comparison(0.05, 0.03, 0.07, 0.0021, 10, 9)
    assert f"{comparison:+.2f}" == "+0.05 (+0.03 to +0.07; p = 0.002; n = 10 and 9)"
    texts = {0.0004: "p < 0.001", 0.0123: "p = 0.012", 0.456: "p = 0.46", math.nan: "no test"}
    assert [stats.p_text(p) for p in texts] == [*texts.values()]


def test_holm_skips_nan():
    assert stats.holm([0.5, math.nan, 0.02, 0.9]) == pytest.approx([1.0, math.nan, 0.06, 1.0], nan_ok=True)
    assert len(stats.holm([])) == 0


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.floats(0.001, 0.2))
def test_holm_matches_its_definition(p_values, level):
    rejected = set()
    for step, index in enumerate(np.argsort(p_values, kind="stable")):
        if p_values[index] * (len(p_values) - step) > level:
            break
        rejected.add(int(index))
    assert set(np.flatnonzero(stats.holm(p_values) <= level).tolist()) == rejected


def test_medians_and_maxima():
    """A median's interval is exact, and the test of maxima counts assignments of the values to the sides."""
    rng = np.random.default_rng(7)
    # two modes of equal weight, between which the median of a sample jumps
    first, second = rng.normal(size=(2, 400, 10)) / 10 + (rng.random((2, 400, 10)) < 0.5)
    assert shortfall(map(stats.compare_medians, first, second)) <= 3
    assert math.isnan(stats.compare_medians(first[0, :5], second[0]).low)
    for first, second in (rng.normal(size=(2, 3)) for _ in range(20)):
        values, observed = np.concatenate([first, second]), second.max() - first.max()
        chosen = [list(one) for one in itertools.combinations(range(6), 3)]
        tops = np.array([values[one].max() - np.delete(values, one).max() for one in chosen])
        slow = min(1.0, 2 * min((tops >= observed).mean(), (tops <= observed).mean()))
        assert stats.compare_maxima(first, second)[0:4:3] == pytest.approx((observed, slow))


def test_upper_half_mean_and_its_spread():
    rng = np.random.default_rng(8)
    mig, fit = rng.normal(size=(2, 2000, 20))
    upper = np.take_along_axis(fit, np.argsort(mig, 1)[:, 10:], 1).mean(1), np.sort(mig, 1)[:, 10:].mean(1)
    for values, means in zip((fit, mig), upper, strict=True):
        ours = np.array([stats.upper_half(*pair) for pair in zip(values, mig, strict=True)])
        assert ours.mean(1) == pytest.approx(means)
        assert (ours.var(1, ddof=1) / 20).mean() == pytest.approx(means.var(), rel=0.15)
    assert stats.upper_half([1.0, 2, 3], [1.0, 2, 3]).mean() == pytest.approx(2.5)


def test_contrast_by_scipy():
    """Of unrelated runs it is Welch's t, of one seed each in two cells the paired t."""
    first, second = np.random.default_rng(9).normal(size=(2, 7))
    welch = scipy.stats.ttest_ind(second, first, equal_var=False).confidence_interval()
    unrelated = stats.contrast((first, second), (-1, 1), (np.arange(7), np.full(7, math.nan)))
    assert unrelated[1:3] == pytest.approx(welch) and unrelated[4:6] == (7, 7)
    paired = scipy.stats.ttest_rel(second, first).confidence_interval()
    assert stats.contrast((first, second), (-1, 1), (np.arange(7), np.arange(7)))[1:3] == pytest.approx(paired)


def test_contrast_of_partly_shared_seeds_covers():
    """Runs of one seed at two betas have a correlation of 0.9, and five of twelve have no partner."""
    rng, of = np.random.default_rng(10), (np.arange(12), np.arange(7))

    def drawn():
        seeds = rng.normal(size=12)
        return [math.sqrt(0.9) * seeds[one] + math.sqrt(0.1) * rng.normal(size=len(one)) for one in of]

    assert shortfall((stats.contrast(drawn(), (1, 1), of) for _ in range(600)), level=0.93) <= 3


def test_best_of_several_allows_for_the_choice():
    rng = np.random.default_rng(11)
    found = [stats.compare_best(rng.normal(size=(1, 5)), rng.normal(size=(6, 5))).direction for _ in range(500)]
    assert max(found.count(1), found.count(-1)) <= 500 * 0.025 + 3 * math.sqrt(500 * 0.025)
    one, other = rng.normal(size=(2, 5))
    assert stats.compare_best([one], [other])[:3] == pytest.approx(stats.compare(one, other)[:3])  # Welch's
    assert stats.compare_best([one, one + 9], [other, other + 99]).direction == 1


def test_enough_betas():
    few, many = (made_curve(0.0, seeds, betas=betas) for seeds, betas in ((3, (1, 2, 3)), (5, (1, 2, 3, 4, 5))))
    assert stats.enough_betas([few, many], [{1, 2, 3}, {1, 2, 3, 4, 5, 6}])
    assert not stats.enough_betas([few], [{1, 2, 3, 4}])


def made_curve(shift: float, seeds: int, seed: int = 0, betas=(1, 2, 3), spread: float = 1.0):
    """Return a curve on which MIG rises by 0.1 a beta while the log-likelihood falls by 5 nats."""
    rng = np.random.default_rng(seed)
    beta = np.repeat(np.array(betas, float), seeds)
    fit = -20 - 5 * beta + spread * rng.normal(size=len(beta))
    return stats.curve(beta, fit, 0.1 * beta + shift + 0.02 * rng.normal(size=len(beta)))


def test_curve_by_hand():
    found = stats.curve([2, 1, 2, 1, 1], [-4.0, -1, -6, -2, -3], [0.3, 0.1, 0.5, 0.1, 0.4])
    assert found.beta.tolist() == [1, 2] and found.n.tolist() == [3, 2] and found.runs.shape == (5, 4)
    assert found.log_likelihood == pytest.approx([-2, -5]) and found.mig == pytest.approx([0.2, 0.4])
    assert found.log_likelihood_error == pytest.approx([1 / math.sqrt(3), 1])
    assert found.mig_error == pytest.approx([0.1, 0.1])
    assert np.isnan(stats.curve([1], [-1.0], [0.1]).mig_error).all()
    assert all(len(column) == 0 for column in stats.curve([], [], []))


def test_compare_curves_matches_the_integral():
    rng = np.random.default_rng(5)
    first, second = (stats.curve(np.arange(5), -np.cumsum(rng.random(5)), rng.random(5)) for _ in range(2))
    found = stats.compare_curves(first, second)
    x = np.linspace(found.left, found.right, 200_001)
    heights = [np.interp(x, one.log_likelihood[::-1], one.mig[::-1]) for one in (first, second)]
    assert found.difference == pytest.approx(np.mean(heights[1] - heights[0]), abs=2e-3)
    assert math.isnan(found.low) and math.isnan(found.p_value) and found.direction == 0  # one run at each beta


def test_interval_and_p_value_of_curves_at_equal_fits():
    """The difference is then a weighted sum of differences of means, each interval stretched by n / (n - 1)."""
    first, second = made_curve(0.0, 5, spread=0.0), made_curve(0.01, 5, 1, spread=0.0)
    found, weights = stats.compare_curves(first, second), np.array([0.25, 0.5, 0.25])
    mig = np.array([[group[:, 1] for group in side.groups] for side in (first, second)])
    variances = weights**2 * mig.var(2, ddof=1) / 5 * 5 / 4
    freedom = variances.sum() ** 2 / (variances**2 / 4).sum()
    error = math.sqrt(variances.sum())
    assert (found.high - found.low) / 2 == pytest.approx(scipy.stats.t.isf(0.025, freedom) * error, rel=1e-3)
    assert found.p_value == pytest.approx(2 * scipy.stats.t.sf(abs(found.difference) / error, freedom), rel=1e-2)


@pytest.mark.parametrize(("betas", "n"), [((1, 2, 3), 5), ((1, 1.5, 2, 2.5, 3, 3.5, 4, 5, 6), 3)])
def test_interval_of_curves_covers_with_shared_seeds(betas, n):
    """Half the variance is of the seed, the same at all betas."""
    rng = np.random.default_rng(12)

    def drawn():
        seeds, beta = np.tile(np.arange(n), len(betas)), np.repeat(betas, n)
        noise = (rng.normal(size=(2, n))[:, seeds] + rng.normal(size=(2, len(beta)))) / math.sqrt(2)
        return stats.curve(beta, -30 - 8 * beta + 3 * noise[0], 0.1 + 0.06 * noise[1], seeds)

    assert shortfall(stats.compare_curves(drawn(), drawn()) for _ in range(200)) <= 3


def test_compare_curves_that_do_not_meet():
    far, near = stats.curve([1, 2], [-100.0, -110.0], [0.1, 0.2]), made_curve(0.0, 3)
    empty, single = stats.curve([], [], []), stats.curve([1], [-25.0], [0.1])
    for first, second in ((far, near), (near, far), (empty, near), (single, near)):
        assert math.isnan(stats.compare_curves(first, second).difference)
    found = stats.compare_curves(near, made_curve(0.1, 3, 1, betas=(1.5, 2.5)))  # no beta in common
    assert found.low < found.difference < found.high


def slow_dip(values: np.ndarray) -> float:
    """Return the dip by its definition, the distance to the closest distribution function with one mode.

    It is convex before its mode, where it may jump, and concave after it: for each mode, a linear programme in the
    function's first value, its slopes, its jump and its distance.
    """
    x, n = np.sort(values), len(values)
    k, one, rise = np.arange(n), np.ones((n, 1)), np.tril(np.ones((n, n - 1)), -1) * np.diff(x)
    bends, distances = np.pad(np.diff(np.eye(n - 1), axis=0), ((0, 0), (1, 2))), []
    for mode in range(n):
        left = np.hstack([one, rise, 1.0 * (k > mode)[:, None], -one])  # at most k / n, the sample's left of a point
        right = np.hstack([-one, -rise, -1.0 * (k >= mode)[:, None], -one])  # at least (k + 1) / n, that at a point
        shape = np.concatenate([-bends[: max(mode - 1, 0)], bends[mode:]])
        bounds = np.concatenate([k / n, -(k + 1) / n, np.zeros(len(shape))])
        distances.append(linprog(np.eye(n + 2)[-1], np.vstack([left, right, shape]), bounds).fun)
    return min(distances)


@pytest.mark.parametrize("n", [4, 5, 6, 9])
def test_dip_matches_linear_programme(n):
    rng = np.random.default_rng(n)
    values = rng.normal(size=n) + 3 * (n % 2) * (rng.random(n) < 0.5)
    assert stats.dip(values).statistic == pytest.approx(slow_dip(values), abs=1e-8)
    assert stats.dip(9 - 2 * values[::-1]).statistic == pytest.approx(slow_dip(values), abs=1e-8)  # it is invariant


def test_dip_by_hand():
    assert stats.dip([1, 2, 3, 4]).statistic == pytest.approx(1 / 8)  # evenly spaced: the minimum
    apart = np.concatenate([np.arange(10), 1e6 + np.arange(10)])
    assert stats.dip(apart).statistic == pytest.approx(0.25, abs=1e-3)  # the limit of two equal modes
    assert math.isnan(stats.dip([1.0, 2.0, 3.0]).p_value) and stats.dip([1.0, 2.0, 3.0]).n == 3


def test_dip_p_value_is_uniform_for_uniform_samples():
    rng = np.random.default_rng(6)
    p_values = np.array([stats.dip(rng.random(12)).p_value for _ in range(400)])
    for level, tolerance in ((0.1, 0.055), (0.5, 0.09)):  # three standard errors, of the null's and of these samples
        assert np.mean(p_values <= level) == pytest.approx(level, abs=tolerance)
    two = np.concatenate([rng.normal(size=10), 6 + rng.normal(size=10)])
    assert stats.dip_power(12, 20.0) > 0.8 > 0.3 > stats.dip_power(12, 4.0)
    assert stats.dip(two).p_value <= 0.01 < 0.1 < stats.dip(rng.normal(size=20)).p_value


def slow_representative(mig: list[float], fit: list[float]) -> set[int]:
    """Return all indices at the minimum distance."""
    upper = [index for index, value in enumerate(mig) if value >= statistics.median(mig)]
    distances = dict.fromkeys(upper, 0.0)
    for values in (mig, fit):
        chosen = [values[index] for index in upper]
        if variance := statistics.pvariance(chosen):
            for index in upper:
                distances[index] += (values[index] - statistics.fmean(chosen)) ** 2 / variance
    return {index for index, distance in distances.items() if distance <= min(distances.values()) + 1e-9}


@settings(max_examples=100)
@given(pairs)
def test_representative_is_the_nearest_of_the_upper_half(rows):
    mig, fit = map(list, zip(*rows, strict=True))
    chosen, nearest = stats.representative(mig, fit), slow_representative(mig, fit)
    assert chosen in nearest and mig[chosen] == max(mig[index] for index in nearest)
