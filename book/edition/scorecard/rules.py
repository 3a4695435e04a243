"""From measurements to a verdict: the rules by which the scorecard judges, which its page states in words."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from enum import Enum, StrEnum
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from edition.stats import LEVEL, Comparison, Interval

__all__ = ["Finding", "Judged", "Outcome", "Verdict", "checks", "deciding", "direction", "equivalent", "holds", "judge"]
__all__ += ["majority", "printed_value", "together", "within"]


class Outcome(Enum):
    """Outcome of a claim, or of a part of one, by one measurement."""

    YES = "holds"
    PART = "holds in part"
    NO = "does not hold"
    OPEN = "undecided"


class Verdict(StrEnum):
    """Verdict of the scorecard on a claim, in the order in which they are counted."""

    mark: str  #: one character for it
    meaning: str

    def __new__(cls, text: str, mark: str, meaning: str) -> Verdict:
        verdict = str.__new__(cls, text)
        verdict._value_, verdict.mark, verdict.meaning = text, mark, meaning
        return verdict

    REPRODUCED = "reproduced", "✓", "The claim holds, with all of its parts."
    PARTLY = "partly", "½", "A part of it holds and a part does not, or the effect is smaller than the printed one."
    NOT = "not reproduced", "✗", "A part of it does not hold, and no part was shown to hold."
    OPEN = "open", "?", "The measurements do not decide, are fewer than declared, or are missing."


class Finding(NamedTuple):
    """Outcome of a claim by one measurement."""

    outcome: Outcome
    text: str  #: the measurement, with its interval and number of runs
    reading: str = ""  #: interpretation of the claim, if there are several: a length of training, a stopping rule
    falls_short: str = ""  #: tags of the difference from the paper's own terms: ``small scale``, ``stand-in data``
    order: tuple[Any, ...] = ()  #: rank of the interpretation; the lowest decides, several of one rank together
    missing: int = 0  #: number of runs that are declared and not recorded; with any, the verdict is provisional


Judged = tuple[Outcome, str]
"""Outcome of a claim by one computation, and a text that states it."""


def holds(condition: bool | np.bool_) -> Outcome:
    """Return the outcome of a condition."""
    return Outcome.YES if condition else Outcome.NO


def within(error: float, tolerance: float, text: str) -> Judged:
    """Return the outcome of an error, which is at most the tolerance if a claim holds, and a text that states it."""
    return holds(error <= tolerance), f"{text} ({tolerance:g} allowed)"


def direction(
    difference: Comparison | Interval, sign: int = 1, printed: float | None = None, parts: int = 1, error: float = 0.0
) -> Outcome:
    """Return the outcome of a difference that lies on the side of ``sign``, 1 or -1, as a claim has it.

    With a printed difference, which has that sign and a standard error, ours is smaller if the interval of the
    difference between the two lies below 0: the claim then holds in part, or not if ours is not above 0 either. Bounds
    are NaN if there are too few values for an interval.

    One of several parts that does not hold decides alone. From three parts on, it is refuted by a wider interval, so
    that all of them together are refuted by chance as seldom as one or two.
    """
    low, high = sorted((sign * difference.low, sign * difference.high))
    single, ours = float(stats.norm.isf((1 - LEVEL) / 2)), sign * difference[0]
    wider = max(1.0, float(stats.norm.isf((1 - LEVEL) / parts)) / single)
    reach = wider * (high - ours)
    smaller = printed is not None and ours + math.hypot(reach, wider * single * error) < abs(printed)
    if low > 0:
        return Outcome.PART if smaller else Outcome.YES
    return Outcome.NO if ours + reach < 0 or low == high == 0 or smaller else Outcome.OPEN


def equivalent(difference: Comparison | Interval, margin: float) -> Outcome:
    """Return the outcome of a claim that a difference is smaller than a margin, either way."""
    if difference.low > margin or difference.high < -margin:
        return Outcome.NO
    return Outcome.YES if -margin < difference.low and difference.high < margin else Outcome.OPEN


def majority(cases: Sequence[bool] | np.ndarray, name: str) -> Judged:
    """Return the outcome of a claim about most cases, and a text such as ``13 of 20 data sets (41 to 85 %)``.

    The interval of the share is the exact one (Clopper and Pearson).
    """
    count, n = int(np.sum(cases)), len(cases)
    low, high = stats.binomtest(count, n).proportion_ci(LEVEL)
    outcome = Outcome.YES if low > 0.5 else Outcome.NO if high < 0.5 else Outcome.OPEN
    return outcome, f"{count} of {n} {name} ({100 * low:.0f} to {100 * high:.0f} %)"


def printed_value(
    values: Sequence[float] | np.ndarray, printed: float, scatter: float, widest: float, freedom: float, parts: int = 1
) -> Judged:
    r"""Return the outcome of a printed value with the expectation of these, and a text with the range around it.

    The printed value has a variance of its own, ``scatter`` times that of the values. With ``freedom`` for the degrees
    of freedom of that variance, and if all is normal, the range
    includes all of several printed values (``parts``) with probability :data:`edition.stats.LEVEL`:

    .. math:: \bar y \pm t_{\nu}\, \hat\sigma \sqrt{1/n + \mathrm{scatter}}

    A range that is wider than ``widest``, for one value, is too wide to be met. For fewer than five values there is
    none, and no text.
    """
    n = len(values)
    if n < 5:
        return Outcome.OPEN, ""
    mean, error = float(np.mean(values)), float(np.std(values, ddof=1) * math.sqrt(1 / n + scatter))
    reach, single = (float(stats.t.isf((1 - LEVEL) / 2 / k, freedom)) * error for k in (parts, 1))
    met = holds(abs(printed - mean) <= reach)
    wide = met is Outcome.YES and 2 * single > widest
    text = f" expected {mean - reach:z.2f} to {mean + reach:z.2f}" + ", too wide to decide" * wide
    return Outcome.OPEN if wide else met, text


def together(outcomes: Iterable[Outcome]) -> Outcome:
    """Return the outcome of a claim with several parts.

    It holds if all parts do. If a part does not, the claim holds in part where another was shown to hold, and
    otherwise does not.
    """
    different = set(outcomes)
    if len(different) == 1:
        return different.pop()
    if Outcome.PART in different or {Outcome.YES, Outcome.NO} <= different:
        return Outcome.PART
    return Outcome.NO if Outcome.NO in different else Outcome.OPEN


def checks(parts: Mapping[str, Outcome | bool]) -> Judged:
    """Return the outcome of several parts, and a text that says which hold."""
    marks = {Outcome.YES: "yes", Outcome.NO: "no", Outcome.PART: "in part", Outcome.OPEN: "undecided"}
    outcomes = {name: part if isinstance(part, Outcome) else holds(part) for name, part in parts.items()}
    return together(outcomes.values()), "; ".join(f"{name}: {marks[outcome]}" for name, outcome in outcomes.items())


def deciding(findings: Iterable[Finding]) -> list[Finding]:
    """Return the findings of the first interpretation in order; the others are remarks."""
    findings = list(findings)
    return [finding for finding in findings if finding.order == min(finding.order for finding in findings)]


def judge(findings: Sequence[Finding]) -> tuple[Verdict, Verdict | None]:
    """Return the verdict on a claim by all that was measured of it, and the provisional one if runs are missing.

    Of several findings of equal rank, undecided ones do not count if others decide.
    """
    first = deciding(findings)
    outcomes = {finding.outcome for finding in first}
    outcome = together(outcomes - {Outcome.OPEN} or outcomes) if first else Outcome.OPEN
    found = dict(zip(Outcome, Verdict, strict=True))[outcome]
    return (Verdict.OPEN, found) if any(finding.missing for finding in first) else (found, None)
