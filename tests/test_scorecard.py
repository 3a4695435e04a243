"""The scorecard: each rule and each measure yields each of its verdicts, from made-up records and computations."""

from __future__ import annotations

import csv
import inspect
import math
from itertools import combinations_with_replacement
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from scipy import stats

from edition import orientation
from edition.scorecard import (
    MEASURES,
    RULES,
    VERDICTS,
    Claim,
    Evidence,
    Finding,
    Outcome,
    Row,
    Scorecard,
    Verdict,
    measures,
    read_claims,
    scorecard,
    text,
    verdict,
)
from edition.scorecard.evidence import Missing, Setting, alike
from edition.scorecard.rules import (
    capped,
    direction,
    expected_range,
    majority,
    printed_value,
    share,
    together,
)
from edition.stats import Interval, compare, representative
from isa import isa_prior
from isa.run import Run
from isa.sweep import RECORD, Spec, merge_records

ROOT = Path(__file__).resolve().parent.parent
CLAIMS = ROOT / "book/claims.yaml"
YES, PART, NO, OPEN = Outcome.YES, Outcome.PART, Outcome.NO, Outcome.OPEN


# --- made-up records --------------------------------------------------------------------------------------------------


def row(mig: float = 0.1, log_likelihood: float = -30.0, procedural: bool = False, **fields: object) -> dict:
    """A record with these measurements; everything else as a sweep would write it."""
    run = Run(**fields)
    tree = run.tree
    return {
        "hash": run.hash,
        "key": run.key,
        **run.to_dict(),
        "status": "trained",
        "diverged_at": None,
        "total_steps": run.total_steps,
        "reduced": run.reduced,
        "procedural": procedural,
        "images_title": "made up",
        "mig": mig,
        "log_likelihood": log_likelihood,
        "active_units": 6,
        "exponents": None if tree is None else list(tree.exponents),
        "factors": ["x"],
        **{"pack_size": 1, "train_seconds": 60.0, "evaluation_seconds": 5.0, "device": "made up"},
    }


def rows(values, scatter: float = 0.01, seed: int = 0, **fields: object) -> list[dict]:
    """Records of ten seeds with normal MIG and log-likelihood around ``(mig, log_likelihood)``."""
    rng = np.random.default_rng(seed)
    n = fields.pop("n", 10)
    mig, fit = values
    return [
        row(
            mig + scatter * float(rng.standard_normal()),
            fit + 10 * scatter * float(rng.standard_normal()),
            seed=number,
            **fields,
        )
        for number in range(n)
    ]


def evidence(*groups: list[dict]) -> Evidence:
    held = Evidence(ROOT / "nowhere")
    held.records = [one for group in groups for one in group]
    held.specs = []
    return held


def outcome(measure: str, *groups: list[dict], **given: object) -> Outcome:
    (finding,) = MEASURES[measure][0](evidence(*groups), **given)
    return finding.outcome


# --- rules ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("low", "high", "sign", "expected"),
    [
        (0.1, 0.3, 1, YES),
        (0.1, 0.3, -1, NO),
        (-0.3, -0.1, 1, NO),
        (-0.3, -0.1, -1, YES),
        (-0.1, 0.3, 1, OPEN),
        (0.0, 0.3, 1, OPEN),
        (0.0, 0.0, 1, NO),
        (0.0, 0.0, -1, NO),
        (math.nan, math.nan, 1, OPEN),
    ],
)
def test_a_direction_needs_the_whole_interval(low, high, sign, expected):
    assert direction(Interval((low + high) / 2, low, high, 10), sign) is expected


def test_a_majority_needs_the_whole_exact_interval():
    assert majority(share(20, 20)) is YES
    assert majority(share(0, 20)) is NO
    assert majority(share(13, 20)) is OPEN
    assert majority(share(0, 0)) is OPEN
    found = share(13, 20)
    # the bounds are those at which 13 or more, and 13 or fewer, have a probability of a fortieth
    assert stats.binom.sf(12, 20, found.low) == pytest.approx(0.025)
    assert stats.binom.cdf(13, 20, found.high) == pytest.approx(0.025)
    assert found.of("data sets").startswith("13 of 20 data sets (")


def test_a_printed_value_is_met_as_often_as_stated():
    rng = np.random.default_rng(0)
    met = [printed_value(values[:-1], values[-1]) is YES for values in rng.standard_normal((4000, 6))]
    assert np.mean(met) == pytest.approx(0.95, abs=4 * math.sqrt(0.95 * 0.05 / 4000))
    assert printed_value([1.0, 1.1, 1.2, 1.1], 1.0) is OPEN
    assert all(math.isnan(bound) for bound in expected_range([1.0, 1.1, 1.2, 1.1]))
    assert printed_value([1.0, 1.1, 1.2, 1.1, 1.0], 9.0) is NO


def test_parts_together():
    expected = {
        (YES,): YES, (NO,): NO, (OPEN,): OPEN, (PART,): PART, (): OPEN,
        (YES, NO): PART, (YES, PART): PART, (NO, PART): PART, (YES, OPEN): OPEN, (NO, OPEN): OPEN, (PART, OPEN): PART,
        (YES, NO, OPEN): PART,
    }  # fmt: skip
    for parts, whole in expected.items():
        assert together(parts) is whole
        assert together(reversed(parts)) is whole
        assert together(parts * 2) is whole
    assert capped(YES) is PART and capped(NO) is NO


