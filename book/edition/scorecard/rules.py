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
    "Verdict",
    "checks",
    "direction",
    "holds",
    "majority",
    "printed_value",
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


def majority(cases: Sequence[bool] | np.ndarray, name: str) -> Judged:
    """Return the outcome of a claim about most cases, and a text such as ``13 of 20 data sets (41 to 85 %)``.

    The interval of the share is the exact one (Clopper and Pearson).
    """
    count, n = int(np.sum(cases)), len(cases)
    low, high = stats.binomtest(count, n).proportion_ci(LEVEL)
    outcome = Outcome.YES if low > 0.5 else Outcome.NO if high < 0.5 else Outcome.OPEN
    return outcome, f"{count} of {n} {name} ({100 * low:.0f} to {100 * high:.0f} %)"


def printed_value(values: Sequence[float] | np.ndarray, printed: float, name: str) -> Judged:
    r"""Return the outcome of a printed value that could be one of these, and a text with the range that is expected.

    If values are normal, the range holds a further one with probability :data:`edition.stats.LEVEL`:

    .. math:: \bar y \pm t_{n-1}\, \hat\sigma \sqrt{1 + 1/n}

    For fewer than five values it would be too wide to say anything.
    """
    n = len(values)
    if n < 5:
        return Outcome.OPEN, ""
    mean = float(np.mean(values))
    reach = float(stats.t.isf((1 - LEVEL) / 2, n - 1) * np.std(values, ddof=1) * math.sqrt(1 + 1 / n))
    return holds(abs(printed - mean) <= reach), f"; {name} expected from {mean - reach:.2f} to {mean + reach:.2f}"


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
