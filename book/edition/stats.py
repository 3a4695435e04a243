r"""Statistics over records, of numbers that were measured once for every seed (Sec. 4, A.5).

Runs differ in their seed alone and are independent, so every function takes plain arrays, one value a run::

    mean_interval([0.11, 0.08, 0.14, 0.09, 0.12, 0.10])       # mean, bounds, number of runs
    compare(mig_of_vae, mig_of_isa_vae)                       # difference of means, bounds, p-value
    representative(mig, log_likelihood)                       # index of the model that A.5 would show
    compare_curves(curve(beta_1, fit_1, mig_1), curve(beta_2, fit_2, mig_2))  # the trade-off of Fig. 5b as one number
    compare_best(mig_by_beta_1, mig_by_beta_2)                # difference of the means at the best betas
    dip(mig_of_vae)                                           # p-value of a single mode

An interval or a comparison formats as text, ``f"{compare(a, b):+.2f}"``. All values must be finite: leave out runs that
diverged.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Collection, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats
from scipy.optimize import isotonic_regression

__all__ = ["LEVEL", "OF_A_REPRESENTATIVE", "Comparison", "Curve", "Dip", "Interval", "compare", "compare_best"]
__all__ += ["compare_curves", "compare_maxima", "compare_medians", "contrast", "curve", "dip", "dip_power"]
__all__ += ["enough_betas", "holm", "mean_interval", "p_text", "printed_error", "representative", "seed_means"]
__all__ += ["upper_half"]

LEVEL = 0.95
"""Probability with which an interval covers."""

OF_A_REPRESENTATIVE = 1 / 50 + 0.02  # it is a fifth of the half's standard deviation away from the half's mean
"""Variance of the model that represents the upper half of 50 runs, in that of :func:`upper_half`."""

_RESAMPLES = 9_999
_PERMUTATIONS = 19_999  # all of them for up to eight runs a side, of which there are 12,870
_DIP_SAMPLES = 1_999


class Interval(NamedTuple):
    """A mean with the bounds of a confidence interval, and the number of values."""

    estimate: float
    low: float
    high: float
    n: int

    def __format__(self, spec: str) -> str:
        """Return a text such as ``0.107 (0.095 to 0.120; n = 50)``, each number by the specification."""
        return _text(spec, self.estimate, self.low, self.high, f"n = {self.n}")


class Comparison(NamedTuple):
    """A difference of two means, or of two curves' heights, with the bounds of a confidence interval and a p-value."""

    difference: float
    low: float = math.nan
    high: float = math.nan
    p_value: float = math.nan
    n_first: int = 0  #: number of values; 0 for curves
    n_second: int = 0
    left: float = math.nan  #: of curves: the smallest log-likelihood that both reach
    right: float = math.nan

    @property
    def direction(self) -> int:
        """1 or -1 if the whole interval lies above or below 0, else 0: the sides do not differ significantly."""
        return int(self.low > 0) - int(self.high < 0)

    def __format__(self, spec: str) -> str:
        """Return a text such as ``+0.05 (+0.03 to +0.07; p = 0.002; n = 50 and 50)``."""
        test = "" if math.isnan(self.p_value) and not math.isnan(self.low) else p_text(self.p_value)
        counts = f"n = {self.n_first} and {self.n_second}" if self.n_first else ""
        return _text(spec, self.difference, self.low, self.high, "; ".join(filter(None, (test, counts))))


class Curve(NamedTuple):
    """MIG against reconstruction over beta: a point for each beta, ascending, and its runs.

    All ``(B,)`` except ``runs``, ``(R, 4)``: beta, log-likelihood, MIG and seed of each run. A standard error of a
    single run is NaN.
    """

    beta: np.ndarray
    log_likelihood: np.ndarray
    mig: np.ndarray
    log_likelihood_error: np.ndarray
    mig_error: np.ndarray
    n: np.ndarray
    runs: np.ndarray

    @property
    def groups(self) -> list[np.ndarray]:
        """Log-likelihood, MIG and seed of the runs at each beta, ``(n, 3)`` each."""
        return [self.runs[self.runs[:, 0] == beta, 1:] for beta in self.beta]


