"""What is measured of each claim: functions from evidence to findings, by the name under which claims call them.

Each takes :class:`~edition.scorecard.evidence.Evidence` and what the claim gives it: printed values, methods, betas,
the settings of a computation. It returns a finding for every reading of the claim that there is evidence for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import scipy.special
import scipy.stats
import torch

from edition import orientation, stats, studies
from edition.factorise import NestedRadialFactorization
from edition.scorecard.evidence import Evidence, Method, Setting, alike, method_text
from edition.scorecard.rules import (
    LEVEL,
    Finding,
    Outcome,
    agreement,
    capped,
    direction,
    expected_range,
    majority,
    printed_value,
    share,
    together,
)
from edition.stats import compare, compare_curves, curve, mean_interval
from isa.objectives import beta_tcvae, beta_vae, standard_normal
from isa.prior import LpNested, Node, isa_prior
from isa.toys import factor_analysis, ica

__all__ = ["MEASURES", "Measure"]

Measure = Callable[..., list[Finding]]

MEASURES: dict[str, tuple[Measure, tuple[str, ...]]] = {}
"""By name: the function, and the rules (keys of :data:`edition.scorecard.rules.RULES`) by which it judges."""

_FEWEST = 6
"""Runs a side from which medians and maxima are compared."""


def measure(*rules: str) -> Callable[[Measure], Measure]:
    """Enter a function into :data:`MEASURES`."""

    def enter(function: Measure) -> Measure:
        MEASURES[function.__name__] = function, rules
        return function

    return enter


def _checks(parts: Mapping[str, Outcome]) -> tuple[Outcome, str]:
    """Outcome of several parts, and a text that says which hold."""
    marks = {Outcome.YES: "yes", Outcome.NO: "no", Outcome.PART: "in part", Outcome.OPEN: "cannot be told"}
    return together(parts.values()), "; ".join(f"{name}: {marks[outcome]}" for name, outcome in parts.items())


# --- runs of sweeps ---------------------------------------------------------------------------------------------------


def _column(rows: Sequence[Mapping[str, Any]], name: str) -> np.ndarray:
    return np.array([row[name] for row in rows], dtype=float)


def _finding(setting: Setting, outcome: Outcome, text: str) -> Finding:
    return Finding(outcome, text, setting.text, setting.falls_short)


@measure("distribution")
def higher_distribution(evidence: Evidence, dataset: str, first: Method, second: Method, beta: float) -> list[Finding]:
    """Whether mean, median and maximum of the MIG are higher for the second method."""
    found = []
    for setting, sides in alike(*(evidence.runs(dataset, method, beta) for method in (first, second))):
        mig = [_column(side, "mig") for side in sides]
        difference = compare(*mig, level=LEVEL)
        n = min(map(len, mig))
        text = f"mean MIG {difference:+.3f}"
        parts = [direction(difference)]
        for name, of in (("median", np.median), ("maximum", np.max)):
            low, high = (float(of(values[:n])) for values in mig)
            text += f"; {name} {low:.3f} and {high:.3f}"
            parts.append(Outcome.OPEN if n < _FEWEST else Outcome.YES if high > low else Outcome.NO)
        found.append(_finding(setting, together(parts), text))
    return found


@measure("printed")
def printed_model(
    evidence: Evidence, dataset: str, method: Method, beta: float, mig: float, log_likelihood: float
) -> list[Finding]:
    """Whether the printed values of a representative model could be those of one of ours."""
    found = []
    for setting, rows in evidence.runs(dataset, method, beta).items():
        values = {name: _column(rows, name) for name in ("mig", "log_likelihood")}
        upper = values["mig"] >= np.median(values["mig"])
        chosen = stats.representative(**values)
        parts, text = [], [f"our representative of {len(rows)}: MIG {values['mig'][chosen]:.2f}, "]
        text[0] += f"log-likelihood {values['log_likelihood'][chosen]:.2f}"
        for name, label, printed in (("mig", "MIG", mig), ("log_likelihood", "log-likelihood", log_likelihood)):
            parts.append(printed_value(values[name][upper], printed))
            low, high = expected_range(values[name][upper])
            if not math.isnan(low):
                text.append(f"{label} expected from {low:.2f} to {high:.2f}")
        outcome = Outcome.OPEN if setting.falls_short else together(parts)
        found.append(_finding(setting, outcome, "; ".join(text)))
    return found


@measure("direction")
def better_in_both(evidence: Evidence, dataset: str, first: Method, second: Method, beta: float) -> list[Finding]:
    """Whether the second method has the higher MIG and the higher log-likelihood."""
    found = []
    for setting, sides in alike(*(evidence.runs(dataset, method, beta) for method in (first, second))):
        mig, fit = (
            compare(*(_column(side, name) for side in sides), level=LEVEL) for name in ("mig", "log_likelihood")
        )
        outcome = together([direction(mig), direction(fit)])
        found.append(_finding(setting, outcome, f"MIG {mig:+.3f}; log-likelihood {fit:+.2f}"))
    return found


@measure("direction")
def higher_mig(evidence: Evidence, dataset: str, first: Method, second: Method, beta: float) -> list[Finding]:
    """Whether the second method has the higher mean MIG."""
    found = []
    for setting, sides in alike(*(evidence.runs(dataset, method, beta) for method in (first, second))):
        difference = compare(*(_column(side, "mig") for side in sides), level=LEVEL)
        found.append(_finding(setting, direction(difference), f"MIG {difference:+.3f}"))
    return found


@measure("direction")
def more_mig_for_less_fit(evidence: Evidence, dataset: str, method: Method, low: float, high: float) -> list[Finding]:
    """Whether a greater beta raises the MIG and lowers the log-likelihood."""
    found = []
    for setting, sides in alike(*(evidence.runs(dataset, method, beta) for beta in (low, high))):
        mig, fit = (
            compare(*(_column(side, name) for side in sides), level=LEVEL) for name in ("mig", "log_likelihood")
        )
        outcome = together([direction(mig), direction(fit, -1)])
        found.append(_finding(setting, outcome, f"MIG {mig:+.3f}; log-likelihood {fit:+.2f}"))
    return found


def _curve(rows: Sequence[Mapping[str, Any]]) -> stats.Curve:
    return curve(*(_column(rows, name) for name in ("beta", "log_likelihood", "mig")))


def _several(means: stats.Curve) -> bool:
    """Whether there is a best beta: with a single one recorded, it is not known whether it is."""
    return len(means.beta) > 1


def _over(
    evidence: Evidence, dataset: str, methods: Sequence[Method], betas: Sequence[float]
) -> list[dict[Setting, list[dict[str, Any]]]]:
    """Runs of each method over betas; of FactorVAE, whose weight is another, over all that are recorded."""
    return [evidence.runs(dataset, one, None if one == "factor-vae" else betas) for one in methods]


@measure("trade-off")
def better_trade_off(
    evidence: Evidence, dataset: str, method: Method, baselines: Sequence[Method], betas: Sequence[float]
) -> list[Finding]:
    """Whether a method reaches more MIG than each of the baselines at equal log-likelihood."""
    found = []
    groups = _over(evidence, dataset, (method, *baselines), betas)
    for setting, (own, *others) in alike(*groups):
        differences = [compare_curves(_curve(other), _curve(own), level=LEVEL) for other in others]
        parts = [direction(difference) for difference in differences]
        if all(math.isnan(difference.difference) for difference in differences):
            continue
        texts = [f"over {method_text(name)} {one:+.3f}" for name, one in zip(baselines, differences, strict=True)]
        found.append(_finding(setting, together(parts), "MIG at equal fit " + "; ".join(texts)))
    return found


@measure("direction")
def best_of_all(
    evidence: Evidence, dataset: str, method: Method, beta: float, others: Sequence[Method], betas: Sequence[float]
) -> list[Finding]:
    """Whether a method at one beta has a higher MIG than every other method at the beta that suits it best."""
    found = []
    groups = [evidence.runs(dataset, method, beta), *_over(evidence, dataset, others, betas)]
    for setting, (own, *rivals) in alike(*groups):
        parts, texts = [], []
        for name, rows in zip(others, rivals, strict=True):
            means = _curve(rows)
            if not _several(means):
                parts.append(Outcome.OPEN)
                texts.append(f"over {method_text(name)} at other β not recorded")
                continue
            best = means.beta[means.mig.argmax()]
            at_best = _column([row for row in rows if row["beta"] == best], "mig")
            difference = compare(at_best, _column(own, "mig"), level=LEVEL)
            parts.append(direction(difference))
            texts.append(f"over {method_text(name)} at β = {best:g} {difference:+.3f}")
        found.append(_finding(setting, together(parts), "MIG " + "; ".join(texts)))
    return found


@measure("direction")
def unmatched_at_better_fit(
    evidence: Evidence, dataset: str, method: Method, baselines: Sequence[Method], betas: Sequence[float]
) -> list[Finding]:
    """Whether baselines stay below the method's best MIG wherever their fit is at least as good as it has there."""
    found = []
    groups = _over(evidence, dataset, (method, *baselines), betas)
    for setting, (own, *others) in alike(*groups):
        means = _curve(own)
        if not _several(means):
            continue
        best = means.mig.argmax()
        at_best = _column([row for row in own if row["beta"] == means.beta[best]], "mig")
        parts, texts = [], []
        for name, rows in zip(baselines, others, strict=True):
            rival = _curve(rows)
            if not _several(rival):
                parts.append(Outcome.OPEN)
                texts.append(f"over {method_text(name)} at other β not recorded")
                continue
            good = np.flatnonzero(rival.log_likelihood >= means.log_likelihood[best])
            if not len(good):
                continue
            beta = rival.beta[good[rival.mig[good].argmax()]]
            difference = compare(_column([row for row in rows if row["beta"] == beta], "mig"), at_best, level=LEVEL)
            parts.append(direction(difference))
            texts.append(f"over {method_text(name)} at β = {beta:g} {difference:+.3f}")
        text = f"best at β = {means.beta[best]:g}, log-likelihood {means.log_likelihood[best]:.1f}; MIG "
        found.append(
            _finding(setting, together(parts), text + ("; ".join(texts) or "without a rival that fits as well"))
        )
    return found


