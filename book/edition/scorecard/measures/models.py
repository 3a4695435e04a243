"""Measures of claims about trained models by themselves: printed ones, modes, latents in use, learned exponents."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import reduce

import numpy as np

from edition import stats
from edition.scorecard.evidence import Evidence, Method, Rows, Setting, Sides, measure
from edition.scorecard.measures.records import column
from edition.scorecard.rules import Finding, Outcome, direction, holds, majority, printed_value, together
from edition.stats import Interval
from edition.studies import OrientationStudy, load_record, read_study

_OF_A_MODE = 0.19
"""Variance of the most frequent value of 90, in that of a value: normal ones in histograms of 15 bars."""


@measure
def printed_model(
    evidence: Evidence, dataset: str, method: Method, beta: float, mig: float, log_likelihood: float
) -> Iterator[Finding]:
    """Test if the printed values of a representative model are those of the upper half of ours."""
    for sides in evidence.compared(dataset, (method, beta)):
        (rows,) = sides.groups
        ours, fit = column(rows, "mig"), column(rows, "log_likelihood")
        chosen = stats.representative(ours, fit)
        text = f"representative of n = {len(rows)}: MIG {ours[chosen]:.2f}, log-likelihood {fit[chosen]:.2f}"
        parts = [(ours, mig, 0.1, "MIG"), (fit, log_likelihood, 5, "log-likelihood")]
        outcomes = []
        for values, printed, widest, name in parts:
            upper = stats.upper_half(values, ours) if len(rows) >= 10 else ()
            outcome, span = printed_value(upper, printed, stats.OF_A_REPRESENTATIVE, widest, len(rows) / 2 - 1, 2)
            outcomes.append(outcome)
            text += f"; {name}{span}" * bool(span)
        yield sides.finding(Outcome.OPEN if sides.setting.reduced else together(outcomes), text)


def _pooled(evidence: Evidence, dataset: str, methods: Sequence[Method]) -> list[Sides]:
    """Return the runs of any of the methods by setting, a group for each method and beta, each run once."""
    pooled: dict[Setting, list[Sides]] = {}
    for method in methods:
        for sides in evidence.compared(dataset, (method, None)):
            pooled.setdefault(sides.setting, []).append(sides)
    merged = []
    for setting, parts in sorted(pooled.items(), key=lambda item: item[0].order):
        groups: dict[frozenset[str], Rows] = {}
        for rows in (part.groups[0] for part in parts):
            for beta in sorted({row["beta"] for row in rows}):
                same = [row for row in rows if row["beta"] == beta]
                groups[frozenset(row["hash"] for row in same)] = same
        missing, diverged = (
            frozenset().union(*(getattr(part, of) for part in parts)) for of in ("missing", "diverged")
        )
        merged.append(Sides(setting, [*groups.values()], [], missing, diverged))
    return merged


@measure
def several_modes(evidence: Evidence, dataset: str, methods: Sequence[Method], apart: float) -> Iterator[Finding]:
    """Test if the MIG has two modes, this number of their standard deviations apart, for most methods and betas.

    The claim holds if the dip test rejects one mode for most of them, after Holm's correction. It does not hold if the
    test rejects it for fewer than its power implies if most had two. Fewer than 20 runs give it too little power.
    """
    for sides in _pooled(evidence, dataset, methods):
        samples = [mig for rows in sides.groups if len(mig := column(rows, "mig")) >= 20]
        p_values, tail = np.array([stats.dip(mig).p_value for mig in samples]), 1 - stats.LEVEL
        refuted = int((stats.holm(p_values) < tail).sum())
        outcome = Outcome.YES if 2 * refuted > len(samples) else Outcome.OPEN
        if samples:
            power = sorted(stats.dip_power(len(mig), apart) for mig in samples)[: len(samples) // 2 + 1]
            fewest = reduce(np.convolve, ([1 - one, one] for one in power))  # probabilities of 0, 1, ... refutations
            if fewest[: int((p_values < tail).sum()) + 1].sum() <= tail / 2:
                outcome = Outcome.NO
        text = f"one mode rejected in {refuted} of {len(samples)} combinations of method and β with at least 20 runs"
        yield sides.finding(outcome, text)


@measure
def unused_latents(evidence: Evidence, dataset: str, methods: Sequence[Method], needed: int) -> Iterator[Finding]:
    """Test if most runs use no more latents than are needed."""
    for sides in _pooled(evidence, dataset, methods):
        active, latents = (
            column([row for rows in sides.groups for row in rows], n) for n in ("active_units", "latent_dim")
        )
        outcome, text = majority(active <= needed, f"runs with at most {needed} active latents")
        yield sides.finding(outcome, f"{text}; {active.min():g} to {active.max():g} of {latents.max():g} active")


def _learned(evidence: Evidence, dataset: str, method: Method) -> Iterator[tuple[Sides, np.ndarray]]:
    """Iterate over settings with the exponents of the subspaces of each run, ascending, ``(R, S)``."""
    for sides in evidence.compared(dataset, (method, None)):
        yield sides, np.sort([row["exponents"][1:] for row in sides.groups[0]], axis=1)


@measure
def exponents_differ(evidence: Evidence, dataset: str, method: Method, root: float, start: float) -> Iterator[Finding]:
    """Test if learned exponents stay off the root's, and if the middle one of three ends below it.

    They count as equal to it if their mean distance is less than half of that from which training starts. Runs of one
    seed, at several betas, count as one.
    """
    for sides, exponents in _learned(evidence, dataset, method):
        seeds, off, half = column(sides.groups[0], "seed"), exponents - root, abs(start - root) / 2
        middle = evidence.interval(stats.seed_means(off[:, 1], seeds))
        distance = evidence.interval(stats.seed_means(np.abs(off).mean(1), seeds))
        beyond = Interval(*(value - half for value in distance[:3]), len(np.unique(seeds)))
        text = f"mean distance from p0 {distance:.3f}, equal below {half:g}; p2 − p0: {middle:+.3f}"
        yield sides.finding(together([direction(beyond), direction(middle, -1)]), text)


@measure
def exponents_printed(evidence: Evidence, dataset: str, method: Method, modes: Sequence[float]) -> Iterator[Finding]:
    """Test if the printed most frequent exponents are those of ours."""
    for sides, exponents in _learned(evidence, dataset, method):
        judged = [
            printed_value(p, mode, _OF_A_MODE, 0.1, len(p) - 1, len(modes))
            for p, mode in zip(exponents.T, modes, strict=True)
        ]
        text = "; ".join(f"p{i}{span}" for i, (_, span) in enumerate(judged, 1) if span)
        outcome = Outcome.OPEN if sides.setting.reduced else together(outcome for outcome, _ in judged)
        yield sides.finding(outcome, f"{len(exponents)} runs; {text}")


@measure
def largest_exponent_above(evidence: Evidence, dataset: str, method: Method, bound: float) -> Iterator[Finding]:
    """Test if the largest exponent is above a bound in most runs, and in all."""
    for sides, exponents in _learned(evidence, dataset, method):
        most, text = majority(exponents[:, -1] > bound, "runs")
        outcome = together([most, holds((exponents[:, -1] > bound).all())])
        yield sides.finding(outcome, f"{text}; smallest p{exponents.shape[1]} {exponents[:, -1].min():.3f}")


@measure
def codes_follow_prior(evidence: Evidence, study: str, leptokurtic: float, platykurtic: float) -> Iterator[Finding]:
    """Test if trained codes lie closer to the axes under a platykurtic prior than under a leptokurtic one."""
    path = evidence.folder / f"{study}.csv"
    if not path.exists():
        return
    table, named = load_record(path), read_study(path.with_suffix(".yaml"))
    keys = np.stack([table[name] for name in OrientationStudy.keys], 1)
    groups = dict.fromkeys((group.beta, group.steps, group.batch_size) for group in named.groups)
    for number, (beta, steps, batch_size) in enumerate(groups):
        sides, missing = [], 0
        for p in (leptokurtic, platykurtic):
            of = (keys[:, [0, 1, 3, 4]] == (p, beta, steps, batch_size)).all(1)
            declared = {case for case in named.cases() if (case[0], case[1], *case[3:]) == (p, beta, steps, batch_size)}
            missing += len(declared - {tuple(case) for case in keys[of].tolist()})
            sides.append(table["alignment"][of & np.isfinite(table["alignment"])])
        if all(map(len, sides)):
            difference, (low, high) = evidence.compare(*sides), map(stats.mean_interval, sides)
            text = f"alignment {low:+.2f} with p = {leptokurtic:g}, {high:+.2f} with p = {platykurtic:g}; "
            text += f"difference {difference:+.2f}"
            reading = f"β = {beta:g}, {steps:,} steps"
            yield Finding(direction(difference), text, reading, "small scale", (number,), missing)