def test_every_verdict_follows_from_some_findings():
    def findings(*outcomes, falls_short=""):
        return [Finding(one, "", falls_short=falls_short) for one in outcomes]

    short = "at reduced scale"
    expected = [
        (findings(YES), Verdict.REPRODUCED),
        (findings(YES, OPEN), Verdict.REPRODUCED),
        (findings(YES, NO), Verdict.PARTLY),
        (findings(PART), Verdict.PARTLY),
        (findings(NO, OPEN), Verdict.NOT),
        (findings(OPEN), Verdict.UNDECIDED),
        (findings(YES, falls_short=short), Verdict.SAME_WAY),
        (findings(YES, NO, falls_short=short), Verdict.BOTH_WAYS),
        (findings(NO, falls_short=short), Verdict.OTHER_WAY),
        (findings(OPEN, falls_short=short), Verdict.NO_WAY),
        ([], Verdict.MISSING),
        (findings(OPEN) + findings(YES, falls_short=short), Verdict.UNDECIDED),
        (findings(NO) + findings(YES, falls_short=short), Verdict.NOT),
    ]
    for found, judged in expected:
        assert verdict(found) is judged
    assert {judged for _, judged in expected} == set(Verdict) == set(VERDICTS)


def test_evidence_that_falls_short_never_makes_a_claim_reproduced():
    for outcomes in combinations_with_replacement(Outcome, 3):
        for short in ("at reduced scale", "on stand-in images"):
            found = verdict([Finding(one, "", falls_short=short) for one in outcomes])
            assert found in (Verdict.SAME_WAY, Verdict.BOTH_WAYS, Verdict.OTHER_WAY, Verdict.NO_WAY)


# --- measures of runs -------------------------------------------------------------------------------------------------

PAIR = {"dataset": "dsprites", "first": "beta-vae", "second": "isa-vae", "beta": 1}
LOW, HIGH = (0.10, -32.0), (0.20, -30.0)


def test_higher_distribution():
    def judge(first, second, **more):
        sides = [
            rows(first, objective="beta-vae", seed=1, **more),
            rows(second, objective="isa-vae", seed=2, **more),
        ]
        return outcome("higher_distribution", *sides, **PAIR)

    assert judge(LOW, HIGH) is YES
    assert judge(HIGH, LOW) is NO
    assert judge(LOW, LOW) is not YES
    assert judge(LOW, HIGH, n=4) is OPEN  # too few for medians and maxima
    # the mean and the median are higher, the maximum is not
    first, second = rows(LOW, objective="beta-vae"), rows(HIGH, objective="isa-vae", seed=1)
    first[0]["mig"] = 0.25
    assert outcome("higher_distribution", first, second, **PAIR) is PART


def test_the_interval_in_the_text_is_that_of_the_comparison():
    first, second = rows(LOW, objective="beta-vae"), rows(HIGH, objective="isa-vae", seed=1)
    (finding,) = measures.higher_mig(evidence(first, second), **PAIR)
    sides = ([one["mig"] for one in side] for side in (first, second))
    assert finding.text == f"MIG {compare(*sides):+.3f}"
    assert finding.reading == "7,200 steps" and finding.falls_short == ""


@pytest.mark.parametrize("measure", ["higher_mig", "better_in_both"])
def test_directions_of_two_methods(measure):
    def judge(first, second):
        sides = rows(first, objective="beta-vae", seed=1), rows(second, objective="isa-vae", seed=2)
        return outcome(measure, *sides, **PAIR)

    assert judge(LOW, HIGH) is YES
    assert judge(HIGH, LOW) is NO
    assert outcome(measure, rows(LOW, objective="beta-vae"), rows(LOW, objective="isa-vae"), **PAIR) is not YES
    if measure == "better_in_both":
        assert judge((0.10, -30.0), (0.20, -32.0)) is PART


def test_two_runs_a_side_decide_nothing():
    few = rows(LOW, objective="beta-vae", n=2), rows(HIGH, objective="isa-vae", n=2)
    assert outcome("higher_mig", *few, **PAIR) is OPEN


def test_printed_model():
    given = {"dataset": "dsprites", "method": "isa-vae", "beta": 2}
    held = rows((0.40, -26.0), objective="isa-vae", beta=2.0, n=12)
    upper = sorted(one["mig"] for one in held)[6:]
    mig, fit = float(np.mean(upper)), -26.0
    assert outcome("printed_model", held, mig=mig, log_likelihood=fit, **given) is YES
    assert outcome("printed_model", held, mig=mig, log_likelihood=-40.0, **given) is PART
    assert outcome("printed_model", held, mig=0.9, log_likelihood=-40.0, **given) is NO
    assert outcome("printed_model", held[:8], mig=mig, log_likelihood=fit, **given) is OPEN
    short = rows((0.40, -26.0), objective="isa-vae", beta=2.0, n=12, steps=100)
    assert outcome("printed_model", short, mig=mig, log_likelihood=fit, **given) is OPEN  # shown, and not judged
    (finding,) = measures.printed_model(evidence(held), mig=mig, log_likelihood=fit, **given)
    chosen = held[representative([one["mig"] for one in held], [one["log_likelihood"] for one in held])]
    assert f"our representative of 12: MIG {chosen['mig']:.2f}" in finding.text
    # a run below the median does not count: it may lie wherever it likes
    lowest = min(held, key=lambda one: one["mig"])
    before = outcome("printed_model", held, mig=mig, log_likelihood=fit, **given)
    lowest["mig"] = -5.0
    assert outcome("printed_model", held, mig=mig, log_likelihood=fit, **given) is before


def test_more_mig_for_less_fit():
    given = {"dataset": "dsprites", "method": "beta-tcvae", "low": 1, "high": 3}

    def judge(low, high):
        # at beta = 1 beta-TCVAE is beta-VAE, and is recorded as that
        sides = rows(low, objective="beta-vae", seed=1), rows(high, objective="beta-tcvae", beta=3.0, seed=2)
        return outcome("more_mig_for_less_fit", *sides, **given)

    assert judge((0.1, -30.0), (0.2, -34.0)) is YES
    assert judge((0.1, -30.0), (0.2, -26.0)) is PART
    assert judge((0.2, -34.0), (0.1, -30.0)) is NO


