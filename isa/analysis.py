r"""Statistics over records: what can be said of a number that was measured once for every seed (Sec. 4, A.5).

Runs differ in their seed alone and are independent, so every function takes plain arrays, one value a run::

    mean_interval([0.11, 0.08, 0.14, 0.09, 0.12, 0.10])       # mean, bounds, number of runs
    compare(mig_of_vae, mig_of_isa_vae)                       # difference of means, bounds, p-value
    representative(mig, log_likelihood)                       # index of the model that A.5 would show

A run that diverged has no measurement and is to be left out before: values that are not finite are refused.
"""

from __future__ import annotations

import math
import warnings
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

__all__ = [
    "Comparison",
    "Interval",
    "compare",
    "mean_interval",
    "representative",
    "standard_error",
]

_RESAMPLES = 9_999
_PERMUTATIONS = 19_999  # all of them for up to eight runs a side, of which there are 12,870


class Interval(NamedTuple):
    """A mean with the bounds of a confidence interval, and the number of values."""

    estimate: float
    low: float
    high: float
    n: int


class Comparison(NamedTuple):
    """A difference of two means with the bounds of a confidence interval, a p-value, and the numbers of values."""

    difference: float
    low: float
    high: float
    p_value: float
    n_first: int
    n_second: int


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
    if all(np.ptp(sample) == 0 for sample in samples):
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


def mean_interval(values: ArrayLike, level: float = 0.95, seed: int = 0) -> Interval:
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
        NaN for none. Equal values give an interval without width.

    Raises
    ------
    ValueError
        If the values are not finite numbers in one dimension, or the level is no probability.
    """
    _level(level)
    values = _values("values", values)
    estimate = float(values.mean()) if len(values) else math.nan
    return Interval(estimate, *_bounds((values,), level, seed), len(values))


def compare(first: ArrayLike, second: ArrayLike, level: float = 0.95, seed: int = 0) -> Comparison:
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
    if len(first) == len(second) == 1:
        p_value = 1.0  # there is no deal that differs but the mirrored one
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
