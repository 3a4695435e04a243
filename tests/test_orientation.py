"""Fig. 3: preferences of priors against quadrature, orientation of known codes, training, recorded codes, figures."""

import math

import numpy as np
import pytest
import torch
from conftest import ROOT
from scipy.stats import trapezoid

from edition import orientation
from edition.figures import orientation as draw
from edition.orientation import Learned
from isa import LpNested, Node

pytestmark = pytest.mark.usefixtures("closed")
ANGLES = (0.0, 1e-7, 0.3, math.pi / 4, 2.5)


def divergence(p: float, angle: float, gain: float, scale: float = 1.0, nodes: int = 400) -> float:
    """Return the KL of the uniform distribution on the turned square of half side ``gain`` from the prior."""
    x, weight = np.polynomial.legendre.leggauss(nodes)
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    points = np.stack(np.meshgrid(x, x, indexing="ij"), -1) @ turn.T
    log_prior = LpNested(Node(p, 2), scale).log_prob(torch.from_numpy(gain * points)).numpy()
    return -math.log(4 * gain**2) - float(weight @ log_prior @ weight) / 4


@pytest.mark.parametrize(("p", "tolerance"), [(0.7, 2e-3), (1.0, 5e-5), (2.0, 5e-5), (9.0, 5e-5)])
def test_straight_cost_is_the_minimum_by_quadrature(p, tolerance):
    for angle in ANGLES:
        gain = float(orientation.best_gain(p, angle, scale=1.7))
        cost = orientation.straight_cost(p, angle)
        assert cost == pytest.approx(divergence(p, angle, gain, 1.7), abs=tolerance)
        assert orientation.bent_cost(angle) < cost < min(divergence(p, angle, f * gain, 1.7, 150) for f in (0.9, 1.1))


def test_bent_cost_is_the_mutual_information():
    for angle in ANGLES:
        c, s = abs(math.cos(angle)), abs(math.sin(angle))  # a latent is c x + s y, whose law is a trapezium
        low, high = ((c + s + sign * abs(c - s)) / (2 * (c + s)) for sign in (-1, 1))
        entropy = trapezoid(low, high, loc=-c - s, scale=2 * (c + s)).entropy()
        assert orientation.bent_cost(angle) == pytest.approx(2 * entropy - math.log(4), abs=2e-7)


@pytest.mark.parametrize("p", [0.7, 4.0])
def test_contours_enclose_their_masses(p):
    masses = np.array([0.2, 0.5, 0.9])
    curves = orientation.contours(p, masses, scale=1.7)
    prior = LpNested(Node(p, 2), 1.7)
    torch.manual_seed(0)
    radius = prior.norm(prior.sample((40_000,))).numpy()
    on = prior.norm(torch.from_numpy(curves)).numpy()
    np.testing.assert_allclose(on, on[:, :1].repeat(on.shape[1], 1), rtol=1e-6)
    inside = (radius[:, None] < on[:, 0]).mean(0)
    np.testing.assert_allclose(inside, masses, atol=4 * 0.5 / math.sqrt(len(radius)))


X, Y = np.meshgrid(*[np.linspace(-1, 1, 32)] * 2, indexing="ij")


@pytest.mark.parametrize("degrees", [0, 22.5, 80, -30, 200])
def test_measure_of_straight_codes(degrees):
    a = math.radians(degrees)
    code = orientation.measure(np.stack([X * math.cos(a) - Y * math.sin(a), X * math.sin(a) + Y * math.cos(a)], -1))
    tilt = min(degrees % 90, 90 - degrees % 90)
    assert code == (pytest.approx(math.cos(4 * a)), pytest.approx(tilt, abs=1e-6), pytest.approx(1), 2)


def test_measure_of_other_codes():
    bent = orientation.measure(np.stack([np.sinh(3 * X), np.tanh(3 * Y) + 7], -1))
    assert bent[:2] == pytest.approx((1, 0), abs=1e-6) and bent.linear < 0.95
    partly_flat = orientation.measure(np.maximum(X + Y, 0)[..., None])  # no direction where it is flat
    assert partly_flat.alignment == pytest.approx(-1, abs=0.05)
    assert orientation.measure(np.stack([X, 0.01 * (X + Y)], -1)) == orientation.measure(X[..., None])
    inactive = orientation.measure(0.01 * np.stack([X, Y], -1))
    assert inactive.active == 0 and math.isnan(inactive.alignment) and math.isnan(inactive.tilt)
    mean = np.random.default_rng(0).standard_normal((6, 5, 2))
    along_x, along_y = np.gradient(mean, axis=(0, 1))
    assert orientation.measure(mean).alignment == pytest.approx(np.cos(4 * np.arctan2(along_y, along_x)).mean())


