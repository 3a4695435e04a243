"""Measures of claims about the linear models: factor analysis (App. B.1 to B.6) and ICA (App. B.7 and B.8)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from edition.scorecard.evidence import Evidence, measure
from edition.scorecard.rules import Finding, Judged, Outcome, checks, direction, holds, majority, together, within
from edition.stats import mean_interval
from edition.studies import load_record, read_study, record_weights
from isa.toys import factor_analysis, ica

Values = Callable[[str, float], np.ndarray]


def _readings(evidence: Evidence, study: str, only: str = "") -> Iterator[tuple[str, Values]]:
    """Iterate over the two stopping rules of a recorded study, each with a function that returns a quantity by seed.

    It takes the quantity's name and a beta, which is 0 for exact likelihood. ``only`` names one of the rules.
    """
    path = evidence.folder / f"{study}.csv"
    if not path.exists():
        return
    record = load_record(path)
    weights = record_weights(record)
    quantities = {
        "angle": np.array([ica.widest_pair(W) for W in weights]),
        "columns": np.array([ica.survivors(W).sum() for W in weights], dtype=float),
        "log_likelihood": record["log_likelihood"],
        "pruned_at": np.nan_to_num(record["pruned_at"], nan=math.inf),
    }
    stopped = f"after {read_study(path.with_suffix('.yaml')).updates} steps"
    for reading, fitted in ((stopped, "em"), ("at convergence", "newton")):

        def values(quantity: str, beta: float, fitted: str = fitted) -> np.ndarray:
            chosen = (record["method"] == (fitted if beta else "exact")) & (record["beta"] == beta)
            return quantities[quantity][chosen][np.argsort(record["seed"][chosen])]

        if only in ("", reading):
            yield reading, values


@measure
def likelihood_given_up(evidence: Evidence, study: str, beta: float) -> Iterator[Finding]:
    """Test if variational inference converges to a lower exact likelihood than the maximum."""
    for _, values in _readings(evidence, study, "at convergence"):
        lost = mean_interval(values("log_likelihood", 0) - values("log_likelihood", beta))
        yield Finding(direction(lost), f"nats below the maximum: {lost:.0f}")


@measure
def more_orthogonal(evidence: Evidence, study: str, beta: float) -> Iterator[Finding]:
    """Test if the two longest columns stand closer to a right angle than the true ones, and than the most likely."""
    for reading, values in _readings(evidence, study):
        truth = ica.widest_pair(ica.directions(read_study(evidence.folder / f"{study}.yaml").directions))
        wider = [mean_interval(values("angle", beta) - other) for other in (truth, values("angle", 0))]
        text = f"angle in degrees {wider[0]:+.1f} from the truth, {wider[1]:+.1f} from maximum likelihood"
        yield Finding(together(map(direction, wider)), text, reading)


@measure
def columns_survive(
    evidence: Evidence, study: str, beta: float, columns: int, orthogonal_within: float = math.inf
) -> Iterator[Finding]:
    """Test if this number of columns survives in most data sets, the two longest at right angles to within degrees."""
    for reading, values in _readings(evidence, study):
        cases = (values("columns", beta) == columns) & (90 - values("angle", beta) <= orthogonal_within)
        yield Finding(*majority(cases, "data sets"), reading)


@measure
def as_in_figure_1(
    evidence: Evidence, study: str, betas: Sequence[float], columns: Sequence[int], orthogonal_within: float
) -> Iterator[Finding]:
    """Test if any one stopping rule gives each beta its number of columns, the last orthogonal, in most data sets."""
    outcomes, texts = [], []
    for reading, values in _readings(evidence, study):
        cases = [values("columns", beta) == count for beta, count in zip(betas, columns, strict=True)]
        outcome, text = majority(np.all(cases, 0) & (90 - values("angle", betas[-1]) <= orthogonal_within), "data sets")
        outcomes.append(outcome)
        texts.append(f"{reading} {text}")
        if reading != "at convergence":
            steps = np.arange(1, 1 + read_study(evidence.folder / f"{study}.yaml").max_updates)[:, None]
            low, high = (values("pruned_at", beta) for beta in (betas[0], betas[-1]))
            counts = ((high <= steps) & (steps < low)).sum(1)
            texts.append(f"by columns alone in {counts.max()} at the best number of steps, {1 + counts.argmax()}")
    if outcomes:
        outcome = next(one for one in (Outcome.YES, Outcome.OPEN, Outcome.NO) if one in outcomes)
        yield Finding(outcome, "; ".join(texts))


@measure
def beta_strengthens(
    evidence: Evidence, study: str, what: str, low: float, high: float, only: str = ""
) -> Iterator[Finding]:
    """Test if a larger beta leaves fewer columns (``what`` is ``columns``), or a wider angle (``angle``).

    A beta of 0 is exact likelihood; ``only`` is one of the two stopping rules.
    """
    sign, unit, digits = {"columns": (-1, "columns", 2), "angle": (1, "angle in degrees", 1)}[what]
    for reading, values in _readings(evidence, study, only):
        change = mean_interval(values(what, high) - values(what, low))
        yield Finding(direction(change, sign), f"{unit} {change:+.{digits}f}", reading)


def _rotated(
    angles: Sequence[float] | np.ndarray, n: int, noise_var: float, log_likelihood: float, free_energy: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return aligned weights that have the printed values, and likelihood and free energy when rotated by angles."""
    weights = factor_analysis.aligned_weights(n, noise_var, log_likelihood, free_energy)
    cov = weights @ weights.T + noise_var * np.eye(2)
    rotated = factor_analysis.rotate(weights, angles)
    fits = (of(rotated, noise_var, cov, n) for of in (factor_analysis.log_likelihood, factor_analysis.free_energy))
    return weights, *fits


