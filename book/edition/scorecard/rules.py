"""From measurements to a verdict: the rules by which the scorecard judges, in words and in code."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from enum import Enum, StrEnum
from typing import NamedTuple

import numpy as np
from scipy import stats

from edition.stats import LEVEL, Comparison, CurveComparison, Interval

__all__ = [
    "RULES",
    "VERDICTS",
    "Finding",
    "Outcome",
    "Share",
    "Verdict",
    "agreement",
    "capped",
    "direction",
    "expected_range",
    "majority",
    "printed_value",
    "share",
    "together",
    "verdict",
]


class Outcome(Enum):
    """Outcome of a claim, or of a part of one, by one measurement."""

    YES = "holds"
    PART = "holds in part"
    NO = "does not hold"
    OPEN = "cannot be told"


class Verdict(StrEnum):
    """Verdict of the scorecard on a claim."""

    REPRODUCED = "reproduced"
    PARTLY = "partly reproduced"
    NOT = "not reproduced"
    UNDECIDED = "undecided"
    SAME_WAY = "points the same way"
    BOTH_WAYS = "points both ways"
    OTHER_WAY = "points the other way"
    NO_WAY = "points neither way"
    MISSING = "not yet run"


VERDICTS: dict[Verdict, str] = {
    Verdict.REPRODUCED: "It holds in every reading that decides, on the paper's own terms.",
    Verdict.PARTLY: "A part of it holds and a part does not, or it holds in one reading and not in another.",
    Verdict.NOT: "It holds in no reading, and at least one decides.",
    Verdict.UNDECIDED: "It was measured on the paper's own terms, and the measurements do not tell.",
    Verdict.SAME_WAY: "As *reproduced*, but by evidence at reduced scale or on stand-in images.",
    Verdict.BOTH_WAYS: "As *partly reproduced*, by such evidence.",
    Verdict.OTHER_WAY: "As *not reproduced*, by such evidence.",
    Verdict.NO_WAY: "As *undecided*, by such evidence.",
    Verdict.MISSING: "Nothing that bears on it is recorded.",
}
"""Every verdict, in the order in which they are counted, and what it means."""


class Finding(NamedTuple):
    """Outcome of a claim by one measurement."""

    outcome: Outcome
    text: str
    """The measurement, with its interval and number of runs."""
    reading: str = ""
    """Reading of the claim, if there are several: a length of training, a stopping rule."""
    falls_short: str = ""
    """Difference from the paper's own terms, such as ``at reduced scale``; empty if there is none."""


PERCENT = f"{100 * LEVEL:.0f} %"

RULES: dict[str, str] = {
    "exact": (
        "*Exact.* A computation, without chance or with very little, agrees with what is claimed to the tolerance "
        "that stands beside it."
    ),
    "direction": (
        f"*A direction.* A difference of means, with its {PERCENT} interval. The claim holds where the whole interval "
        "lies on the claimed side of 0. It does not hold where the whole interval lies on the other side, or where no "
        "two of the values that are compared differ at all. With 0 inside the interval, it cannot be told. Nor can, as "
        "long as a method is recorded at a single β, which one suits it best."
    ),
    "distribution": (
        "*A distribution that lies higher.* Three parts: the mean is judged as a direction; median and maximum are "
        "compared as they are, over equally many runs a side, once there are at least six of each."
    ),
    "majority": (
        f"*In most cases.* The share of cases that are as claimed, with its exact (Clopper-Pearson) {PERCENT} "
        "interval. The claim holds where the whole interval lies above one half, and does not hold where it lies "
        "below."
    ),
    "printed": (
        "*A printed value.* It is met where it lies in the range that would hold a further run of ours with a "
        f"probability of {PERCENT}, by mean and standard deviation of our runs and Student's t. At least five runs "
        "are needed. Where the paper prints a representative model, our runs are those from which A.5 chooses, the "
        "upper half by MIG. At reduced scale and on stand-in images, printed values are shown beside ours, and not "
        "judged."
    ),
    "trade-off": (
        "*A trade-off.* MIG against reconstruction over β is a curve for each method. How much higher one curve lies "
        f"than another, averaged over the log-likelihoods that both reach, is judged as a direction, with a {PERCENT} "
        "interval."
    ),
    "modes": (
        "*More than one mode.* The dip test of one mode, with Holm's correction, for every method and β with at least "
        "ten runs. The claim holds where one mode is refuted in most of them, in part where it is in some. A test "
        "that refutes nothing proves nothing: then it cannot be told."
    ),
    "constants": (
        "*Values whose constants are not printed.* Constants that give the printed values are solved for. That shows "
        "that the values are possible, and not that the constants are the authors', so such a claim holds in part at "
        "most."
    ),
}
"""The kinds of claims, and when one of each kind holds, in words."""


