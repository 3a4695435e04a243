"""cars3d: the reader on small files in the published format, on hostile ones, and on the real files where they are."""

import hashlib
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from isa.data import SourceError, SourceMissingError, cars3d, load

REAL = os.environ.get("ISA_CARS3D")
needs_real_files = pytest.mark.skipif(not REAL, reason="ISA_CARS3D names no folder of the published files")


def views(seed: int) -> np.ndarray:
    """Renderings (128, 128, 3, 24, 4) that are smooth, so that the files are small, and different everywhere."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (8, 8, 3, 24, 4), dtype=np.uint8)
    return coarse.repeat(16, axis=0).repeat(16, axis=1)


def write_car(path: Path, images: np.ndarray, **others: np.ndarray) -> None:
    savemat(
        path,
        {"im": images, "PITCH_LIST": [cars3d.ELEVATIONS], "YAW_LIST": [cars3d.AZIMUTHS], **others},
        do_compression=True,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("cars")
    for number in (1, 2, 5):
        write_car(path / f"car_{number:03d}_mesh.mat", views(number))
    (path / "list.txt").write_text("car_001_mesh\n")
    return path


def test_names_of_the_published_files():
    assert len(cars3d.CARS) == 183 and cars3d.CARS[0] == 1 and cars3d.CARS[-1] == 199
    assert (len(cars3d.ELEVATIONS), len(cars3d.AZIMUTHS)) == (4, 24)


def test_axes_are_car_elevation_azimuth_row_column_colour(folder):
    images = cars3d.read_folder(folder, cars=(1, 2, 5))
    assert images.shape == (3, 4, 24, 64, 64, 3) and images.dtype == np.uint8
    for place, number in enumerate((1, 2, 5)):
        raw = views(number)
        for elevation, azimuth in ((0, 0), (3, 23), (1, 17)):
            view = np.ascontiguousarray(raw[:, :, :, azimuth, elevation])
            expected = Image.fromarray(view).resize((64, 64), Image.Resampling.BILINEAR)
            assert np.array_equal(images[place, elevation, azimuth], np.asarray(expected))


def test_reduction_keeps_constant_images_and_averages_otherwise():
    flat = np.full((2, 128, 128, 3), 201, np.uint8)
    assert (cars3d.reduce_views(flat) == 201).all()
    ramp = np.broadcast_to(np.arange(128, dtype=np.uint8)[:, None, None], (128, 128, 3)).copy()
    inner = cars3d.reduce_views(ramp)[1:-1, 0, 0].astype(float)
    assert np.abs(inner - (2 * np.arange(1, 63) + 0.5)).max() <= 0.5


def test_missing_and_extra_files_are_named(folder, tmp_path):
    with pytest.raises(SourceError, match=r"lacks car_003_mesh\.mat"):
        cars3d.read_folder(folder, cars=(1, 2, 3, 5))
    with pytest.raises(SourceError, match=r"has beside them car_005_mesh\.mat"):
        cars3d.read_folder(folder, cars=(1, 2))
    with pytest.raises(SourceError, match=r"lacks car_003_mesh\.mat and has beside them car_005_mesh\.mat"):
        cars3d.read_folder(folder, cars=(1, 2, 3))
    with pytest.raises(SourceError, match="and 172 more"):
        load("cars3d", folder)
    with pytest.raises(SourceError, match="holds none of the 183 files"):
        load("cars3d", tmp_path)
    with pytest.raises(SourceMissingError, match="does not exist"):
        load("cars3d", tmp_path / "absent")
    (tmp_path / "dsprites.npz").write_bytes(b"PK")
    with pytest.raises(SourceError, match="is not a folder: cars3d is a folder of 183 files"):
        load("cars3d", tmp_path / "dsprites.npz")


def damage(path: Path, how: str) -> None:
    data = path.read_bytes()
    if how == "truncated":
        path.write_bytes(data[: len(data) // 2])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "noise":
        path.write_bytes(np.random.default_rng(0).bytes(4000))
    else:
        place = len(data) // 2
        path.write_bytes(data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :])


@pytest.mark.parametrize("how", ["truncated", "empty", "noise", "flipped byte"])
def test_corrupt_files_are_named(folder, tmp_path, how):
    for path in folder.glob("*.mat"):
        shutil.copy(path, tmp_path)
    damage(tmp_path / "car_002_mesh.mat", how)
    with pytest.raises(SourceError, match=r"car_002_mesh\.mat is corrupt, truncated, or no MATLAB file") as caught:
        cars3d.read_folder(tmp_path, cars=(1, 2, 5))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ({"image": np.zeros((2, 2))}, "holds no array 'im'; it has image"),
        (
            {"im": np.zeros((2, 2), np.uint8)},
            r"must be uint8 of shape \(128, 128, 3, 24, 4\), found uint8 of shape \(2, 2\)",
        ),
        ({"im": np.zeros((128, 128, 3, 24, 4), np.int8)}, "found int8"),
        ({"im": {"a": 1}}, "found struct"),
        ({"im": np.array([["y", "x"]], dtype=object)}, "found cell"),
    ],
)
def test_other_content_is_named(tmp_path, content, text):
    savemat(tmp_path / "car_001_mesh.mat", content, do_compression=True)
    with pytest.raises(SourceError, match=text):
        cars3d.read_car(tmp_path / "car_001_mesh.mat")
    with pytest.raises(SourceMissingError, match="does not exist"):
        cars3d.read_car(tmp_path / "car_002_mesh.mat")


def test_the_sources_checksum_depends_on_names_and_contents(folder, tmp_path):
    paths = sorted(folder.glob("*.mat"))
    checksum = cars3d.source_checksum(paths)
    digests = b"".join(path.name.encode() + hashlib.sha256(path.read_bytes()).digest() for path in paths)
    assert checksum == hashlib.sha256(digests).hexdigest()
    renamed = [shutil.copy(path, tmp_path / f"x{path.name}") for path in paths]
    assert cars3d.source_checksum([Path(path) for path in renamed]) != checksum
    damage(Path(shutil.copy(paths[0], tmp_path)), "flipped byte")
    assert cars3d.source_checksum([tmp_path / paths[0].name, *paths[1:]]) != checksum


def test_load_caches_what_it_read(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(cars3d, "CARS", (1, 2, 5))
    first = load("cars3d", folder, cache_dir=tmp_path)
    assert first.factor_names == ("car", "elevation", "azimuth") and first.factor_sizes == (3, 4, 24)
    assert not first.procedural and first.provenance.source_checksum.startswith("sha256:")
    assert list(first.values["azimuth"][:3]) == [0.0, 15.0, 30.0] and first.units["elevation"] == "degrees"
    expected = cars3d.read_folder(folder, cars=(1, 2, 5)).reshape(-1, 64, 64, 3).transpose(0, 3, 1, 2)
    assert np.array_equal(first.storage.numpy(), expected)
    means = expected.mean(axis=(0, 2, 3)) / 255
    assert np.allclose(cars3d.channel_means(first), means, rtol=0, atol=1e-12)

    def never(*_, **__):
        raise AssertionError("read again although it is in the cache")

    monkeypatch.setattr(cars3d, "read_folder", never)
    again = load("cars3d", folder, cache_dir=tmp_path)
    assert again.checksum == first.checksum
    write_car(folder / "car_005_mesh.mat", views(6))
    with pytest.raises(AssertionError, match="read again"):
        load("cars3d", folder, cache_dir=tmp_path)
    write_car(folder / "car_005_mesh.mat", views(5))


def test_the_stand_in_says_that_it_is_one(tmp_path, monkeypatch):
    from isa.data import _car

    calls = []

    def draw(progress=False):
        calls.append(progress)
        return np.broadcast_to(np.arange(183, dtype=np.uint8)[:, None, None, None, None, None], (183, 4, 24, 64, 64, 3))

    monkeypatch.setattr(_car, "draw_cars", draw)
    dataset = load("cars3d", cache_dir=tmp_path)
    assert dataset.procedural and "stand-in" in dataset.title and "None of its images" in dataset.provenance.rendering
    assert dataset.factor_sizes == (183, 4, 24) and len(dataset) == 17_568
    assert dataset.storage[96 * 7].unique().tolist() == [7]
    assert not list(cars3d.verify(dataset))
    assert load("cars3d", cache_dir=tmp_path).checksum == dataset.checksum
    assert calls == [False]


@needs_real_files
def test_one_real_car():
    path = Path(REAL) / "car_001_mesh.mat"
    images = cars3d.reduce_views(cars3d.read_car(path))
    assert images.shape == (4, 24, 64, 64, 3)
    # Seen from the front and from behind a car is narrower than from the side.
    width = (images.min(axis=(2, 4)) < 250).sum(axis=-1)
    assert (width[:, [0, 12]].max(axis=1) < 0.7 * width[:, [6, 18]].min(axis=1)).all()


@needs_real_files
def test_the_real_set_has_the_published_means(tmp_path):
    dataset = load("cars3d", REAL, cache_dir=tmp_path)
    assert np.allclose(cars3d.channel_means(dataset), cars3d.PUBLISHED_MEANS, rtol=0, atol=5.1e-6)
    checks = dict(cars3d.verify(dataset))
    assert len(checks) == 3 and all(checks.values())
    (cached,) = tmp_path.glob("cars3d-*.zip")
    assert cached.stat().st_size < 40e6
    assert load("cars3d", REAL, cache_dir=tmp_path).checksum == dataset.checksum