@measure("direction")
def shrinking_advantage(
    evidence: Evidence, dataset: str, first: Method, second: Method, low: float, high: float
) -> list[Finding]:
    """Whether the second method's advantage in MIG is smaller at the greater beta."""
    found = []
    groups = [evidence.runs(dataset, method, beta) for beta in (low, high) for method in (first, second)]
    for setting, sides in alike(*groups):
        mig = [_column(side, "mig") for side in sides]
        at_low, at_high = compare(*mig[:2], level=LEVEL), compare(*mig[2:], level=LEVEL)
        change = change_of_difference(at_low, at_high)
        text = f"advantage {at_low:+.3f} at β = {low:g}, {at_high:+.3f} at β = {high:g}; change {change:+.3f}"
        found.append(_finding(setting, direction(change, -1), text))
    return found


def change_of_difference(before: stats.Comparison, after: stats.Comparison) -> stats.Interval:
    """Difference of two independent differences, second less first, with an interval put together from theirs.

    After Zou and Donner, *Construction of confidence limits about effect measures* (2008). Its number of values is the
    least of any side.
    """
    change = after.difference - before.difference
    low = change - math.hypot(after.difference - after.low, before.high - before.difference)
    high = change + math.hypot(after.high - after.difference, before.difference - before.low)
    return stats.Interval(change, low, high, min(before.n_first, before.n_second, after.n_first, after.n_second))


