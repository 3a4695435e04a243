"""The scorecard: outcomes of each measure on made-up records and studies and other constants; claims and cards."""

import csv
import math
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import ROOT
from test_rules import findings_of

from edition.scorecard import Claim, Row, Scorecard, Verdict, read_claims, scorecard, text
from edition.scorecard.evidence import MEASURES, Evidence, Missing, Setting
from edition.scorecard.rules import Outcome, judge
from edition.stats import compare
from edition.studies import read_study
from isa.run import Run
from isa.sweep import Spec

YES, PART, NO, OPEN = Outcome.YES, Outcome.PART, Outcome.NO, Outcome.OPEN


def row(mig: float = 0.1, log_likelihood: float = -30.0, procedural: bool = False, **fields: object) -> dict:
    """Return a record with these measurements, and everything else as a sweep would write it."""
    run = Run(**fields)
    measured = {"mig": mig, "log_likelihood": log_likelihood, "active_units": 6, "divergence": 18.0}
    measured |= {"procedural": procedural, "status": "trained", "images_title": "made up"}
    measured |= {"total_steps": run.total_steps, "reduced": run.reduced}
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


PAIR = {"dataset": "dsprites", "first": "beta-vae", "second": "isa-vae", "beta": 1}
MIG = PAIR | {"signs": {"mig": 1}}
BOTH = PAIR | {"signs": {"mig": 1, "log_likelihood": 1}}
PRINTED_GAP = MIG | {"printed": {"mig": 0.06}}
HIGHER = PAIR | {"printed": 0.06}
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


def shapes(*hearts: float) -> list[dict]:
    """Return runs at two betas, with this log-likelihood of hearts at each; other shapes have -30."""
    records = [r for beta in (1.0, 3.0) for r in rows(LOW, objective="beta-vae", beta=beta)]
    by_beta = dict(zip((1.0, 3.0), hearts, strict=True))
    for one in records:
        one |= {"unscored": ["shape"], "log_likelihood_by_value": [[-30.0, -30.0, by_beta[one["beta"]] + one["mig"]]]}
    return records


OWN = rows((0.5, -30.0), dataset="faces3d", objective="isa-vae", learn_exponents=True)
BEST = FACES | {"method": "isa-vae, learned", "beta": 1, "others": ["beta-vae", "isa-vae"], "betas": [1, 2, 4]}
LARGE = BEST | {"large_over": ["beta-vae"]}
CURVES = DSPRITES | {"method": "isa-vae", "baselines": ["beta-vae"], "betas": [1, 2, 4]}
OVER_GRID = DSPRITES | {"method": "beta-tcvae", "beta": [1, 2, 4], "betas": [1, 2, 4], "others": ["beta-vae"]}
OUR_CURVE, FACE_CURVE = curve_of("isa-vae", 0.2), curve_of("isa-vae", 0.1, **FACES)  # the best are at beta = 4
MORE = DSPRITES | {"methods": ["beta-tcvae"], "low": 1, "high": 3, "signs": {"mig": 1, "log_likelihood": -1}}
HEART = MORE | {"methods": ["beta-vae"], "signs": {"heart": -1}}
SHRINK = {"dataset": "cars3d", "first": "beta-vae", "second": "isa-vae", "low": 1, "high": 4}
ISA = DSPRITES | {"methods": ["isa-vae"]}
MODES, NEEDED = ISA | {"apart": 8}, ISA | {"needed": 6}
LEARNED = FACES | {"method": "isa-vae, learned"}
DIFFER, BOUND = LEARNED | {"root": 2.1, "start": 2.0}, LEARNED | {"bound": 2.17}
OUTPERFORMS = FACES | {"first": ["beta-vae", "beta-tcvae"], "second": "isa-vae, learned"}
OUTPERFORMS |= {"beta": [1], "signs": {"mig": 1}}
LAYOUT = MIG | {"first": [OURS | {"subspaces": [6, 6, 6]}], "margin": 0.05}
MODEL = sorted(rows((0.40, -26.0), objective="isa-vae", beta=2.0, n=12), key=lambda one: one["mig"])
MEAN = float(np.mean([one["mig"] for one in MODEL[6:]]))
PRINTED = DSPRITES | {"method": "isa-vae", "beta": 2, "mig": MEAN, "log_likelihood": -26.0}
POOR = curve_of("beta-vae", 0.0) + rows((0.9, -90.0), 0.005, n=5, objective="beta-vae", beta=6.0)
POORER = CURVES | {"betas": [1, 2, 4, 6]}


