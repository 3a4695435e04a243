"""Measures of claims that compare trained models, from the records of sweeps."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import product

import numpy as np

from edition import stats
from edition.scorecard.evidence import Evidence, Method, Rows, measure, method_text
from edition.scorecard.rules import Finding, Outcome, direction, equivalent, holds, together

__all__ = ["column"]

_SHOWN = {
    "mig": "MIG {:+.3f}",
    "log_likelihood": "log-likelihood {:+.2f}",
    "divergence": "KL divergence {:+.2f}",
    "heart": "log-likelihood of the heart beyond the other shapes' {:+.2f}",
}


def _value(row: Mapping, name: str) -> float | None:
    """Return a measurement of a run; ``heart`` is the heart's log-likelihood minus the mean of the other shapes'."""
    if name != "heart":
        return row[name]
    if "shape" not in (row.get("unscored") or ()):
        return None
    *others, heart = row["log_likelihood_by_value"][row["unscored"].index("shape")]
    return heart - sum(others) / len(others)


def column(rows: Rows, name: str) -> np.ndarray:
    """Return a measurement of every run that has it."""
    return np.array([value for row in rows if (value := _value(row, name)) is not None], dtype=float)


def _curve(rows: Rows) -> stats.Curve:
    return stats.curve(*(column(rows, name) for name in ("beta", "log_likelihood", "mig", "seed")))


def _mig(one: stats.Curve, where: Sequence[bool] | np.ndarray | None = None) -> list[np.ndarray]:
    """Return the MIG of the runs at each beta, or at some of them."""
    groups = [group[:, 1] for group in one.groups]
    return groups if where is None else [group for group, chosen in zip(groups, where, strict=True) if chosen]


def _over(methods: Sequence[Method], betas: Sequence[float]) -> list[tuple[Method, Sequence[float] | None]]:
    """Return the methods with their betas; with any for FactorVAE, whose weight is another."""
    return [(method, None if method == "factor-vae" else betas) for method in methods]


def _unless(undecided: bool, outcome: Outcome) -> Outcome:
    return Outcome.OPEN if undecided else outcome


@measure
def higher_distribution(
    evidence: Evidence, dataset: str, first: Method, second: Method, beta: float, printed: float
) -> Iterator[Finding]:
    """Test if mean, median and maximum of the MIG are higher for the second method, the mean as much as printed."""
    for sides in evidence.compared(dataset, (first, beta), (second, beta)):
        mig = [column(side, "mig") for side in sides.groups]
        mean, median, maximum = evidence.compare(*mig), stats.compare_medians(*mig), stats.compare_maxima(*mig)
        error, above = stats.printed_error(*map(stats.upper_half, mig, mig)), maximum.difference > 0
        parts = [direction(mean, 1, None if sides.setting.falls_short else printed, 3, error)]
        level = (1 - stats.LEVEL) * (1 if above else 2 / 3)  # one of three parts is refuted at a lower one
        parts += [direction(median, parts=3), _unless(maximum.p_value >= level, holds(above))]
        text = f"{method_text(second)} minus {method_text(first)}: "
        text += f"mean MIG {mean:+.3f}; median {median:+.3f}; maximum {maximum:+.3f}"
        yield sides.finding(together(parts), text)


@measure
def differs(
    evidence: Evidence,
    dataset: str,
    first: Method | list[Method],
    second: Method,
    beta: float | list[float],
    signs: Mapping[str, int],
    printed: Mapping[str, float] | None = None,
    margin: float | None = None,
) -> Iterator[Finding]:
    """Test if MIG, log-likelihood or both are higher (sign 1) or lower (-1) for the second method, or within a margin.

    It may be compared with several methods, at several betas; methods that are one at a beta count once. Printed
    differences are of representative models: then the upper halves by MIG are compared, and their sizes count.
    """
    firsts, betas = (one if isinstance(one, list) else [one] for one in (first, beta))
    pairs = list(product(betas, firsts))
    for sides in evidence.compared(dataset, *((second, one) for one in betas), *((name, one) for one, name in pairs)):
        parts, texts = [], {}
        for (one, name), rows in zip(pairs, sides.groups[len(betas) :], strict=True):
            if (runs := frozenset(row["hash"] for row in rows)) in texts:
                continue
            texts[runs] = f"{method_text(second)} minus {method_text(name)}{f' at β = {one:g}' * (len(betas) > 1)}: "
            for column_name, sign in signs.items():
                pair = rows, sides.groups[betas.index(one)]
                values = [column(side, column_name) for side in pair]
                if printed:
                    values = [stats.upper_half(x, column(side, "mig")) for x, side in zip(values, pair, strict=True)]
                difference = evidence.compare(*values)
                size = printed[column_name] if printed and not sides.setting.reduced else None
                outcome = direction(difference, sign, size, len(pairs) * len(signs), stats.printed_error(*values))
                parts.append(equivalent(difference, margin) if margin else outcome)
                texts[runs] += _SHOWN[column_name].format(difference) + "; "
        text = "upper halves by MIG, " * bool(printed) + "".join(texts.values())
        yield sides.finding(together(parts), text.removesuffix("; "))


@measure
def changes_with_beta(
    evidence: Evidence, dataset: str, methods: Sequence[Method], low: float, high: float, signs: Mapping[str, int]
) -> Iterator[Finding]:
    """Test if measurements rise (sign 1) or fall (-1) from one beta to a higher one, for each method."""
    for sides in evidence.compared(dataset, *product(methods, (low, high))):
        parts, texts = [], []
        for (number, method), (name, sign) in product(enumerate(methods), signs.items()):
            pair = [[row for row in side if _value(row, name) is not None] for side in sides.groups[2 * number :][:2]]
            if all(pair):
                values, seeds = ([column(side, of) for side in pair] for of in (name, "seed"))
                change = stats.contrast(values, (-1, 1), seeds)
                parts.append(direction(change, sign, parts=len(methods) * len(signs)))
                texts.append(f"{method_text(method)}: change in {_SHOWN[name].format(change)}")
        if parts:
            yield sides.finding(together(parts), "; ".join(texts))


@measure
def better_trade_off(
    evidence: Evidence, dataset: str, method: Method, baselines: Sequence[Method], betas: Sequence[float]
) -> Iterator[Finding]:
    """Test if a method reaches more MIG than each of the baselines at equal log-likelihood."""
    for sides in evidence.compared(dataset, *_over((method, *baselines), betas)):
        own, *others = map(_curve, sides.groups)
        parts, texts, complete, any_overlap = [], [], True, False
        for name, other, declared in zip(baselines, others, sides.declared[1:], strict=True):
            difference = stats.compare_curves(other, own)
            enough = stats.enough_betas((own, other), (sides.declared[0], declared))
            parts.append(_unless(not enough, direction(difference, parts=len(others))))
            texts.append(f"minus {method_text(name)}: {difference:+.3f}" + ", too few values of β" * (not enough))
            complete, any_overlap = complete and enough, any_overlap or not math.isnan(difference.difference)
        if any_overlap:
            text = f"MIG at equal log-likelihood, {method_text(method)} {'; '.join(texts)}"
            yield sides.finding(together(parts), text, complete)


@measure
def best_of_all(
    evidence: Evidence,
    dataset: str,
    method: Method,
    beta: float | Sequence[float],
    others: Sequence[Method],
    betas: Sequence[float],
    large_over: Sequence[Method] = (),
) -> Iterator[Finding]:
    """Test if a method's MIG, at its best beta of those given, is above every other method's at its own best beta.

    Runs that a method shares with another, those at beta = 1, count for the other. Over some methods the lead has to be
    large as well.
    """
    for sides in evidence.compared(dataset, (method, beta), *_over(others, betas)):
        parts, texts, complete = [], [], True
        for name, rows, declared in zip(others, sides.groups[1:], sides.declared[1:], strict=True):
            shared = {row["hash"] for row in rows}
            own, rival = _curve([row for row in sides.groups[0] if row["hash"] not in shared]), _curve(rows)
            if not len(own.beta):
                continue
            difference = stats.compare_best(_mig(rival), _mig(own))
            wanted = [(rival, declared)]
            if isinstance(beta, Sequence):
                wanted.append((own, sides.declared[0] - {1}))
            complete &= (enough := stats.enough_betas(*zip(*wanted, strict=True)))
            parts.append(_unless(not enough, direction(difference, parts=len(others))))
            if name in large_over:
                variances = [max(_mig(one), key=np.mean).var(ddof=1) for one in (rival, own) if one.n.min() > 1]
                margin = 0.8 * math.sqrt(np.mean(variances)) if len(variances) == 2 else math.nan  # Cohen's convention
                lead = stats.Comparison(*(value - margin for value in difference[:3]))
                parts.append(_unless(not enough, direction(lead)))
            texts.append(f"minus {method_text(name)}: {difference:+.3f}" + ", too few values of β" * (not enough))
        if parts:
            text = f"best mean MIG, {method_text(method)} {'; '.join(texts)}"
            yield sides.finding(together(parts), text, complete)


@measure
def unmatched_at_better_fit(
    evidence: Evidence, dataset: str, method: Method, baselines: Sequence[Method], betas: Sequence[float]
) -> Iterator[Finding]:
    """Test if baselines exceed the method's best MIG at a poorer fit than it has there, and not at a better one."""
    for sides in evidence.compared(dataset, *_over((method, *baselines), betas)):
        own, parts, texts = _curve(sides.groups[0]), [], []
        best = own.mig.argmax()
        for name, rows, declared in zip(baselines, sides.groups[1:], sides.declared[1:], strict=True):
            rival = _curve(rows)
            undecided = not stats.enough_betas((own, rival), (sides.declared[0], declared))
            anywhere = stats.compare_best(_mig(own), _mig(rival))
            parts.append(_unless(undecided, direction(anywhere, parts=2 * len(baselines))))
            texts.append(f"best {method_text(name)} minus it: MIG {anywhere:+.3f}")
            fits = rival.log_likelihood >= own.log_likelihood[best]
            if fits.any():
                there = stats.compare_best(_mig(rival, fits), _mig(own))
                parts.append(_unless(undecided, direction(there, parts=2 * len(baselines))))
                texts.append(f"it minus the best {method_text(name)} that fits at least as well: MIG {there:+.3f}")
        where = f"best {method_text(method)}: β = {own.beta[best]:g}, log-likelihood {own.log_likelihood[best]:.1f}; "
        yield sides.finding(together(parts), where + "; ".join(texts))


@measure
def shrinking_advantage(
    evidence: Evidence, dataset: str, first: Method, second: Method, low: float, high: float
) -> Iterator[Finding]:
    """Test if the second method's advantage in MIG, where there is one, is smaller at the larger beta."""
    cells = product((first, second), (low, high))
    for sides in evidence.compared(dataset, *cells):
        mig, seeds = ([column(rows, name) for rows in sides.groups] for name in ("mig", "seed"))
        change = stats.contrast(mig, (1, -1, -1, 1), seeds)
        outcome, at = direction(change, -1), [evidence.compare(*mig[i::2]) for i in (0, 1)]
        none = outcome is Outcome.YES and direction(at[0]) is not Outcome.YES
        text = f"advantage in MIG {at[0]:+.3f} at β = {low:g}, {at[1]:+.3f} at β = {high:g}; change {change:+.3f}"
        yield sides.finding(_unless(none, outcome), text)
