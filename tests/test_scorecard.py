"""The scorecard: outcomes of each rule and each measure on made-up records and computations; claims and cards."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from scipy import stats

from edition.scorecard import Claim, Row, Scorecard, Verdict, read_claims, scorecard, text
from edition.scorecard.evidence import Evidence, Missing, Setting
from edition.scorecard.measures.records import change_of_difference
from edition.scorecard.register import MEASURES
from edition.scorecard.rules import Finding, Outcome, direction, majority, printed_value, together, verdict
from edition.stats import Comparison, Interval, compare
from isa import LpNested
from isa.run import Run
from isa.sweep import Spec

ROOT = Path(__file__).resolve().parent.parent
YES, PART, NO, OPEN = Outcome.YES, Outcome.PART, Outcome.NO, Outcome.OPEN


def row(mig: float = 0.1, log_likelihood: float = -30.0, procedural: bool = False, **fields: object) -> dict:
    """Return a record with these measurements, and everything else as a sweep would write it."""
    run = Run(**fields)
    measured = {"mig": mig, "log_likelihood": log_likelihood, "active_units": 6, "procedural": procedural}
    measured |= {"status": "trained", "total_steps": run.total_steps, "reduced": run.reduced, "images_title": "made up"}
    return {"hash": run.hash, **run.to_dict(), **measured, "exponents": run.tree and list(run.tree.exponents)}


def rows(values, scatter: float = 0.01, seed: int = 0, n: int = 10, **fields: object) -> list[dict]:
    """Return records of several seeds with normal MIG and log-likelihood around ``(mig, log_likelihood)``."""
    measured = values + scatter * np.random.default_rng(seed).standard_normal((n, 2)) * [1, 10]
    return [row(*pair, seed=number, **fields) for number, pair in enumerate(measured.tolist())]


def evidence(records: list[dict]) -> Evidence:
    made_up = Evidence(ROOT / "nowhere")
    made_up.records, made_up.specs = records, []
    return made_up


def write_csv(path: Path, records: list[dict]) -> None:
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, records[0])
        writer.writeheader()
        writer.writerows(records)


def test_direction():
    expected = {(0.1, 0.3): YES, (-0.3, -0.1): NO, (-0.1, 0.3): OPEN, (0.0, 0.0): NO, (math.nan, math.nan): OPEN}
    for (low, high), outcome in expected.items():
        interval, mirrored = Interval((low + high) / 2, low, high, 10), Interval(-(low + high) / 2, -high, -low, 10)
        assert direction(interval) is direction(mirrored, -1) is outcome


def test_majority():
    outcomes = [majority([True] * count + [False] * (20 - count), "data sets") for count in (20, 0, 13)]
    assert [outcome for outcome, _ in outcomes] == [YES, NO, OPEN]
    assert outcomes[2][1] == "13 of 20 data sets (41 to 85 %)"
    # at the bounds, to half a per cent, the tails beyond 13 have a probability of a fortieth
    assert stats.binom.sf(12, 20, 0.405) < 0.025 < stats.binom.sf(12, 20, 0.415)
    assert stats.binom.cdf(13, 20, 0.855) < 0.025 < stats.binom.cdf(13, 20, 0.845)


def test_printed_value_is_met_at_the_stated_rate():
    met = [printed_value(v[:-1], v[-1], "")[0] is YES for v in np.random.default_rng(0).standard_normal((1500, 6))]
    assert np.mean(met) == pytest.approx(0.95, abs=4 * math.sqrt(0.95 * 0.05 / 1500))
    assert printed_value([1.0, 1.1, 1.2, 1.1], 1.0, "") == (OPEN, "")
    assert printed_value([1.0, 1.1, 1.2, 1.1, 1.0], 9.0, "MIG") == (NO, "; MIG expected from 0.83 to 1.33")


def test_together():
    expected = {
        (YES,): YES, (NO,): NO, (OPEN,): OPEN, (PART,): PART, (): OPEN,
        (YES, NO): PART, (YES, PART): PART, (NO, PART): PART, (YES, OPEN): OPEN, (NO, OPEN): OPEN, (PART, OPEN): PART,
        (YES, NO, OPEN): PART,
    }  # fmt: skip
    for parts, whole in expected.items():
        assert together(parts) is together(reversed(parts)) is together(parts * 2) is whole


def findings_of(*outcomes: Outcome, falls_short: str = "") -> tuple[Finding, ...]:
    return tuple(Finding(one, "", falls_short=falls_short) for one in outcomes)


def test_verdict():
    short = {"falls_short": "at reduced scale"}
    expected = [
        (findings_of(YES, OPEN), Verdict.REPRODUCED),
        (findings_of(YES, NO), Verdict.PARTLY),
        (findings_of(NO, OPEN), Verdict.NOT),
        (findings_of(OPEN), Verdict.UNDECIDED),
        (findings_of(YES, **short), Verdict.SAME_WAY),
        (findings_of(YES, NO, **short), Verdict.BOTH_WAYS),
        (findings_of(NO, **short), Verdict.OTHER_WAY),
        (findings_of(OPEN, **short), Verdict.NO_WAY),
        ((), Verdict.MISSING),
        (findings_of(OPEN) + findings_of(YES, **short), Verdict.UNDECIDED),
    ]
    for findings, judged in expected:
        assert verdict(findings) is judged
    assert {judged for _, judged in expected} == set(Verdict)


PAIR = {"dataset": "dsprites", "first": "beta-vae", "second": "isa-vae", "beta": 1}
MIG = PAIR | {"signs": {"mig": 1}}
BOTH = PAIR | {"signs": {"mig": 1, "log_likelihood": 1}}
LOW, HIGH = (0.10, -32.0), (0.20, -30.0)
DSPRITES, FACES, OURS = {"dataset": "dsprites"}, {"dataset": "faces3d"}, {"objective": "isa-vae"}


def sides(first, second, **more) -> list[dict]:
    return rows(first, objective="beta-vae", seed=1, **more) + rows(second, seed=2, **OURS | more)


def curve_of(objective: str, height: float, **more: object) -> list[dict]:
    """Return runs over three betas, whose MIG rises as the log-likelihood falls."""
    more = {"n": 5, "scatter": 0.005, **more}
    means = [((height + 0.1 * i, -30.0 - 4 * i), beta, i) for i, beta in enumerate((1.0, 2.0, 4.0))]
    return [r for mean, beta, i in means for r in rows(mean, objective=objective, beta=beta, seed=i, **more)]


def changed(records: list[dict], **values: object) -> list[dict]:
    return [record | values for record in records]


def advantages(at_low: float, at_high: float) -> list[dict]:
    """Return runs of two methods on cars3d at two betas, of which the second has this much more MIG."""
    pairs = [(1.0, 0.1 + at_low), (4.0, 0.1 + at_high)]
    return [r for beta, mig in pairs for r in sides((0.1, -30.0), (mig, -30.0), beta=beta, dataset="cars3d")]


def with_modes(*betas_with_two: float) -> list[dict]:
    """Return thirty runs at each of three betas, in two groups by MIG at some of them."""
    groups = [(beta, i, 0.4 * i if beta in betas_with_two else 0.2) for beta in (1.0, 2.0, 3.0) for i in range(2)]
    return [r for beta, i, mig in groups for r in rows((mig, -30.0), 0.02, i, 15, beta=beta, **OURS)]


def learned(*exponents: float, n: int = 10) -> list[dict]:
    rng = np.random.default_rng(0)
    records = rows(LOW, dataset="faces3d", objective="isa-vae", learn_exponents=True, n=n)
    for record in records:  # as they come out of training, in no order
        record["exponents"] = [2.1, *rng.permutation(np.array(exponents) + 0.01 * rng.standard_normal(3)).tolist()]
    return records


OWN = rows((0.5, -30.0), dataset="faces3d", objective="isa-vae", learn_exponents=True)
BEST = FACES | {"method": "isa-vae, learned", "beta": 1, "others": ["beta-vae", "isa-vae"], "betas": [1, 2, 4]}
CURVES = DSPRITES | {"method": "isa-vae", "baselines": ["beta-vae"], "betas": [1, 2, 4]}
OUR_CURVE, FACE_CURVE = curve_of("isa-vae", 0.2), curve_of("isa-vae", 0.1, **FACES)  # the best are at beta = 4
MORE = DSPRITES | {"first": "beta-tcvae", "second": "beta-tcvae", "beta": [1, 3]}
MORE |= {"signs": {"mig": 1, "log_likelihood": -1}}
SHRINK = {"dataset": "cars3d", "first": "beta-vae", "second": "isa-vae", "low": 1, "high": 4}
ISA = DSPRITES | {"methods": ["isa-vae"]}
LEARNED = FACES | {"method": "isa-vae, learned"}
DIFFER = LEARNED | {"root": 2.1, "sides": [-1, -1, 1]}
MODEL = sorted(rows((0.40, -26.0), objective="isa-vae", beta=2.0, n=12), key=lambda one: one["mig"])
MEAN = float(np.mean([one["mig"] for one in MODEL[6:]]))
PRINTED = DSPRITES | {"method": "isa-vae", "beta": 2, "mig": MEAN, "log_likelihood": -26.0}
EXPONENTS = learned(1.9, 2.0, 2.17)


@pytest.mark.parametrize(
    ("measure", "records", "given", "expected"),
    [
        ("higher_distribution", sides(LOW, HIGH), PAIR, YES),
        ("higher_distribution", sides(HIGH, LOW), PAIR, NO),
        ("higher_distribution", sides(LOW, HIGH, n=4), PAIR, OPEN),  # too few for medians and maxima
        ("higher_distribution", changed(sides(LOW, HIGH)[:1], mig=0.25) + sides(LOW, HIGH)[1:], PAIR, PART),
        ("differs", [], MIG, None),
        ("differs", sides(LOW, HIGH), BOTH, YES),
        ("differs", sides((0.10, -30.0), (0.20, -32.0)), BOTH, PART),
        # at beta = 1 beta-TCVAE is beta-VAE, and is recorded as that
        ("differs", rows(LOW, objective="beta-vae") + rows((0.2, -36.0), objective="beta-tcvae", beta=3.0), MORE, YES),
        ("printed_model", MODEL, PRINTED, YES),
        ("printed_model", MODEL, PRINTED | {"log_likelihood": -40.0}, PART),
        ("printed_model", changed(MODEL[:1], mig=-5.0) + MODEL[1:], PRINTED, YES),  # any value below the median
        ("printed_model", changed(MODEL, reduced=True), PRINTED, OPEN),
        ("better_trade_off", OUR_CURVE + curve_of("beta-vae", 0.1), CURVES, YES),
        ("better_trade_off", OUR_CURVE + curve_of("beta-vae", 0.3), CURVES, NO),
        ("better_trade_off", OUR_CURVE + changed(curve_of("beta-vae", 0.1), log_likelihood=-130.0), CURVES, None),
        ("unmatched_at_better_fit", OUR_CURVE + curve_of("beta-vae", 0.1), CURVES, YES),
        ("unmatched_at_better_fit", OUR_CURVE + curve_of("beta-vae", 0.6), CURVES, NO),
        ("unmatched_at_better_fit", OUR_CURVE + changed(curve_of("beta-vae", 0.6), log_likelihood=-60.0), CURVES, OPEN),
        ("unmatched_at_better_fit", OUR_CURVE[:5] + curve_of("beta-vae", 0.6), CURVES, None),  # only beta = 1
        ("best_of_all", OWN + curve_of("beta-vae", 0.1, **FACES) + FACE_CURVE, BEST, YES),
        ("best_of_all", OWN + curve_of("beta-vae", 0.9, **FACES) + FACE_CURVE, BEST, PART),
        ("best_of_all", OWN + curve_of("beta-vae", 0.1, **FACES) + FACE_CURVE[:5], BEST, OPEN),
        ("shrinking_advantage", advantages(0.2, 0.05), SHRINK, YES),
        ("shrinking_advantage", advantages(0.05, 0.2), SHRINK, NO),
        ("several_modes", with_modes(1.0, 2.0, 3.0), ISA, YES),
        ("several_modes", with_modes(1.0), ISA, PART),
        ("several_modes", with_modes(), ISA, OPEN),
        ("several_modes", rows(LOW, objective="isa-vae", n=9), ISA, None),
        ("unused_latents", rows(LOW, objective="isa-vae", n=20), ISA, YES),
        ("unused_latents", changed(rows(LOW, objective="isa-vae", n=20), active_units=20), ISA, NO),
        ("exponents_differ", learned(1.95, 1.98, 2.2), DIFFER, YES),
        ("exponents_differ", learned(1.9, 1.95, 2.0), DIFFER, PART),
        ("exponents_printed", EXPONENTS, LEARNED | {"modes": [1.9, 2.0, 2.17]}, YES),
        ("exponents_printed", EXPONENTS, LEARNED | {"modes": [1.9, 2.0, 3.0]}, PART),
        ("largest_exponent_above", learned(1.9, 2.0, 2.3), LEARNED | {"bound": 2.17}, YES),
        ("largest_exponent_above", learned(1.9, 2.0, 2.1), LEARNED | {"bound": 2.17}, NO),
    ],
)
def test_measures_of_runs(measure, records, given, expected):
    findings = MEASURES[measure](evidence(records), **given)
    assert [finding.outcome for finding in findings] == ([] if expected is None else [expected])


def test_findings_of_two_lengths_of_training():
    findings = MEASURES["differs"](evidence(sides(LOW, HIGH) + sides(HIGH, LOW, epochs=50.0)), **MIG)
    assert [(one.reading, one.outcome) for one in findings] == [("7,200 steps", YES), ("18,000 steps", NO)]
    mig = [one["mig"] for one in sides(LOW, HIGH)]
    assert findings[0].text == f"MIG {compare(mig[:10], mig[10:]):+.3f}" and findings[0].falls_short == ""


def test_change_of_difference_covers():
    first, second = np.random.default_rng(0).standard_normal((2, 1500, 2, 5))
    bounds = stats.ttest_ind(second, first, equal_var=False, axis=-1).confidence_interval()
    differences = second.mean(-1) - first.mean(-1)
    pairs = np.stack([differences, *bounds], -1)
    changes = [change_of_difference(*(Comparison(*one, n_first=5, n_second=5) for one in pair)) for pair in pairs]
    covered = np.mean([change.low <= 0 <= change.high for change in changes])
    assert 0.95 - 3 * math.sqrt(0.95 * 0.05 / 1500) < covered < 0.995


def test_runs_of_a_method():
    own, two = rows(LOW, n=3, **OURS), {"p0": 2.0, "p1": 2.0}
    changes = [two, {"subspaces": (5,) * 5}, {"scale": "unit"}, {"learning_rate": 1e-4}, {"learn_exponents": True}]
    changes += [{"beta": 2.0}, {"objective": "isa-tcvae", "beta": 2.0}, {"objective": "beta-vae"}, FACES]
    others = [row(0.9, **OURS | change) for change in changes]
    others.append(row(0.9, seed=99, **OURS) | {"status": "diverged", "mig": None})
    made_up = evidence(own + others)
    ((setting, chosen),) = made_up.runs("dsprites", "isa-vae", 1.0).items()
    assert chosen == own
    assert made_up.runs("dsprites", OURS | two, 1.0)[setting] == others[:1]
    assert len(made_up.runs("dsprites", "isa-vae", [1.0, 2.0])[setting]) == 4
    assert [one["objective"] for one in made_up.runs("dsprites", "isa-tcvae", 2.0)[setting]] == ["isa-tcvae"]
    assert made_up.runs("dsprites", "isa-tcvae", 1.0)[setting] == own  # at beta = 1 they are one objective


def test_runs_are_grouped_by_setting():
    records = sides(LOW, HIGH, n=3) + sides(LOW, HIGH, n=3, steps=100)
    records += rows(LOW, epochs=50.0) + rows(LOW, procedural=True)  # of beta-VAE
    made_up = evidence(records)
    texts = [(setting.text, setting.falls_short) for setting in made_up.runs("dsprites", "beta-vae", 1.0)]
    stand_in, reduced = ("7,200 steps", "on stand-in images"), ("100 steps", "at reduced scale")
    assert texts == [("7,200 steps", ""), ("18,000 steps", ""), stand_in, reduced]
    compared = made_up.compared("dsprites", ("beta-vae", 1.0), ("isa-vae", 1.0))
    assert [setting.total_steps for setting, _ in compared] == [7200, 100]
    tiny = Setting(True, True, 10, 64, "", "fp32")
    assert (tiny.text, tiny.falls_short) == ("10 steps of 64", "on stand-in images, at reduced scale")


@pytest.fixture
def folder(tmp_path):
    """Return a folder with a specification, and with the book's own records of most of its runs."""
    grid = {"objective": ["beta-vae", "isa-vae"], "beta": [1, 2], "seeds": 4}
    spec = {"title": "Made up", "every": {"dataset": "dsprites"}, "tiers": {1: [grid]}}
    (tmp_path / "made-up.yaml").write_text(yaml.safe_dump(spec))
    (tmp_path / "other.yaml").write_text("p0: 1.5\n")
    runs = [run for run in Spec.read(tmp_path / "made-up.yaml").runs() if run.beta == 1]
    wanted = {run.hash for run in runs if (run.seed, run.objective) != (3, "isa-vae")}
    with open(ROOT / "runs/dsprites.csv", newline="") as file:
        write_csv(tmp_path / "made-up.csv", [record for record in csv.DictReader(file) if record["hash"] in wanted])
    return tmp_path


