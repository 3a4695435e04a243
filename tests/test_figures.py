"""Figures show the numbers they are given, carry them as a table, and their texts do not overlap."""

from __future__ import annotations

import csv
import io
import itertools

import numpy as np
import pytest
from matplotlib import pyplot as plt
from matplotlib.colors import to_rgba
from matplotlib.text import Annotation

from edition.figures import data, factor_analysis, ica, orientation, prior, results, scorecard, style, training
from edition.stats import Interval, curve, mean_interval
from isa.prior import Node
from isa.run import Run

RNG = np.random.default_rng(0)
X, Y, Z = np.sort(RNG.random((3, 6)), axis=1) + 0.1
PAIRS = RNG.normal(size=(6, 2))
SQUARES = np.stack([np.eye(2), [[2.0, 0.5], [0.5, 1.0]]])
INTERVAL = mean_interval(X)
BETAS = np.repeat([0.5, 1, 1.5, 2, 3, 4, 5, 6], 6)
CURVES = {
    name: curve(BETAS, -20 - 5 * BETAS + RNG.normal(size=48), 0.05 * BETAS + 0.02 * number + RNG.random(48) / 9)
    for number, name in enumerate(("beta-vae", "isa-vae", "beta-tcvae"))
}

# a figure of each kind, and for some of its table's columns the numbers that it was given
FIGURES = {
    "rotation_difference": (data.rotation_difference, (X, {"heart": Y}), {"angle [degrees]": X}),
    "orientation_bound": (data.orientation_bound, (X, {"heart": Y, "all shapes": Z}, 0.9), {"shape": ["heart"] * 6}),
    "rotated_weights": (
        factor_analysis.rotated_weights,
        (SQUARES, np.eye(2), SQUARES, np.ones((2, 2)), "ab"),
        {"weights": SQUARES, "exact posterior covariance": SQUARES},
    ),
    "against_angle": (factor_analysis.against_angle, (X, Y, Z, [0.0]), {"rotation [rad]": X, "free energy [nats]": Z}),
    "against_alpha": (factor_analysis.against_alpha, (X, Y, Z, X, Y), {"alpha": X, "KL [nats]": Y}),
    "posterior_panels": (
        factor_analysis.posterior_panels,
        ("abcd", np.tile(SQUARES, (2, 1, 1)), np.ones((4, 2))),
        {"exact covariance": np.tile(SQUARES, (2, 1, 1))},
    ),
    "pruned_latent": (factor_analysis.pruned_latent, (X, Y, Z, X, Y), {"exact variance": Y, "power of the mean": X}),
    "climbs": (factor_analysis.climbs, (PAIRS, PAIRS, np.ones(2)), {"length after the climb": PAIRS}),
    "against_beta": (factor_analysis.against_beta, (X, [Y], Z, [X], [2.0]), {"rotation [rad]": X, "beta": [2.0] * 6}),
    "amplitude": (factor_analysis.amplitude, (X, Y, Z), {"beta": X, "depth of F16 [nats]": Y}),
    "shrinkage": (factor_analysis.shrinkage, (X, PAIRS, PAIRS, Y, Z), {"squared length of w1": PAIRS[:, 0]}),
    "components": (ica.components, (PAIRS, SQUARES[1], {"data": None, "fit": np.eye(2)}, 3.0), {"x_1": PAIRS[:, 0]}),
    "ascent": (ica.ascent, ({1.0: (X, Y), 2.0: (X, Z)}, 3, 0.1), {"shortest over longest column": [*X, *X]}),
    "free_energy": (ica.free_energy, ({"Newton": X},), {"step": range(6), "free energy [nats]": X}),
    "against beta, ICA": (
        ica.against_beta,
        (X, {"at the end": PAIRS}, {"at the end": PAIRS}, Y[:2]),
        {"angle [degrees]": [*Y[:2], *PAIRS.ravel()], "surviving columns": PAIRS},
    ),
    "steps_to_pruning": (ica.steps_to_pruning, (X, np.exp(PAIRS)), {"steps to pruning": np.exp(PAIRS)}),
    "survival_maps": (ica.survival_maps, (X, Y[:2], {"a": PAIRS}, "count"), {"count": PAIRS}),
    "column_lengths": (ica.column_lengths, ({"a": {"p": np.ones((2, 3))}},), {"length / true length": np.ones(6)}),
    "priors": (orientation.priors, (np.eye(6), PAIRS, {1.0: ([PAIRS], 1.0, 1.2)}), {"x [pixels]": PAIRS[:, 0]}),
    "costs": (orientation.costs, (X, {1.0: Y}, Z), {"divergence [nats an image]": [*Y, *Z]}),
    "codes": (orientation.codes, ({"m": PAIRS[..., None]}, {"m": [""]}), {"posterior mean": PAIRS}),
    "seeds": (orientation.seeds, ({"a": {1.0: X}}, {"a": {1.0: INTERVAL}}, {}), {"low": [INTERVAL.low]}),
    "iso_surfaces": (prior.iso_surfaces, ({(1.0, 2.0): (np.ones((5, 5, 3)),) * 2},), {"z_3": np.ones(4)}),
    "sections": (prior.sections, ({"plane\n$z_1$|$z_2$": {"a": PAIRS}},), {"$z_1$": PAIRS[:, 0], "$z_2$": PAIRS[:, 1]}),
    "trees": (
        prior.trees,
        ({"a": Node.parse("2[1, 3[2]]")},),
        {"exponent": [2, 3], "vertex": "v_{0} z_{1} v_{1} z_{2} z_{3}"},
    ),
    "rank_histograms": (prior.rank_histograms, ({"a": SQUARES[0], "b": SQUARES[1]}, 0.5), {"density ratio": SQUARES}),
    "rotation_loss": (prior.rotation_loss, (X, {"a": (Y, Z)}), {"angle [degrees]": np.degrees(X)}),
    "marginals": (prior.marginals, (X, {"a": Y}, Z), {"density": [*Z, *Y]}),
    "quantiles": (prior.quantiles, ({"a": (X, Y)},), {"quantile of the law": X, "quantile of the samples": Y}),
    "prior_stills": (
        prior.prior_stills,
        ({"a": ([PAIRS] * 2, Y, PAIRS)}, [("$z_1$", "$z_2$")] * 2),
        {"z_1": [*PAIRS[:, 0]] * 3},
    ),
    "sampling_steps": (
        prior.sampling_steps,
        (PAIRS, X, X, Y, PAIRS, X[:2], SQUARES[1], ("$z_1$", "$z_2$")),
        {"radius": [*X, *X], "density": Y, "log density": SQUARES[1]},
    ),
    "mig_distributions": (
        results.mig_distributions,
        ({"a": {"beta-vae": (X, INTERVAL)}}, {"a": {"beta-vae": 0.2}}),
        {"value": [*X, INTERVAL.estimate, 0.2]},
    ),
    "trade_off": (
        results.trade_off,
        ({"a": CURVES}, {"a": {"isa-vae": [(1, -21.0, 0.2)]}}),
        {"standard error of MIG": [one.mig_error for one in CURVES.values()]},
    ),
    "exponents": (results.exponents, ({"a": PAIRS}, 2.1, 2.0, {"a": [2, 2]}), {"value": PAIRS.T}),
    "controls": (
        results.controls,
        ({"N(0, I)": ((X, INTERVAL), (Y, INTERVAL))}, {"N(0, I)": "beta-vae"}),
        {"value": [*X, INTERVAL.estimate, *Y, INTERVAL.estimate]},
    ),
    "lengths": (
        results.lengths,
        ({"a": {"beta-vae": {100: ({0: -3.0, 1: -4.0}, Interval(-3.5, -4, -3, 2))}}}, {"a": {"beta-vae": -2.5}}),
        {"value": [-3.0, -4.0, -3.5, -2.5], "seed": [0, 1]},
    ),
    "glance": (
        scorecard.glance,
        ({"a": ["yes"] * 16}, {"yes": scorecard.Mark(style.GREEN, True, "y")}),
        {"claim": range(1, 17)},
    ),
    "learning_curve": (training.learning_curve, ({"fit (nats)": (X, Y, Z)},), {"fit (nats)": [*X, *Z]}),
    "information": (
        training.information,
        (SQUARES[1] / 2, "xy", np.ones(2, bool)),
        {"share of the factor's entropy": SQUARES[1] / 2},
    ),
    "paired_differences": (
        training.paired_differences,
        ({"MIG": ({"bf16": X}, {"bf16": (0.0, -1.0, 1.0)}, 0.4)},),
        {"value": [0.4, *X, 0.0], "low": [-1.0]},
    ),
}


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