def curve_of(objective: str, height: float, n: int = 5, **more: object) -> list[dict]:
    """Runs over three betas, whose MIG rises as the log-likelihood falls."""
    held = []
    for number, beta in enumerate((1.0, 2.0, 4.0)):
        mean = (height + 0.1 * number, -30.0 - 4 * number)
        held += rows(mean, scatter=0.005, objective=objective, beta=beta, n=n, seed=number, **more)
    return held


CURVES = {"dataset": "dsprites", "method": "isa-vae", "baselines": ["beta-vae"], "betas": [1, 2, 4]}


def test_better_trade_off():
    low, high = curve_of("beta-vae", 0.1), curve_of("isa-vae", 0.2)
    assert outcome("better_trade_off", low, high, **CURVES) is YES
    assert outcome("better_trade_off", curve_of("beta-vae", 0.3), high, **CURVES) is NO
    assert outcome("better_trade_off", curve_of("beta-vae", 0.1, n=2), high, **CURVES) is OPEN
    both = CURVES | {"baselines": ["beta-vae", "beta-tcvae"]}
    better = [one for one in curve_of("beta-tcvae", 0.4) if one["beta"] > 1]
    assert outcome("better_trade_off", low, high, better, **both) is PART


def test_curves_that_do_not_meet_are_no_evidence():
    far = [one | {"log_likelihood": one["log_likelihood"] - 100} for one in curve_of("beta-vae", 0.1)]
    assert measures.better_trade_off(evidence(far, curve_of("isa-vae", 0.2)), **CURVES) == []


def test_unmatched_at_better_fit():
    own = curve_of("isa-vae", 0.2)  # its best is at beta = 4, with a log-likelihood of -38
    assert outcome("unmatched_at_better_fit", own, curve_of("beta-vae", 0.1), **CURVES) is YES
    assert outcome("unmatched_at_better_fit", own, curve_of("beta-vae", 0.6), **CURVES) is NO
    poorer = [one | {"log_likelihood": -60.0} for one in curve_of("beta-vae", 0.6)]
    assert outcome("unmatched_at_better_fit", own, poorer, **CURVES) is OPEN  # no rival that fits as well
    at_one, rival_at_one = ([one for one in held if one["beta"] == 1] for held in (own, curve_of("beta-vae", 0.6)))
    assert outcome("unmatched_at_better_fit", own, rival_at_one, **CURVES) is OPEN
    assert measures.unmatched_at_better_fit(evidence(at_one, rival_at_one), **CURVES) == []  # it may not be the best


def test_best_of_all():
    given = {"dataset": "faces3d", "method": "isa-vae, learned", "beta": 1, "others": ["beta-vae", "isa-vae"]}
    given |= {"betas": [1, 2, 4]}
    own = rows((0.5, -30.0), dataset="faces3d", objective="isa-vae", learn_exponents=True)
    low, high = (curve_of("beta-vae", height, dataset="faces3d") for height in (0.1, 0.9))
    fixed = curve_of("isa-vae", 0.1, dataset="faces3d")
    assert outcome("best_of_all", own, low, fixed, **given) is YES
    assert outcome("best_of_all", own, high, fixed, **given) is PART
    assert outcome("best_of_all", own, low, [one for one in fixed if one["beta"] == 1], **given) is OPEN
    assert outcome("best_of_all", own, high, curve_of("isa-vae", 0.8, dataset="faces3d"), **given) is NO


def test_shrinking_advantage():
    given = {"dataset": "cars3d", "first": "beta-vae", "second": "isa-vae, learned", "low": 1, "high": 4}

    def judge(at_one, at_four, scatter=0.01):
        held = []
        for beta, advantage in ((1.0, at_one), (4.0, at_four)):
            more = {"dataset": "cars3d", "beta": beta, "scatter": scatter}
            held += rows((0.1, -30.0), objective="beta-vae", seed=1, **more)
            held += rows((0.1 + advantage, -30.0), objective="isa-vae", learn_exponents=True, seed=2, **more)
        return outcome("shrinking_advantage", held, **given)

    assert judge(0.2, 0.05) is YES
    assert judge(0.05, 0.2) is NO
    assert judge(0.1, 0.1) is OPEN


def test_the_interval_of_a_change_of_advantage_covers():
    """Of normal values its level is as stated, and it is no wider than it must be."""
    rng = np.random.default_rng(0)
    covered, widths = 0, []
    for _ in range(300):
        sides = [rng.standard_normal(5) for _ in range(4)]
        first, second = compare(*sides[:2]), compare(*sides[2:])
        change = measures.change_of_difference(first, second)
        covered += change.low <= 0 <= change.high
        widths.append(change.high - change.low)
    assert covered / 300 > 0.92
    assert np.mean(widths) < 1.5 * 2 * 1.96 * math.sqrt(4 / 5)


def test_several_modes():
    given = {"dataset": "dsprites", "methods": ["isa-vae"]}
    rng = np.random.default_rng(0)

    def judge(*betas_with_two):
        held = []
        for beta in (1.0, 2.0, 3.0):
            for seed in range(50):
                centre = 0.4 * (seed % 2) if beta in betas_with_two else 0.2
                mig = centre + 0.02 * float(rng.standard_normal())
                held.append(row(mig, objective="isa-vae", beta=beta, seed=seed))
        return outcome("several_modes", held, **given)

    assert judge(1.0, 2.0, 3.0) is YES
    assert judge(1.0) is PART
    assert judge() is OPEN
    assert measures.several_modes(evidence(rows(LOW, objective="isa-vae", n=9)), **given) == []


