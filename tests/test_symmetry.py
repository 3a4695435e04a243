"""Information in images about a factor: against brute force on small grids, and known symmetries of the sprites."""

import math

import numpy as np
import pytest
import torch
from drawn_dsprites import drawn
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad

from edition import symmetry
from isa.data import Factor, FactorDataset, Provenance

PROVENANCE = Provenance("a test", "MIT", "nobody", "numbers", procedural=True)


def tiny(levels: np.ndarray) -> FactorDataset:
    """A data set over the grid of ``levels`` whose images agree where the levels do."""
    factors = [Factor(f"f{axis}", np.arange(size)) for axis, size in enumerate(levels.shape)]
    images = np.broadcast_to(levels[..., None, None], (*levels.shape, 2, 3)).astype(np.uint8)
    return FactorDataset.from_array("tiny", "Tiny", factors, images, PROVENANCE)


def brute_information(codes: np.ndarray, axis: int) -> float:
    """I(code; factor) from the joint table, with H(code) + H(factor) - H(code, factor)."""
    values = np.indices(codes.shape)[axis].ravel()

    def entropy(*columns):
        counts = np.unique(np.stack(columns), axis=1, return_counts=True)[1] / codes.size
        return float(-(counts * np.log(counts)).sum())

    return entropy(codes.ravel()) + entropy(values) - entropy(codes.ravel(), values)


@settings(max_examples=50)
@given(st.integers(0, 10**6), st.integers(1, 30))
def test_information_agrees_with_the_joint_table(seed, levels):
    codes = np.random.default_rng(seed).integers(0, levels, (2, 3, 4))
    dataset = tiny(codes)
    classes = symmetry.image_classes(dataset)
    assert len(np.unique(classes)) == len(np.unique(codes))
    bounds = symmetry.factor_bounds(dataset, classes)
    for axis, bound in enumerate(bounds.values()):
        assert bound.information == pytest.approx(brute_information(codes, axis), abs=1e-12)
        assert bound.entropy == pytest.approx(math.log(codes.shape[axis]))
        assert -1e-12 <= bound.information <= bound.entropy + 1e-12
        assert bound.by_first.shape == (2,)


def test_classes_of_packed_images():
    bits = np.random.default_rng(0).integers(0, 2, (4, 64), dtype=np.uint8)[[0, 1, 0, 2, 3, 1]]
    storage = torch.from_numpy(np.packbits(bits, axis=1))
    factors = [Factor("a", np.arange(6))]
    dataset = FactorDataset("bits", "Bits", factors, storage, PROVENANCE, image_shape=(1, 8, 8), packed=True)
    classes = symmetry.image_classes(dataset)
    assert classes[0] == classes[2] and classes[1] == classes[5] and set(classes.tolist()) == {0, 1, 2, 3}


def test_duplicates_of_dsprites():
    dataset = drawn()
    classes = symmetry.image_classes(dataset).reshape(dataset.factor_sizes)
    assert np.array_equal(classes[:, :, 0], classes[:, :, 39])
    assert len(np.unique(classes)) <= 3 * 6 * 39 * 32 * 32
    # What is equal beyond the repeated orientation, is equal in shape, scale and position: never across those.
    bounds = symmetry.factor_bounds(dataset, classes.ravel())
    for name in ("shape", "scale", "x", "y"):
        assert bounds[name].share == pytest.approx(1, abs=1e-12)
    most = 1 - 2 / 40 * math.log(2) / math.log(40)
    assert bounds["orientation"].share_by_first[2] == pytest.approx(most, abs=1e-12)
    assert (bounds["orientation"].share_by_first <= most + 1e-12).all()
    assert bounds["orientation"].share == pytest.approx(bounds["orientation"].share_by_first.mean())


def test_turning_a_sprite_changes_it_least_near_its_symmetry():
    angles, shares = symmetry.rotation_differences(drawn(), step=16)
    assert angles[0] == 0 and angles[-1] == 360
    for shape, share in shares.items():
        assert share[0] == share[-1] == 0 and np.allclose(share, share[::-1])
        away = np.abs(angles / symmetry.PERIODS[shape] - np.rint(angles / symmetry.PERIODS[shape]))[2:-2]
        assert shape == "heart" or away[share[2:-2].argmin()] == pytest.approx(away.min())


@pytest.mark.parametrize("period", [90.0, 180.0, 360.0])
def test_angle_information_has_the_right_limits(period):
    angles = np.linspace(0, 360, 40)
    sharp = symmetry.angle_information(angles, period, 0.1)
    assert sharp == pytest.approx(math.log(40) - 2 / 40 * math.log(2), abs=1e-9)
    assert symmetry.angle_information(angles, period, 400.0) == pytest.approx(0, abs=1e-6)
    values = [symmetry.angle_information(angles, period, s) for s in (0.5, 1, 2, 4, 8, 16)]
    assert (np.diff(values) < 1e-12).all()
    # Readings relative to the period are all that counts: a period shorter by 4 asks for a reading sharper by 4.
    if period < 360:
        scaled = symmetry.angle_information(angles * 360 / period, 360.0, 2.0 * 360 / period)
        assert symmetry.angle_information(angles, period, 2.0) == pytest.approx(scaled, abs=1e-12)


def test_angle_information_agrees_with_quadrature():
    angles, period, deviation = np.array([0.0, 20.0, 95.0]), 90.0, 7.0

    def density(y, centres):
        wraps = np.arange(-4, 5)[:, None] * period
        kernel = np.exp(-0.5 * ((y - np.asarray(centres) + wraps) / deviation) ** 2).sum(axis=0)
        return kernel.mean() / (deviation * math.sqrt(2 * math.pi))

    def entropy(centres):
        return -quad(lambda y: density(y, centres) * math.log(density(y, centres)), 0, period, limit=200)[0]

    expected = entropy(angles) - entropy([0.0])
    assert symmetry.angle_information(angles, period, deviation) == pytest.approx(expected, abs=1e-8)


def test_symmetric_code_counts_cells():
    dataset = drawn()
    code = symmetry.symmetric_code(dataset, 360 / 39).reshape(dataset.factor_sizes)
    assert (code == code[:, :1, :, :1, :1]).all()
    cells = [len(np.unique(code[shape])) for shape in range(3)]
    assert cells == [10, 20, 39]
    bounds = symmetry.factor_bounds(dataset, code.ravel())
    line = code[:, 0, :, 0, 0]
    for shape in range(3):
        expected = brute_information(line[shape], 0)
        assert bounds["orientation"].by_first[shape] == pytest.approx(expected, abs=1e-12)
    assert bounds["x"].information == pytest.approx(0, abs=1e-12)
    assert bounds["shape"].share == pytest.approx(1)
