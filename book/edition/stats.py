r"""Statistics over records: what can be said of a number that was measured once for every seed (Sec. 4, A.5).

Runs differ in their seed alone and are independent, so every function takes plain arrays, one value a run::

    mean_interval([0.11, 0.08, 0.14, 0.09, 0.12, 0.10])       # mean, bounds, number of runs
    compare(mig_of_vae, mig_of_isa_vae)                       # difference of means, bounds, p-value
    representative(mig, log_likelihood)                       # index of the model that A.5 would show
    compare_curves(curve(beta_1, fit_1, mig_1), curve(beta_2, fit_2, mig_2))  # the trade-off of Fig. 5b as one number
    dip(mig_of_vae)                                           # whether there is more than one mode

An interval or a comparison formats as text, ``f"{compare(a, b):+.2f}"``. A run that diverged has no measurement and is
to be left out before: values that are not finite are refused.
"""

from __future__ import annotations

import math
import warnings
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

__all__ = [
    "LEVEL",
    "Comparison",
    "Curve",
    "CurveComparison",
    "Dip",
    "Interval",
    "compare",
    "compare_curves",
    "curve",
    "dip",
    "holm",
    "mean_interval",
    "p_text",
    "representative",
    "standard_error",
]

LEVEL = 0.95
"""Probability with which an interval covers, unless another is given."""

_RESAMPLES = 9_999
_PERMUTATIONS = 19_999  # all of them for up to eight runs a side, of which there are 12,870
_CURVE_RESAMPLES = 1_999
_DIP_SAMPLES = 1_999
_ROUNDING = 1e-13
"""Values that differ by no more than this share of the greatest are equal, and differ by how they were rounded."""


class Interval(NamedTuple):
    """A mean with the bounds of a confidence interval, and the number of values."""

    estimate: float
    low: float
    high: float
    n: int

    def __format__(self, spec: str) -> str:
        """Text such as ``0.107 (0.095 to 0.120; n = 50)``, each number by the specification."""
        if not self.n:
            return "not recorded"
        return _text(spec, self.estimate, self.low, self.high, f"n = {self.n}")


class Comparison(NamedTuple):
    """A difference of two means with the bounds of a confidence interval, a p-value, and the numbers of values."""

    difference: float
    low: float
    high: float
    p_value: float
    n_first: int
    n_second: int

    @property
    def direction(self) -> int:
        """1 or -1 where the whole interval lies above or below 0, else 0: the sides cannot be told apart."""
        return int(self.low > 0) - int(self.high < 0)

    def __format__(self, spec: str) -> str:
        """Text such as ``+0.05 (+0.03 to +0.07; p = 0.002; n = 50 and 50)``."""
        if math.isnan(self.difference):
            return "not recorded"
        counts = f"{p_text(self.p_value)}; n = {self.n_first} and {self.n_second}"
        return _text(spec, self.difference, self.low, self.high, counts)


class Curve(NamedTuple):
    """MIG against reconstruction over beta: a point for each beta, ascending, and the runs behind it.

    All ``(B,)`` but ``runs``, which is ``(R, 3)``: beta, log-likelihood and MIG of each run. A standard error of a
    single run is NaN.
    """

    beta: np.ndarray
    log_likelihood: np.ndarray
    mig: np.ndarray
    log_likelihood_error: np.ndarray
    mig_error: np.ndarray
    n: np.ndarray
    runs: np.ndarray


class CurveComparison(NamedTuple):
    """How much higher one curve lies than another, averaged over log-likelihoods from ``left`` to ``right``."""

    difference: float
    low: float
    high: float
    p_value: float
    left: float
    right: float

    direction = Comparison.direction

    def __format__(self, spec: str) -> str:
        """Text such as ``+0.05 (+0.03 to +0.07; p = 0.002)``."""
        if math.isnan(self.difference):
            return "not recorded"
        return _text(spec, self.difference, self.low, self.high, p_text(self.p_value))