def test_unused_latents():
    given = {"dataset": "dsprites", "methods": ["isa-vae"]}
    held = rows(LOW, objective="isa-vae", n=20)
    assert outcome("unused_latents", held, **given) is YES
    assert outcome("unused_latents", held[:3], **given) is OPEN
    assert outcome("unused_latents", [one | {"active_units": 20} for one in held], **given) is NO


LEARNED = {"dataset": "faces3d", "method": "isa-vae, learned"}


def learned(*exponents: float, n: int = 10, scatter: float = 0.01) -> list[dict]:
    rng = np.random.default_rng(0)
    held = rows(LOW, dataset="faces3d", objective="isa-vae", learn_exponents=True, n=n)
    for one in held:  # as they come out of training, in no order
        one["exponents"] = [2.1, *rng.permutation(np.array(exponents) + scatter * rng.standard_normal(3)).tolist()]
    return held


def test_exponents_differ():
    given = LEARNED | {"root": 2.1, "sides": [-1, -1, 1]}
    assert outcome("exponents_differ", learned(1.95, 1.98, 2.2), **given) is YES
    assert outcome("exponents_differ", learned(1.9, 1.95, 2.0), **given) is PART
    assert outcome("exponents_differ", learned(1.95, 1.98, 2.2, n=2), **given) is OPEN
    assert outcome("exponents_differ", learned(2.15, 2.2, 2.3), **given | {"sides": [-1, -1, -1]}) is NO


def test_exponents_printed():
    given = LEARNED | {"modes": [1.95, 1.98, 2.17]}
    held = learned(1.9, 2.0, 2.17)
    assert outcome("exponents_printed", held, **given | {"modes": [1.9, 2.0, 2.17]}) is YES
    assert outcome("exponents_printed", held, **given | {"modes": [1.9, 2.0, 3.0]}) is PART
    assert outcome("exponents_printed", held, **given | {"modes": [3.0, 3.1, 3.2]}) is NO
    assert outcome("exponents_printed", held[:4], **given) is OPEN
    stand_in = [one | {"procedural": True} for one in held]
    (finding,) = measures.exponents_printed(evidence(stand_in), **given)
    assert finding.outcome is OPEN and finding.text.startswith("medians of 10 runs 1.9")


def test_largest_exponent_above():
    given = LEARNED | {"bound": 2.17}
    assert outcome("largest_exponent_above", learned(1.9, 2.0, 2.3), **given) is YES
    assert outcome("largest_exponent_above", learned(1.9, 2.0, 2.1), **given) is NO
    assert outcome("largest_exponent_above", learned(1.9, 2.0, 2.17), **given) is OPEN


# --- what counts as a run of a method ---------------------------------------------------------------------------------


def test_only_runs_of_the_method_itself_are_taken():
    held = rows(LOW, objective="isa-vae", n=3)
    others = [
        row(0.9, objective="isa-vae", p0=2.0, p1=2.0),
        row(0.9, objective="isa-vae", subspaces=(5, 5, 5, 5, 5)),
        row(0.9, objective="isa-vae", scale="unit"),
        row(0.9, objective="isa-vae", learning_rate=1e-4),
        row(0.9, objective="isa-vae", learn_exponents=True),
        row(0.9, objective="isa-vae", beta=2.0),
        row(0.9, objective="isa-tcvae", beta=2.0),
        row(0.9, objective="beta-vae"),
        row(0.9, dataset="faces3d", objective="isa-vae"),
        row(0.9, objective="isa-vae", seed=99) | {"status": "diverged", "mig": None},
    ]
    found = evidence(held, others)
    ((setting, chosen),) = found.runs("dsprites", "isa-vae", 1.0).items()
    assert chosen == held
    assert (setting.text, setting.falls_short) == ("7,200 steps", "")
    control = {"objective": "isa-vae", "p0": 2.0, "p1": 2.0}
    assert [one["mig"] for one in found.runs("dsprites", control, 1.0)[setting]] == [0.9]
    assert len(found.runs("dsprites", "isa-vae", [1.0, 2.0])[setting]) == 4
    assert [one["objective"] for one in found.runs("dsprites", "isa-tcvae", 2.0)[setting]] == ["isa-tcvae"]
    assert found.runs("dsprites", "isa-tcvae", 1.0)[setting] == held
    with pytest.raises(ValueError, match="a method must be one of"):
        found.runs("dsprites", "nonsense")


def test_runs_are_brought_together_only_where_they_were_trained_alike():
    full = rows(LOW, objective="beta-vae", n=3), rows(HIGH, objective="isa-vae", n=3)
    long = rows(LOW, objective="beta-vae", n=3, epochs=50.0)
    short = rows(LOW, objective="beta-vae", n=3, steps=100), rows(HIGH, objective="isa-vae", n=3, steps=100)
    stand_in = rows(LOW, objective="beta-vae", n=3, procedural=True)
    found = evidence(*full, long, *short, stand_in)
    groups = [found.runs("dsprites", method, 1.0) for method in ("beta-vae", "isa-vae")]
    texts = [(setting.text, setting.falls_short) for setting in groups[0]]
    assert texts == [
        ("7,200 steps", ""),
        ("18,000 steps", ""),
        ("7,200 steps", "on stand-in images"),
        ("100 steps", "at reduced scale"),
    ]
    assert [setting.total_steps for setting, _ in alike(*groups)] == [7200, 100]
    assert Setting(True, True, 10, 64, "", "fp32").falls_short == "on stand-in images, at reduced scale"
    assert Setting(True, True, 10, 64, "", "fp32").text == "10 steps of 64"


