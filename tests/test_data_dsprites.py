"""dSprites: the drawn set against real images and a slow rasteriser; the reader against hostile files."""

import csv
import hashlib
import io
import math
import pickle
import zipfile
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from drawn_dsprites import drawn
from hypothesis import given, settings
from hypothesis import strategies as st

from isa.data import SourceError, SourceMissingError, dsprites, load

FINGERPRINTS = Path(__file__).parent / "data" / "dsprites_fingerprints.csv"
SMALL = (3, 2, 2, 3, 2)


def unpack(packed: np.ndarray) -> np.ndarray:
    return np.unpackbits(packed, axis=-1).reshape(*packed.shape[:-1], 64, 64)


def test_every_fingerprint_of_a_real_image_matches():
    with FINGERPRINTS.open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 341
    for row in rows:
        place = {name: int(row[name]) for name in ("shape", "scale", "orientation", "x", "y")}
        image = drawn().images(drawn().index(**place))
        packed = np.packbits(image.numpy().astype(np.uint8))
        assert hashlib.sha256(packed.tobytes()).hexdigest()[:16] == row["sha256_16"], place
        assert int(image.sum()) == int(row["pixels"]), place


def test_lit_pixels_of_the_whole_set():
    pixels = dsprites.count_pixels(drawn().storage.numpy())
    assert abs(pixels - dsprites.PUBLISHED_PIXELS) <= 100
    assert f"{pixels:,}" in drawn().provenance.rendering
    assert f"{dsprites.PUBLISHED_PIXELS:,}" in drawn().provenance.rendering


def test_grid():
    dataset = drawn()
    assert dataset.factor_names == ("shape", "scale", "orientation", "x", "y")
    assert dataset.factor_sizes == (3, 6, 40, 32, 32)
    assert len(dataset) == 737_280 and dataset.image_shape == (1, 64, 64)
    assert dataset.nbytes == 737_280 * 512
    assert list(dataset.values["shape"]) == ["square", "ellipse", "heart"]
    assert not dataset.procedural and "re-rendered" in dataset.title
    assert dataset.checksum == dsprites.CHECKSUM
    assert all(holds for _, holds in dsprites.verify(dataset))


def test_positions_and_scales_are_where_they_should_be():
    dataset = drawn()
    columns = torch.arange(64) + 0.5
    for shape, orientation in ((0, 0), (1, 13), (0, 20)):
        images = dataset.images(dataset.index(shape=shape, orientation=orientation, scale=5))[:, 0]
        mass = images.sum(dim=(1, 2))
        x = ((images.sum(dim=1) * columns).sum(dim=1) / mass).reshape(32, 32)
        y = ((images.sum(dim=2) * columns).sum(dim=1) / mass).reshape(32, 32)
        centre = 64 * (0.25 + 0.5 * torch.linspace(0, 1, 32))
        assert torch.allclose(x, centre[:, None].expand(32, 32), atol=0.51)
        assert torch.allclose(y, centre[None, :].expand(32, 32), atol=0.51)
    area = dataset.images(dataset.traversal("scale", shape=0)).sum(dim=(1, 2, 3))
    assert torch.allclose(area, (64 * 0.3 * torch.linspace(0.5, 1, 6)) ** 2, rtol=0.06)


def test_the_last_orientation_is_the_first():
    words = drawn().storage.view(3, 6, 40, 1024, 512)
    assert torch.equal(words[:, :, 39], words[:, :, 0])
    assert not torch.equal(words[:, :, 38], words[:, :, 0])


def slow_raster(vertices: np.ndarray, x: int, y: int) -> np.ndarray:
    """Even-odd rule at every pixel centre, in exact rationals: left and bottom edges belong to the inside."""
    centre = np.array([0.25 + 0.5 * dsprites.POSITIONS[x], 0.25 + 0.5 * dsprites.POSITIONS[y]])
    corners = [tuple(int(v) for v in np.rint((vertex + centre) * 64 * 256)) for vertex in vertices]
    image = np.zeros((64, 64), np.uint8)
    for row in range(64):
        height = 256 * row + 128
        crossings = []
        for (x0, y0), (x1, y1) in zip(corners, corners[1:] + corners[:1], strict=True):
            if min(y0, y1) < height <= max(y0, y1):
                crossings.append(x0 + Fraction((height - y0) * (x1 - x0), y1 - y0))
        for column in range(64):
            image[row, column] = sum(crossing <= 256 * column + 128 for crossing in crossings) % 2
    return image


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2), st.integers(0, 5), st.integers(0, 39), st.integers(0, 31), st.integers(0, 31))
def test_drawing_agrees_with_a_slow_rasteriser(shape, scale, orientation, x, y):
    vertices = dsprites.sprite_vertices(shape, dsprites.SCALES[scale], dsprites.ORIENTATIONS[orientation])
    index = drawn().index(shape=shape, scale=scale, orientation=orientation, x=x, y=y)
    assert np.array_equal(drawn().images(index)[0, 0].numpy(), slow_raster(vertices, x, y))