@measure
def rotation_costs_free_energy(tolerance: float, **experiment: Any) -> Judged:
    """Test if the likelihood ignores a rotation, and the free energy equals it at right angles and nowhere else."""
    angles = np.arange(181)
    _, likelihood, energy = _rotated(np.radians(angles), **experiment)
    right, lost = angles % 90 == 0, likelihood - energy
    parts = {
        f"likelihood constant to {tolerance:g} nats": np.ptp(likelihood) <= tolerance,
        "free energy equal to it at multiples of 90 degrees": np.abs(lost[right]).max() <= tolerance,
        "below it everywhere else": lost[~right].min() > tolerance,
    }
    return checks(parts)


@measure
def rotation_values(n: int, noise_var: float, log_likelihood: float, free_energy: float, tolerance: float) -> Judged:
    """Test if there are constants that give the printed values; then they are possible, and the claim holds in part."""
    angles = [0.0, math.pi / 4]
    weights, *values = _rotated(angles, n, noise_var, log_likelihood, free_energy)
    error = np.abs(np.subtract(values, [[log_likelihood, log_likelihood], [log_likelihood, free_energy]])).max()
    lengths = " and ".join(f"{length:.3f}" for length in np.diag(weights))
    text = f"columns of length {lengths} with {n} points give {values[0][1]:.2f} and {values[1][1]:.2f} nats"
    return Outcome.PART if error <= tolerance else Outcome.NO, text


@measure
def amplitude_falls(betas: Sequence[float], n: int, noise_var: float, **printed: float) -> Judged:
    """Test if the variation of the free energy of Eq. 16 over rotations shrinks as beta grows; Eq. 13 is reported."""
    weights = factor_analysis.aligned_weights(n, noise_var, **printed)
    beta = np.array(betas, dtype=float)
    eq16 = factor_analysis.mean_field_gap(factor_analysis.rotate(weights, math.pi / 4), noise_var, n, beta)
    eq13 = beta * eq16
    spans = [f"{depth[0]:.1f} at β = {beta[0]:g}, {depth[-1]:.1f} at {beta[-1]:g}" for depth in (eq16, eq13)]
    other = "falls as well" if _falls(eq13) else f"does not fall throughout, with a maximum of {eq13.max():.1f}"
    return holds(_falls(eq16)), f"depth in nats by Eq. 16: {spans[0]}; by Eq. 13 it {other} ({spans[1]})"