class Dip(NamedTuple):
    """Hartigan's dip, the p-value of one mode, and the number of values."""

    statistic: float
    p_value: float
    n: int


def p_text(p_value: float) -> str:
    """Return a p-value as text: ``p = 0.012``, ``p < 0.001``; where there is none, ``no test``."""
    if math.isnan(p_value):
        return "no test"
    return "p < 0.001" if p_value < 0.001 else f"p = {p_value:.{2 if p_value >= 0.1 else 3}f}"


def _text(spec: str, estimate: float, low: float, high: float, rest: str) -> str:
    if math.isnan(estimate):
        return "not recorded"
    bounds = "" if math.isnan(low) else f"{low:{spec}} to {high:{spec}}"
    return f"{estimate:{spec}} ({'; '.join(filter(None, (bounds, rest)))})"


def _difference(*samples: np.ndarray, axis: int = -1) -> np.ndarray:
    """Return the mean of one sample, or the second mean minus the first."""
    return np.mean(samples[-1], axis=axis) - (np.mean(samples[0], axis=axis) if len(samples) == 2 else 0.0)


def _bounds(samples: tuple[np.ndarray, ...], level: float) -> tuple[float, float]:
    """Return the interval of :func:`mean_interval` and :func:`compare` for one or two samples."""
    sizes = np.array([len(sample) for sample in samples])
    if sizes.min() < 3:
        return math.nan, math.nan
    estimate = float(_difference(*samples))
    if all(np.ptp(sample) <= 1e-13 * np.abs(sample).max() for sample in samples):  # equal up to rounding
        return estimate, estimate
    variances = np.array([np.var(sample) for sample in samples])
    shares = variances / (sizes - 1)
    error = math.sqrt(shares.sum())
    freedom = shares.sum() ** 2 / (shares**2 / (sizes - 1)).sum()  # Welch and Satterthwaite's; n - 1 for one sample
    reach = float(stats.t.isf((1 - level) / 2, freedom)) * error
    if 2.0 ** (1 - sizes.min()) > 1 - level:
        return estimate - reach, estimate + reach
    # a bootstrap's spread is that of the plug-in variance, and its tails are normal: correct for both
    wider = reach / math.sqrt((variances / sizes).sum())
    with warnings.catch_warnings():
        # with many equal values BCa may put a bound on an end of the resampled means, as intended
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        interval = stats.bootstrap(
            samples,
            _difference,
            n_resamples=_RESAMPLES,
            confidence_level=1 - 2 * float(stats.norm.sf(wider)),
            method="BCa",
            vectorized=True,
            rng=np.random.default_rng(0),
        ).confidence_interval
    return float(interval.low), float(interval.high)


def mean_interval(values: ArrayLike, level: float = LEVEL) -> Interval:
    """Return the mean of independent values ``(n,)`` with a bootstrap confidence interval.

    The interval is the bias-corrected and accelerated one (BCa; Efron, *Better bootstrap confidence intervals*, 1987),
    widened for small samples as Hesterberg does (*What teachers should know about the bootstrap*, 2015): its level is
    raised so that, for values without skew, it is as wide as Student's t. The width is zero for equal values.

    No bootstrap interval of a mean reaches beyond the smallest and the largest value, between which the mean of a
    symmetric distribution lies with probability ``1 - 2^(1 - n)``. Where that is less than ``level`` (for three to five
    values at 0.95) the interval is Student's t instead; it takes the values for normal, and is wide.
    """
    values = np.asarray(values, dtype=float)
    estimate = float(values.mean()) if len(values) else math.nan
    return Interval(estimate, *_bounds((values,), level), len(values))