@measure("modes")
def several_modes(evidence: Evidence, dataset: str, methods: Sequence[Method]) -> list[Finding]:
    """Whether the MIG has more than one mode, for most methods and betas."""
    by_setting: dict[Setting, list[float]] = {}
    for method in methods:
        for setting, rows in evidence.runs(dataset, method).items():
            for beta in sorted({row["beta"] for row in rows}):
                values = _column([row for row in rows if row["beta"] == beta], "mig")
                if len(values) >= 10:
                    by_setting.setdefault(setting, []).append(stats.dip(values).p_value)
    found = []
    for setting, p_values in sorted(by_setting.items()):
        refuted = int((stats.holm(p_values) < 1 - LEVEL).sum())
        outcome = Outcome.YES if 2 * refuted > len(p_values) else Outcome.PART if refuted else Outcome.OPEN
        text = f"one mode refuted for {refuted} of {len(p_values)} combinations of method and β"
        found.append(_finding(setting, outcome, text))
    return found


@measure("majority")
def unused_latents(evidence: Evidence, dataset: str, methods: Sequence[Method]) -> list[Finding]:
    """Whether most runs leave latents unused."""
    by_setting: dict[Setting, list[tuple[int, int]]] = {}
    for method in methods:
        for setting, rows in evidence.runs(dataset, method).items():
            by_setting.setdefault(setting, []).extend((row["active_units"], row["latent_dim"]) for row in rows)
    found = []
    for setting, counts in sorted(by_setting.items()):
        fewer = share(sum(active < latents for active, latents in counts), len(counts))
        active = np.median([active for active, _ in counts])
        text = f"{fewer.of('runs')}; median {active:g} of {max(latents for _, latents in counts)} latents active"
        found.append(_finding(setting, majority(fewer), text))
    return found


def _learned(evidence: Evidence, dataset: str, method: Method) -> dict[Setting, np.ndarray]:
    """Exponents of the subspaces of each run, ascending, ``(R, S)``."""
    return {
        setting: np.sort([row["exponents"][1:] for row in rows], axis=1)
        for setting, rows in evidence.runs(dataset, method).items()
    }


@measure("direction")
def exponents_differ(
    evidence: Evidence, dataset: str, method: Method, root: float, sides: Sequence[int]
) -> list[Finding]:
    """Whether each learned exponent, in ascending order, lies on its side (-1 or 1) of the root's."""
    found = []
    for setting, exponents in _learned(evidence, dataset, method).items():
        intervals = [mean_interval(column - root, level=LEVEL) for column in exponents.T]
        parts = [direction(one, side) for one, side in zip(intervals, sides, strict=True)]
        text = "; ".join(f"p{i} − p0: {one:+.3f}" for i, one in enumerate(intervals, 1))
        found.append(_finding(setting, together(parts), text))
    return found


@measure("printed")
def exponents_printed(evidence: Evidence, dataset: str, method: Method, modes: Sequence[float]) -> list[Finding]:
    """Whether the printed most frequent exponents could be learned ones of ours."""
    found = []
    for setting, exponents in _learned(evidence, dataset, method).items():
        parts = [printed_value(column, mode) for column, mode in zip(exponents.T, modes, strict=True)]
        ranges = [expected_range(column) for column in exponents.T]
        texts = [f"p{i} expected from {low:.2f} to {high:.2f}" for i, (low, high) in enumerate(ranges, 1)]
        medians = ", ".join(f"{median:.2f}" for median in np.median(exponents, axis=0))
        text = f"medians of {len(exponents)} runs {medians}"
        if not math.isnan(ranges[0][0]):
            text += "; " + "; ".join(texts)
        found.append(_finding(setting, Outcome.OPEN if setting.falls_short else together(parts), text))
    return found


@measure("majority")
def largest_exponent_above(evidence: Evidence, dataset: str, method: Method, bound: float) -> list[Finding]:
    """Whether the largest exponent is above a bound."""
    found = []
    for setting, exponents in _learned(evidence, dataset, method).items():
        above = share(int((exponents[:, -1] > bound).sum()), len(exponents))
        text = f"{above.of('runs')}; smallest p{exponents.shape[1]} {exponents[:, -1].min():.3f}"
        found.append(_finding(setting, majority(above), text))
    return found


# --- the toy of App. B.7 and B.8, from its studies --------------------------------------------------------------------

_STOPPED, _CONVERGED = "em", "newton"


def _by_seed(record: Mapping[str, np.ndarray], values: np.ndarray, method: str, beta: float) -> np.ndarray:
    """Values of one method at one beta (0 for exact likelihood), in the order of seeds."""
    chosen = (record["method"] == method) & (record["beta"] == beta)
    return values[chosen][np.argsort(record["seed"][chosen])]


def _readings(study: studies.Study) -> dict[str, str]:
    return {_STOPPED: f"after {study.updates} steps", _CONVERGED: "at convergence"}


@measure("direction")
def likelihood_given_up(evidence: Evidence, study: str, beta: float) -> list[Finding]:
    """Whether what variational inference converges to has a lower exact likelihood than the maximum."""
    held = evidence.ica(study)
    if held is None:
        return []
    record = held[1]
    likelihood = record["log_likelihood"]
    lost = mean_interval(
        _by_seed(record, likelihood, "exact", 0) - _by_seed(record, likelihood, _CONVERGED, beta), level=LEVEL
    )
    return [Finding(direction(lost), f"nats below the maximum: {lost:.0f}")]


