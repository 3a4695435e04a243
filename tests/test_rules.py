"""The rules of the scorecard by themselves, and how often they are right."""

import math

import numpy as np
import pytest
from conftest import ROOT
from scipy import stats

from edition.scorecard import Verdict, read_claims
from edition.scorecard.rules import Finding, Outcome, direction, equivalent, judge, majority, printed_value, together
from edition.scorecard.simulation import read_rates, simulate
from edition.stats import Interval, contrast, printed_error, representative, upper_half

YES, PART, NO, OPEN = Outcome.YES, Outcome.PART, Outcome.NO, Outcome.OPEN


ANY_SIZE = {(0.1, 0.3): YES, (-0.3, -0.1): NO, (-0.1, 0.3): OPEN, (0.0, 0.0): NO, (math.nan, math.nan): OPEN}
OF_A_QUARTER = {(0.1, 0.2): PART, (-0.1, 0.2): NO, (0.1, 0.3): YES, (-0.1, 0.3): OPEN}


@pytest.mark.parametrize(("printed", "expected"), [((), ANY_SIZE), ((0.25,), OF_A_QUARTER)])
def test_direction(printed, expected):
    for (low, high), outcome in expected.items():
        interval, mirrored = Interval((low + high) / 2, low, high, 10), Interval(-(low + high) / 2, -high, -low, 10)
        assert direction(interval, 1, *printed) is direction(mirrored, -1, *(-size for size in printed)) is outcome


def test_one_of_many_parts_is_refuted_by_a_wider_interval():
    interval = Interval(-1.0, -1.95, -0.05, 30)
    assert [direction(interval, parts=parts) for parts in (1, 2, 4)] == [NO, NO, OPEN]
    assert direction(interval, -1, parts=4) is YES


def test_runs_like_the_papers_seldom_refute_its_printed_difference():
    """It is that of two models, each of which represents fifty runs. As an exact value, it is refuted too often."""
    rng, refuted, shift = np.random.default_rng(1), [], np.array([0.0, 2.0])[:, None]
    for _ in range(800):
        mig, fit = rng.normal(size=(2, 2, 80)) + shift * [[[1]], [[0]]]
        chosen = [one[representative(one[:50], other[:50])] for one, other in zip(mig, fit, strict=True)]
        halves = [upper_half(one[50:], one[50:]) for one in mig]
        difference = contrast(halves, (-1, 1), [np.full(30, math.nan)] * 2)
        size = chosen[1] - chosen[0]
        refuted.append([direction(difference, 1, size, error=one) is not YES for one in (printed_error(*halves), 0.0)])
    allowing, exact = np.mean(refuted, 0)
    assert allowing <= 0.025 + 3 * math.sqrt(0.025 / 800) and exact > 0.05


def test_equivalent():
    expected = {(-0.05, 0.05): YES, (0.11, 0.2): NO, (-0.3, -0.2): NO, (-0.05, 0.2): OPEN, (math.nan, math.nan): OPEN}
    assert all(equivalent(Interval(0, *bounds, 9), 0.1) is outcome for bounds, outcome in expected.items())


def test_majority():
    outcomes = [majority([True] * count + [False] * (20 - count), "data sets") for count in (20, 0, 13)]
    assert [outcome for outcome, _ in outcomes] == [YES, NO, OPEN]
    assert outcomes[2][1] == "13 of 20 data sets (41 to 85 %)"
    # at the bounds, to half a per cent, the tails beyond 13 have a probability of a fortieth
    assert stats.binom.sf(12, 20, 0.405) < 0.025 < stats.binom.sf(12, 20, 0.415)
    assert stats.binom.cdf(13, 20, 0.855) < 0.025 < stats.binom.cdf(13, 20, 0.845)