def agreement(error: float, tolerance: float) -> Outcome:
    """Rule ``exact``: an error is at most the tolerance; NaN is not."""
    return Outcome.YES if error <= tolerance else Outcome.NO


def direction(found: Comparison | CurveComparison | Interval, sign: int = 1) -> Outcome:
    """Rules ``direction`` and ``trade-off``: a difference lies on the side of ``sign``, 1 or -1.

    Its bounds are NaN if there are too few values for an interval.
    """
    if math.isnan(found.low):
        return Outcome.OPEN
    if found.low > 0 or found.high < 0:
        return Outcome.YES if sign * found.low > 0 else Outcome.NO
    return Outcome.NO if found.low == found.high == 0 else Outcome.OPEN


class Share(NamedTuple):
    """A share of cases with its exact interval."""

    count: int
    n: int
    low: float
    high: float

    def of(self, what: str) -> str:
        """Text such as ``13 of 20 data sets (41 to 85 %)``."""
        return f"{self.count} of {self.n} {what} ({100 * self.low:.0f} to {100 * self.high:.0f} %)"


def share(count: int, n: int) -> Share:
    """Share with its Clopper-Pearson interval, which is from 0 to 1 where there is no case."""
    if not n:
        return Share(0, 0, 0.0, 1.0)
    interval = stats.binomtest(count, n).proportion_ci(LEVEL)
    return Share(count, n, float(interval.low), float(interval.high))


def majority(found: Share) -> Outcome:
    """Rule ``majority``: most cases are as claimed."""
    if found.low > 0.5:
        return Outcome.YES
    return Outcome.NO if found.high < 0.5 else Outcome.OPEN


def expected_range(values: Sequence[float] | np.ndarray) -> tuple[float, float]:
    r"""Range that holds a further value with probability :data:`LEVEL`, as far as values are normal.

    .. math:: \bar y \pm t_{n-1}\, \hat\sigma \sqrt{1 + 1/n}

    Bounds are NaN for fewer than five values, of which the range would be too wide to say anything.
    """
    values = np.asarray(values, dtype=float)
    n = len(values)
    if n < 5:
        return math.nan, math.nan
    reach = float(stats.t.isf((1 - LEVEL) / 2, n - 1) * values.std(ddof=1) * math.sqrt(1 + 1 / n))
    return float(values.mean()) - reach, float(values.mean()) + reach


def printed_value(values: Sequence[float] | np.ndarray, printed: float) -> Outcome:
    """Rule ``printed``: a printed value could be one of these runs."""
    low, high = expected_range(values)
    if math.isnan(low):
        return Outcome.OPEN
    return Outcome.YES if low <= printed <= high else Outcome.NO


def capped(outcome: Outcome) -> Outcome:
    """Rule ``constants``: what holds, holds in part."""
    return Outcome.PART if outcome is Outcome.YES else outcome


def together(outcomes: Iterable[Outcome]) -> Outcome:
    """Outcome of a claim that has several parts: all of them hold, none does, or some.

    A part that cannot be told leaves the whole open, unless others already differ.
    """
    found = set(outcomes)
    if not found:
        return Outcome.OPEN
    if len(found) == 1:
        return found.pop()
    differ = Outcome.PART in found or {Outcome.YES, Outcome.NO} <= found
    return Outcome.PART if differ else Outcome.OPEN


def verdict(findings: Sequence[Finding]) -> Verdict:
    """Judge a claim by all that was measured of it.

    Findings on the paper's own terms take precedence over those that fall short of them, which never make a claim
    *reproduced*. Findings by which it cannot be told do not count beside others that decide.
    """
    own = [finding for finding in findings if not finding.falls_short]
    if not findings:
        return Verdict.MISSING
    decided = {finding.outcome for finding in own or findings} - {Outcome.OPEN}
    if not decided:
        return Verdict.UNDECIDED if own else Verdict.NO_WAY
    if decided == {Outcome.YES}:
        return Verdict.REPRODUCED if own else Verdict.SAME_WAY
    if decided == {Outcome.NO}:
        return Verdict.NOT if own else Verdict.OTHER_WAY
    return Verdict.PARTLY if own else Verdict.BOTH_WAYS
