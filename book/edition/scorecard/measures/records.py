"""Measures of claims about trained models, from the records of sweeps."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, count, product

import numpy as np

from edition import stats
from edition.scorecard.evidence import Evidence, Method, Rows, Setting, method_text
from edition.scorecard.register import measure
from edition.scorecard.rules import (
    Finding,
    Judged,
    Outcome,
    direction,
    holds,
    majority,
    printed_value,
    together,
)
from edition.stats import compare, compare_curves, mean_interval
from edition.studies import load_record

__all__ = ["change_of_difference"]

_FEWEST = 6
"""Runs a side from which medians and maxima are compared."""


def _column(rows: Rows, name: str, beta: float | None = None) -> np.ndarray:
    return np.array([row[name] for row in rows if beta in (None, row["beta"])], dtype=float)


def _finding(setting: Setting, outcome: Outcome, text: str) -> Finding:
    return Finding(outcome, text, setting.text, setting.falls_short)


@measure
def higher_distribution(
    evidence: Evidence, dataset: str, first: Method, second: Method, beta: float
) -> Iterator[Finding]:
    """Test if mean, median and maximum of the MIG are higher for the second method."""
    for setting, sides in evidence.compared(dataset, (first, beta), (second, beta)):
        mig = [_column(side, "mig") for side in sides]
        difference = compare(*mig)
        n = min(map(len, mig))
        text = f"mean MIG {difference:+.3f}"
        parts = [direction(difference)]
        for name, of in (("median", np.median), ("maximum", np.max)):
            low, high = (float(of(values[:n])) for values in mig)
            text += f"; {name} {low:.3f} and {high:.3f}"
            parts.append(Outcome.OPEN if n < _FEWEST else holds(high > low))
        yield _finding(setting, together(parts), text)


def _printed(setting: Setting, judged: Iterable[Judged], text: str) -> Finding:
    """Return the finding on several printed values, which are not judged by evidence that falls short."""
    outcomes, texts = zip(*judged, strict=True)
    return _finding(setting, Outcome.OPEN if setting.falls_short else together(outcomes), text + "".join(texts))


@measure
def printed_model(
    evidence: Evidence, dataset: str, method: Method, beta: float, mig: float, log_likelihood: float
) -> Iterator[Finding]:
    """Test if the printed values of a representative model could be those of one of ours."""
    for setting, rows in evidence.runs(dataset, method, beta).items():
        ours, fit = _column(rows, "mig"), _column(rows, "log_likelihood")
        chosen, upper = stats.representative(ours, fit), ours >= np.median(ours)
        text = f"our representative of {len(rows)}: MIG {ours[chosen]:.2f}, log-likelihood {fit[chosen]:.2f}"
        judged = [
            printed_value(ours[upper], mig, "MIG"),
            printed_value(fit[upper], log_likelihood, "log-likelihood"),
        ]
        yield _printed(setting, judged, text)


@measure
def differs(
    evidence: Evidence, dataset: str, first: Method, second: Method, beta: float | list[float], signs: dict[str, int]
) -> Iterator[Finding]:
    """Test if MIG, log-likelihood or both are higher (sign 1) or lower (-1) on the second side.

    Sides are two methods at one beta, or at a beta each.
    """
    shown = {"mig": "MIG {:+.3f}", "log_likelihood": "log-likelihood {:+.2f}"}
    for setting, sides in evidence.compared(dataset, *zip((first, second), np.broadcast_to(beta, 2), strict=True)):
        differences = {name: compare(*(_column(side, name) for side in sides)) for name in signs}
        outcome = together(direction(differences[name], sign) for name, sign in signs.items())
        yield _finding(setting, outcome, "; ".join(shown[name].format(one) for name, one in differences.items()))


def _curve(rows: Rows) -> stats.Curve:
    return stats.curve(*(_column(rows, name) for name in ("beta", "log_likelihood", "mig")))


def _over(methods: Sequence[Method], betas: Sequence[float]) -> list[tuple[Method, Sequence[float] | None]]:
    """Return the methods with their betas; with any for FactorVAE, whose weight is another."""
    return [(method, None if method == "factor-vae" else betas) for method in methods]


@measure
def better_trade_off(
    evidence: Evidence, dataset: str, method: Method, baselines: Sequence[Method], betas: Sequence[float]
) -> Iterator[Finding]:
    """Test if a method reaches more MIG than each of the baselines at equal log-likelihood."""
    for setting, (own, *others) in evidence.compared(dataset, *_over((method, *baselines), betas)):
        differences = [compare_curves(_curve(other), _curve(own)) for other in others]
        if not all(math.isnan(one.difference) for one in differences):
            texts = [f"over {method_text(name)} {one:+.3f}" for name, one in zip(baselines, differences, strict=True)]
            yield _finding(setting, together(map(direction, differences)), "MIG at equal fit " + "; ".join(texts))


def _over_rivals(
    mig: np.ndarray, names: Sequence[Method], rivals: Sequence[Rows], least_fit: float = -math.inf
) -> Judged:
    """Compare MIG with each rival's at the beta that suits it best, of those where it fits at least this well."""
    parts, texts = [], []
    for name, rows in zip(names, rivals, strict=True):
        means = _curve(rows)
        fits = np.flatnonzero(means.log_likelihood >= least_fit)
        if len(means.beta) == 1:  # a single one recorded need not be the best
            parts.append(Outcome.OPEN)
            texts.append(f"over {method_text(name)} at other β not recorded")
        elif len(fits):
            beta = means.beta[fits[means.mig[fits].argmax()]]
            difference = compare(_column(rows, "mig", beta), mig)
            parts.append(direction(difference))
            texts.append(f"over {method_text(name)} at β = {beta:g} {difference:+.3f}")
    return together(parts), "; ".join(texts)


