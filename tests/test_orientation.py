"""Fig. 3: preferences of priors against quadrature; the measure of orientation on codes that are known; figures."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt
from scipy.integrate import quad
from scipy.optimize import minimize_scalar

from edition import orientation
from edition.figures import orientation as draw
from edition.orientation import Code, Learned
from edition.stats import mean_interval
from isa import LpNested, Node

ROOT = Path(__file__).resolve().parent.parent
ANGLES = (0.0, 1e-7, 0.3, math.pi / 4, 2.5)
EXPONENTS = (0.7, 1.0, 2.0, 2.2, 9.0)


# --- what the prior prefers -------------------------------------------------------------------------------------------


def turned_square(angle: float, nodes: int) -> tuple[np.ndarray, np.ndarray]:
    """Points of the turned square [-1, 1]^2 and weights that average over it: Gauss-Legendre."""
    x, weight = np.polynomial.legendre.leggauss(nodes)
    u = np.stack(np.meshgrid(x, x, indexing="ij"), -1)
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    return u @ turn.T, np.outer(weight, weight) / 4


def divergence(p: float, angle: float, gain: float, scale: float = 1.0, nodes: int = 400) -> float:
    """KL of the uniform distribution on the turned square of half side ``gain`` from the prior of the package."""
    points, weights = turned_square(angle, nodes)
    log_prior = LpNested(Node(p, 2), scale).log_prob(torch.from_numpy(gain * points)).numpy()
    return -math.log(4 * gain**2) - float((weights * log_prior).sum())


@pytest.mark.parametrize("p", EXPONENTS)
def test_straight_cost_matches_quadrature(p):
    # the integrand has kinks below p = 2, on which the rule's error is some 1e-3 at worst
    tolerance = 2e-3 if p < 1 else 5e-5
    for angle in ANGLES:
        gain = float(orientation.best_gain(p, angle, scale=1.7))
        assert orientation.straight_cost(p, angle) == pytest.approx(divergence(p, angle, gain, 1.7), abs=tolerance)
        assert orientation.bent_cost(angle) < orientation.straight_cost(p, angle)


@pytest.mark.parametrize(("p", "angle"), [(1.0, 0.5), (4.0, 0.0)])
def test_best_gain_minimises_the_divergence(p, angle):
    found = minimize_scalar(lambda log_gain: divergence(p, angle, math.exp(log_gain), nodes=100), tol=1e-8)
    assert math.exp(found.x) == pytest.approx(float(orientation.best_gain(p, angle)), rel=1e-3)


@pytest.mark.parametrize("p", EXPONENTS)
def test_straight_cost_of_axes_and_diagonals(p):
    axes, diagonals = orientation.straight_cost(p, [0, math.pi / 4])
    assert diagonals - axes == pytest.approx(2 / p * math.log(2 ** (p / 2 + 1) / (p + 2)), abs=1e-9)
    angle = np.linspace(-4, 4, 101)
    cost = orientation.straight_cost(p, angle)
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


@pytest.mark.parametrize("p", [0.7, 4.0])
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


def test_alignment_is_the_mean_of_the_cosine_of_four_times_the_direction():
    rng = np.random.default_rng(0)
    mean = rng.standard_normal((6, 5, 2))
    along_x, along_y = np.gradient(mean, axis=(0, 1))
    expected = np.cos(4 * np.arctan2(along_y, along_x)).mean()
    assert orientation.measure(mean).alignment == pytest.approx(expected, abs=1e-12)


def test_inactive_latents_do_not_count():
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


def test_recorded_code_is_read_and_another_is_trained(tmp_path, monkeypatch):
    trained = []

    def learn(run, dataset):
        trained.append(run.tree.p)
        return Learned(np.zeros((1, 1, 2)), Code())

    monkeypatch.setattr(orientation, "learn", learn)
    monkeypatch.setattr(orientation, "images", lambda sprite: None)
    path = tmp_path / "codes.npz"
    first, other = (orientation.model(exponent=p, beta=8, seed=1, steps=5) for p in (1, 4))
    orientation.record_codes(path, [first])
    with np.load(path, allow_pickle=False) as codes:
        (name,) = codes.files
    np.savez(path, **{name: np.ones((1, 1, 2))})  # what is read is the file
    np.testing.assert_array_equal(orientation.learned_code(first, path), np.ones((1, 1, 2)))
    np.testing.assert_array_equal(orientation.learned_code(other, path), np.zeros((1, 1, 2)))
    turned = {**orientation.SPRITE, "orientation": 0}
    np.testing.assert_array_equal(orientation.learned_code(first, path, turned), np.zeros((1, 1, 2)))
    assert trained == [1, 4, 1], "a code of another model or sprite was taken for recorded"
    for p in (1.0, 2.0, 4.0):  # those of the page are committed
        run = orientation.model(exponent=p, beta=8.0, seed=1, steps=400)
        code = orientation.learned_code(run, ROOT / "runs" / "orientation-codes.npz")
        assert orientation.measure(code).active == 2
    assert len(trained) == 3


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


def test_a_map_shows_x_across_and_y_down():
    mean = np.arange(12.0).reshape(3, 4)[..., None]
    figure = draw.codes({"model": mean}, {"model": ["said"]})
    (axes,) = figure.axes
    (image,) = axes.images
    np.testing.assert_array_equal(image.get_array(), mean[..., 0].T)
    assert image.get_extent() == [0, 1, 1, 0] and image.get_clim() == (-11, 11)
    assert axes.get_title() == "model\nsaid"


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
