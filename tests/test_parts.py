"""Parts of a grid: the images and values of the whole, and only those drawn."""

import numpy as np
import torch
from drawn_dsprites import drawn

from edition.parts import part
from isa.data import faces3d
from isa.data.base import restrict_factors


def test_a_part_of_a_set_that_is_read_or_drawn_whole():
    some, whole = part("dsprites", shape=2, scale=[5, 0], x=range(0, 32, 8), y=7), drawn()
    assert some.factor_sizes == (1, 2, 40, 4, 1) and some.packed and some.title == whole.title
    assert list(some.values["scale"]) == [1.0, 0.5] and list(some.values["shape"]) == ["heart"]
    index = whole.index(shape=2, scale=[5, 0], x=range(0, 32, 8), y=7)
    assert torch.equal(some.images(torch.arange(len(some))), whole.images(index))


def test_a_part_of_the_faces_is_drawn_as_the_whole_is(monkeypatch, tmp_path):
    some = part("faces3d", identity=[7], azimuth=[0, 10], elevation=5, lighting=[2, 9])
    assert some.factor_sizes == (1, 2, 1, 2) and some.procedural
    assert list(some.values["lighting"]) == [-45.0, 60.0] and some.units["azimuth"] == "degrees"

    chosen = ([7], [0, 10], [5], [2, 9])
    monkeypatch.setattr(faces3d, "FACTORS", restrict_factors(faces3d.FACTORS, chosen))
    whole = faces3d.load(cache_dir=tmp_path)
    assert torch.equal(some.storage, whole.storage)
    assert all(np.array_equal(some.values[name], whole.values[name]) for name in whole.factor_names)
