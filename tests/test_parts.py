"""Parts of a grid: the images and values of the whole, and only those drawn."""

import numpy as np
import pytest
import torch
from drawn_dsprites import drawn

from edition.parts import part
from isa.data import ImageIndexError, UnknownFactorError, _car, faces3d


def test_restriction_keeps_images_values_and_packing():
    whole = drawn()
    some = whole.restrict(shape=2, scale=[5, 0], x=range(0, 32, 8), y=7)
    assert some.factor_sizes == (1, 2, 40, 4, 1) and some.packed and some.title == whole.title
    assert list(some.values["scale"]) == [1.0, 0.5] and list(some.values["shape"]) == ["heart"]
    index = whole.index(shape=2, scale=[5, 0], x=range(0, 32, 8), y=7)
    assert torch.equal(some.images(torch.arange(len(some))), whole.images(index))


def test_a_part_of_the_faces_is_drawn_as_the_whole_is(monkeypatch):
    some = part("faces3d", identity=[7], azimuth=[0, 10], elevation=5, lighting=[2, 9])
    assert some.factor_sizes == (1, 2, 1, 2) and some.procedural
    assert list(some.values["lighting"]) == [-45.0, 60.0] and some.units["azimuth"] == "degrees"

    seen = {}

    def draw(coefficients, *angles, **_):
        seen["coefficients"], seen["angles"] = coefficients, angles
        return np.zeros(faces3d.SHAPE, np.uint8)

    with monkeypatch.context() as patch:
        patch.setattr(faces3d, "draw_faces", draw)
        patch.setattr(faces3d, "cached_array", lambda name, key, build, **_: build())
        whole = faces3d.load()
    chosen = [seen["angles"][0][[0, 10]], seen["angles"][1][[5]], seen["angles"][2][[2, 9]]]
    expected = faces3d.draw_faces(seen["coefficients"][[7]], *chosen).reshape(4, 1, 64, 64)
    assert torch.equal(some.storage, torch.from_numpy(expected))
    assert some.factor_names == whole.factor_names and some.title == whole.title
    assert all(np.isin(some.values[name], whole.values[name]).all() for name in whole.factor_names)


def test_a_part_of_the_cars_is_drawn_as_the_whole_is():
    some = part("cars3d", car=[100], elevation=[3], azimuth=[0, 17])
    assert some.factor_sizes == (1, 1, 2) and some.image_shape == (3, 64, 64) and some.procedural
    assert list(some.values["azimuth"]) == [0.0, 255.0] and list(some.values["car"]) == ["parameters 101"]
    parameters = _car.draw_parameters(_car.CARS, _car._SEED)
    expected = _car.draw_cars([parameters[100]], [18.0], [0.0, 255.0])[0, 0].transpose(0, 3, 1, 2)
    assert np.array_equal(some.storage.numpy(), expected)


def test_bad_input():
    with pytest.raises(UnknownFactorError, match="'scale' is no factor of faces3d"):
        part("faces3d", scale=0)
    with pytest.raises(ImageIndexError, match="'car' must be between 0 and 182, got 183"):
        part("cars3d", car=183)
    with pytest.raises(ValueError, match="name must be one of"):
        part("mnist")