@pytest.mark.parametrize(
    ("measure", "records", "given", "expected"),
    [
        ("higher_distribution", sides(LOW, HIGH), HIGHER, YES),
        ("higher_distribution", sides(HIGH, LOW), HIGHER, NO),
        ("higher_distribution", sides(LOW, HIGH, n=4), HIGHER, OPEN),  # too few for medians
        ("higher_distribution", changed(sides(LOW, HIGH)[:1], mig=0.25) + sides(LOW, HIGH)[1:], HIGHER, OPEN),
        ("higher_distribution", sides(LOW, LOW), HIGHER, NO),  # smaller than printed
        ("differs", [], MIG, None),
        ("differs", sides(LOW, HIGH), BOTH, YES),
        ("differs", sides((0.10, -30.0), (0.20, -32.0)), BOTH, PART),
        ("differs", sides(LOW, (0.13, -30.0)), PRINTED_GAP, PART),
        ("differs", changed(sides(LOW, LOW), reduced=True), PRINTED_GAP, OPEN),  # no printed value counts there
        # at beta = 1 beta-TCVAE is beta-VAE, and is recorded as that
        ("changes_with_beta", rows(LOW) + rows((0.2, -36.0), objective="beta-tcvae", beta=3.0), MORE, YES),
        ("changes_with_beta", rows(LOW) + rows((0.2, -28.0), objective="beta-tcvae", beta=3.0), MORE, PART),
        ("changes_with_beta", rows(LOW) + rows((0.0, -28.0), objective="beta-tcvae", beta=3.0), MORE, NO),
        ("changes_with_beta", shapes(-30.0, -50.0), HEART, YES),
        ("changes_with_beta", shapes(-50.0, -30.0), HEART, NO),
        ("changes_with_beta", rows(LOW) + rows(LOW, beta=3.0), HEART, None),  # not recorded by shape
        ("differs", rows(LOW, **OURS) + rows((0.11, -32.0), **OURS, subspaces=(6, 6, 6)), LAYOUT, YES),
        ("differs", rows(LOW, **OURS) + rows(HIGH, **OURS, subspaces=(6, 6, 6)), LAYOUT, NO),
        ("printed_model", MODEL, PRINTED, YES),
        ("printed_model", MODEL, PRINTED | {"log_likelihood": -40.0}, PART),
        ("printed_model", MODEL, PRINTED | {"log_likelihood": -40.0, "mig": 0.1}, NO),
        ("printed_model", changed(MODEL, reduced=True), PRINTED, OPEN),
        ("better_trade_off", OUR_CURVE + curve_of("beta-vae", 0.1), CURVES, YES),
        ("better_trade_off", OUR_CURVE + curve_of("beta-vae", 0.3), CURVES, NO),
        ("better_trade_off", OUR_CURVE + changed(curve_of("beta-vae", 0.1), log_likelihood=-130.0), CURVES, None),
        ("unmatched_at_better_fit", OUR_CURVE + POOR, POORER, YES),
        ("unmatched_at_better_fit", OUR_CURVE + curve_of("beta-vae", 0.1), CURVES, PART),  # poor fits do not help it
        ("unmatched_at_better_fit", OUR_CURVE + curve_of("beta-vae", 0.6), CURVES, PART),  # better at any fit
        ("unmatched_at_better_fit", OUR_CURVE[:5] + curve_of("beta-vae", 0.6), CURVES, OPEN),  # only beta = 1
        ("best_of_all", OWN + curve_of("beta-vae", 0.1, **FACES) + FACE_CURVE, LARGE, YES),
        ("best_of_all", OWN + curve_of("beta-vae", 0.9, **FACES) + FACE_CURVE, BEST, PART),
        ("best_of_all", OWN + curve_of("beta-vae", 0.9, **FACES) + curve_of("isa-vae", 0.9, **FACES), BEST, NO),
        ("best_of_all", OWN + curve_of("beta-vae", 0.1, **FACES) + FACE_CURVE[:5], BEST, OPEN),
        ("best_of_all", curve_of("beta-vae", 0.1) + curve_of("beta-tcvae", 0.5), OVER_GRID, YES),
        ("best_of_all", curve_of("beta-vae", 0.5) + curve_of("beta-tcvae", 0.1), OVER_GRID, NO),
        ("differs", OWN + rows(LOW, **FACES), OUTPERFORMS, YES),
        ("differs", OWN + rows((0.9, -30.0), **FACES), OUTPERFORMS, NO),
        ("shrinking_advantage", advantages(0.2, 0.05), SHRINK, YES),
        ("shrinking_advantage", advantages(0.05, 0.2), SHRINK, NO),
        ("shrinking_advantage", advantages(0.0, -0.2), SHRINK, OPEN),  # there is no advantage
        ("several_modes", with_modes(1.0, 2.0, 3.0), MODES, YES),
        ("several_modes", with_modes(1.0), MODES, OPEN),
        ("several_modes", with_modes(), MODES, NO),
        ("several_modes", rows(LOW, objective="isa-vae", n=19), MODES, OPEN),
        ("unused_latents", rows(LOW, objective="isa-vae", n=20), NEEDED, YES),
        ("unused_latents", changed(rows(LOW, objective="isa-vae", n=20), active_units=7), NEEDED, NO),
        ("exponents_differ", learned(1.95, 1.98, 2.2), DIFFER, YES),
        ("exponents_differ", learned(1.9, 2.2, 2.3), DIFFER, PART),
        ("exponents_differ", learned(2.1, 2.12, 2.13), DIFFER, NO),  # the trivial case
        ("exponents_printed", learned(1.9, 2.0, 2.17), LEARNED | {"modes": [1.9, 2.0, 2.17]}, YES),
        ("exponents_printed", learned(1.9, 2.0, 2.17), LEARNED | {"modes": [1.9, 2.0, 3]}, PART),
        ("largest_exponent_above", learned(1.9, 2.0, 2.3), BOUND, YES),
        ("largest_exponent_above", learned(1.9, 2.0, 2.1), BOUND, NO),
        ("largest_exponent_above", learned(1.9, 2.0, 2.3) + learned(1.9, 2.0, 2.1, n=11)[10:], BOUND, PART),
    ],
)
def test_measures_of_runs(measure, records, given, expected):
    findings = MEASURES[measure](evidence(records), **given)
    assert [finding.outcome for finding in findings] == ([] if expected is None else [expected])


