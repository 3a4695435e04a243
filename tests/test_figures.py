"""Figures show the numbers they are given, carry them as a table, and their texts do not overlap."""

import io
import itertools
import re

import numpy as np
import pytest
from matplotlib.text import Annotation
from PIL import Image
from test_explorers import luminance

from edition.figures import data, factor_analysis, ica, orientation, prior, results, scorecard, style, training
from edition.stats import Interval, curve, mean_interval
from isa.prior import Node
from isa.run import Run

pytestmark = pytest.mark.usefixtures("closed")
RNG = np.random.default_rng(0)
X, Y, Z = np.sort(RNG.random((3, 6)), axis=1) + 0.1
PAIRS = RNG.normal(size=(6, 2))
SQUARES = np.stack([np.eye(2), [[2.0, 0.5], [0.5, 1.0]]])
INTERVAL = mean_interval(X)
MEAN = INTERVAL.estimate
BY_SEED = {0: -3.0, 1: -4.0}, Interval(-3.5, -4, -3, 2)
EFFECT = results.Effect(INTERVAL, X, (0.1, 0.7))
BETAS = np.repeat([0.5, 1, 1.5, 2, 3, 4, 5, 6], 6)
CURVES = {
    name: curve(BETAS, RNG.normal(-20 - 5 * BETAS), 0.05 * BETAS + 0.02 * number + RNG.random(48) / 9, seed=BETAS)
    for number, name in enumerate(("beta-vae", "isa-vae", "beta-tcvae"))
}
SEEDS = {"a": {1.0: X, 4.0: X[:0]}}, {"a": {1.0: INTERVAL, 4.0: mean_interval([])}}, {"a": {2.0: -0.5}}  # none at 4

#: a figure of each kind, its arguments, and columns of its table
FIGURES = [
    (data.rotation_difference, (X, {"heart": Y}), {"angle [degrees]": X}),
    (data.orientation_bound, (X, {"heart": Y, "all shapes": Z}, 0.9), {"shape": ["heart"] * 6}),
    (factor_analysis.rotated_weights, (SQUARES, np.eye(2), SQUARES, np.ones((2, 2)), "ab"), {"weights": SQUARES}),
    (factor_analysis.against_angle, (X, Y, Z, [0.0]), {"rotation [rad]": X, "free energy [nats]": Z}),
    (factor_analysis.against_alpha, (X, Y, Z, X, Y), {"alpha": X, "KL [nats]": Y}),
    (factor_analysis.posterior_panels, ("ab", SQUARES, np.ones((2, 2))), {"exact covariance": SQUARES}),
    (factor_analysis.pruned_latent, (X, Y, Z, X, Y), {"exact variance": Y, "variance of the mean": X}),
    (factor_analysis.climbs, (PAIRS, PAIRS, np.ones(2)), {"length after optimisation": PAIRS}),
    (factor_analysis.against_beta, (X, [Y], Z, [X], [2.0]), {"rotation [rad]": X, "beta": [2.0] * 6}),
    (factor_analysis.amplitude, (X, Y, Z), {"beta": X, "depth of F16 [nats]": Y}),
    (factor_analysis.shrinkage, (X, PAIRS, PAIRS, Y, Z), {"squared length of w1": PAIRS[:, 0]}),
    (ica.components, (PAIRS, SQUARES[1], {"data": None, "fit": np.eye(2)}, 3.0), {"x_1": PAIRS[:, 0]}),
    (ica.ascent, ({1.0: (X, Y), 2.0: (X, Z)}, 3, 0.1), {"shortest over longest column": [*X, *X]}),
    (ica.free_energy, ({"Newton": X},), {"step": range(6), "free energy [nats]": X}),
    (ica.against_beta, (X, {"at the end": PAIRS}, {"at the end": PAIRS}, Y[:2]), {"surviving columns": PAIRS}),
    (ica.steps_to_pruning, (X, np.exp(PAIRS)), {"steps to pruning": np.exp(PAIRS)}),
    (ica.survival_maps, (X, Y[:2], {"a": PAIRS}, "count"), {"count": PAIRS}),
    (ica.column_lengths, ({"a": {"p": np.ones((2, 3))}},), {"length / true length": np.ones(6)}),
    (orientation.priors, (np.ones((6, 6)), PAIRS, {1.0: ([PAIRS], 1.0, 1.2)}), {"x [pixels]": PAIRS[:, 0]}),
    (orientation.costs, (np.array([0.0]), {1.0: Y[:1]}, Z[:1]), {"divergence [nats per image]": [Y[0], Z[0]]}),
    (orientation.codes, ({"m": PAIRS[..., None]}, {"m": [""]}), {"posterior mean": PAIRS}),
    (orientation.seeds, SEEDS, {"low": [INTERVAL.low]}),
    (prior.iso_surfaces, ({(1.0, 2.0): (np.ones((5, 5, 3)),) * 2},), {"z_3": np.ones(4)}),
    (prior.sections, ({"plane\n$z_1$|$z_2$": {"a": PAIRS}},), {"$z_1$": PAIRS[:, 0], "$z_2$": PAIRS[:, 1]}),
    (prior.trees, ({"a": Node.parse("2[1, 3[2]]")},), {"exponent": [2, 3], "vertex": ["v_{0}", "z_{1}", "v_{1}"]}),
    (prior.rank_histograms, ({"a": SQUARES[0], "b": SQUARES[1]}, 0.5), {"density ratio": SQUARES}),
    (prior.rotation_loss, (np.zeros(6), {"a": Y}), {"log density lost [nats]": Y}),
    (prior.marginals, (X, {"a": Y}, Z), {"density": [*Z, *Y]}),
    (prior.quantiles, ({"a": (X, Y)},), {"exact quantile": X, "sample quantile": Y}),
    (prior.prior_stills, ({"a": ([PAIRS] * 2, list(Y), PAIRS)}, [("$z_1$", "$z_2$")] * 2), {"z_1": [*PAIRS[:, 0]] * 3}),
    (prior.sampling_steps, (PAIRS, X, X, Y, PAIRS, X[:2], SQUARES[1], ("$z_1$", "$z_2$")), {"radius": [*X, *X]}),
    (results.mig_distributions, ({"a": {"isa-vae": (X, INTERVAL)}}, {"a": {"isa-vae": 2}}), {"value": [*X, MEAN, 2]}),
    (results.trade_off, ({"a": CURVES}, {"a": {"isa-vae": [(1, -21.0, 0.2)]}}), {"beta": [0.5] * 6}),
    (results.exponents, ({"a": PAIRS}, 2.1, 2.0, {"a": [2, 2]}), {"value": PAIRS.T}),
    (results.controls, ({"a": ((X, INTERVAL), (Y, INTERVAL))}, {"a": "beta-vae"}), {"value": [*X, MEAN, *Y]}),
    (results.effects, ({"a": {"isa-vae": {"MIG": EFFECT}}}, "MIG"), {"value": [*X, MEAN], "high": [0.7]}),
    (results.lengths, ({"a": {"isa-vae": {100: BY_SEED}}}, {"a": {"isa-vae": -2.5}}), {"value": [-3, -4, -3.5, -2.5]}),
    (scorecard.glance, ({"a": ["yes"] * 16}, {"yes": scorecard.Mark(style.GREEN, True, "y")}), {"claim": range(1, 17)}),
    (training.learning_curve, ({"fit (nats)": (X, Y, Z)},), {"fit (nats)": [*X, *Z]}),
    (training.information, (SQUARES[1] / 2, "xy", np.ones(2, bool)), {"share of the factor's entropy": SQUARES[1] / 2}),
    (training.paired_differences, ({"MIG": ({"bf16": X}, {"bf16": (0, -1, 1)}, 0.4)},), {"value": [0.4, *X, 0.0]}),
]