class Dip(NamedTuple):
    """Hartigan's dip, the p-value of one mode, and the number of values."""

    statistic: float
    p_value: float
    n: int


def p_text(p_value: float) -> str:
    """A p-value as text: ``p = 0.012``, ``p < 0.001``; where there is none, ``no test``."""
    if math.isnan(p_value):
        return "no test"
    return "p < 0.001" if p_value < 0.001 else f"p = {p_value:.{2 if p_value >= 0.1 else 3}f}"


def _text(spec: str, estimate: float, low: float, high: float, rest: str) -> str:
    bounds = "" if math.isnan(low) else f"{low:{spec}} to {high:{spec}}; "
    return f"{estimate:{spec}} ({bounds}{rest})"


def _values(name: str, values: ArrayLike) -> np.ndarray:
    values = np.asarray(values)
    if values.size == 0:
        values = values.astype(float)
    if values.ndim != 1 or values.dtype.kind not in "iufb":
        raise ValueError(
            f"{name} must be a one-dimensional array of numbers, got shape {values.shape} of {values.dtype}"
        )
    if not np.isfinite(values).all():
        index = int(np.flatnonzero(~np.isfinite(values))[0])
        raise ValueError(f"{name} must be finite, got {values[index]} at index {index}; leave out runs that diverged")
    return values.astype(float)


def _level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, got {level}")


def _difference(*samples: np.ndarray, axis: int = -1) -> np.ndarray:
    """Return the mean of one sample, or the second mean less the first."""
    return np.mean(samples[-1], axis=axis) - (np.mean(samples[0], axis=axis) if len(samples) == 2 else 0.0)


def _bounds(samples: tuple[np.ndarray, ...], level: float, seed: int) -> tuple[float, float]:
    """Return the interval of :func:`mean_interval` and :func:`compare` for one or two samples."""
    sizes = np.array([len(sample) for sample in samples])
    if sizes.min() < 3:
        return math.nan, math.nan
    estimate = float(_difference(*samples))
    variances = np.array([np.var(sample) for sample in samples])
    if all(np.ptp(sample) <= _ROUNDING * np.abs(sample).max() for sample in samples):
        return estimate, estimate
    shares = variances / (sizes - 1)
    error = math.sqrt(shares.sum())
    freedom = shares.sum() ** 2 / (shares**2 / (sizes - 1)).sum()  # Welch and Satterthwaite's; n - 1 for one sample
    quantile = float(stats.t.isf((1 - level) / 2, freedom))
    if 2.0 ** (1 - sizes.min()) > 1 - level:
        return estimate - quantile * error, estimate + quantile * error
    # a bootstrap's spread is that of the plug-in variance, and its tails are normal: both are made up for
    wider = quantile * error / math.sqrt((variances / sizes).sum())
    with warnings.catch_warnings():
        # in a heap of equal values BCa may put a bound on an end of what was resampled, which is what is meant
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        found = stats.bootstrap(
            samples,
            _difference,
            n_resamples=_RESAMPLES,
            confidence_level=1 - 2 * float(stats.norm.sf(wider)),
            method="BCa",
            vectorized=True,
            rng=np.random.default_rng(seed),
        ).confidence_interval
    return float(found.low), float(found.high)


def mean_interval(values: ArrayLike, level: float = LEVEL, seed: int = 0) -> Interval:
    """Mean of independent values with a bootstrap confidence interval.

    The interval is the bias-corrected and accelerated one (BCa; Efron, *Better bootstrap confidence intervals*, 1987),
    widened for small samples as Hesterberg does (*What teachers should know about the bootstrap*, 2015): its level is
    raised so that, for values without skew, it is as wide as Student's t.

    No bootstrap interval of a mean reaches beyond the least and the greatest value, between which the mean of a
    symmetric distribution lies with probability ``1 - 2^(1 - n)``. Where that is less than ``level`` (for fewer than
    six values at 0.95) the interval is Student's t instead; it takes the values for normal, and is wide.

    Parameters
    ----------
    values
        ``(n,)``.
    level
        Probability with which the interval covers the mean.
    seed
        Of the resampling.

    Returns
    -------
    Interval
        With bounds that are NaN for fewer than three values, of which no interval is worth drawing, and a mean that is
        NaN for none. Values that are equal, up to rounding, give an interval without width.

    Raises
    ------
    ValueError
        If the values are not finite numbers in one dimension, or the level is no probability.
    """
    _level(level)
    values = _values("values", values)
    estimate = float(values.mean()) if len(values) else math.nan
    return Interval(estimate, *_bounds((values,), level, seed), len(values))