def test_printed_values_are_met_at_the_stated_rate():
    """Two values with a fifth of the variance of ours."""
    rng, met = np.random.default_rng(0), []
    for ours in rng.standard_normal((1500, 2, 6)):
        printed = math.sqrt(0.2) * rng.standard_normal(2)
        judged = [printed_value(one, value, 0.2, 99, 5, 2) for one, value in zip(ours, printed, strict=True)]
        met.append(together(outcome for outcome, _ in judged) is YES)
    assert np.mean(met) == pytest.approx(0.95, abs=4 * math.sqrt(0.95 * 0.05 / 1500))


def test_printed_value():
    ours = [1.0, 1.1, 1.2, 1.1, 1.0]
    assert printed_value(ours[:4], 1.0, 1, 9, 3) == (OPEN, "")
    assert printed_value(ours, 9.0, 1, 9, 4) == (NO, " expected 0.83 to 1.33")
    assert printed_value(ours, 1.1, 1, 0.4, 4) == (OPEN, " expected 0.83 to 1.33, too wide to decide")
    assert printed_value(ours, 9.0, 1, 0.4, 4)[0] is NO  # outside even a wide range


def test_together():
    expected = {
        (YES,): YES, (NO,): NO, (OPEN,): OPEN, (PART,): PART, (): OPEN,
        (YES, NO): PART, (YES, PART): PART, (NO, PART): PART, (YES, OPEN): OPEN, (NO, OPEN): NO, (PART, OPEN): PART,
        (YES, NO, OPEN): PART,
    }  # fmt: skip
    for parts, whole in expected.items():
        assert together(parts) is together(reversed(parts)) is together(parts * 2) is whole


def findings_of(*outcomes: Outcome, **more: object) -> tuple[Finding, ...]:
    return tuple(Finding(one, "", **more) for one in outcomes)


def test_judge():
    later, short = {"order": (False, 2)}, {"order": (True, 1), "falls_short": "small scale"}
    first = {"order": (False, 1)}
    expected = [
        (findings_of(YES, OPEN), (Verdict.REPRODUCED, None)),
        (findings_of(YES, NO), (Verdict.PARTLY, None)),  # two stopping rules
        (findings_of(NO, OPEN), (Verdict.NOT, None)),
        (findings_of(OPEN), (Verdict.OPEN, None)),
        ((), (Verdict.OPEN, None)),
        (findings_of(NO, **later) + findings_of(OPEN, **first), (Verdict.OPEN, None)),  # Table 1's length decides
        (findings_of(NO, **later) + findings_of(YES, **short), (Verdict.NOT, None)),
        (findings_of(YES, **short), (Verdict.REPRODUCED, None)),
        (findings_of(NO, missing=3, **first) + findings_of(YES, **later), (Verdict.OPEN, Verdict.NOT)),
        (findings_of(YES, **first) + findings_of(NO, missing=3, **later), (Verdict.REPRODUCED, None)),
    ]
    for findings, judged in expected:
        assert judge(findings) == judged


def test_rules_are_right_as_often_as_the_table_says():
    """Without an effect, rules say "reproduced", and without a printed size also "not", in at most 5 % of the cases."""
    claims = read_claims(ROOT / "book/claims.yaml")
    rates, error = read_rates(ROOT / "runs/rules.csv"), math.sqrt(0.05 * 0.95 / 1000)
    trained = [claim for claim in claims if "dataset" in claim.given]
    assert [row[0] for row in rates[::2]] == [claim.key for claim in trained]
    sizes = {"printed", "mig", "large_over", "modes", "root", "bound", "apart"}
    for (name, _, _, reproduced, partly, refuted, _), claim in zip(rates[::2], trained, strict=True):
        assert reproduced + (partly + refuted) * (not sizes & set(claim.given)) <= 0.05 + 3 * error, name
    few = ("fig-5a", "trade-off", "cars-one")
    again = simulate([claim for claim in trained if claim.key in few], ROOT / "runs", 30)
    for ours, theirs in zip(again, [row for row in rates if row[0] in few], strict=True):
        for share, expected in zip(ours[3:], theirs[3:], strict=True):
            assert abs(share - expected) <= 4 * math.sqrt(max(expected * (1 - expected), 0.02) / 30), (ours, theirs)