def arrays_in(value: object) -> set[float]:
    """Return all numbers of the arrays within a value."""
    if isinstance(value, np.ndarray):
        return set(value.ravel().astype(float))
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return set().union(*map(arrays_in, parts))


@pytest.mark.parametrize(("draw", "arguments", "columns"), FIGURES)
def test_table_holds_the_numbers_that_the_figure_shows(draw, arguments, columns):
    rows = draw(*arguments).rows
    assert arrays_in(arguments) <= {cell for row in rows for cell in row.values()}
    for heading, values in columns.items():
        cells = [row[heading] for row in rows if heading in row]
        assert cells[: np.size(values)] == np.ravel(values).tolist()


@pytest.mark.parametrize(("draw", "arguments", "columns"), FIGURES)
def test_lines_have_contrast_by_day_and_by_night(draw, arguments, columns):
    svg, night = io.StringIO(), {day.lower(): dark for day, dark in style.DARK.items()}
    draw(*arguments).savefig(svg, format="svg")
    strokes = set(re.findall(r"stroke: (#\w+)", svg.getvalue())) - {"#ffffff", "#dddddd"}  # halos, a grid
    for stroke in strokes:
        for colour, ground in ((stroke, "#ffffff"), (night.get(stroke, stroke), night["#ffffff"])):
            low, high = sorted(map(luminance, (colour, ground)))
            assert (high + 0.05) / (low + 0.05) > 2, (stroke, ground)


def test_svg_has_other_colours_at_its_dark_address(browser, tmp_path):
    figure, axes = style.subplots(height=2)
    axes.plot([0, 1], color=style.BLUE, marker="o", markersize=30, markeredgewidth=9, markerfacecolor="white")
    axes.text(0, 0.2, "■", color="black", fontsize=30)
    axes.text(1, 0.2, "■", color=style.INK, fontsize=30)
    figure.savefig(svg := io.StringIO(), format="svg")
    path = tmp_path / "a.svg"
    path.write_text(style.by_night(svg.getvalue()), encoding="utf-8")
    used = ("#ffffff", style.BLUE, style.BLACK, "#000000")
    for address, colours in (("", used), ("#dark", map(style.DARK.get, used))):
        browser.open(path, address)
        with Image.open(io.BytesIO(browser.tab.screenshot())) as shot:
            drawn = {f"#{r:02x}{g:02x}{b:02x}" for _, (r, g, b) in shot.convert("RGB").getcolors(10**6)}
        assert {colour.lower() for colour in (*colours, style.INK)} <= drawn
        assert (style.BLUE.lower() in drawn) == (address == "")


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


def test_dots_of_equal_runs_do_not_overlap():
    migs = np.round(RNG.random(40) / 20, 3)
    (axes,) = results.mig_distributions({"a": {"beta-vae": (migs, mean_interval(migs))}}, {}).axes
    places = np.concatenate([dots.get_offsets() for dots in axes.collections if len(dots.get_offsets()) == 40])
    np.testing.assert_array_equal(np.sort(places[:, 1]), np.sort(migs))
    assert len(np.unique(places, axis=0)) == 40 and np.abs(places[:, 0]).max() <= 0.27


@pytest.mark.parametrize("values", [[0.1], [0.0] * 5])
def test_single_and_equal_runs_are_drawn(values):
    pair = np.array(values), mean_interval(np.array(values))
    results.mig_distributions({"a": {"isa-vae": pair}}, {}).draw_without_rendering()
    results.controls({"a": (pair, pair)}, {}).draw_without_rendering()


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