def test_missing_runs(folder):
    some = Evidence(folder)
    assert [spec.name for spec in some.specs] == ["made-up"] and len(some.records) == 7
    assert some.missing() is None
    MEASURES["differs"](some, **MIG)
    assert some.missing() == Missing(7, 8, ("isa sweep runs/made-up.yaml",), ())
    MEASURES["differs"](some, **MIG | {"beta": 2})
    assert some.missing()[:2] == (7, 16)
    some.asked.clear()
    MEASURES["differs"](some, **MIG | {"first": {"objective": "isa-vae", "p1": 3.0}})
    assert some.missing() == Missing(3, 4, ("isa sweep runs/made-up.yaml",), ("ISA-VAE (p1 3.0)",))


@pytest.mark.parametrize("measure", ["likelihood_given_up", "codes_follow_prior"])
def test_no_study_is_no_evidence(tmp_path, claims, measure):
    given = next(claim.given for claim in claims if claim.measure == measure)
    assert list(MEASURES[measure](Evidence(tmp_path), **given)) == []


@pytest.mark.parametrize(
    ("laplace", "platykurtic", "expected"),
    [(-0.6, 0.8, Verdict.SAME_WAY), (0.6, 0.8, Verdict.BOTH_WAYS), (0.6, -0.8, Verdict.OTHER_WAY)],
)
def test_codes_follow_the_prior(tmp_path, laplace, platykurtic, expected):
    def record(p: float, seed: int, alignment: float, beta: int = 8, steps: int = 400) -> dict:
        return {"exponent": p, "beta": beta, "seed": seed, "steps": steps, "alignment": alignment}

    noise, means = 0.05 * np.random.default_rng(0).standard_normal((3, 6)), {1: laplace, 4: platykurtic, 2: 0.0}
    runs = [record(p, seed, means[p] + noise[i, seed]) for i, p in enumerate(means) for seed in range(6)]
    runs.append(record(1, 1, math.nan, beta=1))  # no latent in use
    runs += [record(p, 1, 0.0, steps=900) for p in (1, 4)]  # one run a side
    write_csv(tmp_path / "made-up.csv", runs)
    given = {"study": "made-up", "leptokurtic": 1, "platykurtic": 4}
    findings = MEASURES["codes_follow_prior"](Evidence(tmp_path), **given)
    assert [one.reading for one in findings] == ["β = 8, 400 steps", "β = 8, 900 steps"]
    assert findings[1].outcome is OPEN and verdict(findings) is expected