@pytest.mark.parametrize("name", FIGURES)
def test_csv_holds_the_numbers_that_the_figure_shows(name):
    draw, arguments, expected = FIGURES[name]
    figure = draw(*arguments)
    rows = list(csv.DictReader(io.StringIO(figure.to_csv())))
    for heading, values in expected.items():
        cells = [row[heading] for row in rows if row[heading]]
        if isinstance(values, str):
            assert cells == values.split()
        elif isinstance(values[0], str):
            assert cells[: len(values)] == values
        else:
            assert [float(cell) for cell in cells[: np.size(values)]] == np.ravel(values).tolist()


def test_table_broadcasts_its_columns_and_leaves_nan_empty():
    figure, _ = style.subplots(height=1)
    assert figure.to_csv() is None
    figure.record({"name": "a\nb", "x [nats]": [[0.1], [np.nan]], "k": [1, 2]})
    figure.record({"other": 3})
    assert figure.to_csv() == "name,x [nats],k,other\na b,0.1,1,\na b,0.1,2,\na b,,1,\na b,,2,\n,,,3\n"


@pytest.mark.parametrize(
    "fields, name",
    [
        ({}, "N(0, I)"),
        ({"objective": "isa-vae"}, "5 × 4, (2.1; 2.2)"),
        ({"objective": "isa-vae", "prior": "2[20]", "scale": 0.98972}, "Gaussian, s = 0.99"),
        ({"objective": "isa-vae", "prior": "2.1[20]"}, "factorised, p = 2.1"),
        ({"objective": "isa-vae", "prior": "2.1[2*1[10]]"}, "2.1[2*1[10]]"),
        ({"objective": "isa-vae", "scale": "unit"}, "5 × 4, (2.1; 2.2), unit variance"),
        ({"objective": "isa-vae", "subspaces": (2, 1), "p1": (1.5, 3.0)}, "2 + 1, (2.1; 1.5, 3)"),
        ({"dataset": "cars3d", "objective": "isa-vae", "learn_exponents": True}, "3 × 6, (2.1; 2), learned"),
    ],
)
def test_name_of_a_prior(fields, name):
    assert results.prior(Run(**fields).to_dict()) == name


