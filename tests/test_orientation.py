"""Fig. 3: what priors prefer, against quadrature; the measure of orientation, on codes that are known; the study."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt
from scipy.integrate import quad
from scipy.optimize import minimize_scalar

from edition import orientation, studies
from edition.figures import orientation as draw
from edition.orientation import Code, Learned
from edition.stats import mean_interval
from edition.studies import OrientationStudy, load_record, run_study
from isa import LpNested, Node

ROOT = Path(__file__).resolve().parent.parent
ANGLES = (0.0, 1e-7, 0.3, math.pi / 4, 1.0, math.pi / 2, 2.5)
exponents = pytest.mark.parametrize("p", [0.7, 1.0, 1.5, 2.0, 2.2, 4.0, 9.0])


# --- what the prior prefers -------------------------------------------------------------------------------------------


def turned_square(angle: float, nodes: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """Points of the turned square [-1, 1]^2 and weights that average over it: Gauss-Legendre."""
    x, weight = np.polynomial.legendre.leggauss(nodes)
    u = np.stack(np.meshgrid(x, x, indexing="ij"), -1)
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    return u @ turn.T, np.outer(weight, weight) / 4


def divergence(p: float, angle: float, gain: float, scale: float = 1.0) -> float:
    """KL of the uniform distribution on the turned square of half side ``gain`` from the prior of the package."""
    points, weights = turned_square(angle)
    log_prior = LpNested(Node(p, 2), scale).log_prob(torch.from_numpy(gain * points)).numpy()
    return -math.log(4 * gain**2) - float((weights * log_prior).sum())


@exponents
@pytest.mark.parametrize("angle", ANGLES)
def test_straight_cost_matches_quadrature(p, angle):
    gain = float(orientation.best_gain(p, angle, scale=1.7))
    # the integrand has kinks below p = 2, on which the rule's error is some 1e-3 at worst
    tolerance = 2e-3 if p < 1 else 5e-5
    assert orientation.straight_cost(p, angle) == pytest.approx(divergence(p, angle, gain, 1.7), abs=tolerance)


@pytest.mark.parametrize("p", [1.0, 4.0])
@pytest.mark.parametrize("angle", [0.0, 0.5])
def test_best_gain_minimises_the_divergence(p, angle):
    found = minimize_scalar(lambda log_gain: divergence(p, angle, math.exp(log_gain)), bracket=(-1, 1), tol=1e-8)
    assert math.exp(found.x) == pytest.approx(float(orientation.best_gain(p, angle)), rel=1e-4)


@exponents
def test_straight_cost_of_axes_and_diagonals(p):
    axes, diagonals = orientation.straight_cost(p, [0, math.pi / 4])
    assert diagonals - axes == pytest.approx(2 / p * math.log(2 ** (p / 2 + 1) / (p + 2)), abs=1e-9)
    assert np.sign(round(diagonals - axes, 9)) == np.sign(p - 2)


@exponents
def test_straight_cost_is_periodic_and_positive(p):
    angle = np.linspace(-4, 4, 101)
    cost = orientation.straight_cost(p, angle)
    assert (cost > 0).all()
    np.testing.assert_allclose(cost, orientation.straight_cost(p, angle + math.pi / 2), atol=1e-8)


@pytest.mark.parametrize("angle", ANGLES)
def test_bent_cost_is_the_mutual_information(angle):
    c, s = abs(math.cos(angle)), abs(math.sin(angle))

    def density(u: float) -> float:  # of c x + s y: the share of y in [-1, 1] for which x is, too
        low, high = max(-1.0, (u - c) / s), min(1.0, (u + c) / s)
        return max(high - low, 0.0) / (4 * c)

    if min(c, s) < 1e-6:
        expected = 0.0
    else:
        log_density = lambda u: -density(u) * math.log(density(u)) if density(u) > 0 else 0.0  # noqa: E731
        entropy = quad(log_density, -c - s, c + s, points=[-abs(c - s), abs(c - s)], limit=200)[0]
        expected = 2 * entropy - math.log(4)
    assert orientation.bent_cost(angle) == pytest.approx(expected, abs=2e-7)


@exponents
@pytest.mark.parametrize("angle", ANGLES)
def test_bent_cost_is_below_straight_cost(p, angle):
    assert orientation.bent_cost(angle) < orientation.straight_cost(p, angle)


@pytest.mark.parametrize("p", [0.7, 1.0, 2.0, 4.0])
def test_contours_hold_their_mass(p):
    masses = np.array([0.2, 0.5, 0.9])
    curves = orientation.contours(p, masses, scale=1.7)
    prior = LpNested(Node(p, 2), 1.7)
    torch.manual_seed(0)
    radius = prior.norm(prior.sample((40_000,))).numpy()
    on = prior.norm(torch.from_numpy(curves)).numpy()
    np.testing.assert_allclose(on, on[:, :1].repeat(on.shape[1], 1), rtol=1e-6)
    inside = (radius[:, None] < on[:, 0]).mean(0)
    np.testing.assert_allclose(inside, masses, atol=4 * 0.5 / math.sqrt(len(radius)))


# --- the measure ------------------------------------------------------------------------------------------------------


def grid(size: int = 32) -> tuple[np.ndarray, np.ndarray]:
    line = np.linspace(-1, 1, size)
    return np.meshgrid(line, line, indexing="ij")


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
    assert code.alignment == pytest.approx(1) and code.tilt == pytest.approx(0, abs=1e-6)
    assert code.linear < 0.95


def test_a_latent_that_goes_round_has_the_alignment_of_all_its_directions():
    x, y = grid(100)  # without the origin
    expected = np.cos(4 * np.arctan2(y, x)).mean()
    assert abs(expected) < 0.2
    assert orientation.measure(np.hypot(x, y)[..., None]).alignment == pytest.approx(expected, abs=0.01)


def test_alignment_is_the_mean_of_the_cosine_of_four_times_the_direction():
    rng = np.random.default_rng(0)
    mean = rng.standard_normal((6, 5, 2))
    along_x, along_y = np.gradient(mean, axis=(0, 1))
    expected = np.cos(4 * np.arctan2(along_y, along_x)).mean()
    assert orientation.measure(mean).alignment == pytest.approx(expected, abs=1e-12)


def test_latents_not_in_use_do_not_count():
    x, y = grid()
    assert orientation.measure(np.stack([x, 0.01 * (x + y)], -1)) == orientation.measure(x[..., None])
    nothing = orientation.measure(0.01 * np.stack([x, y], -1))
    assert nothing.active == 0 and math.isnan(nothing.alignment) and math.isnan(nothing.tilt)


def test_a_flat_stretch_has_no_direction():
    x, y = grid()
    assert orientation.measure(np.maximum(x + y, 0)[..., None]).alignment == pytest.approx(-1, abs=0.05)


# --- the models -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dataset():
    return orientation.images()


def test_the_sprite_changes_as_much_in_every_direction(dataset):
    images = dataset.images(range(1024)).numpy().reshape(32, 32, -1)

    def changed(dx: int, dy: int) -> float:
        there = images[dx:, dy:] if dy >= 0 else images[dx:, :dy]
        here = images[: 32 - dx, : 32 - dy] if dy >= 0 else images[: 32 - dx, -dy:]
        return np.abs(there - here).sum(-1).mean() / math.hypot(dx, dy)

    pixels = [changed(*shift) for shift in ((5, 0), (0, 5), (4, 3), (3, 4), (4, -3), (3, -4))]
    assert len(dataset) == 1024 and max(pixels) < 1.05 * min(pixels)


@pytest.mark.parametrize("p", [1.0, 2.0, 2.2, 4.0])
def test_a_models_prior_is_factorised_with_unit_variance(p):
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


# --- the study --------------------------------------------------------------------------------------------------------

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
    return asked


def test_recorded_code_is_read_and_another_is_trained(tmp_path, trained):
    path, (one, other) = (
        tmp_path / "codes.npz",
        (orientation.model(exponent=p, beta=8, seed=1, steps=5) for p in (1, 4)),
    )
    orientation.record_codes(path, [one])
    with np.load(path, allow_pickle=False) as codes:
        (name,) = codes.files
    np.savez(path, **{name: np.ones((1, 1, 2))})  # what is read is the file
    np.testing.assert_array_equal(orientation.learned_code(one, path), np.ones((1, 1, 2)))
    assert len(trained) == 1
    np.testing.assert_array_equal(orientation.learned_code(other, path), np.zeros((1, 1, 2)))
    turned = {**orientation.SPRITE, "orientation": 0}
    np.testing.assert_array_equal(orientation.learned_code(one, path, turned), np.zeros((1, 1, 2)))
    assert [p for p, *_ in trained] == [1, 4, 1], "a code of another model or sprite was taken for recorded"


def test_committed_codes_are_those_of_the_page(trained):
    path = ROOT / "runs" / "orientation-codes.npz"
    for p in (1.0, 2.0, 4.0):
        run = orientation.model(exponent=p, beta=8.0, seed=1, steps=400)
        assert orientation.measure(orientation.learned_code(run, path)).active == 2
    assert not trained


def test_study_trains_every_combination_once(spec, trained):
    lines = []
    run_study(spec, report=lines.append)
    first = [(p, 8.0, seed, 5, 8) for seed in (1, 2) for p in (1.0, 4.0)]
    assert trained == first + [(2.0, 1.0, seed, 7, 8) for seed in (1, 2)]
    table = load_record(spec.with_suffix(".csv"))
    assert len(lines) == len(table["seed"]) == 6
    np.testing.assert_array_equal(table["exponent"], [1, 4, 1, 4, 2, 2])
    np.testing.assert_allclose(table["alignment"], table["exponent"] / 10)
    np.testing.assert_array_equal(table["active"], [2, 0, 2, 0, 2, 2])
    assert np.isnan(table["divergence"]).all() and (table["noise"] == 0.25).all()
    run_study(spec)
    assert len(trained) == 6, "recorded runs were trained again"


def test_study_resumes_after_a_torn_line(spec, trained):
    run_study(spec)
    path = spec.with_suffix(".csv")
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    assert len(load_record(path)["seed"]) == 5
    run_study(spec)
    assert trained[6:] == [trained[5]]
    assert len(load_record(path)["seed"]) == 6


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (SPEC + "more: 1\n", "more"),
        (SPEC.replace("steps: 7, ", ""), "groups.1.steps"),
        (SPEC.replace("[1, 2]", "[]"), "groups.0.seeds"),
        (SPEC.replace("4.0", "-4.0"), "groups.0.exponents.1"),
        (SPEC.replace("beta: 8", "beta: -8"), "groups.0.beta"),
    ],
)
def test_invalid_specifications(spec, trained, capsys, text, words):
    spec.write_text(text)
    assert studies.main([str(spec)]) == 2
    assert words in capsys.readouterr().err
    assert not trained and not spec.with_suffix(".csv").exists()


def test_record_with_other_columns_is_left_alone(spec, trained):
    path = spec.with_suffix(".csv")
    path.write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="has columns"):
        run_study(spec)
    assert path.read_text() == "a,b\n1,2\n" and not trained


def test_committed_record_matches_its_specification():
    study = OrientationStudy.read(ROOT / "runs" / "orientation.yaml")
    table = load_record(ROOT / "runs" / "orientation.csv")
    keys = list(zip(*(table[name].tolist() for name in study.keys), strict=True))
    assert keys and len(set(keys)) == len(keys) and set(keys) <= set(study.cases())
    alignment = table["alignment"][table["active"] > 0]
    assert (np.abs(alignment) <= 1).all() and ((table["tilt"] >= 0) & (table["tilt"] <= 45)).sum() == len(alignment)


# --- figures ----------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def test_the_better_square_is_filled():
    panels = {p: (orientation.contours(p, [0.5]), 1.0, 1.1) for p in (1.0, 4.0)}
    figure = draw.priors(np.zeros((64, 64)), np.zeros((3, 2)), panels)
    filled = [[patch.get_fill() for patch in axes.patches] for axes in figure.axes[1:]]
    assert filled == [[False, True], [True, False]]
    assert [axes.get_title() for axes in figure.axes[1:]] == ["Laplace, $p = 1$", "platykurtic, $p = 4$"]


def test_every_cost_is_a_line_of_its_own_colour():
    angles = np.linspace(0, 1, 5)
    figure = draw.costs(angles, {p: np.full(5, p) for p in (0.5, 1.0, 2.0, 3.0, 4.0)}, np.zeros(5))
    lines = figure.axes[0].lines
    assert len(lines) == 6 and len({line.get_color() for line in lines}) == 6
    np.testing.assert_allclose(lines[0].get_xdata(), np.degrees(angles))


def test_a_map_shows_x_across_and_y_down():
    mean = np.arange(12.0).reshape(3, 4)[..., None]
    figure = draw.codes({"model": mean}, {"model": ["said"]})
    (axes,) = figure.axes
    (image,) = axes.images
    np.testing.assert_array_equal(image.get_array(), mean[..., 0].T)
    assert image.get_extent() == [0, 1, 1, 0] and image.get_clim() == (-11, 11)
    assert axes.get_title() == "model\nsaid"


def test_a_model_that_says_nothing_has_an_even_map():
    draw.codes({"model": np.zeros((3, 4, 2))}, {"model": ["", ""]})


def test_every_run_is_a_dot_and_the_pages_own_a_diamond():
    runs = {"a": {1.0: np.array([0.1, 0.3, 0.2]), 4.0: np.array([0.5])}, "b": {1.0: np.array([])}}
    means = {title: {p: mean_interval(values) for p, values in of.items()} for title, of in runs.items()}
    figure = draw.seeds(runs, means, {"a": {2.0: -0.5}, "c": {7.0: 0.0}})
    marks = {
        marker: [line.get_ydata().tolist() for line in figure.axes[0].lines if line.get_marker() == marker]
        for marker in "oD"
    }
    assert marks == {"o": [[0.1, 0.2, 0.3], [0.5]], "D": [[-0.5]]}
    assert [[label.get_text() for label in axes.get_xticklabels()] for axes in figure.axes] == [["1", "2", "4"], ["1"]]
    intervals = [container for axes in figure.axes for container in axes.containers]
    assert len(intervals) == 1, "an interval of one run or none"
