"""From measurements to a verdict: the rules by which the scorecard judges, which its page states in words."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from enum import Enum, StrEnum
from typing import NamedTuple

import numpy as np
from scipy import stats

from edition.stats import LEVEL, Comparison, Interval

__all__ = [
    "Finding",
    "Judged",
    "Outcome",
    "Share",
    "Verdict",
    "checks",
    "direction",
    "expected_range",
    "holds",
    "majority",
    "printed_value",
    "share",
    "together",
    "verdict",
    "within",
]


class Outcome(Enum):
    """Outcome of a claim, or of a part of one, by one measurement."""

    YES = "holds"
    PART = "holds in part"
    NO = "does not hold"
    OPEN = "cannot be told"


class Verdict(StrEnum):
    """Verdict of the scorecard on a claim, in the order in which they are counted."""

    mark: str
    """One character for it."""
    meaning: str

    def __new__(cls, text: str, mark: str, meaning: str) -> Verdict:
        verdict = str.__new__(cls, text)
        verdict._value_, verdict.mark, verdict.meaning = text, mark, meaning
        return verdict

    REPRODUCED = "reproduced", "✓", "It holds in every reading that decides, on the paper's own terms."
    PARTLY = (
        "partly reproduced",
        "½",
        "A part of it holds and a part does not, or it holds in one reading and not in another.",
    )
    NOT = "not reproduced", "✗", "It holds in no reading, and at least one decides."
    UNDECIDED = "undecided", "?", "It was measured on the paper's own terms, and the measurements do not tell."
    SAME_WAY = "points the same way", "✓", "As *reproduced*, but by evidence at reduced scale or on stand-in images."
    BOTH_WAYS = "points both ways", "½", "As *partly reproduced*, by such evidence."
    OTHER_WAY = "points the other way", "✗", "As *not reproduced*, by such evidence."
    NO_WAY = "points neither way", "?", "As *undecided*, by such evidence."
    MISSING = "not yet run", "–", "Nothing that bears on it is recorded."


class Finding(NamedTuple):
    """Outcome of a claim by one measurement."""

    outcome: Outcome
    text: str
    """The measurement, with its interval and number of runs."""
    reading: str = ""
    """Reading of the claim, if there are several: a length of training, a stopping rule."""
    falls_short: str = ""
    """Difference from the paper's own terms, such as ``at reduced scale``; empty if there is none."""


Judged = tuple[Outcome, str]
"""Outcome of a claim by one computation, and a text that states it."""


def holds(condition: bool | np.bool_) -> Outcome:
    """Return the outcome of a condition."""
    return Outcome.YES if condition else Outcome.NO


def within(error: float, tolerance: float, text: str) -> Judged:
    """Return the outcome of an error, which is at most the tolerance if a claim holds, and a text that states it."""
    return holds(error <= tolerance), f"{text} ({tolerance:g} allowed)"


def direction(difference: Comparison | Interval, sign: int = 1) -> Outcome:
    """Return the outcome of a difference that lies on the side of ``sign``, 1 or -1, as a claim has it.

    Its bounds are NaN if there are too few values for an interval.
    """
    if difference.low > 0 or difference.high < 0:
        return holds(sign * difference.low > 0)
    return Outcome.NO if difference.low == difference.high == 0 else Outcome.OPEN


class Share(NamedTuple):
    """A share of cases with its exact interval."""

    count: int
    n: int
    low: float
    high: float

    def of(self, cases: str) -> str:
        """Return a text such as ``13 of 20 data sets (41 to 85 %)``."""
        return f"{self.count} of {self.n} {cases} ({100 * self.low:.0f} to {100 * self.high:.0f} %)"


def share(cases: Sequence[bool] | np.ndarray) -> Share:
    """Return the share of cases that are true, with its Clopper-Pearson interval; from 0 to 1 if there is no case."""
    count, n = int(np.sum(cases)), len(cases)
    interval = stats.binomtest(count, n).proportion_ci(LEVEL) if n else (0.0, 1.0)
    return Share(count, n, *map(float, interval))


def majority(cases: Share) -> Outcome:
    """Return the outcome of a claim about most cases."""
    if cases.low > 0.5:
        return Outcome.YES
    return Outcome.NO if cases.high < 0.5 else Outcome.OPEN


def expected_range(values: Sequence[float] | np.ndarray) -> tuple[float, float]:
    r"""Return the range that holds a further value with probability :data:`LEVEL`, if values are normal.

    .. math:: \bar y \pm t_{n-1}\, \hat\sigma \sqrt{1 + 1/n}

    Bounds are NaN for fewer than five values, of which the range would be too wide to say anything.
    """
    n = len(values)
    if n < 5:
        return math.nan, math.nan
    mean = float(np.mean(values))
    reach = float(stats.t.isf((1 - LEVEL) / 2, n - 1) * np.std(values, ddof=1) * math.sqrt(1 + 1 / n))
    return mean - reach, mean + reach


def printed_value(values: Sequence[float] | np.ndarray, printed: float) -> Outcome:
    """Return the outcome of a printed value that could be one of these."""
    low, high = expected_range(values)
    return Outcome.OPEN if math.isnan(low) else holds(low <= printed <= high)


def together(outcomes: Iterable[Outcome]) -> Outcome:
    """Return the outcome of a claim with several parts: all of them hold, none does, or some.

    A part that cannot be told leaves the whole open, unless others already differ.
    """
    different = set(outcomes)
    if len(different) == 1:
        return different.pop()
    return Outcome.PART if Outcome.PART in different or {Outcome.YES, Outcome.NO} <= different else Outcome.OPEN


def checks(parts: Mapping[str, Outcome | bool]) -> Judged:
    """Return the outcome of several parts, and a text that says which hold."""
    marks = {Outcome.YES: "yes", Outcome.NO: "no", Outcome.PART: "in part", Outcome.OPEN: "cannot be told"}
    outcomes = {name: part if isinstance(part, Outcome) else holds(part) for name, part in parts.items()}
    return together(outcomes.values()), "; ".join(f"{name}: {marks[outcome]}" for name, outcome in outcomes.items())


def verdict(findings: Sequence[Finding]) -> Verdict:
    """Judge a claim by all that was measured of it.

    Findings on the paper's own terms take precedence over those that fall short of them, which never make a claim
    *reproduced*. Findings by which it cannot be told do not count if others decide.
    """
    if not findings:
        return Verdict.MISSING
    own = [finding for finding in findings if not finding.falls_short]
    on_own_terms, short_of_them = {
        Outcome.YES: (Verdict.REPRODUCED, Verdict.SAME_WAY),
        Outcome.PART: (Verdict.PARTLY, Verdict.BOTH_WAYS),
        Outcome.NO: (Verdict.NOT, Verdict.OTHER_WAY),
        Outcome.OPEN: (Verdict.UNDECIDED, Verdict.NO_WAY),
    }[together({finding.outcome for finding in own or findings} - {Outcome.OPEN})]
    return on_own_terms if own else short_of_them