def compare(first: ArrayLike, second: ArrayLike) -> Comparison:
    """Return the difference of two means over independent runs, second minus first, with interval and p-value.

    The interval is that of :func:`mean_interval` for two samples: BCa, widened to the degrees of freedom of Welch's t,
    and Welch's t itself where either side has too few values. The p-value is that of a permutation test of the
    difference of means, twice the smaller tail: over all assignments of the values to the two sides if there are fewer
    than 20,000 (up to eight values a side), else over 19,999 random ones. Its null hypothesis is that both sides have
    one distribution. The values ``(n_first,)`` and ``(n_second,)`` are not paired; bounds need three on either side.
    """
    first, second = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    if not len(first) or not len(second):
        return Comparison(math.nan, n_first=len(first), n_second=len(second))
    if 1 in (len(first), len(second)):  # which scipy refuses: the one value may be any of all
        single, pooled = (first if len(first) == 1 else second), np.concatenate([first, second])
        p_value = min(1.0, 2 * min((pooled <= single).mean(), (pooled >= single).mean()))
    else:
        p_value = stats.permutation_test(
            (first, second), _difference, vectorized=True, n_resamples=_PERMUTATIONS, rng=np.random.default_rng(0)
        ).pvalue
    bounds = _bounds((first, second), LEVEL)
    return Comparison(float(_difference(first, second)), *bounds, float(p_value), len(first), len(second))


def compare_medians(first: ArrayLike, second: ArrayLike) -> Comparison:
    """Return the difference of two medians, second minus first, with an interval for any distribution.

    Each median's interval is exact, between two of the values. They are combined as by Zou and Donner, *Construction of
    confidence limits about effect measures* (2008). Bounds need six values on either side.
    """
    sides = [np.asarray(side, dtype=float) for side in (first, second)]
    (l1, u1), (l2, u2) = (stats.quantile_test(side, p=0.5).confidence_interval(LEVEL) for side in sides)
    m1, m2 = map(np.median, sides)
    low, high = m2 - m1 - math.hypot(m2 - l2, u1 - m1), m2 - m1 + math.hypot(u2 - m2, m1 - l1)
    return Comparison(float(m2 - m1), float(low), float(high), math.nan, *map(len, sides))


def compare_maxima(first: ArrayLike, second: ArrayLike) -> Comparison:
    """Return the difference of two maxima, second minus first, with the p-value of a permutation test, in closed form.

    Where the j highest values of all are on one side, of ``m`` values, the maxima differ as much in a share
    ``m (m - 1) ... / N (N - 1) ...`` (j factors each) of all assignments of the N values to the sides. It is doubled.
    """
    first, second = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    sides = sorted([first, second], key=np.max)
    above = int((sides[1] > sides[0].max()).sum())
    p_value = min(1.0, 2 * math.comb(len(sides[1]), above) / math.comb(len(first) + len(second), above))
    return Comparison(float(second.max() - first.max()), p_value=p_value, n_first=len(first), n_second=len(second))


def upper_half(values: ArrayLike, mig: ArrayLike) -> np.ndarray:
    """Return numbers, one a run, whose mean is that of the values over the upper half by MIG, and varies like it.

    They are the influences of the runs on that mean. ``values`` may be the MIG itself.
    """
    values, mig = np.asarray(values, dtype=float), np.asarray(mig, dtype=float)
    upper = mig >= np.median(mig)
    centre = np.median(mig) if np.array_equal(values, mig) else values.mean()
    return centre + upper * (values - centre) * (len(upper) / upper.sum())


def printed_error(*halves: np.ndarray) -> float:
    """Return the standard error of the difference of two representatives of 50 runs that scatter like these halves."""
    return math.sqrt(OF_A_REPRESENTATIVE * sum(np.var(half, ddof=min(1, len(half) - 1)) for half in halves))


def representative(mig: ArrayLike, log_likelihood: ArrayLike) -> int:
    r"""Return the index of the model that represents the others, as A.5 chooses it.

    Among the upper half by MIG (all runs whose MIG is at least the median) it is the one with the minimum distance

    .. math:: d^2 = \frac{(m - \bar m)^2}{\operatorname{var} m} + \frac{(\ell - \bar\ell)^2}{\operatorname{var} \ell}

    where m is the MIG, l the log-likelihood, and means and variances are those of the upper half. A.5 calls it the
    Mahalanobis distance "defined by mean and variance of MIG score and reconstruction loss". This is read to the
    letter, as two variances without the covariance between them; with it, any three runs would be at one distance.

    Of several at the minimum distance (as when the upper half has two runs) it is the one with the highest MIG, then
    with the highest log-likelihood, then the first.
    """
    mig, log_likelihood = np.asarray(mig, dtype=float), np.asarray(log_likelihood, dtype=float)
    upper = np.flatnonzero(mig >= np.median(mig))
    distance = np.zeros(len(upper))
    for values in (mig[upper], log_likelihood[upper]):
        if np.ptp(values) > 0:
            distance += (values - values.mean()) ** 2 / values.var()
    nearest = upper[distance <= distance.min() + 1e-9]
    return int(min(nearest, key=lambda index: (-mig[index], -log_likelihood[index], index)))