def test_findings_of_two_lengths_of_training():
    findings = MEASURES["differs"](evidence(sides(LOW, HIGH) + sides(HIGH, LOW, epochs=50.0)), **MIG)
    assert [(one.reading, one.outcome) for one in findings] == [("7,200 steps", YES), ("18,000 steps", NO)]
    mig = [one["mig"] for one in sides(LOW, HIGH)]
    difference = compare(mig[:10], mig[10:])
    assert findings[0].text == f"ISA-VAE minus β-VAE: MIG {difference:+.3f}" and findings[0].falls_short == ""


def test_runs_of_a_method():
    own, two = rows(LOW, n=3, **OURS), {"p0": 2.0, "p1": 2.0}
    changes = [two, {"subspaces": (5,) * 5}, {"scale": "unit"}, {"learning_rate": 1e-4}, {"learn_exponents": True}]
    changes += [{"beta": 2.0}, {"objective": "isa-tcvae", "beta": 2.0}, {"objective": "beta-vae"}, FACES]
    others = [row(0.9, **OURS | change) for change in changes]
    others.append(row(0.9, seed=99, **OURS) | {"status": "diverged", "mig": None})
    made_up = evidence(own + others)

    def of(method, betas) -> list[dict]:
        return made_up.compared("dsprites", (method, betas))[0].groups[0]

    (found,) = made_up.compared("dsprites", ("isa-vae", 1.0))
    assert found.groups == [own] and len(found.diverged) == 1 and "left out: 1" in found.finding(YES, "").text
    assert of(OURS | two, 1.0) == others[:1]
    assert len(of("isa-vae", [1.0, 2.0])) == 4
    assert [one["objective"] for one in of("isa-tcvae", 2.0)] == ["isa-tcvae"]
    assert of("isa-tcvae", 1.0) == own  # at beta = 1 they are one objective