def _angles(record: Mapping[str, np.ndarray]) -> np.ndarray:
    return np.array([ica.widest_pair(weights) for weights in studies.record_weights(record)])


def _alive(record: Mapping[str, np.ndarray]) -> np.ndarray:
    return np.array([ica.survivors(weights).sum() for weights in studies.record_weights(record)])


@measure("direction")
def more_orthogonal_than_likelihood(evidence: Evidence, study: str, beta: float) -> list[Finding]:
    """Whether the two longest columns stand closer to a right angle than those of maximum likelihood."""
    held = evidence.ica(study)
    if held is None:
        return []
    plan, record = held
    angle = _angles(record)
    found = []
    for method, reading in _readings(plan).items():
        difference = mean_interval(
            _by_seed(record, angle, method, beta) - _by_seed(record, angle, "exact", 0), level=LEVEL
        )
        found.append(Finding(direction(difference), f"angle in degrees {difference:+.1f}", reading))
    return found


@measure("majority")
def columns_alive(
    evidence: Evidence, study: str, beta: float, alive: int, orthogonal_within: float | None = None
) -> list[Finding]:
    """Whether so many columns survive in most data sets, and the two longest are orthogonal to within some degrees."""
    held = evidence.ica(study)
    if held is None:
        return []
    plan, record = held
    as_claimed = _alive(record) == alive
    if orthogonal_within is not None:
        as_claimed &= 90 - _angles(record) <= orthogonal_within
    found = []
    for method, reading in _readings(plan).items():
        cases = _by_seed(record, as_claimed, method, beta)
        counted = share(int(cases.sum()), len(cases))
        found.append(Finding(majority(counted), counted.of("data sets"), reading))
    return found


@measure("direction")
def beta_strengthens(evidence: Evidence, study: str, what: str, low: float, high: float) -> list[Finding]:
    """Whether a greater beta leaves fewer columns (``what`` is ``columns``), or a wider angle (``angle``)."""
    held = evidence.ica(study)
    if held is None:
        return []
    plan, record = held
    values, sign, form, unit = {
        "columns": (_alive(record).astype(float), -1, "+.2f", "columns"),
        "angle": (_angles(record), 1, "+.1f", "angle in degrees"),
    }[what]
    found = []
    for method, reading in _readings(plan).items():
        change = mean_interval(
            _by_seed(record, values, method, high) - _by_seed(record, values, method, low), level=LEVEL
        )
        found.append(Finding(direction(change, sign), f"{unit} {change:{form}}", reading))
    return found


# --- the toy of App. B.1 to B.6, computed -----------------------------------------------------------------------------


def _rotation(n: int, noise_var: float, log_likelihood: float, free_energy: float) -> tuple[np.ndarray, np.ndarray]:
    """Weights of the rotation experiment, and the second moments of which they are a maximum-likelihood solution."""
    weights = factor_analysis.aligned_weights(n, noise_var, log_likelihood, free_energy)
    return weights, weights @ weights.T + noise_var * np.eye(2)


@measure("exact")
def rotation_costs_free_energy(
    evidence: Evidence, n: int, noise_var: float, log_likelihood: float, free_energy: float, tolerance: float
) -> list[Finding]:
    """Whether the likelihood ignores a rotation, and the free energy equals it at right angles and nowhere else."""
    weights, cov = _rotation(n, noise_var, log_likelihood, free_energy)
    turn = np.arange(1, 180)
    turned = factor_analysis.rotate(weights, np.radians(np.array([0, 90, 180, *turn[turn != 90]])))
    likelihood = factor_analysis.log_likelihood(turned, noise_var, cov, n)
    lost = likelihood - factor_analysis.free_energy(turned, noise_var, cov, n)
    parts = {
        f"likelihood constant to {tolerance:g} nats": agreement(np.ptp(likelihood), tolerance),
        "free energy equal to it at multiples of 90 degrees": agreement(np.abs(lost[:3]).max(), tolerance),
        "below it everywhere else": Outcome.YES if lost[3:].min() > tolerance else Outcome.NO,
    }
    return [Finding(*_checks(parts))]


@measure("constants")
def rotation_values(
    evidence: Evidence, n: int, noise_var: float, log_likelihood: float, free_energy: float, tolerance: float
) -> list[Finding]:
    """Whether there are constants that give the printed values."""
    weights, cov = _rotation(n, noise_var, log_likelihood, free_energy)
    shown = factor_analysis.rotate(weights, np.array([0.0, math.pi / 4]))
    likelihood = factor_analysis.log_likelihood(shown, noise_var, cov, n)
    energy = factor_analysis.free_energy(shown, noise_var, cov, n)
    error = np.abs([*(likelihood - log_likelihood), energy[0] - log_likelihood, energy[1] - free_energy]).max()
    lengths = " and ".join(f"{length:.3f}" for length in np.diag(weights))
    text = f"columns of length {lengths} with {n} points give {likelihood[1]:.2f} and {energy[1]:.2f} nats"
    return [Finding(capped(agreement(error, tolerance)), text)]


def _climbs(
    spectrum: Sequence[float], noise_var: float, latents: int, n: int, beta: float, starts: int, seed: int
) -> tuple[np.ndarray, float]:
    """Weights at the end of climbs from random starts, and how far columns miss principal directions, in degrees."""
    cov = np.diag(spectrum)
    rng = np.random.default_rng(seed)
    ends = np.stack(
        [
            factor_analysis.fit(rng.standard_normal((len(spectrum), latents)), noise_var, cov, n, beta).W
            for _ in range(starts)
        ]
    )
    missed = []
    for weights in ends:
        alive = weights[:, np.linalg.norm(weights, axis=0) > 0.01 * math.sqrt(noise_var)]
        missed.append(factor_analysis.misalignment(alive, noise_var, cov).max() if alive.size else 0.0)
    return ends, float(max(missed))