def test_orientation_turns_counter_clockwise_on_the_screen():
    start = dsprites.sprite_vertices(1, 1.0, 0.0)[0]
    turned = dsprites.sprite_vertices(1, 1.0, math.pi / 2)[0]
    assert np.allclose(start, [0.15 * 1.33, 0.0])
    assert np.allclose(turned, [0.0, -0.15 * 1.33])


def write_npz(path: Path, images: np.ndarray, classes: np.ndarray, **others: np.ndarray) -> str:
    """A file in the published format; gives its MD5."""
    values = classes.astype(np.float64)
    np.savez_compressed(path, imgs=images, latents_classes=classes, latents_values=values, **others)
    return hashlib.md5(path.read_bytes()).hexdigest()


def small_grid() -> tuple[np.ndarray, np.ndarray]:
    """Images and classes of the corner ``SMALL`` of the grid, in C order."""
    classes = np.stack(np.unravel_index(np.arange(math.prod(SMALL)), (1, *SMALL)), axis=1)
    index = np.ravel_multi_index(tuple(classes.T), (1, *dsprites.FACTOR_SIZES))
    return unpack(drawn().storage.numpy()[index]), classes


class Bomb:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_file_in_the_published_format_is_read_and_its_pickle_is_not_touched(tmp_path):
    images, classes = small_grid()
    bomb = np.array({"a": Bomb(tmp_path / "exploded")}, dtype=object)
    md5 = write_npz(tmp_path / "small.npz", images, classes, metadata=bomb)
    packed = dsprites.read_packed(tmp_path / "small.npz", md5=md5, factor_sizes=SMALL)
    assert np.array_equal(unpack(packed), images)
    dsprites.compare(tmp_path / "small.npz", drawn().storage.numpy())
    assert not (tmp_path / "exploded").exists()
    with np.load(tmp_path / "small.npz", allow_pickle=True) as archive:
        archive["metadata"]
    assert (tmp_path / "exploded").exists()


def test_the_loader_takes_nothing_but_the_published_file(tmp_path):
    images, classes = small_grid()
    md5 = write_npz(tmp_path / "small.npz", images, classes)
    with pytest.raises(SourceError, match=rf"small\.npz is not the published file: its MD5 is {md5}"):
        load("dsprites", tmp_path / "small.npz")
    with pytest.raises(SourceMissingError, match="does not exist"):
        load("dsprites", tmp_path / "absent.npz")
    with pytest.raises(FileNotFoundError):
        load("dsprites", tmp_path / "absent.npz")
    with pytest.raises(SourceError, match="is not a file"):
        load("dsprites", tmp_path)


def read_small(path: Path) -> np.ndarray:
    return dsprites.read_packed(path, md5=hashlib.md5(path.read_bytes()).hexdigest(), factor_sizes=SMALL)


def test_files_that_are_no_archives(tmp_path):
    images, classes = small_grid()
    write_npz(tmp_path / "whole.npz", images, classes)
    data = (tmp_path / "whole.npz").read_bytes()
    for name, content in {"empty": b"", "noise": bytes(range(256)) * 9, "truncated": data[: len(data) // 2]}.items():
        path = tmp_path / f"{name}.npz"
        path.write_bytes(content)
        for read in (read_small, lambda path: dsprites.compare(path, drawn().storage.numpy())):
            with pytest.raises(SourceError, match=f"{name}.npz is not a readable zip archive, or is truncated"):
                read(path)


def test_a_damaged_image_is_noticed(tmp_path):
    images, classes = small_grid()
    path = tmp_path / "damaged.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, array in (("imgs", images), ("latents_classes", classes)):
            buffer = io.BytesIO()
            np.save(buffer, array)
            archive.writestr(f"{name}.npy", buffer.getvalue())
    assert np.array_equal(unpack(read_small(path)), images)
    data = bytearray(path.read_bytes())
    data[5000] ^= 1
    path.write_bytes(data)
    with pytest.raises(SourceError, match=r"damaged\.npz .*CRC"):
        read_small(path)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda a: {**a, "imgs": a["imgs"][:-1]}, r"'imgs' in .* must be uint8 of shape \(72, 64, 64\), found"),
        (lambda a: {**a, "imgs": a["imgs"].astype(np.int16)}, "found int16"),
        (lambda a: {**a, "imgs": a["imgs"] * 255}, "must hold 0 and 1 only, found 255"),
        (lambda a: {**a, "imgs": np.asfortranarray(a["imgs"])}, "Fortran order"),
        (lambda a: {**a, "imgs": np.array([{}] * 72, dtype=object)}, "pickled objects, which are never loaded"),
        (lambda a: {**a, "latents_classes": a["latents_classes"][:, 1:]}, r"'latents_classes' in .* \(72, 6\)"),
        (lambda a: {**a, "latents_classes": a["latents_classes"][::-1].copy()}, "C order of the factors"),
        (lambda a: {"imgs": a["imgs"]}, "has no array 'latents_classes'"),
        (lambda a: {"latents_classes": a["latents_classes"]}, "has no array 'imgs'"),
    ],
)
def test_other_arrays_than_the_published(tmp_path, change, text):
    images, classes = small_grid()
    path = tmp_path / "other.npz"
    np.savez_compressed(path, **change({"imgs": images, "latents_classes": classes}))
    with pytest.raises(SourceError, match=text):
        read_small(path)