def test_runs_are_grouped_by_setting():
    records = sides(LOW, HIGH, n=3) + sides(LOW, HIGH, n=3, steps=100) + sides(LOW, HIGH, n=3, steps=200)
    records += rows(LOW, epochs=50.0) + rows(LOW, procedural=True)  # of beta-VAE
    made_up = evidence(records)
    texts = [(one.setting.text, one.setting.falls_short) for one in made_up.compared("dsprites", ("beta-vae", 1.0))]
    own, stand_in = [("7,200 steps", ""), ("18,000 steps", "")], ("7,200 steps", "stand-in data")
    assert texts == [*own, stand_in, ("200 steps", "small scale"), ("100 steps", "small scale")]
    compared = made_up.compared("dsprites", ("beta-vae", 1.0), ("isa-vae", 1.0))
    assert [one.setting.total_steps for one in compared] == [7200, 200, 100]
    tiny = Setting(True, True, 10, 64, "", "fp32")
    assert (tiny.text, tiny.falls_short) == ("10 steps of 64", "stand-in data, small scale")


def test_shared_runs_count_once():
    """Runs at beta = 1 belong to both methods."""
    made_up = evidence(rows((0.3, -30.0), 0.002, n=5) + rows((0.2, -30), 0.002, n=5, objective="beta-tcvae", beta=2.0))
    (modes,) = MEASURES["several_modes"](made_up, **MODES | {"methods": ["beta-vae", "beta-tcvae"]})
    assert "of 0 combinations" in modes.text
    (unused,) = MEASURES["unused_latents"](made_up, **NEEDED | {"methods": ["beta-vae", "beta-tcvae"]})
    assert unused.text.startswith("10 of 10 runs")
    (best,) = MEASURES["best_of_all"](made_up, **OVER_GRID)
    assert best.text.startswith("best mean MIG, β-TCVAE minus β-VAE: -0.1")  # and not 0, as the shared runs would give


def study(folder: Path, stopped: dict, converged: dict, lost: float) -> Evidence:
    """Return a made-up study of eight data sets: angle of two columns, and length of the third, by beta."""
    spec = folder / "made-up.yaml"
    lists = "directions: [30, 90, 150], noise_var: [0.05], dof: [3.5], beta: [1, 5], methods: [newton, em, exact]"
    spec.write_text(f"{{seeds: 8, n: 10, {lists}}}")
    records, rng = [], np.random.default_rng(0)
    for method, by_beta in (("em", stopped), ("newton", converged), ("exact", {0: (60, 0.8)})):
        for (beta, (angle, third)), seed in product(by_beta.items(), range(8)):
            turn = math.radians(angle + 0.05 * float(rng.standard_normal()))
            likelihood = -1000.0 + (0.5 * seed - lost) * (method != "exact")
            weights = [1.0, math.cos(turn), 0.0, 0.0, math.sin(turn), third]
            pruned_at = {1: 60, 5: 30}[beta] if method == "em" else ""
            values = [method, seed, 3.5, 0.05, beta, 1, 1, 0.0, likelihood, pruned_at, *weights]
            records.append(dict(zip(read_study(spec).header, values, strict=True)))
    write_csv(folder / "made-up.csv", records)
    return Evidence(folder)


FIGURE_1 = {"betas": [1, 5], "columns": [3, 2]}


@pytest.mark.parametrize(
    ("stopped", "converged", "lost", "expected"),
    [
        ({1: (65, 0.5), 5: (85, 0.0)}, {1: (88, 0.0), 5: (88, 0.0)}, 20.0,
         [[YES], [YES], [YES, YES], [YES, NO], [YES, YES], [NO, OPEN], [YES, OPEN], [YES, NO], [YES], [OPEN]]),
        ({1: (50, 0.0), 5: (45, 0.5)}, {1: (45, 0.5), 5: (40, 0.6)}, -20.0,
         [[NO], [NO], [NO, NO], [NO, YES], [NO, NO], [NO, NO], [NO, NO], [NO, NO], [NO], [NO]]),
    ],
)  # fmt: skip
def test_measures_of_ica(tmp_path, stopped, converged, lost, expected):
    made_up = study(tmp_path, stopped, converged, lost)
    measured = [
        ("likelihood_given_up", {"beta": 1}),
        ("beta_strengthens", {"low": 0, "high": 1, "what": "columns", "only": "at convergence"}),
        ("more_orthogonal", {"beta": 1}),
        ("columns_survive", {"beta": 1, "columns": 3}),
        ("columns_survive", {"beta": 5, "columns": 2, "orthogonal_within": 10}),
        ("columns_survive", {"beta": 5, "columns": 2, "orthogonal_within": 2}),
        ("beta_strengthens", {"low": 1, "high": 5, "what": "angle"}),
        ("beta_strengthens", {"low": 1, "high": 5, "what": "columns"}),
        ("as_in_figure_1", FIGURE_1 | {"orthogonal_within": 10}),
        ("as_in_figure_1", FIGURE_1 | {"orthogonal_within": 5}),
    ]
    found = [MEASURES[measure](made_up, study="made-up", **given) for measure, given in measured]
    assert [[one.outcome for one in each] for each in found] == expected
    assert all([one.reading for one in each] == ["after 40 steps", "at convergence"] for each in found[2:-2])
    assert "by columns alone in 8 at the best number of steps, 30" in found[-1][0].text