@measure
def best_of_all(
    evidence: Evidence, dataset: str, method: Method, beta: float, others: Sequence[Method], betas: Sequence[float]
) -> Iterator[Finding]:
    """Test if a method at one beta has a higher MIG than every other method at the beta that suits it best."""
    for setting, (own, *rivals) in evidence.compared(dataset, (method, beta), *_over(others, betas)):
        outcome, text = _over_rivals(_column(own, "mig"), others, rivals)
        yield _finding(setting, outcome, "MIG " + text)


@measure
def unmatched_at_better_fit(
    evidence: Evidence, dataset: str, method: Method, baselines: Sequence[Method], betas: Sequence[float]
) -> Iterator[Finding]:
    """Test if baselines stay below the method's best MIG wherever their fit is at least as good as it has there."""
    for setting, (own, *rivals) in evidence.compared(dataset, *_over((method, *baselines), betas)):
        means = _curve(own)
        if len(means.beta) > 1:
            best = means.mig.argmax()
            beta, fit = means.beta[best], means.log_likelihood[best]
            outcome, text = _over_rivals(_column(own, "mig", beta), baselines, rivals, fit)
            text = f"best at β = {beta:g}, log-likelihood {fit:.1f}; MIG {text or 'without a rival that fits as well'}"
            yield _finding(setting, outcome, text)


@measure
def shrinking_advantage(
    evidence: Evidence, dataset: str, first: Method, second: Method, low: float, high: float
) -> Iterator[Finding]:
    """Test if the second method's advantage in MIG is smaller at the larger beta."""
    sides = [(method, beta) for beta, method in product((low, high), (first, second))]
    for setting, groups in evidence.compared(dataset, *sides):
        mig = [_column(rows, "mig") for rows in groups]
        at_low, at_high = compare(*mig[:2]), compare(*mig[2:])
        change = change_of_difference(at_low, at_high)
        text = f"advantage {at_low:+.3f} at β = {low:g}, {at_high:+.3f} at β = {high:g}; change {change:+.3f}"
        yield _finding(setting, direction(change, -1), text)


def change_of_difference(before: stats.Comparison, after: stats.Comparison) -> stats.Interval:
    """Return the difference of two independent differences, second minus first, with an interval made of theirs.

    After Zou and Donner, *Construction of confidence limits about effect measures* (2008). Its number of values is the
    smallest of any side.
    """
    change = after.difference - before.difference
    low = change - math.hypot(after.difference - after.low, before.high - before.difference)
    high = change + math.hypot(after.high - after.difference, before.difference - before.low)
    return stats.Interval(change, low, high, min(before.n_first, before.n_second, after.n_first, after.n_second))


def _pooled(evidence: Evidence, dataset: str, methods: Sequence[Method]) -> list[tuple[Setting, list[Rows]]]:
    """Return settings in which any of the methods was trained, each with the runs of those that were."""
    pooled: dict[Setting, list[Rows]] = {}
    for method in methods:
        for setting, rows in evidence.runs(dataset, method).items():
            pooled.setdefault(setting, []).append(rows)
    return sorted(pooled.items())


