"""Fig. 3: the orientation that priors prefer, against quadrature; its measure on known codes; study and figures."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.optimize import minimize_scalar

from edition import orientation
from edition.figures import orientation as draw
from edition.orientation import Code, Learned, Study
from edition.stats import mean_interval
from isa import LpNested, Node

ROOT = Path(__file__).resolve().parent.parent
ANGLES = (0.0, 1e-7, 0.3, math.pi / 4, 1.0, math.pi / 2, 2.5)
exponents = pytest.mark.parametrize("p", [0.7, 1.0, 1.5, 2.0, 2.2, 4.0, 9.0])


def divergence(p: float, angle: float, gain: float, scale: float = 1.0) -> float:
    """KL of the uniform distribution on the turned square of half side ``gain`` from the prior, by Gauss-Legendre."""
    x, weight = np.polynomial.legendre.leggauss(400)
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    points = torch.from_numpy(gain * np.stack(np.meshgrid(x, x, indexing="ij"), -1) @ turn.T)
    log_prior = LpNested(Node(p, 2), scale).log_prob(points).numpy()
    return -math.log(4 * gain**2) - float(weight @ log_prior @ weight) / 4


@exponents
@pytest.mark.parametrize("angle", ANGLES)
def test_straight_cost_is_the_divergence_from_the_prior_at_the_best_size(p, angle):
    gain, cost = float(orientation.best_gain(p, angle, scale=1.7)), orientation.straight_cost(p, angle)
    # The integrand has kinks below p = 2, on which the rule's error is about 1e-3 at worst.
    assert cost == pytest.approx(divergence(p, angle, gain, 1.7), abs=2e-3 if p < 1 else 5e-5)
    assert cost == pytest.approx(orientation.straight_cost(p, angle + math.pi / 2), abs=1e-8)
    assert orientation.bent_cost(angle) < cost


@pytest.mark.parametrize("p", [1.0, 4.0])
@pytest.mark.parametrize("angle", [0.0, 0.5])
def test_the_best_size_is_the_best(p, angle):
    found = minimize_scalar(lambda log_gain: divergence(p, angle, math.exp(log_gain)), bracket=(-1, 1), tol=1e-8)
    assert math.exp(found.x) == pytest.approx(float(orientation.best_gain(p, angle)), rel=1e-4)


@exponents
def test_axes_against_diagonals_is_the_formula_of_the_page(p):
    axes, diagonals = orientation.straight_cost(p, [0, math.pi / 4])
    assert diagonals - axes == pytest.approx(2 / p * math.log(2 ** (p / 2 + 1) / (p + 2)), abs=1e-9)


@pytest.mark.parametrize("angle", ANGLES)
def test_bends_leave_the_mutual_information_of_the_rotated_coordinates(angle):
    c, s = abs(math.cos(angle)), abs(math.sin(angle))
    plateau = abs(c - s) / (c + s)
    marginal = stats.trapezoid((1 - plateau) / 2, (1 + plateau) / 2, scale=2 * (c + s))
    assert orientation.bent_cost(angle) == pytest.approx(2 * marginal.entropy() - math.log(4), abs=1e-6)


@pytest.mark.parametrize("p", [0.7, 1.0, 2.0, 4.0])
def test_contours_enclose_their_mass(p):
    masses = np.array([0.2, 0.5, 0.9])
    curves = orientation.contours(p, masses, scale=1.7)
    prior = LpNested(Node(p, 2), 1.7)
    torch.manual_seed(0)
    radius = prior.norm(prior.sample((40_000,))).numpy()
    on = prior.norm(torch.from_numpy(curves)).numpy()
    np.testing.assert_allclose(on, on[:, :1].repeat(on.shape[1], 1), rtol=1e-6)
    inside = (radius[:, None] < on[:, 0]).mean(0)
    np.testing.assert_allclose(inside, masses, atol=4 * 0.5 / math.sqrt(len(radius)))


def grid(size: int = 32) -> tuple[np.ndarray, np.ndarray]:
    return np.meshgrid(np.linspace(-1, 1, size), np.linspace(-1, 1, size), indexing="ij")


@pytest.mark.parametrize("degrees", [0, 10, 22.5, 45, 80, 90, -30, 200])
def test_a_straight_code_is_measured_by_its_angle(degrees):
    x, y = grid()
    a = math.radians(degrees)
    code = orientation.measure(np.stack([x * math.cos(a) - y * math.sin(a), x * math.sin(a) + y * math.cos(a)], -1))
    assert code.alignment == pytest.approx(math.cos(4 * a), abs=1e-9)
    assert code.tilt == pytest.approx(min(degrees % 90, 90 - degrees % 90), abs=1e-6)
    assert code.linear == pytest.approx(1) and code.active == 2


def test_a_bent_code_along_the_axes_is_along_the_axes():
    x, y = grid()
    code = orientation.measure(np.stack([np.sinh(3 * x), np.tanh(3 * y) + 7], -1))
    assert code.alignment == pytest.approx(1) and code.tilt == pytest.approx(0, abs=1e-6) and code.linear < 0.95


def test_alignment_is_the_mean_of_the_cosine_of_four_times_the_direction():
    rng = np.random.default_rng(0)
    mean = rng.standard_normal((6, 5, 2))
    along_x, along_y = np.gradient(mean, axis=(0, 1))
    expected = np.cos(4 * np.arctan2(along_y, along_x)).mean()
    assert orientation.measure(mean).alignment == pytest.approx(expected, abs=1e-12)


def test_unused_latents_and_flat_stretches_do_not_count():
    x, y = grid()
    assert orientation.measure(np.stack([x, 0.01 * (x + y)], -1)) == orientation.measure(x[..., None])
    nothing = orientation.measure(0.01 * np.stack([x, y], -1))
    assert nothing.active == 0 and math.isnan(nothing.alignment) and math.isnan(nothing.tilt)
    assert orientation.measure(np.maximum(x + y, 0)[..., None]).alignment == pytest.approx(-1, abs=0.05)


@pytest.fixture(scope="module")
def dataset():
    return orientation.images()


def test_the_sprite_changes_as_much_in_every_direction(dataset):
    images = dataset.images(range(1024)).numpy().reshape(32, 32, -1)

    def changed(dx: int, dy: int) -> float:
        here, there = images[: 32 - dx, max(-dy, 0) : 32 - max(dy, 0)], images[dx:, max(dy, 0) : 32 + min(dy, 0)]
        return np.abs(there - here).sum(-1).mean() / math.hypot(dx, dy)

    pixels = [changed(*shift) for shift in ((5, 0), (0, 5), (4, 3), (3, 4), (4, -3), (3, -4))]
    assert len(dataset) == 1024 and max(pixels) < 1.05 * min(pixels)


@pytest.mark.parametrize("p", [1.0, 2.0, 2.2, 4.0])
def test_priors_of_models_are_factorised_with_unit_variance(p):
    run = orientation.model(exponent=p, beta=8, seed=3, steps=10)
    prior = LpNested(run.tree, run.scale)
    assert run.latent_dim == 2 and run.beta == 8 and run.seed == 3 and run.total_steps == 10
    torch.testing.assert_close(prior.variance, torch.ones(2))
    z = torch.randn(50, 2)
    apart = sum(prior.log_prob(z * torch.eye(2)[j]) for j in range(2)) - prior.log_prob(torch.zeros(2))
    torch.testing.assert_close(prior.log_prob(z), apart)


def test_a_model_is_trained_and_measured_on_the_grid(dataset):
    small = dataset.restrict(x=[0, 10, 20, 31], y=[0, 8, 16, 24, 31])
    run = orientation.model(exponent=4.0, beta=1e-3, seed=0, steps=12, batch_size=4)
    learned = orientation.learn(run, small)
    assert learned.mean.shape == (4, 5, 2)
    assert learned.code == orientation.measure(learned.mean)
    assert learned.code.active and math.isfinite(learned.divergence) and learned.noise > 0


SPEC = """groups:
  - {beta: 8, steps: 5, batch_size: 8, exponents: [1.0, 4.0], seeds: [1, 2]}
  - {beta: 1, steps: 7, batch_size: 8, exponents: [2.0], seeds: [1, 2]}