def test_readings_of_two_lengths_make_a_claim_hold_in_part():
    sides = [
        rows(LOW, objective="beta-vae"),
        rows(HIGH, objective="isa-vae"),
        rows(HIGH, objective="beta-vae", epochs=50.0),
        rows(LOW, objective="isa-vae", epochs=50.0),
    ]
    findings = measures.higher_mig(evidence(*sides), **PAIR)
    assert [(one.reading, one.outcome) for one in findings] == [("7,200 steps", YES), ("18,000 steps", NO)]
    assert verdict(findings) is Verdict.PARTLY


def test_a_reduced_run_points_and_does_not_reproduce():
    sides = rows(LOW, objective="beta-vae", steps=50), rows(HIGH, objective="isa-vae", steps=50)
    findings = measures.higher_mig(evidence(*sides), **PAIR)
    found = Row(Claim("a", "b", "c", "d", "higher_mig"), tuple(findings))
    assert found.verdict is Verdict.SAME_WAY
    assert found.verdict_text == "at reduced scale: points the same way"


@pytest.fixture
def folder(tmp_path):
    """A small folder of a specification and its records."""
    spec = {
        "title": "Made up",
        "every": {"dataset": "dsprites"},
        "tiers": {1: [{"objective": ["beta-vae", "isa-vae"], "beta": [1, 2], "seeds": 4}]},
    }
    (tmp_path / "made-up.yaml").write_text(yaml.safe_dump(spec))
    (tmp_path / "other.yaml").write_text("p0: 1.5\n")
    recorded = rows(LOW, objective="beta-vae", n=4) + rows(HIGH, objective="isa-vae", n=3)
    merge_records(tmp_path / "made-up.csv", [dict.fromkeys(RECORD) | one | {"mig_x": 0.1} for one in recorded])
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    return tmp_path


def test_records_are_read_and_what_is_missing_is_told(folder):
    found = Evidence(folder)
    assert [spec.name for spec in found.specs] == ["made-up"]
    assert len(found.records) == 7
    assert found.missing() is None
    measures.higher_mig(found, **PAIR)
    assert found.missing() == Missing(7, 8, ("isa sweep runs/made-up.yaml",), ())
    measures.higher_mig(found, **PAIR | {"beta": 2})
    assert found.missing()[:2] == (7, 16)
    found.forget()
    measures.higher_mig(found, **PAIR | {"first": {"objective": "isa-vae", "p1": 3.0}})
    assert found.missing() == Missing(3, 4, ("isa sweep runs/made-up.yaml",), ("ISA-VAE (p1 3.0)",))


def test_a_folder_without_anything_is_no_evidence(tmp_path):
    found = Evidence(tmp_path)
    for name in ("likelihood_given_up", "more_orthogonal_than_likelihood"):
        assert MEASURES[name][0](found, study="ica-beta", beta=1) == []
    assert measures.columns_alive(found, study="ica-beta", beta=1, alive=3) == []
    assert measures.beta_strengthens(found, study="ica-beta", what="angle", low=1, high=5) == []
    assert measures.higher_mig(found, **PAIR) == []


# --- measures of studies of ICA ---------------------------------------------------------------------------------------