def _falls(values: np.ndarray) -> bool:
    return bool((np.diff(values, axis=0) < 0).all())


def _ends(cov: np.ndarray, latents: int, noise_var: float, n: int, beta: float, starts: int) -> list[np.ndarray]:
    """Return the weights that maximise the free energy, from random starts."""
    rng = np.random.default_rng(0)
    starting = [rng.standard_normal((len(cov), latents)) for _ in range(starts)]
    return [factor_analysis.fit(weights, noise_var, cov, n, beta).W for weights in starting]


def _misalignment(
    spectrum: Sequence[float], noise_var: float, latents: int, n: int, betas: Sequence[float], starts: int
) -> float:
    """Return how far columns miss principal directions, in degrees, after fits from random starts."""
    cov, missed = np.diag(spectrum), [0.0]
    for beta in betas:
        for weights in _ends(cov, latents, noise_var, n, beta, starts):
            active = weights[:, np.linalg.norm(weights, axis=0) > 0.01 * math.sqrt(noise_var)]
            missed += factor_analysis.misalignment(active, noise_var, cov).tolist() if active.size else []
    return max(missed)


@measure
def principal_directions(betas: Sequence[float], starts: int, tolerance: float, **model: Any) -> Judged:
    """Test if fits by the free energy end at principal directions, for every beta."""
    missed = _misalignment(betas=betas, starts=starts, **model)
    fits = f"{starts * len(betas)} fits from random starts"
    return within(missed, tolerance, f"{fits} end within {missed:.1g} degrees of principal directions")


@measure
def same_fit_for_all_betas(
    spectrum: Sequence[float], noise_var: float, latents: int, n: int, betas: Sequence[float], tolerance: float
) -> Judged:
    """Test if the same rotation, pruned latent and directions are best for every beta; free lengths are reported."""
    lengths = np.sqrt(np.subtract(spectrum[:2], noise_var))  # of maximum likelihood
    turned = factor_analysis.rotate(np.diag(lengths), np.radians(np.arange(-44, 46)))
    amplitudes = factor_analysis.overcomplete_weights(np.linspace(-0.5, 0.5, 101))
    beta = np.array(betas, dtype=float)[:, None]
    best = [factor_analysis.mean_field_gap(W, noise_var, n, beta).argmin(1) for W in (turned, amplitudes)]
    parts = {"the same rotation": np.ptp(best[0]) == 0, "the same pruned latent": np.ptp(best[1]) == 0}
    parts["the same directions"] = _misalignment(spectrum, noise_var, latents, n, betas, 1) <= tolerance
    free = np.sqrt(factor_analysis.beta_path(np.diag(spectrum), latents, betas, noise_var).squared_lengths.max(1))
    outcome, text = checks(parts)
    longest = f"{free[0]:.2f} at β = {betas[0]:g}, {free[-1]:.2f} at {betas[-1]:g}"
    return outcome, f"{text}; with free lengths the longest column is {longest}"