@measure
def several_modes(evidence: Evidence, dataset: str, methods: Sequence[Method]) -> Iterator[Finding]:
    """Test if the MIG has more than one mode, for most methods and betas."""
    for setting, groups in _pooled(evidence, dataset, methods):
        samples = [_column(rows, "mig", beta) for rows in groups for beta in sorted({row["beta"] for row in rows})]
        p_values = [stats.dip(values).p_value for values in samples if len(values) >= 10]
        if p_values:
            refuted = int((stats.holm(p_values) < 1 - stats.LEVEL).sum())
            outcome = Outcome.YES if 2 * refuted > len(p_values) else Outcome.PART if refuted else Outcome.OPEN
            text = f"one mode refuted for {refuted} of {len(p_values)} combinations of method and β"
            yield _finding(setting, outcome, text)


@measure
def unused_latents(evidence: Evidence, dataset: str, methods: Sequence[Method]) -> Iterator[Finding]:
    """Test if most runs leave latents unused."""
    for setting, groups in _pooled(evidence, dataset, methods):
        active, latents = (_column([*chain(*groups)], name) for name in ("active_units", "latent_dim"))
        outcome, text = majority(active < latents, "runs")
        yield _finding(setting, outcome, f"{text}; median {np.median(active):g} of {latents.max():g} latents active")


def _learned(evidence: Evidence, dataset: str, method: Method) -> Iterator[tuple[Setting, np.ndarray]]:
    """Iterate over settings with the exponents of the subspaces of each run, ascending, ``(R, S)``."""
    for setting, rows in evidence.runs(dataset, method).items():
        yield setting, np.sort([row["exponents"][1:] for row in rows], axis=1)


@measure
def exponents_differ(
    evidence: Evidence, dataset: str, method: Method, root: float, sides: Sequence[int]
) -> Iterator[Finding]:
    """Test if each learned exponent, in ascending order, lies on its side (-1 or 1) of the root's."""
    for setting, exponents in _learned(evidence, dataset, method):
        intervals = [mean_interval(column - root) for column in exponents.T]
        text = "; ".join(f"p{i} − p0: {interval:+.3f}" for i, interval in enumerate(intervals, 1))
        yield _finding(setting, together(map(direction, intervals, sides)), text)


@measure
def exponents_printed(evidence: Evidence, dataset: str, method: Method, modes: Sequence[float]) -> Iterator[Finding]:
    """Test if the printed most frequent exponents could be learned ones of ours."""
    for setting, exponents in _learned(evidence, dataset, method):
        medians = ", ".join(f"{median:.2f}" for median in np.median(exponents, axis=0))
        judged = map(printed_value, exponents.T, modes, (f"p{i}" for i in count(1)))
        yield _printed(setting, judged, f"medians of {len(exponents)} runs {medians}")


@measure
def largest_exponent_above(evidence: Evidence, dataset: str, method: Method, bound: float) -> Iterator[Finding]:
    """Test if the largest exponent is above a bound."""
    for setting, exponents in _learned(evidence, dataset, method):
        outcome, text = majority(exponents[:, -1] > bound, "runs")
        yield _finding(setting, outcome, f"{text}; smallest p{exponents.shape[1]} {exponents[:, -1].min():.3f}")


@measure
def codes_follow_prior(evidence: Evidence, study: str, leptokurtic: float, platykurtic: float) -> Iterator[Finding]:
    """Test if trained codes lie along the diagonals under a leptokurtic prior, and along the axes under the other."""
    path = evidence.folder / f"{study}.csv"
    table = load_record(path) if path.exists() else {"beta": np.array([]), "steps": np.array([])}
    for beta, steps in np.unique(np.stack([table["beta"], table["steps"]], 1), axis=0):
        same = (table["beta"] == beta) & (table["steps"] == steps) & np.isfinite(table["alignment"])
        sides = [table["alignment"][same & (table["exponent"] == p)] for p in (leptokurtic, platykurtic)]
        if all(map(len, sides)):
            low, high = map(mean_interval, sides)
            text = f"alignment {low:+.2f} with p = {leptokurtic:g}, {high:+.2f} with p = {platykurtic:g}"
            outcome = together([direction(low, -1), direction(high, 1)])
            yield Finding(outcome, text, f"β = {beta:g}, {steps:,.0f} steps", "at reduced scale")