@pytest.fixture(scope="module")
def dataset():
    return orientation.images()


def test_sprite_changes_equally_in_every_direction(dataset):
    images = dataset.images(range(1024)).numpy().reshape(32, 32, -1)

    def changed(dx: int, dy: int) -> float:
        ahead, behind = images[dx:, max(dy, 0) : 32 + min(dy, 0)], images[: 32 - dx, max(-dy, 0) : 32 - max(dy, 0)]
        return np.abs(ahead - behind).sum(-1).mean() / math.hypot(dx, dy)

    pixels = [changed(*shift) for shift in ((5, 0), (0, 5), (4, 3), (3, 4), (4, -3), (3, -4))]
    assert len(dataset) == 1024 and max(pixels) < 1.05 * min(pixels)


@pytest.mark.parametrize("p", [1.0, 2.2])
def test_prior_of_a_model_is_factorised_with_unit_variance(p):
    run = orientation.model(exponent=p, beta=8, seed=3, steps=10)
    prior, z = LpNested(run.tree, run.scale), torch.randn(50, 2)
    assert (run.latent_dim, run.beta, run.seed, run.total_steps) == (2, 8, 3, 10)
    torch.testing.assert_close(prior.variance, torch.ones(2))
    apart = sum(prior.log_prob(z * axis) for axis in torch.eye(2)) - prior.log_prob(torch.zeros(2))
    torch.testing.assert_close(prior.log_prob(z), apart)


def test_learn_trains_and_measures_a_model(dataset):
    small = dataset.restrict(x=[0, 10, 20, 31], y=[0, 8, 16, 24, 31])
    run = orientation.model(exponent=4.0, beta=1e-3, seed=0, steps=4, batch_size=4)
    learned = orientation.learn(run, small)
    assert learned.mean.shape == (4, 5, 2) and learned.code == orientation.measure(learned.mean)
    assert learned.code.active and math.isfinite(learned.divergence) and learned.noise > 0


def test_recorded_code_is_read_and_another_is_trained(tmp_path, monkeypatch):
    trained, path = [], tmp_path / "codes.npz"

    def learn(run, dataset):
        trained.append(run.tree.p)
        return Learned(np.full((1, 1, 2), len(trained)))

    monkeypatch.setattr(orientation, "learn", learn)
    monkeypatch.setattr(orientation, "images", lambda sprite: None)
    first, other = (orientation.model(exponent=p, beta=8, seed=1, steps=5) for p in (1, 4))
    orientation.record_codes(path, [first])
    for run, sprite, expected in ((first, {}, 1), (other, {}, 2), (first, {"orientation": 0}, 3)):
        assert (orientation.learned_code(run, path, orientation.SPRITE | sprite) == expected).all()
    for p in (1.0, 2.0, 4.0):  # those of the page are committed
        run = orientation.model(exponent=p, beta=8.0, seed=1, steps=400)
        code = orientation.learned_code(run, ROOT / "runs" / "orientation-codes.npz")
        assert orientation.measure(code).active == 2
    assert trained == [1, 4, 1]


def test_priors_fill_the_better_square():
    panels = {p: (orientation.contours(p, [0.5]), 1.0, 1.1) for p in (1.0, 4.0)}
    figure = draw.priors(np.zeros((64, 64)), np.zeros((3, 2)), panels)
    filled = [[patch.get_fill() for patch in axes.patches] for axes in figure.axes[1:]]
    assert filled == [[False, True], [True, False]]
    assert [axes.get_title() for axes in figure.axes[1:]] == ["Laplace, $p = 1$", "platykurtic, $p = 4$"]


def test_codes_show_x_across_and_y_down():
    mean = np.arange(12.0).reshape(3, 4)[..., None]
    figure = draw.codes({"model": mean}, {"model": ["said"]})
    (image,) = figure.axes[0].images
    np.testing.assert_array_equal(image.get_array(), mean[..., 0].T)
    assert image.get_extent() == [0, 1, 1, 0] and image.get_clim() == (-11, 11)