@measure
def extra_latent_is_pruned(
    n: int, noise_var: float, rho: float, alpha_max: float, starts: int, tolerance: float
) -> Judged:
    """Test if Eq. 17 has its maximum free energy, at constant likelihood, where the first latent is inactive."""
    weights = factor_analysis.overcomplete_weights(np.linspace(0, alpha_max, 101), rho)
    cov = weights[0] @ weights[0].T + noise_var * np.eye(2)
    likelihood = factor_analysis.log_likelihood(weights, noise_var, cov, n)
    energy = factor_analysis.free_energy(weights, noise_var, cov, n)
    lengths = np.sort(np.linalg.norm(_ends(cov, 3, noise_var, n, 1.0, starts), axis=1), axis=1)
    pruned = int((lengths[:, 0] < 1e-3 * lengths[:, -1]).sum())
    parts = {
        "likelihood the same for every α": np.ptp(likelihood) <= tolerance,
        "free energy falls from α = 0": _falls(energy),
        "equal to the likelihood there": abs(energy[0] - likelihood[0]) <= tolerance,
        f"a column pruned in {pruned} of {starts} fits from random starts": pruned == starts,
    }
    return checks(parts)


def _grows(models: int, quantity: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Judged:
    """Test if a quantity of weights and noise variances grows along its first axis, in random models."""
    rng = np.random.default_rng(0)
    grows = 0
    for _ in range(models):
        weights, noise = rng.standard_normal((4, 3)), rng.uniform(0.1, 1.0, 4)
        grows += _falls(-quantity(weights, noise))
    return holds(grows == models), f"in {grows} of {models} random models"


@measure
def posterior_widens(betas: Sequence[float], models: int) -> Judged:
    """Test if every latent's posterior variance grows with beta, over random models."""
    beta = np.array(betas, dtype=float)
    return _grows(models, lambda weights, noise: factor_analysis.mean_field(weights, noise, beta).var)


@measure
def bias_grows(betas: Sequence[float], models: int) -> Judged:
    """Test if the divergence of Eq. 4 of the best q of each beta from the true posterior grows, over random models."""

    def divergence(weights: np.ndarray, noise: np.ndarray) -> np.ndarray:
        cov = weights @ weights.T + np.diag(noise)
        terms = factor_analysis.free_energy_terms(weights, noise, cov, 1, np.array(betas, dtype=float))
        return factor_analysis.log_likelihood(weights, noise, cov, 1) - (terms.reconstruction - terms.kl)

    return _grows(models, divergence)


@measure
def weights_ignore_beta(betas: Sequence[float], tolerance: float) -> Judged:
    """Test if, with q fixed, free energies of ICA differ between weights by the same amount for every beta."""
    rng = np.random.default_rng(0)
    weights, x, mean = (rng.standard_normal(shape) for shape in ((50, 2, 3), (20, 2), (20, 3)))
    q = mean, rng.uniform(0.1, 1.0, mean.shape)
    energy = np.array([[ica.free_energy(W, *q, x, 0.05, beta=beta) for W in weights] for beta in betas])
    error = np.ptp(energy - energy[:, :1], axis=0).max()
    return within(error, tolerance, f"differences of free energies change by at most {error:.0e} nats with β")


@measure
def beta_is_a_power(copies: Sequence[int], betas: Sequence[float], tolerance: float) -> Judged:
    """Test if Eq. 16 is variational inference on copies of each point, and on likelihoods to the power 1 / beta."""
    rng, n, errors = np.random.default_rng(0), 10, []
    W, noise = rng.standard_normal((4, 3)), rng.uniform(0.1, 1.0, 4)
    cov = W @ W.T + np.diag(noise)
    for m in copies:  # of each point, which then has m L dimensions
        energy = factor_analysis.free_energy(np.tile(W, (m, 1)), np.tile(noise, m), np.tile(cov, (m, m)), n)
        errors.append(factor_analysis.replicated_free_energy(W, noise, cov, n, 1 / m) - energy)
    for beta in betas:  # a normal density to a power is another one, with more noise, times a constant
        constant = n / 2 * (np.log(2 * np.pi * beta * noise) - np.log(2 * np.pi * noise) / beta).sum()
        energy = factor_analysis.free_energy(W, beta * noise, cov, n) + constant
        errors.append(factor_analysis.replicated_free_energy(W, noise, cov, n, beta) - energy)
    error = np.abs(errors).max()
    return within(error, tolerance, f"free energies differ by at most {error:.0e} nats")