def compare(first: ArrayLike, second: ArrayLike, level: float = LEVEL, seed: int = 0) -> Comparison:
    """Difference of two means over independent runs, second less first: bootstrap interval and permutation test.

    The interval is that of :func:`mean_interval` for two samples: BCa, widened to the degrees of freedom of Welch's t,
    and Welch's t itself where either side has too few values. The test asks how often a difference at least this far
    out arises when the values are dealt to the two sides at random, and doubles the smaller tail: over all deals where
    there are fewer than 20,000 of them (up to eight values a side), else over 19,999 random ones. It is a test that
    both sides have one distribution, of which the difference of means is what is looked at.

    Parameters
    ----------
    first, second
        ``(n_first,)`` and ``(n_second,)``; not paired.
    level
        Probability with which the interval covers the difference.
    seed
        Of the resampling and of random deals.

    Returns
    -------
    Comparison
        With bounds that are NaN where either side has fewer than three values, and everything NaN where one has none.

    Raises
    ------
    ValueError
        As :func:`mean_interval`.
    """
    _level(level)
    first, second = _values("first", first), _values("second", second)
    if not len(first) or not len(second):
        return Comparison(math.nan, math.nan, math.nan, math.nan, len(first), len(second))
    difference = float(_difference(first, second))
    bounds = _bounds((first, second), level, seed)
    if 1 in (len(first), len(second)):  # which scipy refuses: the one value may be any of all
        one, pooled = (first if len(first) == 1 else second), np.concatenate([first, second])
        p_value = min(1.0, 2 * min((pooled <= one).mean(), (pooled >= one).mean()))
    else:
        p_value = stats.permutation_test(
            (first, second),
            _difference,
            vectorized=True,
            n_resamples=_PERMUTATIONS,
            rng=np.random.default_rng(seed),
        ).pvalue
    return Comparison(difference, *bounds, float(p_value), len(first), len(second))


def standard_error(values: ArrayLike) -> float:
    """Standard error of the mean of independent values, as the paper's error bars; NaN for fewer than two."""
    values = _values("values", values)
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan


def representative(mig: ArrayLike, log_likelihood: ArrayLike) -> int:
    r"""Choose the model that stands for the others, as A.5 does.

    Among the upper half by MIG (all runs whose MIG is at least the median) the one with the least distance

    .. math:: d^2 = \frac{(m - \bar m)^2}{\operatorname{var} m} + \frac{(\ell - \bar\ell)^2}{\operatorname{var} \ell}

    where m is the MIG, l the log-likelihood, and means and variances are those of the upper half. A.5 calls it the
    Mahalanobis distance "defined by mean and variance of MIG score and reconstruction loss". This is read to the
    letter, as two variances without the covariance between them; with it, any three runs would be at one distance.

    Parameters
    ----------
    mig, log_likelihood
        ``(n,)`` each, one value a run.

    Returns
    -------
    int
        Its index. Of several at the least distance (as when the upper half has two runs) it is the one with the
        greatest MIG, then with the greatest log-likelihood, then the first.

    Raises
    ------
    ValueError
        If there is no run, the lengths differ, or a value is not finite.
    """
    mig, log_likelihood = _values("mig", mig), _values("log_likelihood", log_likelihood)
    if not len(mig) or len(mig) != len(log_likelihood):
        raise ValueError(
            f"mig and log_likelihood must have one value for each of at least one run, got {len(mig)} and "
            f"{len(log_likelihood)}"
        )
    upper = np.flatnonzero(mig >= np.median(mig))
    distance = np.zeros(len(upper))
    for values in (mig[upper], log_likelihood[upper]):
        if np.ptp(values) > 0:
            distance += (values - values.mean()) ** 2 / values.var()
    nearest = upper[distance <= distance.min() + 1e-9]
    return int(min(nearest, key=lambda index: (-mig[index], -log_likelihood[index], index)))