FACTOR = {"n": 100, "noise_var": 0.01, "log_likelihood": -17.82, "free_energy": -57.16}
INDEPENDENT = {"subspaces": [2, 3], "p0": 2.1, "p1": 2.2, "points": 200}
PRUNING = {"n": 100, "noise_var": 0.1, "rho": 0.8, "alpha_max": 0.5, "starts": 3}
IDENTIFIABLE = {"size": 2, "p0": 2.1, "p1": 2.2, "points": 10}
COPIES = {"copies": [2], "betas": [0.5, 3]}
SPECTRUM = {"spectrum": [4, 2, 1], "noise_var": 0.25, "latents": 2, "n": 100}


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("rotation_costs_free_energy", FACTOR | {"tolerance": 1e-6}, YES),
        ("rotation_values", FACTOR | {"tolerance": 1e-6}, PART),
        ("principal_directions", SPECTRUM | {"betas": [1, 2], "starts": 2, "tolerance": 0.1}, YES),
        ("same_fit_for_all_betas", SPECTRUM | {"betas": [1, 4], "tolerance": 0.1}, YES),
        ("same_fit_for_all_betas", SPECTRUM | {"betas": [1, 4], "tolerance": -1.0}, PART),
        ("amplitude_falls", FACTOR | {"betas": [1, 5, 50]}, YES),  # by Eq. 13 it rises at first
        ("amplitude_falls", FACTOR | {"betas": [50, 5, 1]}, NO),
        ("weights_ignore_beta", {"betas": [1, 5], "tolerance": 1e-9}, YES),
        ("beta_is_a_power", COPIES | {"tolerance": 1e-9}, YES),
        ("beta_is_a_power", COPIES | {"tolerance": 0.0}, NO),
        ("posterior_widens", {"betas": [1, 2, 4], "models": 5}, YES),
        ("posterior_widens", {"betas": [4, 2, 1], "models": 5}, NO),
        ("bias_grows", {"betas": [1, 2, 4], "models": 5}, YES),
        ("surface_formula", {"trees": ["2.1[1, 2.2[2]]"], "order": 100, "tolerance": 1e-4}, YES),
        ("surface_formula", {"trees": ["2.1[1, 2.2[2]]"], "order": 2, "tolerance": 1e-4}, NO),
        ("radial_is_chi", {"dimensions": [1, 5], "tolerance": 1e-9}, YES),
        ("factorised_only_where_equal", {"size": 4, "p0": 2.1, "others": [1.9, 2.2], "tolerance": 1e-9}, YES),
        ("factorised_only_where_equal", {"size": 4, "p0": 2.1, "others": [2.1], "tolerance": 1e-9}, PART),
        ("kurtosis_sides", {"p0": 2.1, "platykurtic": 2.2, "leptokurtic": 1.9, "sizes": [4]}, YES),
        ("kurtosis_sides", {"p0": 2.1, "platykurtic": 1.0, "leptokurtic": 4.0, "sizes": [3]}, NO),
        ("kurtosis_parameter", {"kappas": [-0.5, 0.5, 2], "tolerance": 1e-9}, YES),
        ("kurtosis_parameter", {"kappas": [-0.5, 0.0], "tolerance": 1e-9}, PART),
        ("same_objective_at_one", {"latents": 4, "batch": 16, "tolerance": 1e-10}, YES),
        ("prior_prefers", {"leptokurtic": 1.0, "platykurtic": 4.0}, YES),
        ("prior_prefers", {"leptokurtic": 4.0, "platykurtic": 1.0}, NO),
        ("sampled_divergence_varies_less", {"weight": 1.5, "noise_var": 0.3, "points": 100}, YES),
        ("not_rotation_invariant", {"size": 2, "p0": 1.0, "p1": 1.0, "tolerance": 1e-6}, YES),
        ("not_rotation_invariant", {"size": 2, "p0": 2.0, "p1": 2.0, "tolerance": 1e-6}, NO),  # a normal distribution
        ("sampler_exact", {"trees": ["2.1[2*1.5[2]]"], "points": 2000, "least": 0.01}, YES),
        ("sampler_exact", {"trees": ["2.1[2*1.5[2]]"], "points": 2000, "least": 1.1}, NO),
        ("subspaces_independent", INDEPENDENT | {"tolerance": 1e-9}, YES),
        ("subspaces_independent", INDEPENDENT | {"subspaces": [1, 1, 1], "p1": 2.1, "tolerance": 1e-9}, YES),
        ("extra_latent_is_pruned", PRUNING | {"tolerance": 1e-6}, YES),
        ("identifiable", IDENTIFIABLE | {"tolerance": 1e-5}, PART),
        ("identifiable", IDENTIFIABLE | {"tolerance": 0.0}, OPEN),  # then nothing is constructed
    ],
)
def test_computed_measures(name, given, expected):
    (finding,) = MEASURES[name](None, **given)
    assert finding.outcome is expected, finding.text
    assert finding.text and not finding.falls_short


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
    some = Evidence(folder)  # whose runs of beta = 1 are all declared, and one of which is missing
    assert [spec.name for spec in some.specs] == ["made-up"] and len(some.records) == 7
    assert some.missing() is None
    MEASURES["differs"](some, **MIG)
    assert some.missing() == Missing(7, 8, ("isa sweep runs/made-up.yaml",))
    (found,) = MEASURES["differs"](some, **MIG)
    assert found.missing == 1 and judge([found]) == (Verdict.OPEN, Verdict.OPEN)
    MEASURES["differs"](some, **MIG | {"beta": 2})
    assert some.missing()[:2] == (7, 16)
    some.asked.clear()
    MEASURES["differs"](some, **MIG | {"first": {"objective": "isa-vae", "p1": 3.0}})
    assert some.missing() == Missing(3, 4, ("isa sweep runs/made-up.yaml",))