def write_header(path: Path, header: bytes, body: bytes = b"") -> None:
    classes = io.BytesIO()
    np.save(classes, small_grid()[1])
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("latents_classes.npy", classes.getvalue())
        archive.writestr("imgs.npy", header + body)


def npy_header(shape: str, descr: str = "|u1") -> bytes:
    text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


@pytest.mark.parametrize(
    ("header", "text"),
    [
        (b"PK not an array", "no valid npy header"),
        (b"\x93NUMPY\x09\x00" + b"\x00" * 40, "no valid npy header"),
        (npy_header("(72, 64, 64"), "no valid npy header"),
        (npy_header("__import__('os').abort()"), "no valid npy header"),
        (npy_header("(72, 64, 64)", "|O"), "pickled objects"),
        (npy_header("(10**12, 64, 64)"), "no valid npy header"),
        (npy_header("(1000000000000, 64, 64)"), "found uint8 of shape"),
        (npy_header("(72, 64, 64)"), "does not hold the bytes that its header claims"),
    ],
)
def test_headers_that_lie(tmp_path, header, text):
    path = tmp_path / "lies.npz"
    write_header(path, header)
    with pytest.raises(SourceError, match=text):
        read_small(path)


def test_a_header_cannot_make_the_comparison_allocate(tmp_path):
    path = tmp_path / "huge.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("latents_classes.npy", npy_header("(1000000000000, 6)", "<i8"))
        archive.writestr("imgs.npy", npy_header("(1000000000000, 64, 64)"))
    with pytest.raises(SourceError, match="does not hold the bytes that its header claims"):
        dsprites.compare(path, drawn().storage.numpy())


def test_comparison_counts_and_places_what_differs(tmp_path):
    images, classes = small_grid()
    order = np.random.default_rng(0).permutation(len(images))[:40]
    images, classes = images[order], classes[order]
    md5 = write_npz(tmp_path / "same.npz", images, classes)
    same = dsprites.compare(tmp_path / "same.npz", drawn().storage.numpy())
    assert same == dsprites.Comparison(40, md5, int(images.sum()), int(images.sum()), 0, [])

    changed = images.copy()
    changed[7, 3, 62] ^= 1
    changed[7, 40, 0] ^= 1
    changed[31, 63, 63] ^= 1
    write_npz(tmp_path / "changed.npz", changed, classes)
    result = dsprites.compare(tmp_path / "changed.npz", drawn().storage.numpy())
    assert result.differing_pixels == 3
    assert result.differences == [
        (tuple(classes[7, 1:].tolist()), [(3, 62), (40, 0)]),
        (tuple(classes[31, 1:].tolist()), [(63, 63)]),
    ]
    assert (result.pixels, result.drawn_pixels) == (int(changed.sum()), int(images.sum()))


@pytest.mark.parametrize("bad", [np.full((4, 6), 40), np.full((4, 6), -1), np.zeros((4, 5)), np.zeros(4)])
def test_comparison_refuses_factors_that_are_not_there(tmp_path, bad):
    write_npz(tmp_path / "bad.npz", np.zeros((4, 64, 64), np.uint8), bad.astype(np.int64))
    with pytest.raises(SourceError, match="'latents_classes' in"):
        dsprites.compare(tmp_path / "bad.npz", drawn().storage.numpy())


def test_the_bomb_is_a_bomb(tmp_path):
    pickle.loads(pickle.dumps(Bomb(tmp_path / "exploded")))
    assert (tmp_path / "exploded").exists()