@measure("exact")
def principal_directions(
    evidence: Evidence,
    spectrum: Sequence[float],
    noise_var: float,
    latents: int,
    n: int,
    betas: Sequence[float],
    starts: int,
    tolerance: float,
) -> list[Finding]:
    """Whether climbs of the free energy end at principal directions, for every beta."""
    missed = max(_climbs(spectrum, noise_var, latents, n, beta, starts, seed=0)[1] for beta in betas)
    climbs = f"{starts * len(betas)} climbs from random starts"
    text = f"{climbs} end within {missed:.1g} degrees of principal directions ({tolerance:g} allowed)"
    return [Finding(agreement(missed, tolerance), text)]


@measure("exact")
def same_fit_for_all_betas(
    evidence: Evidence,
    spectrum: Sequence[float],
    noise_var: float,
    latents: int,
    n: int,
    betas: Sequence[float],
    tolerance: float,
) -> list[Finding]:
    """Whether directions, and lengths of columns, are the same for every beta."""
    missed = max(_climbs(spectrum, noise_var, latents, n, beta, 1, seed=0)[1] for beta in betas)
    squared = factor_analysis.beta_path(np.diag(spectrum), latents, betas, noise_var).squared_lengths
    longest = np.sqrt(squared.max(1))
    parts = {
        "the same directions": agreement(missed, tolerance),
        "the same lengths": agreement(np.ptp(np.sqrt(squared), axis=0).max(), tolerance),
    }
    outcome, text = _checks(parts)
    lengths = f"longest column {longest[0]:.2f} at β = {betas[0]:g}, {longest[-1]:.2f} at β = {betas[-1]:g}"
    return [Finding(outcome, f"{text} ({lengths})")]


@measure("exact")
def extra_latent_is_pruned(
    evidence: Evidence, n: int, noise_var: float, rho: float, alpha_max: float, starts: int, tolerance: float
) -> list[Finding]:
    """Whether Eq. 17 has its greatest free energy, at one likelihood, where the first latent is silent."""
    weights = factor_analysis.overcomplete_weights(np.linspace(0, alpha_max, 101), rho)
    cov = weights[0] @ weights[0].T + noise_var * np.eye(2)
    likelihood = factor_analysis.log_likelihood(weights, noise_var, cov, n)
    energy = factor_analysis.free_energy(weights, noise_var, cov, n)
    rng = np.random.default_rng(0)
    ends = [factor_analysis.fit(rng.standard_normal((2, 3)), noise_var, cov, n).W for _ in range(starts)]
    lengths = np.sort(np.linalg.norm(ends, axis=1), axis=1)
    pruned = int((lengths[:, 0] < 1e-3 * lengths[:, -1]).sum())
    parts = {
        "likelihood the same for every α": agreement(np.ptp(likelihood), tolerance),
        "free energy falls from α = 0": Outcome.YES if (np.diff(energy) < 0).all() else Outcome.NO,
        "equal to the likelihood there": agreement(abs(energy[0] - likelihood[0]), tolerance),
        f"a column pruned in {pruned} of {starts} climbs from random starts": agreement(starts - pruned, 0),
    }
    return [Finding(*_checks(parts))]


@measure("exact")
def amplitude_falls(
    evidence: Evidence, n: int, noise_var: float, log_likelihood: float, free_energy: float, betas: Sequence[float]
) -> list[Finding]:
    """Whether the ups and downs of the free energy over rotations shrink as beta grows, in either convention."""
    weights, _ = _rotation(n, noise_var, log_likelihood, free_energy)
    beta = np.array(betas, dtype=float)
    depth = factor_analysis.mean_field_gap(factor_analysis.rotate(weights, math.pi / 4), noise_var, n, beta)

    def falls(values: np.ndarray) -> Outcome:
        return Outcome.YES if (np.diff(values) < 0).all() else Outcome.NO

    outcome, text = _checks({"falls by Eq. 16": falls(depth), "falls by Eq. 13": falls(beta * depth)})
    spans = [f"{values[0]:.1f}, {values.max():.1f} at most, {values[-1]:.1f}" for values in (depth, beta * depth)]
    where = f"from β = {beta[0]:g} to {beta[-1]:g}"
    return [Finding(outcome, f"{text} (depth in nats {where}: {spans[0]}; by Eq. 13 {spans[1]})")]