def test_scale_names_reduced_runs():
    assert results.scale(7200, 2048, False) == "7,200 steps of 2,048"
    assert results.scale(100, 64, True) == "100 steps of 64, reduced"


def test_dots_of_equal_runs_do_not_overlap():
    migs = np.round(RNG.random(40) / 20, 3)
    (axes,) = results.mig_distributions({"a": {"beta-vae": (migs, mean_interval(migs))}}, {}).axes
    places = np.concatenate([dots.get_offsets() for dots in axes.collections if len(dots.get_offsets()) == 40])
    np.testing.assert_array_equal(np.sort(places[:, 1]), np.sort(migs))
    assert len(np.unique(places, axis=0)) == 40 and np.abs(places[:, 0]).max() <= 0.27


@pytest.mark.parametrize("values", [[0.1], [0.1, 0.1], [0.0] * 5])
def test_single_and_equal_runs_are_drawn(values):
    pair = np.array(values), mean_interval(np.array(values))
    for figure in (results.mig_distributions({"a": {"isa-vae": pair}}, {}), results.controls({"a": (pair, pair)}, {})):
        figure.draw_without_rendering()


def test_betas_are_written_at_their_points_without_overlap():
    figure = results.trade_off({"a": CURVES})
    figure.canvas.draw()
    labels = [text for text in figure.axes[0].texts if isinstance(text, Annotation)]
    assert len(labels) > 12, "hardly any beta is labelled"
    boxes = [text.get_window_extent().shrunk(0.9, 0.9) for text in labels]
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    beta_at = {x: f"{beta:g}" for one in CURVES.values() for beta, x in zip(one.beta, one.log_likelihood, strict=True)}
    assert all(text.get_text().removeprefix("β = ") == beta_at[text.xy[0]] for text in labels)


def test_runs_of_a_seed_are_joined():
    interval = Interval(0.0, np.nan, np.nan, 1)
    by_steps = {100: ({0: -3.0, 1: -4.0}, interval), 200: ({1: -2.0, 2: -1.0}, interval)}
    (axes,) = results.lengths({"a": {"beta-vae": by_steps}}, {}).axes
    courses = [list(line.get_ydata()) for line in axes.lines if line.get_alpha()]
    assert courses == [[-3.0], [-4.0, -2.0], [-1.0]]


def test_learning_curve_is_not_scaled_by_its_beginning():
    values = np.concatenate([np.linspace(-3000, -500, 20), np.linspace(-500, -100, 180)])
    at, smooth = np.arange(5, 196), np.convolve(values, np.ones(10) / 10, "valid")
    (axes,) = training.learning_curve({"fit (nats)": (values, at, smooth)}).axes
    low, high = axes.get_ylim()
    assert -600 < low < smooth[19] and smooth.max() < high < 0


def test_information_is_printed_and_inactive_latents_are_grey():
    share, active = np.array([[0.9, 0.004, 0.25], [0.0, 0.5, 0.126]]), np.array([True, False, True])
    axes, _ = training.information(share, ["scale", "x"], active).axes
    printed = {text.get_position(): text.get_text() for text in axes.texts}
    assert printed == {(f, k): f"{share[f, k]:.2f}" for f in range(2) for k in range(3)}
    colours = [to_rgba(label.get_color()) for label in axes.get_yticklabels()]
    assert colours == [to_rgba(style.BLACK if on else style.GREY) for on in active]