def study(folder: Path, stopped, converged, exact, lost: float = 20.0) -> Evidence:
    """A made-up study of eight data sets: angles of the two longest columns and lengths of the third, by beta."""
    (folder / "made-up.yaml").write_text(
        yaml.safe_dump({
            "seeds": 8, "n": 10, "directions": [30.0, 90.0, 150.0], "noise_var": [0.05], "dof": [3.5],
            "beta": [1.0, 5.0], "methods": ["newton", "em", "exact"],
        })
    )  # fmt: skip
    header = ["method", "seed", "dof", "noise_var", "beta", "steps", "converged", "objective", "log_likelihood"]
    header += ["pruned_at", "w11", "w12", "w13", "w21", "w22", "w23"]
    rng = np.random.default_rng(0)
    with open(folder / "made-up.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        for seed in range(8):
            for method, by_beta in (("em", stopped), ("newton", converged), ("exact", {0: exact})):
                for beta, (angle, third) in by_beta.items():
                    turn = math.radians(angle + 0.05 * float(rng.standard_normal()))
                    likelihood = -1000.0 if method == "exact" else -1000.0 - lost + 0.5 * seed
                    weights = [1.0, math.cos(turn), 0.0, 0.0, math.sin(turn), third]
                    writer.writerow([method, seed, 3.5, 0.05, beta, 1, 1, 0.0, likelihood, "", *weights])
    return Evidence(folder)


def outcomes(findings: list[Finding]) -> list[Outcome]:
    assert [one.reading for one in findings] == ["after 40 steps", "at convergence"]
    return [one.outcome for one in findings]


def test_ica_directions(tmp_path):
    found = study(tmp_path, {1: (65, 0.5), 5: (85, 0.0)}, {1: (88, 0.0), 5: (88, 0.0)}, (60, 0.8))
    given = {"study": "made-up", "beta": 1}
    assert outcomes(measures.more_orthogonal_than_likelihood(found, **given)) == [YES, YES]
    assert outcomes(measures.columns_alive(found, alive=3, **given)) == [YES, NO]
    at_five = {"study": "made-up", "beta": 5, "alive": 2}
    assert outcomes(measures.columns_alive(found, orthogonal_within=10, **at_five)) == [YES, YES]
    assert outcomes(measures.columns_alive(found, orthogonal_within=2, **at_five)) == [NO, OPEN]
    strengthens = {"study": "made-up", "low": 1, "high": 5}
    stopped, converged = outcomes(measures.beta_strengthens(found, what="angle", **strengthens))
    assert stopped is YES and converged is not YES
    assert outcomes(measures.beta_strengthens(found, what="columns", **strengthens)) == [YES, NO]
    assert [one.outcome for one in measures.likelihood_given_up(found, **given)] == [YES]


def test_ica_directions_the_other_way(tmp_path):
    found = study(tmp_path, {1: (50, 0.0), 5: (45, 0.5)}, {1: (45, 0.5), 5: (40, 0.6)}, (60, 0.8), lost=-20.0)
    given = {"study": "made-up", "beta": 1}
    assert outcomes(measures.more_orthogonal_than_likelihood(found, **given)) == [NO, NO]
    assert outcomes(measures.columns_alive(found, alive=3, **given)) == [NO, YES]
    strengthens = {"study": "made-up", "low": 1, "high": 5}
    assert outcomes(measures.beta_strengthens(found, what="angle", **strengthens)) == [NO, NO]
    assert outcomes(measures.beta_strengthens(found, what="columns", **strengthens)) == [NO, NO]
    assert [one.outcome for one in measures.likelihood_given_up(found, **given)] == [NO]


# --- measures that compute --------------------------------------------------------------------------------------------

FACTOR = {"n": 100, "noise_var": 0.01, "log_likelihood": -17.82, "free_energy": -57.16}
SPECTRUM = {"spectrum": [4, 2, 1], "noise_var": 0.25, "latents": 2, "n": 100}


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("rotation_costs_free_energy", FACTOR | {"tolerance": 1e-6}, YES),
        ("rotation_costs_free_energy", FACTOR | {"tolerance": 1e-20}, PART),
        ("rotation_values", FACTOR | {"tolerance": 1e-6}, PART),
        ("rotation_values", FACTOR | {"tolerance": 1e-20}, NO),
        ("principal_directions", SPECTRUM | {"betas": [1, 2], "starts": 2, "tolerance": 0.1}, YES),
        ("principal_directions", SPECTRUM | {"betas": [1], "starts": 1, "tolerance": 1e-15}, NO),
        ("same_fit_for_all_betas", SPECTRUM | {"betas": [1, 4], "tolerance": 0.1}, PART),
        ("same_fit_for_all_betas", SPECTRUM | {"betas": [1, 1], "tolerance": 0.1}, YES),
        ("amplitude_falls", FACTOR | {"betas": [1, 5, 50]}, PART),
        ("amplitude_falls", FACTOR | {"betas": [20, 50]}, YES),
        ("amplitude_falls", FACTOR | {"betas": [0.5, 0.1]}, PART),
        ("posterior_widens", {"betas": [1, 2, 4], "models": 5}, YES),
        ("posterior_widens", {"betas": [4, 2, 1], "models": 5}, NO),
        ("bias_grows", {"betas": [1, 2, 4], "models": 5}, YES),
        ("bias_grows", {"betas": [4, 2, 1], "models": 5}, NO),
        ("surface_formula", {"trees": ["2.1[1, 2.2[2]]"], "order": 100, "tolerance": 1e-4}, YES),
        ("surface_formula", {"trees": ["2.1[1, 2.2[2]]"], "order": 2, "tolerance": 1e-4}, NO),
        ("radial_is_chi", {"dimensions": [1, 5], "tolerance": 1e-9}, YES),
        ("radial_is_chi", {"dimensions": [1, 5], "tolerance": 0.0}, NO),
        ("factorised_only_where_equal", {"size": 4, "p0": 2.1, "others": [1.9, 2.2], "tolerance": 1e-9}, YES),
        ("factorised_only_where_equal", {"size": 4, "p0": 2.1, "others": [2.1], "tolerance": 1e-9}, PART),
        ("kurtosis_sides", {"p0": 2.1, "platykurtic": 2.2, "leptokurtic": 1.9, "sizes": [4]}, YES),
        ("kurtosis_sides", {"p0": 2.1, "platykurtic": 2.2, "leptokurtic": 1.9, "sizes": [3, 4]}, PART),
        ("kurtosis_sides", {"p0": 2.1, "platykurtic": 1.0, "leptokurtic": 4.0, "sizes": [3]}, NO),
        ("same_objective_at_one", {"latents": 4, "batch": 16, "tolerance": 1e-10}, YES),
        ("same_objective_at_one", {"latents": 4, "batch": 16, "tolerance": 1e10}, PART),
        ("prior_prefers", {"leptokurtic": 1.0, "platykurtic": 4.0}, YES),
        ("prior_prefers", {"leptokurtic": 3.0, "platykurtic": 4.0}, PART),
        ("prior_prefers", {"leptokurtic": 4.0, "platykurtic": 1.0}, NO),
        ("sampled_divergence_varies_less", {"weight": 1.5, "noise_var": 0.3, "points": 100}, YES),
        ("not_rotation_invariant", {"size": 2, "p0": 1.0, "p1": 1.0, "batches": 6}, YES),
        ("sampler_exact", {"trees": ["2.1[2*1.5[2]]"], "points": 2000, "least": 0.01}, YES),
        ("sampler_exact", {"trees": ["2.1[2*1.5[2]]"], "points": 2000, "least": 1.1}, PART),
    ],
)
def test_computed_measures(name, given, expected):
    (finding,) = MEASURES[name][0](evidence(), **given)
    assert finding.outcome is expected, finding.text
    assert finding.text and not finding.falls_short