@pytest.mark.parametrize("measure", ["likelihood_given_up", "codes_follow_prior"])
def test_no_study_is_no_evidence(tmp_path, claims, measure):
    given = next(claim.given for claim in claims if claim.measure == measure)
    assert list(MEASURES[measure](Evidence(tmp_path), **given)) == []


@pytest.mark.parametrize(
    ("laplace", "platykurtic", "expected"),
    [(s * 0.6, 0.8, Verdict.REPRODUCED) for s in (-1, 1)] + [(0.6, -0.8, Verdict.NOT), (0.1, 0.1, Verdict.OPEN)],
)
def test_codes_follow_the_prior(tmp_path, laplace, platykurtic, expected):
    def record(p: float, seed: int, alignment: float, beta: int = 8, steps: int = 400) -> dict:
        run = {"exponent": p, "beta": beta, "seed": seed, "steps": steps, "batch_size": 64}
        return run | {"alignment": alignment}

    noise, means = 0.05 * np.random.default_rng(0).standard_normal((3, 6)), {1: laplace, 4: platykurtic, 2: 0.0}
    runs = [record(p, seed, means[p] + noise[i, seed]) for i, p in enumerate(means) for seed in range(6)]
    runs.append(record(1, 1, math.nan, beta=1))  # no latent in use
    runs += [record(p, 1, 0.0, steps=900) for p in (1, 4)]  # one run a side
    write_csv(tmp_path / "made-up.csv", runs)
    groups = [{"beta": beta, "steps": steps, "batch_size": 64, "exponents": [1, 2, 4], "seeds": seeds}
              for beta, steps, seeds in ((8, 400, [*range(6)]), (8, 900, [1, 2]), (1, 400, [1]))]  # fmt: skip
    (tmp_path / "made-up.yaml").write_text(yaml.safe_dump({"groups": groups}))
    given = {"study": "made-up", "leptokurtic": 1, "platykurtic": 4}
    findings = MEASURES["codes_follow_prior"](Evidence(tmp_path), **given)
    assert [(one.reading, one.missing) for one in findings] == [("β = 8, 400 steps", 0), ("β = 8, 900 steps", 2)]
    assert findings[1].outcome is OPEN and judge(findings) == (expected, None)


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
    """Sweeps of the repository make the runs of all claims."""
    book = Evidence(ROOT / "runs")
    book.records = []
    for claim in claims:
        if "dataset" in claim.given:
            book.asked.clear()
            MEASURES[claim.measure](book, **claim.given)
            assert all(book.declared(*asked) for asked in book.asked), claim.key
            assert book.missing().recorded == 0 and book.missing().commands


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
    assert [one.verdict for one in card.rows] == [Verdict.OPEN, Verdict.REPRODUCED, Verdict.OPEN]
    assert list(card.sentences().values()) == ["Theory and linear models: of 3 claims, 1 reproduced; 2 open."]
    shown = text.cards(card.rows, "here/score")
    assert shown.count("::::{dropdown}") == 3 == shown.count("\n::::\n\n") + 1
    assert "? **Open (provisional)** · MIG 1.0.\n\n*Paper:* Sec. 1\n" in shown and "? **Open** · MIG" in shown
    assert "(undecided; 1 declared run missing)" in shown
    assert "\n*Page:* [](../there/b.ipynb)\n" in shown and "*Interpretation:* In two models." in shown
    (of_page,) = scorecard(folder / "claims.yaml", folder, "there/b").rows
    (of_key,) = scorecard(folder / "claims.yaml", folder, of_page.claim.key).rows
    assert of_key == of_page
    assert of_page == card.rows[1] and "{dropdown}" not in text.answer([of_page])
    box, folded = text.answer([of_page, card.rows[0]]).split("{dropdown}")
    assert "**Verdict.** ✓ reproduced." in box and "**Verdict.** ? open (provisional); 7 of 8 declared" in folded
    assert "*Recorded:* 7 of 8 declared runs at the paper's settings; the others are trained by `isa sweep" in shown
    assert [one[1:4] for one in text.counts(card)] == [(1, 0, 0), (0, 0, 0), (0, 0, 0), (1, 0, 1)]
    assert list(card.sections) == ["One"]


