"""dSprites, drawn from the constants that reproduce every real image checked bit for bit, or read from the real file.

A sprite is a polygon on a canvas of 64 x 64 pixels, x to the right and y down, rasterised without anti-aliasing from
vertices rounded to 1/256 pixel. A row of pixels is one 64-bit word: wherever the polygon's boundary crosses the row's
centre line, all pixels to the right of the crossing are flipped, and what is left set is the inside, for any polygon,
convex or not.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from isa.data._npz import open_archive, read_array, read_blocks, read_shape
from isa.data.base import Factor, FactorDataset, Provenance, SourceError, expand

__all__ = [
    "CHECKSUM",
    "FACTORS",
    "FACTOR_SIZES",
    "PUBLISHED_MD5",
    "PUBLISHED_PIXELS",
    "Comparison",
    "compare",
    "count_pixels",
    "draw_packed",
    "load",
    "read_packed",
    "sprite_rows",
    "sprite_vertices",
    "verify",
]

#: MD5 of the published ``dsprites_ndarray_co1sh3sc6or40x32y32_64x64.npz``.
PUBLISHED_MD5 = "7da33b31b13a06f4b04a70402ce90c2e"
#: Lit pixels of the whole published set.
PUBLISHED_PIXELS = 128_328_862
#: SHA-256 of the whole set as drawn here, packed.
CHECKSUM = "3a228f4037ef3d42a42588e0e01f1078aa2df13cfa17584e88c95ed9fb5672da"

SIDE = 64
SUBPIXELS = 256
SHAPES = ("square", "ellipse", "heart")
FACTOR_SIZES = (3, 6, 40, 32, 32)
SCALES = np.linspace(0.5, 1.0, 6)
ORIENTATIONS = np.linspace(0.0, 2.0 * np.pi, 40)
POSITIONS = np.linspace(0.0, 1.0, 32)
FACTORS = (
    Factor("shape", np.array(SHAPES)),
    Factor("scale", SCALES, "of the largest"),
    Factor("orientation", ORIENTATIONS, "rad"),
    Factor("x", POSITIONS, "of the range, from the left"),
    Factor("y", POSITIONS, "of the range, from the top"),
)

_LICENCE = "Apache License 2.0 (the published file)"
_CITATION = (
    "L. Matthey, I. Higgins, D. Hassabis, A. Lerchner: dSprites: Disentanglement testing Sprites dataset, 2017, "
    "https://github.com/google-deepmind/dsprites-dataset"
)


def sprite_vertices(shape: int, scale: float, orientation: float) -> np.ndarray:
    """Outline of a sprite about its own origin, in units of the canvas (64 pixels), y down.

    Parameters
    ----------
    shape : int
        0 square (side 0.3), 1 ellipse (a regular 100-gon in its parameter), 2 heart (a 150-gon).
    scale : float
        Factor on the vertices.
    orientation : float
        Angle in rad, counter-clockwise on the screen.

    Returns
    -------
    ndarray
        ``(V, 2)``: x and y of the vertices in order.
    """
    if shape == 0:
        outline = 0.15 * np.array([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]])
    elif shape == 1:
        t = 2.0 * np.pi * np.arange(100) / 100
        outline = np.stack([0.15 * 1.33 * np.cos(t), 0.15 / 1.33 * np.sin(t)], axis=1)
    else:
        t = 2.0 * np.pi * np.arange(150) / 150
        x = 0.3 * 16.0 * np.sin(t) ** 3 / 32.0
        y_up = 0.3 * ((13.0 * np.cos(t) - 5.0 * np.cos(2 * t) - 2.0 * np.cos(3 * t) - np.cos(4 * t)) / 29.0 + 0.075)
        outline = np.stack([x, -y_up], axis=1)
    cos, sin = math.cos(orientation), math.sin(orientation)
    return scale * outline @ np.array([[cos, -sin], [sin, cos]])


def sprite_rows(vertices: np.ndarray, pos_x: np.ndarray = POSITIONS, pos_y: np.ndarray = POSITIONS) -> np.ndarray:
    """Raster a sprite at every combination of positions.

    Parameters
    ----------
    vertices : ndarray
        What :func:`sprite_vertices` gave.
    pos_x, pos_y : ndarray
        ``(X,)`` and ``(Y,)`` positions in [0, 1], from the left and from the top.

    Returns
    -------
    ndarray
        ``uint64`` ``(X, Y, 64)``: a word a row of pixels, the leftmost pixel in the highest bit.
    """
    centres_x, centres_y = (0.25 + 0.5 * np.asarray(positions)[:, None] for positions in (pos_x, pos_y))
    x = np.rint((vertices[:, 0] + centres_x) * (SIDE * SUBPIXELS)).astype(np.int32)  # (X, V)
    y = np.rint((vertices[:, 1] + centres_y) * (SIDE * SUBPIXELS)).astype(np.int32)  # (Y, V)
    x_next, y_next = np.roll(x, -1, axis=1), np.roll(y, -1, axis=1)

    # Rows whose centre line (r + 1/2) an edge crosses; a centre on the upper end is outside, on the lower end inside.
    half = SUBPIXELS // 2
    first = (np.minimum(y, y_next) - half) // SUBPIXELS + 1
    stop = (np.maximum(y, y_next) - half) // SUBPIXELS + 1
    count = stop - first  # (Y, V)
    place, edge = np.nonzero(count)
    repeats = count[place, edge]
    ends = np.cumsum(repeats)
    row = np.repeat(first[place, edge] - ends + repeats, repeats) + np.arange(ends[-1], dtype=np.int32)
    place, edge = np.repeat(place, repeats), np.repeat(edge, repeats)
    line = (place * SIDE + row).astype(np.int32)
    order = np.argsort(line, kind="stable")
    line, place, edge, row = line[order], place[order], edge[order], row[order]

    # Crossing at x + (centre - y) (x' - x) / (y' - y); the first pixel right of it, or on it, in exact integers.
    y0 = y[place, edge]
    dy = y_next[place, edge] - y0
    sign = np.sign(dy)
    dy = dy * sign
    offset = (row * SUBPIXELS + half - y0) * sign
    dx = (x_next - x).T[edge]  # (crossings, X)
    numerator = (x.T[edge] - half) * dy[:, None] + offset[:, None] * dx
    column = -(-numerator // (dy * SUBPIXELS)[:, None])
    masks = np.right_shift(np.uint64(2**64 - 1), column.astype(np.uint64))

    starts = np.flatnonzero(np.diff(line, prepend=-1))
    rows = np.zeros((len(x), len(y) * SIDE), np.uint64)
    rows[:, line[starts]] = np.bitwise_xor.reduceat(masks, starts, axis=0).T
    return rows.reshape(len(x), len(y), SIDE)


def draw_packed(*, progress: bool = False) -> np.ndarray:
    """Draw all 737,280 images.

    Returns
    -------
    ndarray
        ``uint8`` ``(737280, 512)``: the bits of every image, row by row, as :func:`numpy.packbits` packs them.
    """
    sprites = [(shape, scale, angle) for shape in range(3) for scale in SCALES for angle in ORIENTATIONS]
    words = np.empty((len(sprites), 32, 32, SIDE), ">u8")

    def draw(number: int) -> None:
        words[number] = sprite_rows(sprite_vertices(*sprites[number]))

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in tqdm(pool.map(draw, range(len(sprites))), "dSprites", len(sprites), disable=not progress):
            pass
    return words.view(np.uint8).reshape(-1, SIDE * SIDE // 8)


def count_pixels(packed: np.ndarray) -> int:
    """Number of lit pixels of packed images."""
    return int(np.bitwise_count(np.ascontiguousarray(packed).view(np.uint64)).sum(dtype=np.int64))


def load(
    source: str | os.PathLike[str] | None = None,
    *,
    cache_dir: str | os.PathLike[str] | None = None,
    progress: bool = False,
) -> FactorDataset:
    """dSprites: drawn, or read from the published file; see :func:`isa.data.load`.

    The factor *color* of the file has one value and is left out. Drawing takes less time than reading a file of
    the same images would, so that nothing is cached and ``cache_dir`` is not used.
    """
    if source is None:
        packed = draw_packed(progress=progress)
        provenance = Provenance(
            source="drawn by isa.data.dsprites",
            licence=_LICENCE,
            citation=_CITATION,
            rendering=(
                "Re-rendered from recovered constants; pixel-exact on every real image checked; "
                f"{count_pixels(packed):,} lit pixels where the published file has {PUBLISHED_PIXELS:,}."
            ),
            procedural=False,
        )
        title = "dSprites (re-rendered)"
    else:
        path = expand(source)
        packed = read_packed(path, progress=progress)
        provenance = Provenance(
            source=str(path),
            licence=_LICENCE,
            citation=_CITATION,
            rendering="The published images.",
            procedural=False,
            source_checksum=f"md5:{PUBLISHED_MD5}",
        )
        title = "dSprites"
    storage = torch.from_numpy(packed)
    return FactorDataset("dsprites", title, FACTORS, storage, provenance, image_shape=(1, SIDE, SIDE), packed=True)


def verify(dataset: FactorDataset) -> Iterator[tuple[str, bool]]:
    """Checks of the images in memory, each a sentence and whether it holds."""
    checksum = dataset.checksum
    yield f"SHA-256 of the images, {checksum}, is the one recorded for the images as drawn here", checksum == CHECKSUM
    pixels = count_pixels(dataset.storage.cpu().numpy())
    yield (
        f"lit pixels, {pixels:,}, differ from the published {PUBLISHED_PIXELS:,} by at most 100",
        abs(pixels - PUBLISHED_PIXELS) <= 100,
    )


def read_packed(
    path: Path,
    *,
    md5: str = PUBLISHED_MD5,
    factor_sizes: tuple[int, ...] = FACTOR_SIZES,
    progress: bool = False,
) -> np.ndarray:
    """Read the images of a file in the published format.

    Parameters
    ----------
    path : Path
        ``.npz`` with ``imgs`` ``(N, 64, 64)`` ``uint8`` and ``latents_classes`` ``(N, 6)`` ``int64``. Its pickled
        ``metadata`` is never touched.
    md5 : str
        What the file's MD5 has to be.
    factor_sizes : tuple of int
        Sizes of the factors behind *color*; ``N`` is their product.
    progress : bool
        Show a progress bar.

    Returns
    -------
    ndarray
        ``uint8`` ``(N, 512)``, packed.

    Raises
    ------
    SourceError
        Where the file is missing, truncated, not the published one, or holds other arrays.
    """
    n = math.prod(factor_sizes)
    with open_archive(path) as archive:
        found = _md5(path)
        if found != md5:
            raise SourceError(f"{path} is not the published file: its MD5 is {found} and should be {md5}")
        classes = read_array(archive, "latents_classes.npy", (n, 6), np.int64)
        expected = np.stack(np.unravel_index(np.arange(n), (1, *factor_sizes)), axis=1)
        if not np.array_equal(classes, expected):
            raise SourceError(f"{path} does not hold its images in C order of the factors")
        packed = np.empty((n, SIDE * SIDE // 8), np.uint8)
        with tqdm(desc="dSprites", total=n, disable=not progress) as bar:
            for low, block in _image_blocks(archive, n):
                packed[low : low + len(block)] = block
                bar.update(len(block))
    return packed


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _image_blocks(archive, n: int) -> Iterator[tuple[int, np.ndarray]]:
    """Packed images of ``imgs``, block by block, each with the number of its first."""
    low = 0
    for block in read_blocks(archive, "imgs.npy", (n, SIDE, SIDE), np.uint8):
        if block.max(initial=0) > 1:
            raise SourceError(f"'imgs' in {archive.filename} must hold 0 and 1 only, found {block.max()}")
        yield low, np.packbits(block.reshape(len(block), -1), axis=1)
        low += len(block)


@dataclass(frozen=True)
class Comparison:
    """A file in the published format against the images drawn here.

    Attributes
    ----------
    images : int
        Number of images in the file.
    md5 : str
        MD5 of the file.
    pixels, drawn_pixels : int
        Lit pixels of the file's images and of the same images as drawn here.
    differing_pixels : int
        Pixels that are lit in one and not in the other.
    differences : list of tuple
        For every image that differs its factor indices and the ``(row, column)`` of every pixel that does.
    """

    images: int
    md5: str
    pixels: int
    drawn_pixels: int
    differing_pixels: int
    differences: list[tuple[tuple[int, ...], list[tuple[int, int]]]]


def compare(path: str | os.PathLike[str], packed: np.ndarray, *, progress: bool = False) -> Comparison:
    """Compare a file in the published format with the drawn images, image by image.

    Parameters
    ----------
    path : path
        ``.npz`` as :func:`read_packed` takes, with any number of images in any order: ``latents_classes`` says which.
    packed : ndarray
        The drawn images, ``(737280, 512)``, see :func:`draw_packed`.
    progress : bool
        Show a progress bar.

    Raises
    ------
    SourceError
        Where the file is missing, truncated or in another format.
    """
    path = expand(path)
    with open_archive(path) as archive:
        shape = read_shape(archive, "latents_classes.npy")
        if len(shape) != 2 or shape[1] != 6:
            raise SourceError(f"'latents_classes' in {path} must have shape (N, 6), found {shape}")
        n = shape[0]
        classes = read_array(archive, "latents_classes.npy", (n, 6), np.int64)
        if n and ((classes < 0) | (classes >= np.array((1, *FACTOR_SIZES)))).any():
            raise SourceError(f"'latents_classes' in {path} must lie below the factors' sizes {(1, *FACTOR_SIZES)}")
        index = np.ravel_multi_index(tuple(classes.T), (1, *FACTOR_SIZES))
        pixels = drawn_pixels = differing_pixels = 0
        differences = []
        with tqdm(desc="comparing", total=n, disable=not progress) as bar:
            for low, block in _image_blocks(archive, n):
                drawn = packed[index[low : low + len(block)]]
                pixels += count_pixels(block)
                drawn_pixels += count_pixels(drawn)
                difference = block ^ drawn
                differing_pixels += count_pixels(difference)
                for image in np.flatnonzero(difference.any(axis=1)):
                    where = np.argwhere(np.unpackbits(difference[image]).reshape(SIDE, SIDE))
                    differences.append((tuple(classes[low + image, 1:].tolist()), [tuple(p) for p in where.tolist()]))
                bar.update(len(block))
    return Comparison(n, _md5(path), pixels, drawn_pixels, differing_pixels, differences)
