"""dSprites: the drawn set against published images and a slow rasteriser; the reader and the comparison."""

import csv
import hashlib
import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import drawn
from hypothesis import given, settings
from hypothesis import strategies as st

from edition.parts import part
from isa.data import SourceError, dsprites, load

FINGERPRINTS = Path(__file__).parent / "data" / "dsprites_fingerprints.csv"
SMALL = (3, 2, 2, 3, 2)  # sizes of a corner of the grid


def unpack(packed: np.ndarray) -> np.ndarray:
    return np.unpackbits(packed, axis=-1).reshape(*packed.shape[:-1], 64, 64)


def test_fingerprints_of_published_images():
    with FINGERPRINTS.open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 341
    for row in rows:
        packed = drawn().storage[drawn().index(**{name: int(row[name]) for name in drawn().factor_names})].numpy()
        assert hashlib.sha256(packed.tobytes()).hexdigest()[:16] == row["sha256_16"], row
        assert dsprites.count_pixels(packed) == int(row["pixels"]), row


def test_the_whole_set():
    dataset = drawn()
    assert dataset.factor_names == ("shape", "scale", "orientation", "x", "y")
    assert dataset.factor_sizes == (3, 6, 40, 32, 32) and dataset.image_shape == (1, 64, 64)
    assert not dataset.procedural and "re-rendered" in dataset.title
    assert dataset.checksum == dsprites.CHECKSUM and all(dict(dsprites.verify(dataset)).values())
    words = dataset.storage.view(3, 6, 40, 1024, 512)
    assert torch.equal(words[:, :, 39], words[:, :, 0])  # a full turn


def slow_raster(vertices: np.ndarray, x: int, y: int) -> np.ndarray:
    """Apply the even-odd rule at every pixel centre in exact rationals; left and bottom edges are inside."""
    centre = np.array([0.25 + 0.5 * dsprites.POSITIONS[x], 0.25 + 0.5 * dsprites.POSITIONS[y]])
    corners = np.rint((vertices + centre) * 64 * 256).astype(int).tolist()
    image = np.zeros((64, 64), np.uint8)
    for row, height in enumerate(range(128, 64 * 256, 256)):
        for (x0, y0), (x1, y1) in zip(corners, corners[1:] + corners[:1], strict=True):
            if min(y0, y1) < height <= max(y0, y1):
                crossing = x0 + Fraction((height - y0) * (x1 - x0), y1 - y0)
                image[row] ^= np.array([crossing <= 256 * column + 128 for column in range(64)])
    return image


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2), st.integers(0, 5), st.integers(0, 39), st.integers(0, 31), st.integers(0, 31))
def test_drawing_matches_exact_rationals(shape, scale, orientation, x, y):
    vertices = dsprites.sprite_vertices(shape, dsprites.SCALES[scale], dsprites.ORIENTATIONS[orientation])
    index = drawn().index(shape=shape, scale=scale, orientation=orientation, x=x, y=y)
    assert np.array_equal(drawn().images(index)[0, 0].numpy(), slow_raster(vertices, x, y))


@pytest.fixture
def small() -> dict[str, np.ndarray]:
    """Arrays of a file in the published format with the corner ``SMALL`` of the grid."""
    classes = np.stack(np.unravel_index(np.arange(math.prod(SMALL)), (1, *SMALL)), axis=1)
    index = np.ravel_multi_index(tuple(classes.T), (1, *dsprites.FACTOR_SIZES))
    return {"imgs": unpack(drawn().storage.numpy()[index]), "latents_classes": classes}


def test_published_format_is_read(small, tmp_path, monkeypatch):
    path = tmp_path / "small.npz"
    np.savez_compressed(path, **small, metadata=np.array({"a": 1}, dtype=object))  # the published file has a pickle
    md5 = hashlib.md5(path.read_bytes()).hexdigest()
    with pytest.raises(SourceError, match=rf"small\.npz is not the published file: its MD5 is {md5}"):
        load("dsprites", path)
    monkeypatch.setattr(dsprites, "PUBLISHED_MD5", md5)
    assert np.array_equal(unpack(dsprites.read_packed(path)), small["imgs"])
    with pytest.raises(ValueError, match="storage must be"):  # a corner of the grid is not the whole set
        load("dsprites", path)


def test_comparison_locates_differences(small, tmp_path):
    path = tmp_path / "file.npz"
    order = np.random.default_rng(0).permutation(len(small["imgs"]))[:40]
    images, classes = small["imgs"][order], small["latents_classes"][order]
    np.savez(path, imgs=images, latents_classes=classes)
    assert dsprites.compare(path, drawn().storage.numpy()).shape == (0, 7)
    places = [(7, 3, 62), (7, 40, 0), (31, 63, 63)]
    for place in places:
        images[place] ^= 1
    np.savez(path, imgs=images, latents_classes=classes)
    found = dsprites.compare(path, drawn().storage.numpy())
    assert found.tolist() == [[*classes[image, 1:], row, column] for image, row, column in places]


def test_a_part_of_a_set_that_is_read_or_drawn_whole():
    some, whole = part("dsprites", shape=2, scale=[5, 0], x=range(0, 32, 8), y=7), drawn()
    assert some.factor_sizes == (1, 2, 40, 4, 1) and some.packed and some.title == whole.title
    assert list(some.values["scale"]) == [1.0, 0.5] and list(some.values["shape"]) == ["heart"]
    index = whole.index(shape=2, scale=[5, 0], x=range(0, 32, 8), y=7)
    assert torch.equal(some.images(torch.arange(len(some))), whole.images(index))