def holm(p_values: ArrayLike) -> np.ndarray:
    """P-values that hold for all tests of a family together (Holm, 1979); those that are NaN are no part of it.

    The i-th smallest of m is multiplied by ``m + 1 - i``, then raised to those before it, and cut off at 1.

    Parameters
    ----------
    p_values
        ``(m,)``.

    Returns
    -------
    ndarray
        ``(m,)``, in the same order.
    """
    p_values = np.asarray(p_values, dtype=float)
    adjusted = p_values.copy()
    order = np.argsort(p_values)[: np.isfinite(p_values).sum()]  # NaN is sorted last
    adjusted[order] = np.minimum(np.maximum.accumulate(p_values[order] * np.arange(len(order), 0, -1)), 1)
    return adjusted


def curve(beta: ArrayLike, log_likelihood: ArrayLike, mig: ArrayLike) -> Curve:
    """Mean and standard error of MIG and log-likelihood at each beta, as Fig. 5b, 5c and 6 show them.

    Parameters
    ----------
    beta, log_likelihood, mig
        ``(R,)`` each, one value a run.

    Raises
    ------
    ValueError
        If the lengths differ or a value is not finite.
    """
    given = {"beta": beta, "log_likelihood": log_likelihood, "mig": mig}
    columns = [_values(name, values) for name, values in given.items()]
    if len({len(column) for column in columns}) > 1:
        raise ValueError(
            f"beta, log_likelihood and mig must have one value for each run, got {[len(column) for column in columns]}"
        )
    runs = np.stack(columns, 1)
    betas = np.unique(runs[:, 0])
    groups = [runs[runs[:, 0] == value, 1:] for value in betas]
    means = np.array([group.mean(0) for group in groups]).reshape(-1, 2)
    errors = np.array([[standard_error(column) for column in group.T] for group in groups]).reshape(-1, 2)
    return Curve(betas, *means.T, *errors.T, np.array([len(group) for group in groups], dtype=int), runs)


