r"""Statements of results pages that follow from records by rule, with the comparisons on which the scorecard rests."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import t

from edition import stats
from edition.explorers.exhibits import PLAIN
from edition.figures.results import METHODS
from edition.page import ROOT, table
from edition.scorecard import read_claims
from edition.stats import LEVEL, Comparison, Curve, Interval, compare, contrast, p_text
from isa.sweep import Records

__all__ = ["PRINTED", "at_equal_beta", "at_equal_fit", "cells", "effect_of_beta", "effects_of_beta"]
__all__ += ["further_run", "outcome", "reached"]

_CLAIMS = [claim.given for claim in read_claims(ROOT / "book/claims.yaml") if claim.measure == "printed_model"]
PRINTED = {(given["method"], float(given["beta"])): (given["mig"], given["log_likelihood"]) for given in _CLAIMS}
"""MIG and log-likelihood of the models that the paper prints as representatives (Fig. 8-16), by objective and beta.

:meta hide-value:
"""

_EFFECTS = {"KL divergence": ("divergence", "+.2f"), "log-likelihood": ("log_likelihood", "+.2f")}
_EFFECTS["MIG"] = ("mig", "+.3f")


def outcome(difference: Comparison | Interval, *words: str) -> str:
    """Return the word for the side of zero on which the whole interval lies: above, below, or neither.

    The words are *higher*, *lower* and *not significantly different* unless others are given. Without an interval it is
    *undecided*.
    """
    above, below, neither = words or ("higher", "lower", "not significantly different")
    if math.isnan(difference.low):
        return "undecided"
    return above if difference.low > 0 else below if difference.high < 0 else neither


def cells(found: Comparison | Interval, digits: str) -> tuple[str, ...]:
    """Return cells of a table: a mean or difference, its interval, the p-value of a comparison, and the runs."""
    value, low, high = found[:3]
    bounds = "" if math.isnan(low) else f"{low:{digits}} to {high:{digits}}"
    if isinstance(found, Interval):
        return f"{value:{digits}}", bounds, f"{found.n}"
    counts = f"{found.n_first} and {found.n_second}" if found.n_first else ""
    return f"{value:{digits}}", bounds, p_text(found.p_value).removeprefix("p = ").removeprefix("p "), counts


def reached(values: ArrayLike, printed: float) -> str:
    """Return how many values, rounded to two digits as they are printed, are at least a printed one: ``2 of 3``."""
    return f"{(np.round(values, 2) >= printed - 1e-9).sum()} of {np.size(values)}"


def further_run(values: ArrayLike) -> tuple[float, float]:
    r"""Return the range of one more value, with probability :data:`edition.stats.LEVEL`; NaN for fewer than three.

    .. math:: \bar y \pm t_{n-1}\, \hat\sigma \sqrt{1 + 1/n}
    """
    if (n := np.size(values)) < 3:
        return math.nan, math.nan
    mean, reach = np.mean(values), t.isf((1 - LEVEL) / 2, n - 1) * np.std(values, ddof=1) * math.sqrt(1 + 1 / n)
    return float(mean - reach), float(mean + reach)


def effect_of_beta(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """Return cells of a table of the changes from the smallest to the largest beta that has three records.

    A row has the two values of beta, a measure, the word for its change, and :func:`cells` of the change, in which the
    records of one seed count as one. There is none if only one beta has three records.
    """
    betas, n = np.unique([row["beta"] for row in rows], return_counts=True)
    if (n >= 3).sum() < 2:
        return []
    ends, found = betas[n >= 3][[0, -1]], []
    sides = [[row for row in rows if row["beta"] == beta] for beta in ends]
    for name, (column, digits) in _EFFECTS.items():
        values, seeds = ([[row[of] for row in side] for side in sides] for of in (column, "seed"))
        change = contrast(values, (-1, 1), seeds)
        word = outcome(change, "rises", "falls", "no significant change")
        found.append((f"{ends[0]:g} to {ends[1]:g}", name, word, *cells(change, digits)))
    return found


def effects_of_beta(records: Mapping[tuple[str, str], Sequence[Mapping[str, Any]]], methods: Sequence[str]) -> str:
    """Return a table of :func:`effect_of_beta` for each length of training, in Markdown; empty if no runs allow one.

    ``records``: rows by title and method. Those of a plain objective at beta = 1 count for its total correlation, too.
    """
    columns, text = ("method", "β", "mean of", "result", "change", "95 % interval", "p", "n"), []
    for title in dict.fromkeys(title for title, _ in records):
        rows = []
        for name in methods:
            plain = (row for row in records.get((title, PLAIN.get(name, "")), ()) if row["beta"] == 1)
            trained = [row for row in (*records[title, name], *plain) if row["status"] == "trained"]
            rows += [(METHODS[name].label, *change) for change in effect_of_beta(trained)]
        text += [f"{title}:", table(columns, rows).data] if rows else []
    return "\n\n".join(text)


def at_equal_fit(
    records: Mapping[tuple[str, str], Records],
    panels: Mapping[str, Mapping[str, Curve]],
    pairs: Sequence[tuple[str, str]],
) -> str:
    """Return a table of differences in MIG at equal log-likelihood, for each panel and pair: second method minus first.

    There is a verdict if all values of beta are recorded that ``records``, by title and method, name, or five of them
    with five runs each.
    """
    columns = ("trained for", "comparison", "verdict", "difference in MIG")
    columns += ("95 % interval", "p", "log-likelihoods [nats]")
    words, rows = ("higher MIG", "lower MIG", "not significantly different"), []
    for title, panel in panels.items():
        for pair in (pair for pair in pairs if set(pair) <= set(panel)):
            curves, found = [panel[name] for name in pair], [records[title, name] for name in pair]
            gained = stats.compare_curves(*curves)
            if math.isnan(gained.difference):  # no log-likelihood in common
                continue
            named = [{row["beta"] for row in some} | {run.beta for run in some.missing} for some in found]
            verdict = outcome(gained, *words) if stats.enough_betas(curves, named) else "undecided"
            label = " minus ".join(METHODS[name].label for name in reversed(pair))
            span = f"{gained.left:.1f} to {gained.right:.1f}"
            rows.append((title, label, verdict, *cells(gained, "+.3f")[:3], span))
    return table(columns, rows).data if rows else ""


def at_equal_beta(panels: Mapping[str, Mapping[str, Curve]], first: str, second: str) -> str:
    """Return a table of the differences at each beta, second method minus first, for each panel that has both."""
    columns, text = ("β", "MIG", "95 % interval", "p", "n", "p (Holm)", "log-likelihood [nats]", "95 % interval"), []
    for title, panel in panels.items():
        found = {}
        for beta in np.intersect1d(panel[first].beta, panel[second].beta) if {first, second} <= set(panel) else ():
            sides = [panel[name].runs[panel[name].runs[:, 0] == beta] for name in (first, second)]
            found[beta] = [compare(sides[0][:, column], sides[1][:, column]) for column in (2, 1)]
        corrected = stats.holm([mig.p_value for mig, _ in found.values()]) if found else []
        rows = [
            (f"{beta:g}", *cells(mig, "+.3f"), f"{p_value:.2f}", *cells(fit, "+.2f")[:2])
            for (beta, (mig, fit)), p_value in zip(found.items(), corrected, strict=True)
        ]
        title = f"{title}, {METHODS[second].label} minus {METHODS[first].label}:"
        text += [title, table(columns, rows).data] if rows else []
    return "\n\n".join(text)
