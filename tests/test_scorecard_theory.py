"""Measures of claims about linear models and the prior: their outcomes on made-up studies and other constants."""

import math
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from test_scorecard import write_csv

from edition.scorecard import scorecard
from edition.scorecard.evidence import MEASURES, Evidence
from edition.scorecard.rules import Outcome
from edition.scorecard.text import said
from edition.studies import read_study

YES, PART, NO, OPEN = Outcome.YES, Outcome.PART, Outcome.NO, Outcome.OPEN


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


def test_verdicts_on_inference_are_those_of_the_pages():
    """The conclusions of Fig. 1 and its studies in prose: pruning at the end for every beta, three columns before."""
    claims, runs = ROOT / "book/claims.yaml", ROOT / "runs"
    expected = {"away-from-likelihood": [YES], "underestimates": [YES], "more-orthogonal": [YES, YES], "fig-1": [OPEN]}
    expected |= {"three-at-one": [YES, NO], "two-at-five": [OPEN, YES]}
    expected |= {key: [YES, NO] for key in ("beta-orthogonalises", "beta-prunes")}
    rows = [scorecard(claims, runs, page).rows for page in ("fig1", "appendix/ica-studies")]
    found = {row.claim.key: row.findings for row in sum(rows, ()) if row.claim.given.get("study") == "ica-beta"}
    assert {key: [one.outcome for one in findings] for key, findings in found.items()} == expected
    assert said(found["underestimates"]).startswith("at convergence: columns -1.00 (")
