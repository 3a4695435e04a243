"""Statements of results pages: words by intervals, printed heights, ranges of a further run, effects of beta."""

import math
from itertools import product

import numpy as np
from conftest import ROOT

from edition import statements
from edition.explorers.exhibits import curves, gather
from edition.statements import PRINTED, cells, effect_of_beta, further_run, outcome, reached
from edition.stats import Comparison, Interval
from isa.run import Run
from isa.sweep import Records, Spec


def test_word_follows_the_whole_interval():
    bounds = [(0.1, 0.2), (-0.2, -0.1), (-0.1, 0.2), (math.nan, math.nan)]
    words = ["higher", "lower", "not significantly different", "undecided"]
    assert [outcome(Comparison(0.1, *pair)) for pair in bounds] == words
    assert reached([0.115, 0.407, 0.419], 0.41) == "2 of 3"  # 0.407 is printed as 0.41


def test_cells_of_a_table_have_one_number_each():
    assert cells(Comparison(0.1, 0.05, 0.15, 0.0004, 5, 6), "+.2f") == ("+0.10", "+0.05 to +0.15", "< 0.001", "5 and 6")
    assert cells(Comparison(0.1), ".1f") == ("0.1", "", "no test", "")
    assert cells(Interval(1, 0, 2, 7), ".1f") == ("1.0", "0.0 to 2.0", "7")


def test_printed_models_are_those_of_the_claims():
    assert PRINTED["isa-vae", 2.0] == (0.41, -25.86) and len(PRINTED) == 5


def test_range_of_a_further_run_covers():
    runs = np.random.default_rng(0).normal(-38, 3, (4000, 6))
    covered = np.mean([low <= run[5] <= high for run in runs for low, high in [further_run(run[:5])]])
    assert abs(covered - 0.95) < 4 * math.sqrt(0.95 * 0.05 / len(runs))


def test_effect_of_beta_compares_the_ends_that_have_three_runs():
    runs = [(beta, seed) for beta, n in ((0.5, 2), (1, 3), (2, 3), (4, 3)) for seed in range(n)]
    columns = ("divergence", 0.1, -2), ("log_likelihood", -1, 0.1)
    rows = [{name: b * x + s * y for name, y, x in columns} | {"beta": b, "seed": s, "mig": b * s} for b, s in runs]
    change = {name: cells_of for ends, name, *cells_of in effect_of_beta(rows) if ends == "1 to 4"}
    assert change["KL divergence"][:2] == ["falls", "-6.00"]
    assert change["log-likelihood"][:2] == ["rises", "+0.30"]  # in every seed, though seeds differ by more
    assert change["MIG"][:2] == ["no significant change", "+3.000"] and change["MIG"][-1] == "3 and 3"
    assert effect_of_beta(rows[:5]) == []


def test_tables_count_plain_runs_at_beta_one_and_compare_at_shared_betas():
    rows = [
        {"beta": b, "seed": s, "status": "trained", "divergence": -b, "log_likelihood": -9 * b - s, "mig": b + 0.1 * s}
        for b, s in product((1, 2, 4), range(3))
    ]
    others = [row | {"mig": row["mig"] + 1} for row in rows if row["beta"] > 1]
    text = statements.effects_of_beta({("long", "beta-vae"): rows, ("long", "beta-tcvae"): others}, ["beta-tcvae"])
    assert text.startswith("long:") and "| β-TCVAE | 1 to 4 | MIG | rises | +4.000 |" in text
    panels = {"long": curves({"beta-vae": rows, "isa-vae": others}), "short": {}}
    text = statements.at_equal_beta(panels, "beta-vae", "isa-vae")
    assert text.startswith("long, ISA-VAE minus β-VAE:") and text.count("| +1.000 |") == 2 and "| 1 |" not in text
    for verdict, missing in (("higher MIG", []), ("undecided", [Run(beta=6.0)])):
        records = {("long", "beta-vae"): Records(rows, [], ""), ("long", "isa-vae"): Records(others, missing, "")}
        text = statements.at_equal_fit(records, panels, [("beta-vae", "isa-vae")])
        assert f"| {verdict} | +1.000 | +" in text and text.endswith("| -37.0 to -19.0 |")


def test_runs_are_gathered_at_the_weights_that_a_method_has():
    spec = Spec.read(ROOT / "runs/dsprites.yaml")
    plain, both = {("isa-vae", 1.0)}, {("isa-vae", 1.0), ("isa-vae", 2.0)}
    cases = {("isa-vae", 1.0, 2.0): both, ("isa-tcvae", 1.0): plain, ("isa-tcvae", 1.0, 2.0): {("isa-tcvae", 2.0)}}
    for (method, *betas), expected in cases.items():
        found = gather(spec, method, betas, 999, 0.0, "")  # more seeds than are recorded or named
        runs = [*found.missing, *(Run(objective=row["objective"], beta=row["beta"]) for row in found)]
        assert {(run.objective, run.beta) for run in runs} == expected and {*found.missing} <= {*spec.runs()}
