"""cars3d: the reader on small folders in the published format, on damaged ones, and on the published files."""

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from isa.data import SourceError, cars3d, load

REAL = os.environ.get("ISA_CARS3D")
NUMBERS = (1, 2, 5)


def views(seed: int) -> np.ndarray:
    """Return renderings (128, 128, 3, 24, 4) of 16 x 16 blocks."""
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 8, 3, 24, 4), dtype=np.uint8)
    return coarse.repeat(16, axis=0).repeat(16, axis=1)


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(cars3d, "CARS", NUMBERS)
    path = tmp_path / "cars"
    path.mkdir()
    for number in NUMBERS:
        savemat(path / f"car_{number:03d}_mesh.mat", {"im": views(number), "x": 1.0})
    return path


def test_axes_are_car_elevation_azimuth_row_column_colour(folder, tmp_path):
    dataset = load("cars3d", folder, cache_dir=tmp_path)
    assert dataset.factor_names == ("car", "elevation", "azimuth") and dataset.factor_sizes == (3, 4, 24)
    assert not dataset.procedural and dataset.title == "cars3d"
    assert list(dataset.values["azimuth"][:3]) == [0.0, 15.0, 30.0] and dataset.units["elevation"] == "degrees"
    for car, elevation, azimuth in ((0, 0, 0), (1, 3, 23), (2, 1, 17)):
        view = np.ascontiguousarray(views(NUMBERS[car])[:, :, :, azimuth, elevation])
        expected = np.asarray(Image.fromarray(view).resize((64, 64), Image.Resampling.BILINEAR))
        stored = dataset.storage[dataset.index(car=car, elevation=elevation, azimuth=azimuth)][0].numpy()
        assert np.array_equal(stored.transpose(1, 2, 0), expected)
    means = tuple((dataset.storage.numpy().mean(axis=(0, 2, 3)) / 255).round(5).tolist())
    assert next(cars3d.verify(dataset))[0].startswith(f"channel means, {means}, are the published")


def test_the_cache_knows_the_files(folder, tmp_path, monkeypatch):
    first = load("cars3d", folder, cache_dir=tmp_path)
    paths = sorted(folder.iterdir())
    contents = b"".join(path.name.encode() + hashlib.sha256(path.read_bytes()).digest() for path in paths)
    assert first.provenance.source_checksum == f"sha256:{hashlib.sha256(contents).hexdigest()}"
    monkeypatch.setattr(cars3d, "read_car", None)
    assert load("cars3d", folder, cache_dir=tmp_path).checksum == first.checksum
    paths[2].write_bytes(paths[0].read_bytes())
    with pytest.raises(TypeError, match="not callable"):  # read again
        load("cars3d", folder, cache_dir=tmp_path)


def test_missing_files_are_named(folder):
    (folder / "car_005_mesh.mat").unlink()
    with pytest.raises(SourceError, match=r"must be the folder of the 3 files of cars3d, but lacks car_005_mesh\.mat$"):
        load("cars3d", folder)


@pytest.mark.skipif(not REAL, reason="ISA_CARS3D does not name the folder of the published files")
def test_the_published_files_give_the_published_means(tmp_path):
    dataset = load("cars3d", REAL, cache_dir=tmp_path)
    checks = dict(cars3d.verify(dataset))
    assert len(checks) == 3 and all(checks.values()), checks
    assert dataset.factor_sizes == (183, 4, 24)
    assert load("cars3d", REAL, cache_dir=tmp_path).checksum == dataset.checksum
    # A car is narrower from the front and from behind than from the side.
    width = (dataset.storage.amin((1, 2)) < 250).sum(-1).reshape(183, 4, 24)
    assert (width[:, :, [0, 12]].amax(2) < 0.85 * width[:, :, [6, 18]].amin(2)).all()
