"""dSprites, read from the published file or drawn: every published image that was checked is reproduced bit for bit.

A sprite is a polygon on a canvas of 64 x 64 pixels, x to the right and y down, rasterised without anti-aliasing from
vertices rounded to 1/256 pixel. A row of pixels is one 64-bit word. Wherever the polygon's boundary crosses the row's
centre line, all pixels to the right of the crossing are flipped; the pixels that remain set are the inside of the
polygon, convex or not.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from isa.data.base import Factor, FactorDataset, Provenance, SourceError, StrPath, expand, reading

__all__ = ["CHECKSUM", "FACTORS", "FACTOR_SIZES", "PUBLISHED_MD5", "PUBLISHED_PIXELS", "compare"]
__all__ += ["count_pixels", "draw_packed", "load", "read_packed", "sprite_rows", "sprite_vertices", "verify"]

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
    """Return the vertices ``(V, 2)`` of a sprite about its own origin, in units of the canvas (64 pixels), y down.

    ``shape`` is 0 for a square (side 0.3), 1 for an ellipse (a 100-gon, regular in its parameter), 2 for a heart (a
    150-gon); ``scale`` multiplies the vertices; ``orientation`` is in rad, counter-clockwise on the screen.
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
    """Rasterise an outline from :func:`sprite_vertices` at every combination of positions.

    ``pos_x`` ``(X,)`` and ``pos_y`` ``(Y,)`` are in [0, 1], from the left and from the top. The result is ``uint64``
    ``(X, Y, 64)``: one word for each row of pixels, the leftmost pixel in the highest bit.
    """
    centres_x, centres_y = (0.25 + 0.5 * np.asarray(positions)[:, None] for positions in (pos_x, pos_y))
    x = np.rint((vertices[:, 0] + centres_x) * (SIDE * SUBPIXELS)).astype(np.int32)  # (X, V)
    y = np.rint((vertices[:, 1] + centres_y) * (SIDE * SUBPIXELS)).astype(np.int32)  # (Y, V)
    x_next, y_next = np.roll(x, -1, axis=1), np.roll(y, -1, axis=1)

    # Rows whose centre line (r + 1/2) an edge crosses; a centre on the upper end is outside, on the lower end inside.
    half = SUBPIXELS // 2
    first = (np.minimum(y, y_next) - half) // SUBPIXELS + 1
    count = (np.maximum(y, y_next) - half) // SUBPIXELS + 1 - first  # (Y, V)
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
    offset = (row * SUBPIXELS + half - y0) * np.sign(dy)
    dy = np.abs(dy)
    numerator = (x.T[edge] - half) * dy[:, None] + offset[:, None] * (x_next - x).T[edge]  # (crossings, X)
    column = -(-numerator // (dy * SUBPIXELS)[:, None])
    masks = np.right_shift(np.uint64(2**64 - 1), column.astype(np.uint64))

    starts = np.flatnonzero(np.diff(line, prepend=-1))
    rows = np.zeros((len(x), len(y), SIDE), np.uint64)
    rows.reshape(len(x), -1)[:, line[starts]] = np.bitwise_xor.reduceat(masks, starts, axis=0).T
    return rows


def draw_packed() -> np.ndarray:
    """Draw all images: ``uint8`` ``(737280, 512)``, the bits of every image in the order of :func:`numpy.packbits`."""
    sprites = [(shape, scale, angle) for shape in range(3) for scale in SCALES for angle in ORIENTATIONS]
    words = np.empty((len(sprites), 32, 32, SIDE), ">u8")

    def draw(number: int) -> None:
        words[number] = sprite_rows(sprite_vertices(*sprites[number]))

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(draw, range(len(sprites))))
    return words.view(np.uint8).reshape(-1, SIDE * SIDE // 8)


def count_pixels(packed: np.ndarray) -> int:
    """Return the number of lit pixels of packed images."""
    return int(np.bitwise_count(np.ascontiguousarray(packed).view(np.uint64)).sum(dtype=np.int64))


def load(source: StrPath | None = None, *, cache_dir: StrPath | None = None, progress: bool = False) -> FactorDataset:
    """Draw dSprites, or read the published file; see :func:`isa.load`.

    The factor *color* of the file has one value and is left out. The set is drawn in about a second, faster than it
    could be read from a cache, so ``cache_dir`` and ``progress`` are not used.
    """
    if source is None:
        packed, title = draw_packed(), "dSprites (re-rendered)"
        rendering = "Re-rendered from recovered constants; pixel-exact on every real image checked; "
        rendering += f"{count_pixels(packed):,} lit pixels where the published file has {PUBLISHED_PIXELS:,}."
        provenance = Provenance("drawn by isa.data.dsprites", _LICENCE, _CITATION, rendering, False)
    else:
        source = expand(source)
        packed, title = read_packed(source), "dSprites"
        checksum = f"md5:{PUBLISHED_MD5}"
        provenance = Provenance(str(source), _LICENCE, _CITATION, "The published images.", False, checksum)
    storage = torch.from_numpy(packed)
    return FactorDataset("dsprites", title, FACTORS, storage, provenance, image_shape=(1, SIDE, SIDE), packed=True)


def verify(dataset: FactorDataset) -> Iterator[tuple[str, bool]]:
    """Yield checks of the images in memory, each as a sentence and its result."""
    checksum, pixels = dataset.checksum, count_pixels(dataset.storage.cpu().numpy())
    yield f"SHA-256 of the images, {checksum}, is the one recorded for the images as drawn here", checksum == CHECKSUM
    close = abs(pixels - PUBLISHED_PIXELS) <= 100
    yield f"lit pixels, {pixels:,}, differ from the published {PUBLISHED_PIXELS:,} by at most 100", close


def read_packed(path: Path) -> np.ndarray:
    """Read the published ``.npz`` file as in :func:`draw_packed`; needs 3.5 GB of memory and skips pickled metadata."""
    with reading(path, "the published file") as file:
        md5 = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
        if md5 != PUBLISHED_MD5:
            raise SourceError(f"{path} is not the published file: its MD5 is {md5} and should be {PUBLISHED_MD5}")
        file.seek(0)
        return _pack(np.load(file, allow_pickle=False)["imgs"])


def _pack(images: np.ndarray) -> np.ndarray:
    return np.packbits(images.reshape(len(images), -1), axis=1)


def compare(path: StrPath, packed: np.ndarray) -> np.ndarray:
    """Return the pixels in which a file in the published format differs from the images of :func:`draw_packed`.

    The ``.npz`` file has ``imgs`` ``(N, 64, 64)``, 0 or 1, any number in any order, and ``latents_classes`` ``(N, 6)``,
    the index of *color* and their factor indices. The result is ``(D, 7)``: five factor indices, row and column.
    """
    path = expand(path)
    with reading(path, "an .npz file with the arrays imgs and latents_classes of dSprites") as file:
        archive = np.load(file, allow_pickle=False)
        classes = archive["latents_classes"]
        difference = _pack(archive["imgs"]) ^ packed[np.ravel_multi_index(tuple(classes.T), (1, *FACTOR_SIZES))]
    images = np.flatnonzero(difference.any(axis=1))
    which, pixels = np.nonzero(np.unpackbits(difference[images], axis=1))
    return np.column_stack([classes[images[which], 1:], *np.divmod(pixels, SIDE)])