def seed_means(values: ArrayLike, seeds: ArrayLike) -> np.ndarray:
    """Return the mean value of the runs of each seed, which may be correlated; both arguments are ``(R,)``."""
    values, seeds = np.asarray(values, dtype=float), np.asarray(seeds)
    return np.array([values[seeds == seed].mean() for seed in np.unique(seeds)])


def holm(p_values: ArrayLike) -> np.ndarray:
    """Return p-values that hold for all tests of a family together (Holm, 1979), except those that are NaN.

    The i-th smallest of m is multiplied by ``m + 1 - i``, then raised to those before it, and cut off at 1.
    """
    p_values = np.asarray(p_values, dtype=float)
    adjusted = p_values.copy()
    order = np.argsort(p_values)[: np.isfinite(p_values).sum()]  # NaN is sorted last
    adjusted[order] = np.minimum(np.maximum.accumulate(p_values[order] * np.arange(len(order), 0, -1)), 1)
    return adjusted


def curve(beta: ArrayLike, log_likelihood: ArrayLike, mig: ArrayLike, seed: ArrayLike | None = None) -> Curve:
    """Return mean and standard error of MIG and log-likelihood at each beta, as Fig. 5b, 5c and 6 show them.

    Each argument is ``(R,)``, one value a run. Without seeds, all runs are taken for independent, with NaN for a seed.
    """
    seed = np.full(len(beta), math.nan) if seed is None else seed
    runs = np.stack([np.asarray(column, dtype=float) for column in (beta, log_likelihood, mig, seed)], 1)
    betas, n = np.unique(runs[:, 0], return_counts=True)
    groups = [runs[runs[:, 0] == value, 1:3] for value in betas]
    means = np.array([group.mean(0) for group in groups]).reshape(-1, 2)
    spread = [group.std(0, ddof=1) if len(group) > 1 else np.full(2, math.nan) for group in groups]
    errors = np.array(spread).reshape(-1, 2) / np.sqrt(n)[:, None]
    return Curve(betas, *means.T, *errors.T, n, runs)


def contrast(
    values: Sequence[ArrayLike], weights: ArrayLike, seeds: Sequence[ArrayLike], estimate: float | None = None
) -> Comparison:
    """Return a weighted sum of the means of several cells of runs, or an estimate that varies like it, by Student's t.

    Deviations from the cells' means are summed over each seed and squared, since runs of one seed may be correlated; a
    NaN is a seed of its own. Degrees of freedom are Satterthwaite's for runs that are not correlated (Bell and
    McCaffrey, 2002). Bounds are NaN if a cell has fewer than three runs.
    """
    cells = [weight * np.asarray(cell, dtype=float) for weight, cell in zip(weights, values, strict=True)]
    sizes, names = np.array([*map(len, cells)]), np.concatenate([np.asarray(one, dtype=float) for one in seeds])
    estimate = float(sum(cell.mean() for cell in cells)) if estimate is None else estimate
    n = (int(sizes[0]), int(sizes[1])) if len(sizes) == 2 else (0, 0)
    if sizes.min() < 3:
        return Comparison(estimate, n_first=n[0], n_second=n[1])
    names = np.where(np.isnan(names), -1.0 - np.arange(len(names)), names)
    of_seed, of_cell = np.unique(names)[:, None] == names, np.repeat(np.arange(len(sizes)), sizes)
    shares = np.repeat(1 / np.sqrt(sizes * (sizes - 1)), sizes)
    same_cell = np.stack([of_seed[:, of_cell == cell].mean(1) for cell in range(len(sizes))], 1)[:, of_cell]
    sums = (of_seed - same_cell) * shares  # what each run adds to the sum of a seed, (seeds, runs)
    error = max(float(np.linalg.norm(sums @ np.concatenate(cells))), 1e-300)
    expected = (sums * np.repeat([cell.var(ddof=1) for cell in cells], sizes)) @ sums.T
    freedom = max(float(np.trace(expected) ** 2 / max((expected**2).sum(), 1e-300)), 1.0)
    reach, p_value = stats.t.isf((1 - LEVEL) / 2, freedom) * error, 2 * stats.t.sf(abs(estimate) / error, freedom)
    return Comparison(estimate, float(estimate - reach), float(estimate + reach), float(p_value), *n)