@pytest.fixture(scope="module")
def claims():
    return read_claims(ROOT / "book/claims.yaml")


def test_claims_of_the_book_are_complete(claims):
    pages = {path.relative_to(ROOT).with_suffix("").as_posix() for path in (ROOT / "book").rglob("*.ipynb")}
    pages |= set(yaml.safe_load((ROOT / "book/variants.yaml").read_text()))  # which the build makes
    assert len({claim.key for claim in claims}) == len(claims) >= 40
    for claim in claims:
        assert "{" not in claim.says and claim.says.endswith((".", ")")), claim.key
        assert claim.understood is None or claim.understood.endswith("."), claim.key
        assert claim.page is None or f"book/{claim.page}" in pages, claim.key
    assert {claim.measure for claim in claims} == set(MEASURES)


def test_claims_name_runs_that_a_specification_names(claims):
    """Sweeps of the repository make the runs of all claims but one."""
    book = Evidence(ROOT / "runs")
    book.records = []
    for claim in claims:
        if "dataset" in claim.given:
            book.asked.clear()
            MEASURES[claim.measure](book, **claim.given)
            missing = book.missing()
            assert missing.recorded == 0 and (missing.unnamed or (missing.wanted > 0 and missing.commands))
            assert not missing.unnamed or claim.key == "faces-leptokurtic"


