"""Measures of claims about the linear models: factor analysis (App. B.1 to B.6) and ICA (App. B.7 and B.8)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from edition import studies
from edition.scorecard.evidence import Evidence
from edition.scorecard.register import checks, measure
from edition.scorecard.rules import Finding, Outcome, agreement, capped, direction, majority, share
from edition.stats import mean_interval
from isa.toys import factor_analysis, ica

Record = Mapping[str, np.ndarray]


def _by_seed(record: Record, values: np.ndarray, method: str, beta: float) -> np.ndarray:
    """Return the values of one method at one beta (0 for exact likelihood), in the order of seeds."""
    chosen = (record["method"] == method) & (record["beta"] == beta)
    return values[chosen][np.argsort(record["seed"][chosen])]


def _readings(evidence: Evidence, study: str) -> Iterator[tuple[str, str, Record]]:
    """Iterate over the two stopping rules, with their methods and the study's record; over nothing if there is none."""
    held = evidence.ica(study)
    if held is not None:
        plan, record = held
        yield f"after {plan.updates} steps", "em", record
        yield "at convergence", "newton", record


def _angles(record: Record) -> np.ndarray:
    return np.array([ica.widest_pair(weights) for weights in studies.record_weights(record)])


def _alive(record: Record) -> np.ndarray:
    return np.array([float(ica.survivors(weights).sum()) for weights in studies.record_weights(record)])


@measure("direction")
def likelihood_given_up(evidence: Evidence, study: str, beta: float) -> Iterator[Finding]:
    """Test if variational inference converges to a lower exact likelihood than the maximum."""
    for _, method, record in _readings(evidence, study):
        if method == "newton":
            sides = (_by_seed(record, record["log_likelihood"], *side) for side in (("exact", 0), (method, beta)))
            lost = mean_interval(np.subtract(*sides))
            yield Finding(direction(lost), f"nats below the maximum: {lost:.0f}")


@measure("direction")
def more_orthogonal_than_likelihood(evidence: Evidence, study: str, beta: float) -> Iterator[Finding]:
    """Test if the two longest columns stand closer to a right angle than those of maximum likelihood."""
    for reading, method, record in _readings(evidence, study):
        angle = _angles(record)
        wider = mean_interval(_by_seed(record, angle, method, beta) - _by_seed(record, angle, "exact", 0))
        yield Finding(direction(wider), f"angle in degrees {wider:+.1f}", reading)


@measure("majority")
def columns_alive(
    evidence: Evidence, study: str, beta: float, alive: int, orthogonal_within: float | None = None
) -> Iterator[Finding]:
    """Test if this number of columns survives in most data sets, the two longest at right angles to within degrees."""
    for reading, method, record in _readings(evidence, study):
        as_claimed = _alive(record) == alive
        if orthogonal_within is not None:
            as_claimed &= 90 - _angles(record) <= orthogonal_within
        cases = _by_seed(record, as_claimed, method, beta)
        counted = share(int(cases.sum()), len(cases))
        yield Finding(majority(counted), counted.of("data sets"), reading)


@measure("direction")
def beta_strengthens(evidence: Evidence, study: str, what: str, low: float, high: float) -> Iterator[Finding]:
    """Test if a larger beta leaves fewer columns (``what`` is ``columns``), or a wider angle (``angle``)."""
    of, sign, form, unit = {
        "columns": (_alive, -1, "+.2f", "columns"),
        "angle": (_angles, 1, "+.1f", "angle in degrees"),
    }[what]
    for reading, method, record in _readings(evidence, study):
        values = of(record)
        change = mean_interval(_by_seed(record, values, method, high) - _by_seed(record, values, method, low))
        yield Finding(direction(change, sign), f"{unit} {change:{form}}", reading)


def _rotation(n: int, noise_var: float, log_likelihood: float, free_energy: float) -> tuple[np.ndarray, np.ndarray]:
    """Return weights of the rotation experiment, and the second moments that they fit best."""
    weights = factor_analysis.aligned_weights(n, noise_var, log_likelihood, free_energy)
    return weights, weights @ weights.T + noise_var * np.eye(2)


@measure("exact")
def rotation_costs_free_energy(
    evidence: Evidence, n: int, noise_var: float, log_likelihood: float, free_energy: float, tolerance: float
) -> Iterator[Finding]:
    """Test if the likelihood ignores a rotation, and the free energy equals it at right angles and nowhere else."""
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
    yield Finding(*checks(parts))


@measure("constants")
def rotation_values(
    evidence: Evidence, n: int, noise_var: float, log_likelihood: float, free_energy: float, tolerance: float
) -> Iterator[Finding]:
    """Test if there are constants that give the printed values."""
    weights, cov = _rotation(n, noise_var, log_likelihood, free_energy)
    shown = factor_analysis.rotate(weights, np.array([0.0, math.pi / 4]))
    likelihood = factor_analysis.log_likelihood(shown, noise_var, cov, n)
    energy = factor_analysis.free_energy(shown, noise_var, cov, n)
    error = np.abs([*(likelihood - log_likelihood), energy[0] - log_likelihood, energy[1] - free_energy]).max()
    lengths = " and ".join(f"{length:.3f}" for length in np.diag(weights))
    text = f"columns of length {lengths} with {n} points give {likelihood[1]:.2f} and {energy[1]:.2f} nats"
    yield Finding(capped(agreement(error, tolerance)), text)