def compare_curves(first: Curve, second: Curve) -> Comparison:
    """Return how much more MIG the second method reaches at equal log-likelihood, the trade-off of Fig. 5b.

    Each method's means, one a beta, are joined by straight lines in the plane of MIG and log-likelihood. The second
    line's height minus the first's is averaged over the log-likelihoods that both reach.

    Interval and p-value are those of :func:`contrast`, by the delta method: to first order, a run adds its deviation
    from the means at its beta, times the derivative of this number with respect to them.

    All is NaN if the curves have no log-likelihood in common, bounds and p-value if a beta has fewer than three runs.
    """
    curves = (first, second)
    if not all(len(one.beta) > 1 for one in curves):
        return Comparison(math.nan)
    means = np.concatenate([np.stack([one.log_likelihood, one.mig], 1) for one in curves])  # (B1 + B2, 2)
    size = len(first.beta)

    def height(means: np.ndarray) -> tuple[float, float, float]:
        sides = [side[np.argsort(side[:, 0])] for side in (means[:size], means[size:])]
        left, right = max(side[0, 0] for side in sides), min(side[-1, 0] for side in sides)
        grid = np.linspace(left, right, 201)
        below, above = (np.interp(grid, *side.T) for side in sides)
        rise = above - below
        return float(((rise[1:] + rise[:-1]) / 2).mean()), float(left), float(right)

    difference, left, right = height(means)
    if left >= right:
        return Comparison(math.nan)
    if min(first.n.min(), second.n.min()) < 3:
        return Comparison(difference, left=left, right=right)
    groups = [group for one in curves for group in one.groups]
    parts = [np.zeros(len(group)) for group in groups]
    for cell, coordinate in np.ndindex(means.shape):
        step = np.zeros_like(means)
        step[cell, coordinate] = 1e-4 * np.ptp(means[:, coordinate]) + 1e-12
        slope = (height(means + step)[0] - height(means - step)[0]) / (2 * step[cell, coordinate])
        parts[cell] += slope * groups[cell][:, coordinate]
    stretched = [math.sqrt(len(part) / (len(part) - 1)) for part in parts]  # the statistic is not quite linear
    found = contrast(parts, stretched, [group[:, 2] for group in groups], difference)
    return found._replace(left=left, right=right)


def enough_betas(curves: Sequence[Curve], declared: Sequence[Collection[float]]) -> bool:
    """True if curves are complete enough for a verdict: all declared betas, or at least five with five runs each."""
    return all(
        len(one.beta) > 1 and (set(betas) <= {*one.beta.tolist()} or (one.n >= 5).sum() >= 5)
        for one, betas in zip(curves, declared, strict=True)
    )


def compare_best(first: Sequence[ArrayLike], second: Sequence[ArrayLike]) -> Comparison:
    """Return the difference of the highest means, second minus first, of samples of which the best is chosen by them.

    The interval allows for the choice: the lower bound is the highest, over the second side's samples, of their lowest
    lower bound over the first side's, each by Welch's t with Bonferroni's correction for the number of the second
    side's samples; the upper bound likewise. Bounds are NaN if a sample has fewer than three values.
    """
    sides = [[np.asarray(sample, dtype=float) for sample in side] for side in (first, second)]
    best = [max(side, key=np.mean) for side in sides]
    sizes = [np.array([len(sample) for sample in side]) for side in sides]
    mean = [np.array([sample.mean() for sample in side]) for side in sides]
    bounds = math.nan, math.nan
    if min(map(np.min, sizes)) >= 3:
        error = [np.array([sample.var(ddof=1) for sample in side]) / n for side, n in zip(sides, sizes, strict=True)]
        gap, variance = mean[1][:, None] - mean[0], error[1][:, None] + error[0]  # (second, first)
        parts = error[1][:, None] ** 2 / (sizes[1][:, None] - 1) + error[0] ** 2 / (sizes[0] - 1)
        freedom = np.maximum(variance, 1e-150) ** 2 / np.maximum(parts, 1e-300)
        reach = [np.sqrt(variance) * stats.t.isf((1 - LEVEL) / 2 / len(n), freedom) for n in sizes]
        bounds = float((gap - reach[1]).min(1).max()), float((gap + reach[0]).max(0).min())
    return Comparison(float(mean[1].max() - mean[0].max()), *bounds, n_first=len(best[0]), n_second=len(best[1]))