"""


@pytest.fixture
def spec(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text(SPEC)
    return path


@pytest.fixture
def trained(monkeypatch):
    """In place of training: runs that were asked for, each with a code that tells its exponent."""
    asked = []

    def learn(run, dataset):
        p = run.tree.p
        asked.append((p, run.beta, run.seed, run.total_steps, run.batch_size))
        return Learned(np.zeros((1, 1, 2)), Code(p / 10, 45.0, 0.9, 2 if p < 4 else 0), math.nan, 0.25)

    monkeypatch.setattr(orientation, "learn", learn)
    monkeypatch.setattr(orientation, "images", lambda: None)
    return asked


def test_a_study_trains_every_combination_once_and_resumes_after_a_torn_line(spec, trained):
    lines, path = [], spec.with_suffix(".csv")
    orientation.run_study(spec, report=lines.append)
    first = [(p, 8.0, seed, 5, 8) for seed in (1, 2) for p in (1.0, 4.0)]
    assert trained == first + [(2.0, 1.0, seed, 7, 8) for seed in (1, 2)]
    table = orientation.read_table(path)
    assert len(lines) == len(table["seed"]) == 6
    np.testing.assert_array_equal(table["exponent"], [1, 4, 1, 4, 2, 2])
    np.testing.assert_allclose(table["alignment"], table["exponent"] / 10)
    assert np.isnan(table["divergence"]).all() and (table["noise"] == 0.25).all()
    orientation.run_study(spec)
    assert len(trained) == 6, "recorded runs were trained again"
    path.write_bytes(path.read_bytes()[:-9])
    assert len(orientation.read_table(path)["seed"]) == 5
    orientation.run_study(spec)
    assert trained[6:] == [trained[5]] and len(orientation.read_table(path)["seed"]) == 6


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("- 1\n", "must have the one key groups"),
        (SPEC.replace("steps: 7, ", ""), "every group must have the keys beta, steps, .* got"),
        (SPEC.replace("[2.0]", "2.0"), "exponents must be a list of one or more, got 2.0"),
        (SPEC.replace("4.0", "-4.0"), "p must be a positive finite number, got -4.0"),
        (SPEC.replace("beta: 8", "beta: -8"), "beta must be greater than or equal to 0"),
    ],
)
def test_a_bad_specification_is_refused_in_one_line(spec, trained, capsys, text, words):
    spec.write_text(text)
    with pytest.raises((TypeError, ValueError), match=words):
        Study.read(spec)
    assert orientation.main([str(spec)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not trained and not spec.with_suffix(".csv").exists()


def test_the_committed_table_is_that_of_the_committed_specification():
    study = Study.read(ROOT / "runs" / "orientation.yaml")
    table = orientation.read_table(ROOT / "runs" / "orientation.csv")
    names = ("exponent", "beta", "seed", "steps", "batch_size")
    keys = list(zip(*(table[name].tolist() for name in names), strict=True))
    assert keys and len(set(keys)) == len(keys) and set(keys) <= set(study.runs())
    alignment = table["alignment"][table["active"] > 0]
    assert (np.abs(alignment) <= 1).all() and ((table["tilt"] >= 0) & (table["tilt"] <= 45)).sum() == len(alignment)


def test_the_preferred_square_is_filled():
    panels = {p: (orientation.contours(p, [0.5]), 1.0, 1.1) for p in (1.0, 4.0)}
    figure = draw.priors(np.zeros((64, 64)), np.zeros((3, 2)), panels)
    filled = [[patch.get_fill() for patch in axes.patches] for axes in figure.axes[1:]]
    assert filled == [[False, True], [True, False]]
    assert [axes.get_title() for axes in figure.axes[1:]] == ["Laplace, $p = 1$", "platykurtic, $p = 4$"]


def test_a_map_shows_x_across_and_y_down():
    mean = np.arange(12.0).reshape(3, 4)[..., None]
    figure = draw.codes({"model": mean}, {"model": ["caption"]})
    image = figure.axes[0].images[0]
    np.testing.assert_array_equal(image.get_array(), mean[..., 0].T)
    assert image.get_extent() == [0, 1, 1, 0] and image.get_clim() == (-11, 11)


def test_every_run_is_a_dot_and_the_pages_own_a_diamond():
    runs = {"a": {1.0: np.array([0.1, 0.3, 0.2]), 4.0: np.array([0.5])}, "b": {1.0: np.array([])}}
    means = {title: {p: mean_interval(values) for p, values in of.items()} for title, of in runs.items()}
    figure = draw.seeds(runs, means, {"a": {2.0: -0.5}, "c": {7.0: 0.0}})
    lines = figure.axes[0].lines
    dots, diamonds = ([line.get_ydata().tolist() for line in lines if line.get_marker() == mark] for mark in "oD")
    assert dots == [[0.1, 0.2, 0.3], [0.5]] and diamonds == [[-0.5]]
    assert [[label.get_text() for label in axes.get_xticklabels()] for axes in figure.axes] == [["1", "2", "4"], ["1"]]
    intervals = [container for axes in figure.axes for container in axes.containers]
    assert len(intervals) == 1, "an interval of one run or none"
