"""The procedural cars: their parameters, their solids, and the pictures of them."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest
from scipy.io import loadmat

from isa.data import _car, _render

SIDE = 32


@pytest.fixture(scope="module")
def cars():
    return _car.draw_parameters(_car.CARS, _car._SEED)


@pytest.fixture(scope="module")
def one_of_each(cars):
    """The first car of every body style."""
    return [next(car for car in cars if car.style == style) for style in _car._STYLES]


@pytest.fixture(scope="module")
def views(one_of_each):
    """Every style from all elevations and eight azimuths, (7, 4, 8, SIDE, SIDE, 3)."""
    return _car.draw_cars(one_of_each, _car.ELEVATIONS, np.arange(8) * 45.0, side=SIDE)


def test_parameters_are_seeded_distinct_and_plausible(cars):
    assert len(cars) == 183
    assert cars == _car.draw_parameters(_car.CARS, _car._SEED)
    assert cars[:5] == _car.draw_parameters(5, _car._SEED)
    assert cars[:5] != _car.draw_parameters(5, _car._SEED + 1)
    assert len(set(cars)) == 183
    assert {car.style for car in cars} == set(_car._STYLES)
    for car in cars:
        assert 3.3 < car.length < 5.9
        assert 1.5 < car.width < 2.1
        assert 1.1 < car.height < 2.2
        assert car.clearance < car.hood < car.belt < car.height
        assert -car.length / 2 < car.tail < car.roof_end < car.screen_top < car.cowl < car.front_axle + 0.6
        assert 2 * car.wheel < 0.9 * car.hood
        assert all(0 < value < 1 for value in (*car.paint, car.glass, car.rim))


def test_larger_cars_are_taller(cars):
    sedans = [car for car in cars if car.style == "sedan"]
    lengths, widths = [car.length for car in sedans], [car.width for car in sedans]
    # 57 draws of a correlation near 0.9: three standard errors below are still well above 0.5
    assert np.corrcoef(lengths, widths)[0, 1] > 0.5


def test_every_solid_has_its_measures_and_stands_on_four_wheels(one_of_each):
    for car in one_of_each:
        lit = _car._LitCar(car)
        low, high = lit.mesh.vertices.min(0), lit.mesh.vertices.max(0)
        np.testing.assert_allclose(low[0], -high[0], atol=1e-3)
        assert low[1] == pytest.approx(0, abs=0.02)
        assert high[1] == pytest.approx(car.height, abs=0.06)
        assert high[2] - low[2] == pytest.approx(car.length, abs=0.06)
        assert high[0] == pytest.approx(car.width / 2, abs=0.2)
        touching = lit.mesh.vertices[lit.mesh.vertices[:, 1] < 0.04]
        for axle in (car.front_axle, car.rear_axle):
            for sign in (-1, 1):
                near = np.abs(touching[:, 2] - axle) < car.wheel
                assert (near & (touching[:, 0] * sign > 0.4)).any()
        gap = (np.abs(touching[:, 2] - car.front_axle) > car.wheel) & (
            np.abs(touching[:, 2] - car.rear_axle) > car.wheel
        )
        assert not gap.any()
        assert lit.colour.min() > 0
        assert lit.colour.max() < 1


def test_drawing_is_deterministic_whatever_the_number_of_threads(one_of_each, views, monkeypatch):
    in_order = _render.in_order
    for workers in (1, 3):
        monkeypatch.setattr(_render, "in_order", lambda f, items, w=workers: in_order(f, items, w))
        again = _car.draw_cars(one_of_each[:2], [6.0], [90.0, 225.0], side=SIDE)
        np.testing.assert_array_equal(again, views[:2, 1:2, [2, 5]])


def test_every_factor_changes_every_picture(views):
    assert views.shape == (7, 4, 8, SIDE, SIDE, 3)
    assert views.dtype == np.uint8
    pictures = views.astype(np.float64)
    for axis in range(3):
        assert np.abs(np.diff(pictures, axis=axis)).mean((-1, -2, -3)).min() > 0.5


def test_cars_stand_whole_on_white(views):
    dark = (views < 235).any(-1)
    covered = dark.mean((-1, -2))
    assert covered.min() > 0.06
    assert covered.max() < 0.45
    border = np.concatenate([views[..., [0, -1], :, :].reshape(-1), views[..., [0, -1], :].reshape(-1)])
    assert (border == 255).all()


def test_length_fills_the_frame_as_in_the_real_pictures(one_of_each):
    pictures = _car.draw_cars(one_of_each[::3], [0.0], [90.0, 270.0], side=128)
    columns = (pictures < 250).any(-1).any(-2)
    width = columns.sum(-1)
    np.testing.assert_allclose(width, 113, atol=2)
    first = columns.argmax(-1)
    np.testing.assert_allclose(first, (128 - width) / 2, atol=1.5)


def silhouette(pictures):
    return (pictures < 250).any(-1)


def test_opposite_azimuths_are_mirror_images_in_outline(one_of_each):
    pictures = _car.draw_cars(one_of_each[1::2], [0.0], [0.0, 60.0, 300.0, 180.0], side=64)[:, 0]
    outline = silhouette(pictures)
    assert (outline[:, 0] != outline[:, 0, :, ::-1]).mean() < 0.004
    assert (outline[:, 3] != outline[:, 3, :, ::-1]).mean() < 0.004
    assert (outline[:, 1] != outline[:, 2, :, ::-1]).mean() < 0.004
    assert (outline[:, 1] != outline[:, 2]).mean() > 0.01


def test_front_turns_to_the_left_and_the_rear_lights_are_red(one_of_each):
    grey = [dataclasses.replace(car, paint=(0.3, 0.3, 0.3), spoiler=False) for car in one_of_each[::2]]
    pictures = _car.draw_cars(grey, [6.0], [0.0, 60.0, 120.0, 180.0], side=64)[:, 0].astype(np.float64)
    red = np.clip(pictures[..., 0] - pictures[..., 2] - 60, 0, None).sum(-2)
    # seen from the front there is no red; at 120 degrees the rear, and its lights, are to the right
    assert (red[:, 3].sum(-1) > 10 * (red[:, 0].sum(-1) + 1)).all()
    assert (np.average(np.tile(np.arange(64), (4, 1)), axis=1, weights=red[:, 2] + 1e-9) > 36).all()


def test_higher_views_show_more_and_the_ground_only_from_above(one_of_each):
    pictures = _car.draw_cars(one_of_each[::3], _car.ELEVATIONS, [0.0], side=64)[:, :, 0]
    height = silhouette(pictures).any(-1).sum(-1)
    assert (np.diff(height, axis=1) > 0).all()
    car = _car._LitCar(one_of_each[0])
    flat = car._ground(_car._rotation(30.0, 0.0), 64)
    assert (flat == 1).all()
    above = car._ground(_car._rotation(30.0, 18.0), 64).reshape(64, 64)
    assert above.min() < 0.35
    assert (above[[0, -1]] == 1).all()
    assert (above[:, [0, -1]] == 1).all()
    # darkest under the car, and in no case brighter than the white around it
    assert above.max() == 1


def test_paint_is_what_is_seen(one_of_each):
    sedan = one_of_each[0]
    paints = [(0.6, 0.02, 0.02), (0.02, 0.02, 0.6), (0.02, 0.4, 0.02)]
    pictures = _car.draw_cars([dataclasses.replace(sedan, paint=p) for p in paints], [6.0], [60.0], side=64)
    pictures = pictures[:, 0, 0].astype(np.float64)
    for paint, picture in zip(paints, pictures, strict=True):
        saturated = np.ptp(picture, axis=-1) > 60
        assert saturated.mean() > 0.05
        assert picture[saturated].mean(0).argmax() == int(np.argmax(paint))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"elevations": 3.0}, "elevations must be a one-dimensional"),
        ({"azimuths": [np.inf]}, "azimuths must be a one-dimensional"),
        ({"side": 0}, "side must be at least 1 pixel, got 0"),
    ],
)
def test_draw_cars_refuses_bad_arguments(one_of_each, arguments, message):
    with pytest.raises(ValueError, match=message):
        _car.draw_cars(one_of_each[:1], **arguments)


def test_views_are_those_of_the_real_set(one_of_each):
    folder = os.environ.get("ISA_CARS3D")
    if not folder:
        pytest.skip("ISA_CARS3D names no folder of the real files")
    path = sorted(Path(folder).glob("*.mat"))[0]
    real = loadmat(path, variable_names=["im"])["im"].transpose(4, 3, 0, 1, 2)
    ours = _car.draw_cars([one_of_each[1]], side=128)[0]
    assert ours.shape == real.shape
    # outlines overlap view for view, and less so when the direction of turning is reversed
    overlap = lambda a, b: (a & b).sum() / (a | b).sum()  # noqa: E731
    same = np.mean([overlap(silhouette(r), silhouette(o)) for r, o in zip(real[0], ours[0], strict=True)])
    assert same > 0.7
    mirrored = ours[0][(-np.arange(24)) % 24]
    quarter = [3, 4, 8, 9, 15, 16, 20, 21]
    forward = np.mean([overlap(silhouette(real[0][q]), silhouette(ours[0][q])) for q in quarter])
    backward = np.mean([overlap(silhouette(real[0][q]), silhouette(mirrored[q])) for q in quarter])
    assert forward > backward + 0.02