@pytest.mark.parametrize(
    ("laplace", "platykurtic", "expected"),
    [(-0.6, 0.8, Verdict.SAME_WAY), (0.6, 0.8, Verdict.BOTH_WAYS), (0.6, -0.8, Verdict.OTHER_WAY)],
)
def test_codes_follow_the_prior(tmp_path, laplace, platykurtic, expected):
    rng = np.random.default_rng(0)
    runs = [
        {"exponent": p, "beta": 8, "seed": seed, "steps": 400, "alignment": mean + 0.05 * rng.standard_normal()}
        for p, mean in ((1, laplace), (4, platykurtic), (2, 0.0))
        for seed in range(6)
    ]
    runs.append({"exponent": 1, "beta": 1, "steps": 400, "alignment": math.nan})  # no latent in use
    runs += [{"exponent": p, "beta": 8, "steps": 900, "alignment": 0.0} for p in (1, 4)]
    with open(tmp_path / "made-up.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, orientation._COLUMNS, restval=1)
        writer.writeheader()
        writer.writerows(runs)
    given = {"study": "made-up", "leptokurtic": 1, "platykurtic": 4}
    findings = measures.codes_follow_prior(Evidence(tmp_path), **given)
    assert [one.reading for one in findings] == ["β = 8, 400 steps", "β = 8, 900 steps"]
    assert findings[1].outcome is OPEN  # one run a side
    assert verdict(findings) is expected
    assert measures.codes_follow_prior(Evidence(tmp_path / "nowhere"), **given) == []


def test_subspaces_are_independent_and_coordinates_within_one_are_not():
    given = {"p0": 2.1, "p1": 2.2, "points": 200, "tolerance": 1e-9}
    (finding,) = measures.subspaces_independent(evidence(), subspaces=[2, 3], **given)
    assert finding.outcome is YES
    (finding,) = measures.subspaces_independent(evidence(), subspaces=[2, 3], **given | {"tolerance": 0.0})
    assert finding.outcome is NO


def test_pruning():
    given = {"n": 100, "noise_var": 0.1, "rho": 0.8, "alpha_max": 0.5, "starts": 3, "tolerance": 1e-6}
    (finding,) = measures.extra_latent_is_pruned(evidence(), **given)
    assert finding.outcome is YES
    (finding,) = measures.extra_latent_is_pruned(evidence(), **given | {"tolerance": 1e-20})
    assert finding.outcome is PART


def test_a_gaussian_is_invariant_under_rotation():
    (finding,) = measures.not_rotation_invariant(evidence(), size=2, p0=2.0, p1=2.0, batches=6)
    assert finding.outcome is not YES


def test_the_map_of_the_notes_keeps_the_prior_and_mixes():
    """The samples that it moves have the law that they had, and a plain rotation of them has not."""
    prior = isa_prior((2, 2), 1.0, 4.0)
    generator = torch.Generator().manual_seed(0)
    z = 0.2 + 0.5 * torch.rand(20, 4, dtype=torch.float64, generator=generator)
    error, mixing = measures.preserved(prior, z, 0.7)
    assert error < 1e-5 and mixing > 0.1
    rotated = prior.log_prob(measures._turned(z, 0, 1, 0.7)) - prior.log_prob(z)
    assert float(rotated.abs().max()) > 0.05
    moved = measures.mixing_map(prior, z, 0.7)
    assert torch.allclose(measures.mixing_map(prior, moved, -0.7), z)
    torch.manual_seed(0)
    samples = measures.mixing_map(prior, prior.sample((4000,)).double(), 0.7)
    fresh = prior.sample((4000,)).double()
    for column in range(2):
        assert stats.ks_2samp(samples[:, column].numpy(), fresh[:, column].numpy()).pvalue > 0.001
    assert stats.ks_2samp(prior.log_prob(samples).numpy(), prior.log_prob(fresh).numpy()).pvalue > 0.001


def test_identifiability():
    given = {"size": 2, "p0": 2.1, "p1": 2.2, "points": 10}
    (finding,) = measures.identifiable(evidence(), batches=60, tolerance=1e-5, **given)
    assert finding.outcome is PART
    (finding,) = measures.identifiable(evidence(), batches=60, tolerance=0.0, **given)  # then nothing is constructed
    assert finding.outcome is OPEN


# --- claims and the card ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def claims():
    return read_claims(CLAIMS)


def test_every_claim_of_the_book_is_whole(claims):
    assert len(claims) >= 40
    for claim in claims:
        assert "{" not in claim.says and claim.says.endswith((".", ")")), claim.key
        assert claim.understood is None or claim.understood.endswith("."), claim.key
        assert set(claim.rules) <= set(RULES)


def test_every_rule_and_every_measure_is_used(claims):
    assert {rule for claim in claims for rule in claim.rules} == set(RULES)
    assert {claim.measure for claim in claims} == set(MEASURES)
    for function, _ in MEASURES.values():
        assert next(iter(inspect.signature(function).parameters)) == "evidence"
        assert function.__doc__


def test_claims_name_runs_that_a_specification_names(claims):
    """All but those that are known to be without one would be made by the sweeps of the repository."""
    found = Evidence(ROOT / "runs")
    found.records = []
    unnamed = {}
    for claim in claims:
        if "dataset" not in claim.given:
            continue
        found.forget()
        MEASURES[claim.measure][0](found, **claim.given)
        missing = found.missing()
        assert missing is not None and missing.recorded == 0
        if missing.unnamed:
            unnamed[claim.key] = missing.unnamed
        else:
            assert missing.wanted > 0 and missing.commands
    assert set(unnamed) <= {"faces-leptokurtic"}


def test_the_variance_of_the_gaussian_control_is_the_prior_s(claims):
    (claim,) = [one for one in claims if one.key == "small-deviation"]
    run = Run(dataset="dsprites", **claim.given["first"])
    control = measures.LpNested(run.tree, run.scale).variance
    ours = measures.LpNested(Run(objective="isa-vae").tree).variance
    assert torch.allclose(control, ours, rtol=1e-4)
    spec = Spec.read(ROOT / "runs/dsprites-controls.yaml")
    assert any(str(one.tree) == str(run.tree) and one.scale == run.scale for one in spec.runs())


CLAIM = {"key": "a", "where": "Sec. 1", "says": "MIG {beta:.1f}.", "measure": "higher_mig", "given": dict(PAIR)}


def write(folder: Path, *written: object) -> Path:
    path = folder / "claims.yaml"
    path.write_text(yaml.safe_dump([{"section": "One", "claims": list(written)}]))
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"measure": "nothing"}, "a has the unknown measure 'nothing'"),
        ({"wher": "x"}, "a has the unknown key 'wher'"),
        ({"says": "MIG {mig}."}, "a names a value in its text that is not given: 'mig'"),
        ({"given": {"dataset": "dsprites"}}, "a does not give higher_mig what it takes: missing a required argument"),
        ({"given": PAIR | {"gamma": 1}}, "got an unexpected keyword argument 'gamma'"),
    ],
)
def test_a_claim_that_is_not_whole_is_refused(tmp_path, change, message):
    with pytest.raises(ValueError, match=r"claims\.yaml: .*") as raised:
        read_claims(write(tmp_path, CLAIM | change))
    assert message in str(raised.value)


