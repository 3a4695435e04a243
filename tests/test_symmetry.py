"""Information in images about a factor: against brute force on small grids, and known symmetries of the sprites."""

import math

import numpy as np
import pytest
import scipy.stats
from conftest import drawn
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad

from edition import symmetry
from isa.data import Factor, FactorDataset, Provenance


def tiny(levels: np.ndarray) -> FactorDataset:
    """Return a data set over the grid of ``levels`` whose images agree where the levels do."""
    factors = [Factor(f"f{axis}", np.arange(size)) for axis, size in enumerate(levels.shape)]
    images = np.broadcast_to(levels[..., None, None], (*levels.shape, 2, 3)).astype(np.uint8)
    provenance = Provenance("a test", "MIT", "nobody", "numbers", procedural=True)
    return FactorDataset.from_array("tiny", "Tiny", factors, images, provenance)


def brute_information(codes: np.ndarray, axis: int) -> float:
    """Return I(code; factor) = H(code) + H(factor) - H(code, factor) from the joint table."""
    values = np.indices(codes.shape)[axis].ravel()

    def entropy(*columns):
        counts = np.unique(np.stack(columns), axis=1, return_counts=True)[1] / codes.size
        return float(-(counts * np.log(counts)).sum())

    return entropy(codes.ravel()) + entropy(values) - entropy(codes.ravel(), values)


@settings(max_examples=25)
@given(st.integers(0, 10**6), st.integers(1, 30))
def test_information_matches_the_joint_table(seed, levels):
    codes = np.random.default_rng(seed).integers(0, levels, (2, 3, 4))
    dataset = tiny(codes)
    classes = symmetry.image_classes(dataset)
    assert len(np.unique(classes)) == len(np.unique(codes))
    bounds = symmetry.factor_bounds(dataset, classes)
    for axis, bound in enumerate(bounds.values()):
        assert bound.information == pytest.approx(brute_information(codes, axis), abs=1e-12)
        assert bound.entropy == pytest.approx(math.log(codes.shape[axis])) and bound.by_first.shape == (2,)


@pytest.fixture(scope="module")
def dataset() -> FactorDataset:
    """Return dSprites at every fourth position in x and in y."""
    return drawn().restrict(x=range(0, 32, 4), y=range(0, 32, 4))


def test_duplicates_of_dsprites(dataset):
    classes = symmetry.image_classes(dataset).reshape(dataset.factor_sizes)
    assert np.array_equal(classes[:, :, 0], classes[:, :, 39])
    # images that agree in more than the repeated orientation agree in shape, scale and position
    bounds = symmetry.factor_bounds(dataset, classes.ravel())
    for name in ("shape", "scale", "x", "y"):
        assert bounds[name].share == pytest.approx(1, abs=1e-12)
    most = 1 - 2 / 40 * math.log(2) / math.log(40)
    assert bounds["orientation"].share_by_first[2] == pytest.approx(most, abs=1e-12)
    assert (bounds["orientation"].share_by_first <= most + 1e-12).all()
    assert bounds["orientation"].share == pytest.approx(bounds["orientation"].share_by_first.mean())


def test_rotation_differences_are_smallest_at_symmetries(dataset):
    angles, shares = symmetry.rotation_differences(dataset, step=8)
    assert angles[0] == 0 and angles[-1] == 360
    for shape, share in shares.items():
        assert share[0] == share[-1] == 0 and np.allclose(share, share[::-1])
        away = np.abs(angles / symmetry.PERIODS[shape] - np.rint(angles / symmetry.PERIODS[shape]))[2:-2]
        assert shape == "heart" or away[share[2:-2].argmin()] == pytest.approx(away.min())


@pytest.mark.parametrize("period", [90.0, 360.0])
def test_angle_information_falls_from_the_entropy_to_zero(period):
    angles = np.linspace(0, 360, 40)
    values = [symmetry.angle_information(angles, period, deviation) for deviation in (0.1, 1, 4, 16, 400)]
    assert (np.diff(values) < 1e-12).all() and values[-1] == pytest.approx(0, abs=1e-6)
    assert values[0] == pytest.approx(math.log(40) - 2 / 40 * math.log(2), abs=1e-9)
    scaled = symmetry.angle_information(angles * 360 / period, 360.0, 4.0 * 360 / period)
    assert values[2] == pytest.approx(scaled, abs=1e-12)


def test_angle_information_matches_quadrature():
    angles, period, deviation = np.array([0.0, 20.0, 95.0]), 90.0, 7.0

    def density(y, centres):
        wraps = np.arange(-4, 5)[:, None] * period
        return scipy.stats.norm.pdf(y, centres + wraps, deviation).sum(axis=0).mean()

    def entropy(centres):
        return -quad(lambda y: density(y, centres) * math.log(density(y, centres)), 0, period, limit=200)[0]

    expected = entropy(angles) - entropy(np.zeros(1))
    assert symmetry.angle_information(angles, period, deviation) == pytest.approx(expected, abs=1e-8)


def test_symmetric_code_counts_cells(dataset):
    code = symmetry.symmetric_code(dataset, 360 / 39).reshape(dataset.factor_sizes)
    assert (code == code[:, :1, :, :1, :1]).all()
    assert [len(np.unique(code[shape])) for shape in range(3)] == [10, 20, 39]
    bounds = symmetry.factor_bounds(dataset, code.ravel())
    expected = [brute_information(line, 0) for line in code[:, 0, :, 0, 0]]
    assert bounds["orientation"].by_first == pytest.approx(expected, abs=1e-12)
    assert (bounds["x"].share, bounds["shape"].share) == pytest.approx((0, 1), abs=1e-12)