def test_summary_by_part():
    short = {"falls_short": "small scale"}
    judged = [findings_of(YES), findings_of(NO), (), findings_of(YES, **short), findings_of(NO, missing=2)]
    card = Scorecard(tuple(Row(Claim(section="Models of x", **CLAIM), one) for one in judged))
    sentence = (
        "Trained models: of 5 claims, 1 reproduced and 1 not reproduced; "
        "1 reproduced at small scale or on stand-in data; 2 open (provisionally 1 not reproduced)."
    )
    assert card.sentences() == {"Trained models": sentence}
    verdicts = [one.verdict_text for one in card.rows[3:]]
    assert verdicts == ["reproduced (small scale)", "open (provisional: not reproduced)"]
    assert [one[1:4] for one in text.counts(card)] == [(1, 1, 0), (0, 0, 0), (1, 0, 0), (1, 0, 1)]


def test_verdicts_on_inference_are_those_of_the_pages():
    """The conclusions of Fig. 1 and its studies in prose: pruning at the end for every beta, three columns before."""
    claims, runs = ROOT / "book/claims.yaml", ROOT / "runs"
    expected = {"away-from-likelihood": [YES], "underestimates": [YES], "more-orthogonal": [YES, YES], "fig-1": [OPEN]}
    expected |= {"three-at-one": [YES, NO], "two-at-five": [OPEN, YES]}
    expected |= {key: [YES, NO] for key in ("beta-orthogonalises", "beta-prunes")}
    rows = [scorecard(claims, runs, page).rows for page in ("fig1", "appendix/ica-studies")]
    found = {row.claim.key: row.findings for row in sum(rows, ()) if row.claim.given.get("study") == "ica-beta"}
    assert {key: [one.outcome for one in findings] for key, findings in found.items()} == expected
    assert text.said(found["underestimates"]).startswith("at convergence: columns -1.00 (")