def test_claims_that_are_no_list_or_twice_are_refused(tmp_path):
    with pytest.raises(ValueError, match="the key 'a' is given twice"):
        read_claims(write(tmp_path, CLAIM, CLAIM))
    with pytest.raises(ValueError, match="a lacks where, measure; its keys are"):
        read_claims(write(tmp_path, {"key": "a", "says": "b"}))
    with pytest.raises(ValueError, match="a claim must be a mapping"):
        read_claims(write(tmp_path, "text"))
    for held in ("just text", "[]", "- {section: One}"):
        (tmp_path / "claims.yaml").write_text(held)
        with pytest.raises(ValueError, match="must"):
            read_claims(tmp_path / "claims.yaml")


def test_a_card_from_claims_and_records(tmp_path, folder):
    computed = {"key": "b", "where": "B.5", "says": "It widens.", "measure": "posterior_widens", "page": "there/b"}
    computed |= {"given": {"betas": [1, 2], "models": 2}, "understood": "In two models."}
    none = CLAIM | {"key": "c", "given": PAIR | {"beta": 2}}
    card = scorecard(write(tmp_path, CLAIM, computed, none), folder)
    assert [one.verdict for one in card.rows] == [Verdict.REPRODUCED, Verdict.REPRODUCED, Verdict.MISSING]
    counts = card.summary()
    assert list(counts) == [str(one) for one in VERDICTS]
    assert counts["reproduced"] == 2 and counts["not yet run"] == 1 and sum(counts.values()) == 3
    assert card.sentence() == "Of 3 claims, 2 are reproduced and 1 not yet run."
    assert list(card.sections) == ["One"]
    shown = text.cards(card.rows, {"there/b": "Title of B"}, "here/score")
    assert shown.count("::::{card}\n") == 3 == shown.count("\n::::\n\n") + 1
    assert "**✓ Reproduced** · Sec. 1\n:::\n\nMIG 1.0." in shown
    assert "[Title of B](../there/b.ipynb)" in shown and "*As read here:* In two models." in shown
    assert "7 of 8 runs at the paper's settings are recorded; the others are made by `isa sweep" in shown
    assert "**– Not yet run** · Sec. 1" in shown
    assert [count for _, count, _ in text.counts(card)] == [2, 1]


@pytest.mark.parametrize(
    ("verdicts", "sentence"),
    [
        ([], "There are no claims."),
        ([YES], "Of 1 claims, 1 is reproduced."),
        ([YES, NO, NO], "Of 3 claims, 1 is reproduced and 2 not reproduced."),
        ([YES, YES, NO, None], "Of 4 claims, 2 are reproduced, 1 not reproduced and 1 not yet run."),
    ],
)
def test_the_summary_as_a_sentence(verdicts, sentence):
    claim = Claim("a", "b", "c", "d", "higher_mig")
    found = tuple(Row(claim, () if one is None else (Finding(one, ""),)) for one in verdicts)
    assert Scorecard(found).sentence() == sentence


def test_evidence_that_points_somewhere_in_a_sentence():
    claim = Claim("a", "b", "c", "d", "higher_mig")
    found = [Row(claim, (Finding(one, "", falls_short="at reduced scale"),)) for one in (YES, YES, NO)]
    assert Scorecard(tuple(found)).sentence() == "Of 3 claims, 2 point the same way and 1 points the other way."
    assert Scorecard((*found[1:], Row(claim, ()))).sentence() == (
        "Of 3 claims, 1 points the same way, 1 points the other way and 1 is not yet run."
    )


def test_words_for_every_verdict_and_rule():
    assert set(text.MARKS) == set(Verdict)
    assert text.meanings().count("\n") == len(Verdict) - 1
    assert text.rules().count("\n") == len(RULES) - 1


def test_titles_are_the_notebooks_own(claims):
    book = ROOT / "book"
    found = text.titles([book / "fig1.ipynb", book / "appendix/ica.ipynb"], book)
    assert set(found) == {"fig1", "appendix/ica"} and all(title and "#" not in title for title in found.values())


def test_the_book_s_findings_on_inference_are_those_of_its_pages(claims):
    """What Fig. 1 and its studies conclude in prose: pruning at the end whatever beta is, three columns on the way."""
    found = Evidence(ROOT / "runs")
    judged = {
        claim.key: verdict(MEASURES[claim.measure][0](found, **claim.given))
        for claim in claims
        if claim.given.get("study") == "ica-beta"
    }
    assert judged == {
        "away-from-likelihood": Verdict.REPRODUCED,
        "more-orthogonal": Verdict.REPRODUCED,
        "three-at-one": Verdict.PARTLY,
        "two-at-five": Verdict.REPRODUCED,
        "beta-orthogonalises": Verdict.PARTLY,
        "beta-prunes": Verdict.PARTLY,
    }