def _hull(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return indices of the corners of the greatest convex minorant of y at x: its slopes are the isotonic ones."""
    return isotonic_regression(np.diff(y) / np.diff(x), weights=np.diff(x)).blocks


def _dip(values: np.ndarray) -> float:
    """Hartigan's dip of a sample, by the algorithm of Hartigan and Hartigan (1985), Sec. 3, in counts."""
    x, count = np.unique(values, return_counts=True)
    upper = np.cumsum(count).astype(float)  # the distribution function at x, and left of it, times n
    lower = upper - count
    dip, low, high = 1.0, 0, len(x) - 1
    while low < high:
        part = slice(low, high + 1)
        convex = low + _hull(x[part], lower[part])
        concave = low + _hull(x[part], -upper[part])
        at_convex = np.interp(x[convex], x[concave], upper[concave]) - lower[convex]
        at_concave = upper[concave] - np.interp(x[concave], x[convex], lower[convex])
        if at_convex.max() >= at_concave.max():
            new_low = convex[at_convex.argmax()]
            new_high = concave[np.searchsorted(concave, new_low)]
        else:
            new_high = concave[at_concave.argmax()]
            new_low = convex[np.searchsorted(convex, new_high, side="right") - 1]
        if max(at_convex.max(), at_concave.max()) <= dip:
            break
        rise = upper[low : new_low + 1] - np.interp(x[low : new_low + 1], x[convex], lower[convex])
        fall = np.interp(x[new_high : high + 1], x[concave], upper[concave]) - lower[new_high : high + 1]
        dip = max(dip, rise.max(), fall.max())
        if (new_low, new_high) == (low, high):
            break
        low, high = new_low, new_high
    return dip / (2 * len(values))


@cache
def _uniform_dips(n: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.array([_dip(rng.random(n)) for _ in range(_DIP_SAMPLES)])


def dip(values: ArrayLike) -> Dip:
    """Test if a distribution has a single mode, which A.5 denies of the MIG: the dip test of unimodality.

    The dip is the maximum distance between the distribution function of the sample and the closest one that has a
    single mode (Hartigan and Hartigan, *The dip test of unimodality*, 1985). It does not change when values are
    shifted, scaled or mirrored. Its p-value is the share of uniform samples of the same size, of 1,999 and this one,
    whose dip is at least as large. Of all distributions with one mode the uniform one is the hardest to distinguish
    from two modes, so a small p-value is evidence against any single mode. A large one, with few values, says little.

    Statistic and p-value are NaN for fewer than four values.
    """
    values = np.asarray(values, dtype=float)
    if len(values) < 4:
        return Dip(math.nan, math.nan, len(values))
    statistic = _dip(values)
    beyond = int((_uniform_dips(len(values)) >= statistic - 1e-12).sum())
    return Dip(statistic, (1 + beyond) / (1 + _DIP_SAMPLES), len(values))


@cache
def dip_power(n: int, separation: float = 8.0) -> float:
    """Return how often the dip test refutes one mode of n values from two, ``separation`` standard deviations apart."""
    rng, shape = np.random.default_rng(0), (_DIP_SAMPLES // 5, n)
    samples = rng.standard_normal(shape) + separation * (rng.random(shape) < 0.5)
    return float(np.mean([dip(sample).p_value < 1 - LEVEL for sample in samples]))