def _on_grid(means: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """MIG over a grid of log-likelihood by linear interpolation, of means ``(B, 2)``: log-likelihood, MIG."""
    return np.interp(grid, *means[np.argsort(means[:, 0])].T)


def compare_curves(first: Curve, second: Curve, level: float = LEVEL, seed: int = 0) -> CurveComparison:
    """How much more MIG the second method reaches at an equal log-likelihood: the trade-off of Fig. 5b as one number.

    Each method's means, one a beta, are joined by straight lines in the plane of MIG and log-likelihood. The second
    line's height less the first's is averaged over the log-likelihoods that both reach.

    The interval is a percentile bootstrap: runs are resampled within each method and beta, their deviations from the
    mean stretched by the square root of n / (n - 1), with which the spread of few runs is not underestimated. The test
    deals the runs of each beta that both methods have to the methods at random, and doubles the smaller tail.

    Parameters
    ----------
    first, second
        From :func:`curve`.
    level
        Probability with which the interval covers the difference.
    seed
        Of the resampling and the deals.

    Returns
    -------
    CurveComparison
        All NaN where the curves have no log-likelihood in common; bounds and p-value are NaN where a beta has less than
        three runs.
    """
    _level(level)
    means = [np.stack([one.log_likelihood, one.mig], 1) for one in (first, second)]
    nothing = CurveComparison(*[math.nan] * 6)
    if min(map(len, means)) < 2:
        return nothing
    left, right = max(one[:, 0].min() for one in means), min(one[:, 0].max() for one in means)
    if left >= right:
        return nothing
    grid = np.linspace(left, right, 201)

    def height(first_means: np.ndarray, second_means: np.ndarray) -> float:
        return float(np.trapezoid(_on_grid(second_means, grid) - _on_grid(first_means, grid), grid) / (right - left))

    difference = height(*means)
    if min(first.n.min(), second.n.min()) < 3:
        return CurveComparison(difference, math.nan, math.nan, math.nan, left, right)
    groups = [[one.runs[one.runs[:, 0] == beta, 1:] for beta in one.beta] for one in (first, second)]
    rng = np.random.default_rng(seed)

    def resampled(group: np.ndarray) -> np.ndarray:
        n = len(group)
        mean = group.mean(0)
        return mean + math.sqrt(n / (n - 1)) * (group[rng.integers(n, size=(_CURVE_RESAMPLES, n))].mean(1) - mean)

    drawn = [np.stack([resampled(group) for group in side], 1) for side in groups]  # (resamples, betas, 2)
    low, high = np.quantile([height(*pair) for pair in zip(*drawn, strict=True)], [(1 - level) / 2, (1 + level) / 2])

    p_value = math.nan
    _, at_first, at_second = np.intersect1d(first.beta, second.beta, return_indices=True)
    if len(at_first):
        dealt = [np.repeat(one[None], _CURVE_RESAMPLES, 0) for one in means]
        for i, j in zip(at_first, at_second, strict=True):
            both = np.concatenate([groups[0][i], groups[1][j]])
            order = rng.permuted(np.tile(np.arange(len(both)), (_CURVE_RESAMPLES, 1)), axis=1)
            dealt[0][:, i], dealt[1][:, j] = (both[part].mean(1) for part in np.split(order, [first.n[i]], axis=1))
        heights = np.array([height(*pair) for pair in zip(*dealt, strict=True)])
        beyond = min((heights <= difference + 1e-12).sum(), (heights >= difference - 1e-12).sum())
        p_value = min(1.0, 2 * (1 + int(beyond)) / (1 + _CURVE_RESAMPLES))
    return CurveComparison(difference, float(low), float(high), p_value, float(left), float(right))


def _hull(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Indices of the corners of the greatest convex function that is at most y at each x; x ascends strictly."""
    corners: list[int] = []
    for i in range(len(x)):
        while len(corners) > 1:
            a, b = corners[-2:]
            if (y[b] - y[a]) * (x[i] - x[b]) < (y[i] - y[b]) * (x[b] - x[a]):
                break
            corners.pop()
        corners.append(i)
    return np.array(corners)


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
def _uniform_dips(n: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.array([_dip(rng.random(n)) for _ in range(_DIP_SAMPLES)])


def dip(values: ArrayLike, seed: int = 0) -> Dip:
    """Whether a distribution has more than one mode, as A.5 says of the MIG: the dip test of unimodality.

    The dip is the greatest distance between the distribution function of the sample and the closest one that has a
    single mode (Hartigan and Hartigan, *The dip test of unimodality*, 1985). It does not change when values are
    shifted, scaled or mirrored. Its p-value is the share of uniform samples of the same size, of 1,999 and this one,
    whose dip is at least as large: of all distributions with one mode the uniform one is the hardest to tell from two,
    so that a small p-value speaks against every single mode. A large one, with few values, says little.

    Parameters
    ----------
    values
        ``(n,)``.
    seed
        Of the uniform samples.

    Returns
    -------
    Dip
        NaN, with their number, for fewer than four values, which always have some single mode nearest by.

    Raises
    ------
    ValueError
        As :func:`mean_interval`.
    """
    values = _values("values", values)
    if len(values) < 4:
        return Dip(math.nan, math.nan, len(values))
    statistic = _dip(values)
    beyond = int((_uniform_dips(len(values), seed) >= statistic - 1e-12).sum())
    return Dip(statistic, (1 + beyond) / (1 + _DIP_SAMPLES), len(values))