def _misalignment(
    spectrum: Sequence[float], noise_var: float, latents: int, n: int, betas: Sequence[float], starts: int
) -> float:
    """Return how far columns miss principal directions, in degrees, where climbs from random starts end."""
    cov = np.diag(spectrum)
    missed = [0.0]
    for beta in betas:
        rng = np.random.default_rng(0)
        for _ in range(starts):
            weights = factor_analysis.fit(rng.standard_normal((len(spectrum), latents)), noise_var, cov, n, beta).W
            alive = weights[:, np.linalg.norm(weights, axis=0) > 0.01 * math.sqrt(noise_var)]
            if alive.size:
                missed.append(float(factor_analysis.misalignment(alive, noise_var, cov).max()))
    return max(missed)


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
) -> Iterator[Finding]:
    """Test if climbs of the free energy end at principal directions, for every beta."""
    missed = _misalignment(spectrum, noise_var, latents, n, betas, starts)
    climbs = f"{starts * len(betas)} climbs from random starts"
    text = f"{climbs} end within {missed:.1g} degrees of principal directions ({tolerance:g} allowed)"
    yield Finding(agreement(missed, tolerance), text)


@measure("exact")
def same_fit_for_all_betas(
    evidence: Evidence,
    spectrum: Sequence[float],
    noise_var: float,
    latents: int,
    n: int,
    betas: Sequence[float],
    tolerance: float,
) -> Iterator[Finding]:
    """Test if directions, and lengths of columns, are the same for every beta."""
    missed = _misalignment(spectrum, noise_var, latents, n, betas, 1)
    squared = factor_analysis.beta_path(np.diag(spectrum), latents, betas, noise_var).squared_lengths
    longest = np.sqrt(squared.max(1))
    parts = {
        "the same directions": agreement(missed, tolerance),
        "the same lengths": agreement(np.ptp(np.sqrt(squared), axis=0).max(), tolerance),
    }
    outcome, text = checks(parts)
    lengths = f"longest column {longest[0]:.2f} at β = {betas[0]:g}, {longest[-1]:.2f} at β = {betas[-1]:g}"
    yield Finding(outcome, f"{text} ({lengths})")


@measure("exact")
def extra_latent_is_pruned(
    evidence: Evidence, n: int, noise_var: float, rho: float, alpha_max: float, starts: int, tolerance: float
) -> Iterator[Finding]:
    """Test if Eq. 17 has its maximum free energy, at constant likelihood, where the first latent is inactive."""
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
    yield Finding(*checks(parts))


@measure("exact")
def amplitude_falls(
    evidence: Evidence, n: int, noise_var: float, log_likelihood: float, free_energy: float, betas: Sequence[float]
) -> Iterator[Finding]:
    """Test if the variation of the free energy over rotations shrinks as beta grows, in either convention."""
    weights, _ = _rotation(n, noise_var, log_likelihood, free_energy)
    beta = np.array(betas, dtype=float)
    depth = factor_analysis.mean_field_gap(factor_analysis.rotate(weights, math.pi / 4), noise_var, n, beta)

    def falls(values: np.ndarray) -> Outcome:
        return Outcome.YES if (np.diff(values) < 0).all() else Outcome.NO

    outcome, text = checks({"falls by Eq. 16": falls(depth), "falls by Eq. 13": falls(beta * depth)})
    spans = [f"{values[0]:.1f}, {values.max():.1f} at most, {values[-1]:.1f}" for values in (depth, beta * depth)]
    where = f"from β = {beta[0]:g} to {beta[-1]:g}"
    yield Finding(outcome, f"{text} (depth in nats {where}: {spans[0]}; by Eq. 13 {spans[1]})")


def _grows(models: int, quantity: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Iterator[Finding]:
    """Test if a quantity of weights and noise variances grows along its first axis, in random models."""
    rng = np.random.default_rng(0)
    grows = 0
    for _ in range(models):
        weights, noise = rng.standard_normal((4, 3)), rng.uniform(0.1, 1.0, 4)
        grows += bool((np.diff(quantity(weights, noise), axis=0) > 0).all())
    yield Finding(agreement(models - grows, 0), f"in {grows} of {models} random models")


@measure("exact")
def posterior_widens(evidence: Evidence, betas: Sequence[float], models: int) -> Iterator[Finding]:
    """Test if every latent's posterior variance grows with beta, over random models."""
    beta = np.array(betas, dtype=float)
    return _grows(models, lambda weights, noise: factor_analysis.mean_field(weights, noise, beta).var)


@measure("exact")
def bias_grows(evidence: Evidence, betas: Sequence[float], models: int) -> Iterator[Finding]:
    """Test if the divergence of Eq. 4 of the best q of each beta from the true posterior grows, over random models."""

    def divergence(weights: np.ndarray, noise: np.ndarray) -> np.ndarray:
        cov = weights @ weights.T + np.diag(noise)
        terms = factor_analysis.free_energy_terms(weights, noise, cov, 1, np.array(betas, dtype=float))
        return factor_analysis.log_likelihood(weights, noise, cov, 1) - (terms.reconstruction - terms.kl)

    return _grows(models, divergence)