def _random_model(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weights, noise variances and second moments of the data."""
    weights, noise = rng.standard_normal((4, 3)), rng.uniform(0.1, 1.0, 4)
    return weights, noise, weights @ weights.T + np.diag(noise)


@measure("exact")
def posterior_widens(evidence: Evidence, betas: Sequence[float], models: int) -> list[Finding]:
    """Whether every latent's posterior variance grows with beta, over random models."""
    rng = np.random.default_rng(0)
    grows = 0
    for _ in range(models):
        weights, noise, _ = _random_model(rng)
        var = factor_analysis.mean_field(weights, noise, np.array(betas, dtype=float)).var
        grows += bool((np.diff(var, axis=0) > 0).all())
    return [Finding(agreement(models - grows, 0), f"in {grows} of {models} random models")]


@measure("exact")
def bias_grows(evidence: Evidence, betas: Sequence[float], models: int) -> list[Finding]:
    """Whether the divergence of Eq. 4 between the best q of each beta and the true posterior grows, random models."""
    rng = np.random.default_rng(0)
    grows = 0
    for _ in range(models):
        weights, noise, cov = _random_model(rng)
        terms = factor_analysis.free_energy_terms(weights, noise, cov, 1, np.array(betas, dtype=float))
        divergence = factor_analysis.log_likelihood(weights, noise, cov, 1) - (terms.reconstruction - terms.kl)
        grows += bool((np.diff(divergence) > 0).all())
    return [Finding(agreement(models - grows, 0), f"in {grows} of {models} random models")]


# --- the prior, computed ----------------------------------------------------------------------------------------------


def _octant_volume(tree: Node, order: int) -> float:
    """Volume of all z with f(z) at most 1 in three dimensions, by Gauss's rule over the directions of an octant."""
    node, weight = np.polynomial.legendre.leggauss(order)
    angle, weight = (node + 1) * math.pi / 4, weight * math.pi / 4
    theta, phi = np.meshgrid(angle, angle, indexing="ij")
    ray = np.stack([np.sin(theta) * np.cos(phi), np.sin(theta) * np.sin(phi), np.cos(theta)], -1)
    reach = 1 / tree.norm(torch.from_numpy(ray)).numpy()
    return float(8 * np.einsum("i,j,ij->", weight, weight, reach**3 / 3 * np.sin(theta)))


@measure("exact")
def surface_formula(evidence: Evidence, trees: Sequence[str], order: int, tolerance: float) -> list[Finding]:
    """Whether Eq. 8 makes Eq. 7 a density: it is n times the volume inside, and the sphere's area where all p are 2."""
    nested = [Node.parse(text) for text in trees]
    error = max(abs(float(tree.log_surface().exp()) / (3 * _octant_volume(tree, order)) - 1) for tree in nested)
    for n in range(2, 21):
        sphere = math.log(2) + n / 2 * math.log(math.pi) - math.lgamma(n / 2)
        error = max(error, abs(math.expm1(float(Node(2.0, n).log_surface()) - sphere)))
    text = f"relative error at most {error:.0e} for {len(nested)} trees by quadrature and spheres up to n = 20"
    return [Finding(agreement(error, tolerance), f"{text} ({tolerance:g} allowed)")]


@measure("exact")
def subspaces_independent(
    evidence: Evidence, subspaces: Sequence[int], p0: float, p1: float, points: int, tolerance: float
) -> list[Finding]:
    """Whether the density is the product of the subspaces' own."""
    prior = isa_prior(subspaces, p0, p1)
    torch_state = torch.Generator().manual_seed(0)
    z = 2 * torch.randn(points, sum(subspaces), dtype=torch.float64, generator=torch_state)
    parts = [prior.marginal(i).log_prob(z[:, list(where)]) for i, where in enumerate(prior.subspaces)]
    error = float((prior.log_prob(z) - sum(parts)).abs().max())
    text = f"log density and sum over subspaces differ by at most {error:.0e} nats at {points:,} points"
    return [Finding(agreement(error, tolerance), f"{text} ({tolerance:g} allowed)")]


def _log_radial(v: np.ndarray, n: int, p0: float, s: float) -> np.ndarray:
    """Logarithm of Eq. 11."""
    return math.log(p0) + (n - 1) * np.log(v) - math.lgamma(n / p0) - n / p0 * math.log(s) - v**p0 / s


@measure("exact")
def radial_is_chi(evidence: Evidence, dimensions: Sequence[int], tolerance: float) -> list[Finding]:
    """Whether Eq. 11 with p0 = 2 and s = 2 is the chi distribution, and Eq. 7 then the standard normal."""
    radius = np.linspace(0.01, 12, 1000)
    error = 0.0
    for n in dimensions:
        z = torch.zeros(len(radius), n, dtype=torch.float64)
        z[:, 0] = torch.from_numpy(radius)
        normal = -0.5 * radius**2 - n / 2 * math.log(2 * math.pi)
        chi = _log_radial(radius, n, 2.0, 2.0) - scipy.stats.chi(n).logpdf(radius)
        ours = LpNested(Node(2.0, n), 2.0).log_prob(z).numpy() - normal
        error = max(error, np.abs(chi).max(), np.abs(ours).max())
    text = f"log densities differ by at most {error:.0e} nats in up to {max(dimensions)} dimensions"
    return [Finding(agreement(error, tolerance), f"{text} ({tolerance:g} allowed)")]


@measure("exact")
def factorised_only_where_equal(
    evidence: Evidence, size: int, p0: float, others: Sequence[float], tolerance: float
) -> list[Finding]:
    """Whether coordinates of a subspace are independent where its exponent is the root's, and dependent elsewhere.

    Two coordinates are independent where log p(a, b) + log p(0, 0) = log p(a, 0) + log p(0, b) for all a and b.
    """
    corners = torch.zeros(4, size, dtype=torch.float64)
    corners[[0, 1], 0], corners[[0, 2], 1] = 1.0, 1.0

    def interaction(p1: float) -> float:
        both, one, other, none = LpNested(Node(p0, [Node(p1, size)])).log_prob(corners).tolist()
        return abs(both + none - one - other)

    least = min(interaction(p1) for p1 in others)
    parts = {
        f"independent at p1 = {p0:g}": agreement(interaction(p0), tolerance),
        f"dependent at {', '.join(f'{p1:g}' for p1 in others)}": Outcome.YES if least > tolerance else Outcome.NO,
    }
    return [Finding(*_checks(parts))]


def _turned(z: torch.Tensor, i: int, j: int, angle: float) -> torch.Tensor:
    turned = z.clone()
    turned[:, i] = math.cos(angle) * z[:, i] - math.sin(angle) * z[:, j]
    turned[:, j] = math.sin(angle) * z[:, i] + math.cos(angle) * z[:, j]
    return turned


def _rotation_cost(size: int, p0: float, p1: float, j: int, batches: int) -> stats.Interval:
    """Log density that samples of two subspaces lose when coordinates 0 and j are turned by 45 degrees, in millinats.

    Its mean is a Kullback-Leibler divergence. The interval is over batches of 1,000 samples each.
    """
    prior = isa_prior((size, size), p0, p1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        z = prior.sample((1000 * batches,)).double()
    lost = prior.log_prob(z) - prior.log_prob(_turned(z, 0, j, math.pi / 4))
    return mean_interval(1000 * lost.reshape(batches, 1000).mean(1).numpy(), level=LEVEL)


@measure("direction")
def not_rotation_invariant(evidence: Evidence, size: int, p0: float, p1: float, batches: int) -> list[Finding]:
    """Whether a rotation by 45 degrees costs log density, within a subspace and between two."""
    within, between = (_rotation_cost(size, p0, p1, j, batches) for j in (1, size))
    text = "thousandths of a nat lost: "
    text += ", ".join(
        f"{cost.estimate:.2f} ({cost.low:.2f} to {cost.high:.2f}) {where}"
        for where, cost in (("within a subspace", within), ("between two", between))
    )
    return [Finding(together([direction(within), direction(between)]), text)]


def mixing_map(prior: LpNested, z: torch.Tensor, angle: float) -> torch.Tensor:
    """Move points of an Lp-nested prior so that the prior stays what it is and its first two coordinates mix.

    The prior is mapped to independent coordinates (:class:`edition.factorise.NestedRadialFactorization`), each of these
    to a standard normal by its quantiles; two of them are turned by ``angle``, under which a normal does not change;
    everything is mapped back. This is the construction by which Locatello et al. (2019) show that a factorised prior
    identifies nothing, put around the map that factorises.

    Parameters
    ----------
    prior
        With trees of depth two or less and no radial density of its own.
    z
        ``(N, n)``, float64.
    angle
        In radians.

    Returns
    -------
    Tensor
        ``(N, n)``.
    """
    factorise = NestedRadialFactorization(prior)
    scale = float(prior.scale)
    above = np.concatenate([[float(node.p)] * node.n_leaves for node in prior.tree.children])
    u = factorise(z).numpy()
    normal = np.sign(u) * np.sqrt(2 * scipy.special.gammaincinv(0.5, _below(u, above, scale)))
    turned = _turned(torch.from_numpy(normal), 0, 1, angle).numpy()
    back = scipy.special.gammaincinv(1 / above, scipy.special.gammainc(0.5, turned**2 / 2))
    return factorise.inv(torch.from_numpy(np.sign(turned) * (scale * back) ** (1 / above)))


def _below(u: np.ndarray, exponent: np.ndarray, scale: float) -> np.ndarray:
    """Probability of a smaller magnitude of p-generalised normal coordinates."""
    return scipy.special.gammainc(1 / exponent, np.abs(u) ** exponent / scale)


def preserved(prior: LpNested, z: torch.Tensor, angle: float, step: float = 1e-5) -> tuple[float, float]:
    """How far :func:`mixing_map` is from keeping the prior, and how much it mixes.

    Returns
    -------
    tuple of float
        Greatest ``|log p(T z) + log |det T'| - log p(z)|`` over the points, in nats, and the least magnitude of
        ``d T_1 / d z_2``: both by central differences.
    """
    n = z.shape[1]
    ahead, behind = (mixing_map(prior, (z[:, None] + sign * step * torch.eye(n, dtype=z.dtype)).reshape(-1, n), angle)
                     for sign in (1, -1))  # fmt: skip
    jacobian = ((ahead - behind) / (2 * step)).reshape(len(z), n, n).transpose(1, 2)
    error = prior.log_prob(mixing_map(prior, z, angle)) + torch.linalg.slogdet(jacobian)[1] - prior.log_prob(z)
    return float(error.abs().max()), float(jacobian[:, 0, 1].abs().min())


@measure("exact")
def identifiable(
    evidence: Evidence, size: int, p0: float, p1: float, batches: int, points: int, tolerance: float
) -> list[Finding]:
    """Whether nothing but signs and exchanges leaves the prior as it is: no rotation, and no other map that mixes."""
    cost = _rotation_cost(size, p0, p1, 1, batches)
    prior = isa_prior((size, size), p0, p1)
    generator = torch.Generator().manual_seed(0)
    z = 0.3 + 0.4 * torch.rand(points, 2 * size, dtype=torch.float64, generator=generator)
    error, mixing = preserved(prior, z, math.pi / 4)
    kept = error <= tolerance and mixing > 0.1
    parts = {
        "rotations are told apart": direction(cost),
        "so is every other continuous map that mixes latents": Outcome.NO if kept else Outcome.OPEN,
    }
    outcome, text = _checks(parts)
    return [Finding(outcome, f"{text} (one that keeps the log density to {error:.0e} nats is constructed)")]


@measure("exact")
def sampler_exact(evidence: Evidence, trees: Sequence[str], points: int, least: float) -> list[Finding]:
    """Whether samples have the radius, the shares and the entropy that they must have."""
    p_values, deviations = [], []
    for text in trees:
        prior = LpNested(Node.parse(text))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            z = prior.sample((points,)).double()
        p0, n = float(prior.tree.p), prior.tree.n_leaves
        power = prior.norm(z) ** p0
        p_values.append(scipy.stats.kstest(power.numpy(), scipy.stats.gamma(n / p0).cdf).pvalue)
        first = prior.subspaces[0]
        inside = torch.zeros_like(z)
        inside[:, list(first)] = z[:, list(first)]
        law = scipy.stats.beta(len(first) / p0, (n - len(first)) / p0)
        p_values.append(scipy.stats.kstest((prior.norm(inside) ** p0 / power).numpy(), law.cdf).pvalue)
        surprise = -prior.log_prob(z)
        error = float(surprise.std()) / math.sqrt(points)
        deviations.append(abs(float(surprise.mean() - prior.entropy())) / error)
    smallest = float(stats.holm(p_values).min())
    outcome = together([agreement(max(deviations), 4.0), Outcome.YES if smallest >= least else Outcome.NO])
    text = f"{len(p_values)} Kolmogorov-Smirnov tests, smallest p-value {smallest:.2f} after Holm ({least:g} allowed); "
    text += f"entropy within {max(deviations):.1f} standard errors (4 allowed)"
    return [Finding(outcome, text)]


@measure("exact")
def kurtosis_sides(
    evidence: Evidence, p0: float, platykurtic: float, leptokurtic: float, sizes: Sequence[int]
) -> list[Finding]:
    """Whether a coordinate's excess kurtosis is negative for one exponent and positive for the other."""

    def excess(p1: float, size: int) -> float:
        prior = LpNested(Node(p0, [Node(p1, size)]))
        return float(prior.absolute_moment(4)[0] / prior.variance[0] ** 2 - 3)

    parts, texts = [], []
    for p1, sign in ((platykurtic, -1), (leptokurtic, 1)):
        values = [excess(p1, size) for size in sizes]
        parts += [Outcome.YES if sign * value > 0 else Outcome.NO for value in values]
        texts.append(f"p1 = {p1:g}: " + ", ".join(f"{value:+.3f}" for value in values))
    where = f"excess kurtosis in subspaces of {' and '.join(map(str, sizes))}"
    return [Finding(together(parts), f"{where}: {'; '.join(texts)}")]


# --- orientation, computed and from its study -------------------------------------------------------------------------


@measure("exact")
def prior_prefers(evidence: Evidence, leptokurtic: float, platykurtic: float) -> list[Finding]:
    """Whether a straight code of a square fits a leptokurtic prior better on the diagonals, a platykurtic one not."""
    parts, texts = [], []
    for p, sign in ((leptokurtic, -1), (platykurtic, 1)):
        gained = float(np.subtract(*orientation.straight_cost(p, [math.pi / 4, 0.0])))
        parts.append(Outcome.YES if sign * gained > 0 else Outcome.NO)
        texts.append(f"p = {p:g} {gained:+.3f}")
    return [Finding(together(parts), f"nats gained by the axes over the diagonals: {'; '.join(texts)}")]


@measure("direction")
def codes_follow_prior(evidence: Evidence, study: str, leptokurtic: float, platykurtic: float) -> list[Finding]:
    """Whether trained codes lie along the diagonals under a leptokurtic prior, and along the axes under the other."""
    table = orientation.read_table(evidence.folder / f"{study}.csv")
    found = []
    for beta, steps in np.unique(np.stack([table["beta"], table["steps"]], 1), axis=0):
        same = (table["beta"] == beta) & (table["steps"] == steps) & np.isfinite(table["alignment"])
        sides = [table["alignment"][same & (table["exponent"] == p)] for p in (leptokurtic, platykurtic)]
        if not all(map(len, sides)):
            continue
        low, high = (mean_interval(side, level=LEVEL) for side in sides)
        text = f"alignment {low:+.2f} with p = {leptokurtic:g}, {high:+.2f} with p = {platykurtic:g}"
        outcome = together([direction(low, -1), direction(high, 1)])
        found.append(Finding(outcome, text, f"β = {beta:g}, {steps:,.0f} steps", "at reduced scale"))
    return found


# --- objectives, computed ---------------------------------------------------------------------------------------------


@measure("exact")
def same_objective_at_one(evidence: Evidence, latents: int, batch: int, tolerance: float) -> list[Finding]:
    """Whether beta-TCVAE and beta-VAE are one objective at beta = 1 and two elsewhere, for either prior."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    fit, mean, log_var = normal(batch), normal(batch, latents), normal(batch, latents)
    z = mean + (log_var / 2).exp() * normal(batch, latents)

    def apart(beta: float) -> float:
        found = []
        for prior in (standard_normal(latents), isa_prior((latents // 2,) * 2)):
            plain = beta_vae(fit, z, mean, log_var, prior, beta)
            split = beta_tcvae(fit, z, mean, log_var, prior, beta, dataset_size=100 * batch)
            found.append(abs(float(plain.loss - split.loss)))
        return max(found)

    parts = {
        "one at β = 1": agreement(apart(1.0), tolerance),
        "two at β = 2": Outcome.YES if apart(2.0) > tolerance else Outcome.NO,
    }
    return [Finding(*_checks(parts))]


@measure("exact")
def sampled_divergence_varies_less(evidence: Evidence, weight: float, noise_var: float, points: int) -> list[Finding]:
    """Whether the ELBO with a sampled divergence varies less than with a closed one, where q is the posterior.

    For z ~ N(0, 1) and x ~ N(weight z, noise_var): the sampled one is then log p(x), whatever z is.
    """
    rng = np.random.default_rng(0)
    var = 1 / (1 + weight**2 / noise_var)
    x = 1.0
    mean = var * weight / noise_var * x
    z = mean + math.sqrt(var) * rng.standard_normal(points)
    fit = scipy.stats.norm.logpdf(x, weight * z, math.sqrt(noise_var))
    sampled = fit + scipy.stats.norm.logpdf(z) - scipy.stats.norm.logpdf(z, mean, math.sqrt(var))
    text = f"standard deviation {sampled.std():.0e} nats in place of {fit.std():.2f}, where q is the posterior"
    return [Finding(Outcome.YES if sampled.std() < fit.std() else Outcome.NO, text)]