def test_gaussian_control_has_the_variance_of_the_prior(claims):
    (deviation,) = [one for one in claims if one.key == "small-deviation"]
    run = Run(dataset="dsprites", **deviation.given["first"])
    ours = LpNested(Run(objective="isa-vae").tree).variance
    assert torch.allclose(LpNested(run.tree, run.scale).variance, ours, rtol=1e-4)
    spec = Spec.read(ROOT / "runs/dsprites-controls.yaml")
    assert any(str(one.tree) == str(run.tree) and one.scale == run.scale for one in spec.runs())


CLAIM = {"key": "a", "where": "Sec. 1", "says": "MIG {beta:.1f}.", "measure": "differs", "given": MIG}


def write(folder: Path, *written: object) -> Path:
    path = folder / "claims.yaml"
    path.write_text(yaml.safe_dump([{"section": "One", "claims": list(written)}]))
    return path


def test_invalid_claims(tmp_path):
    changes = {"nothing": {"measure": "nothing"}, "wher": {"wher": "x"}, "mig": {"says": "MIG {mig}."}}
    for name, change in changes.items():
        with pytest.raises(ValueError, match=rf"claims\.yaml: a: .*'{name}'"):
            read_claims(write(tmp_path, CLAIM | change))


def test_scorecard(folder):
    computed = {"key": "b", "where": "B.5", "says": "It widens.", "measure": "posterior_widens", "page": "there/b"}
    computed |= {"given": {"betas": [1, 2], "models": 2}, "understood": "In two models."}
    none = CLAIM | {"key": "c", "given": MIG | {"beta": 2}}
    card = scorecard(write(folder, CLAIM, computed, none), folder)
    assert [one.verdict for one in card.rows] == [Verdict.UNDECIDED, Verdict.REPRODUCED, Verdict.MISSING]
    assert card.sentence() == "Of 3 claims, 1 is reproduced, 1 undecided and 1 not yet run."
    shown = text.cards(card.rows, "here/score")
    assert shown.count("::::{card}\n") == 3 == shown.count("\n::::\n\n") + 1
    assert "**? Undecided** · Sec. 1\n:::\n\nMIG 1.0." in shown and "**– Not yet run** · Sec. 1" in shown
    assert "\n[](../there/b.ipynb)\n" in shown and "*As read here:* In two models." in shown
    assert "7 of 8 runs at the paper's settings are recorded; the others are made by `isa sweep" in shown
    assert [count for _, count, _ in text.counts(card)] == [1, 1, 1] and list(card.sections) == ["One"]
    assert text.meanings().count("\n") == len(Verdict) - 1


def test_summary_sentence():
    for own, short, sentence in [
        ([YES, YES, NO, None], [], "Of 4 claims, 2 are reproduced, 1 not reproduced and 1 not yet run."),
        ([], [YES, YES, NO], "Of 3 claims, 2 point the same way and 1 points the other way."),
        ([None], [YES, NO], "Of 3 claims, 1 points the same way, 1 points the other way and 1 is not yet run."),
    ]:
        findings = [() if one is None else findings_of(one) for one in own]
        findings += [findings_of(one, falls_short="at reduced scale") for one in short]
        judged = [Row(Claim(section="One", **CLAIM), each) for each in findings]
        assert Scorecard(tuple(judged)).sentence() == sentence
        assert not short or judged[-1].verdict_text.startswith("at reduced scale: points")
