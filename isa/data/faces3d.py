"""3D faces: the published renders from a file, or procedural heads under a moving lamp.

The published images are renders of a licensed face model (Paysan et al. 2009) on the grid 50 identities x 21 azimuths
x 11 elevations x 11 lightings, 64 x 64 pixels in grey, and are not distributed here. Without a source :func:`load`
draws a stand-in on the same grid: this project's own heads (``isa.data._head``), seen by a perspective camera.

The stand-in's factors are

- **identity** 0 to 49: coefficients drawn once with a fixed seed from ``identity_covariance`` there;
- **azimuth** -90 to 90 degrees in steps of 9: the head turns about its vertical axis, to the right if positive;
- **elevation** -30 to 30 degrees in steps of 6: the camera rises, and sees the head from above if positive;
- **lighting** -75 to 75 degrees in steps of 15: azimuth of the lamp, right of the camera if positive and always 25
  degrees above it. The lamp stays with the camera while the head turns.

The lamp is a lobe of about 13 degrees half width, so shadows have soft edges. Each vertex knows which of 128 directions
it sees past the rest of the head, which gives the shadows of nose, brow and chin, and darkens hollows in the ambient
light. Highlights follow Blinn and Phong.
"""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.io import loadmat
from tqdm import tqdm

from isa.data import _head, _render
from isa.data._render import Array
from isa.data.base import Factor, FactorDataset, Provenance, SourceError, StrPath, expand, reading
from isa.data.cache import cached_array

__all__ = ["AZIMUTHS", "ELEVATIONS", "FACTORS", "FACTOR_SIZES", "LIGHTINGS", "PROVENANCE", "SHAPE", "SIDE", "TITLE"]
__all__ += ["draw_faces", "identities", "load", "read_faces"]

SIDE = 64
FACTOR_SIZES = (50, 21, 11, 11)
SHAPE = (*FACTOR_SIZES, SIDE, SIDE)
AZIMUTHS = np.linspace(-90.0, 90.0, 21)
ELEVATIONS = np.linspace(-30.0, 30.0, 11)
LIGHTINGS = np.linspace(-75.0, 75.0, 11)

_CITATION = (
    "P. Paysan, R. Knothe, B. Amberg, S. Romdhani, T. Vetter: A 3D Face Model for Pose and Illumination Invariant "
    "Face Recognition. Advanced Video and Signal Based Surveillance, 296-301, 2009"
)
#: Factors, title and provenance of the stand-in.
FACTORS = (
    Factor("identity", np.arange(50)),
    Factor("azimuth", AZIMUTHS, "degrees"),
    Factor("elevation", ELEVATIONS, "degrees"),
    Factor("lighting", LIGHTINGS, "degrees"),
)
TITLE = "3D faces (procedural stand-in)"
PROVENANCE = Provenance(
    "drawn by isa.data.faces3d",
    "MIT, as this package",
    _CITATION,
    "Procedural heads drawn for this project on the published grid of 50 identities, 21 azimuths, 11 elevations and 11 "
    "lightings; no image is a published one.",
    procedural=True,
)

_SEED = 2009
_SAMPLES = 3  # per pixel and direction
_LAMP_ELEVATION = 25.0
_LAMP_CONCENTRATION = 18.0
_DIRECTIONS = 128
_PIVOT = (0.0, -1.6, -1.0)  # point that the camera looks at, cm
_DISTANCE = 75.0  # camera to pivot, cm
_HALF_FRAME = 15.6  # half the frame's width at the pivot, cm
_LAMP, _AMBIENT, _HIGHLIGHT, _SHININESS = 1.6, 0.17, 0.11, 24.0
_SHADOW_RESOLUTION, _SHADOW_BIAS = 112, 0.35


class _LitHead:
    """A head, with the light that reaches its vertices from every direction."""

    def __init__(self, head: _head.Head) -> None:
        self.directions = _render.sphere_directions(_DIRECTIONS)
        seen = _render.visibility(head.mesh, self.directions, _SHADOW_RESOLUTION, _SHADOW_BIAS)
        self.transfer = _render.transfer(head.mesh, self.directions, seen)
        self.ambient = self.transfer.mean(1, keepdims=True) * (4 * _AMBIENT)
        self.mesh, self.albedo, self.gloss = head.mesh, head.albedo, head.gloss

    def draw(self, azimuth: float, elevation: float, lightings: NDArray[np.floating], side: int) -> NDArray[np.uint8]:
        """Return pictures (lightings, side, side) of one pose."""
        turn = _rotation(azimuth, elevation)
        x, y, depth = _project(self.mesh.vertices, turn, side * _SAMPLES)
        fragments = _render.rasterise(x, y, depth, self.mesh.triangles, side * _SAMPLES)

        # shade only the vertices that are seen
        used = np.zeros(len(x), bool)
        used[fragments.corners] = True
        corners = (np.cumsum(used) - 1)[fragments.corners]
        fragments = _render.Fragments(fragments.sample, corners, fragments.weights)

        lamps = _lamps(lightings) @ turn
        lobes = _render.lobe(self.directions, lamps, _LAMP_CONCENTRATION)
        light = _render.product(self.transfer[used], lobes)
        normals = self.mesh.normals[used]
        view = np.array([0, 0, _DISTANCE], np.float32) @ turn + np.array(_PIVOT, np.float32) - self.mesh.vertices[used]
        view /= np.sqrt((view * view).sum(1, keepdims=True))
        # n.h / |h| with h = view + lamp, without forming h
        half = (normals * view).sum(1, keepdims=True) + _render.product(normals, lamps.T)
        half /= np.sqrt(np.maximum(2 + 2 * _render.product(view, lamps.T), 1e-3))
        np.maximum(half, 1e-3, out=half)
        highlight = np.exp(np.log(half, out=half) * _SHININESS, out=half)
        tone = self.albedo[used, None] * (light * _LAMP + self.ambient[used])
        tone += self.gloss[used, None] * _HIGHLIGHT * highlight * light
        picture = _render.resolve(fragments, _render.interpolate(fragments, tone), side, _SAMPLES)
        level = np.sqrt(-np.expm1(-picture * 1.6))  # a soft shoulder below white, and gamma 2
        return np.rint(level * 255).astype(np.uint8).transpose(2, 0, 1)


def _rotation(azimuth: float, elevation: float) -> Array:
    """Return the rotation from the head's coordinates to the camera's."""
    a, e = np.deg2rad([azimuth, elevation])
    turn = np.array([[np.cos(a), 0, np.sin(a)], [0, 1, 0], [-np.sin(a), 0, np.cos(a)]])
    tilt = np.array([[1, 0, 0], [0, np.cos(e), -np.sin(e)], [0, np.sin(e), np.cos(e)]])
    return (tilt @ turn).astype(np.float32)


def _project(vertices: Array, turn: Array, size: int) -> tuple[Array, Array, Array]:
    """Project onto a picture of ``size`` samples: x to the right, y down, and a depth that grows with distance."""
    points = _render.product(vertices - np.array(_PIVOT, np.float32), turn.T)
    nearness = size / 2 / _HALF_FRAME * _DISTANCE / (_DISTANCE - points[:, 2])
    return size / 2 + points[:, 0] * nearness, size / 2 - points[:, 1] * nearness, -nearness


def _lamps(lightings: NDArray[np.floating]) -> Array:
    """Return unit vectors (L, 3) from the head to the lamp, in the camera's coordinates."""
    a, e = np.deg2rad(lightings), np.deg2rad(_LAMP_ELEVATION)
    return np.stack([np.sin(a) * np.cos(e), np.full_like(a, np.sin(e)), np.cos(a) * np.cos(e)], 1).astype(np.float32)


def identities() -> NDArray[np.float64]:
    """Return the coefficients (50, 21) of the data set's identities."""
    return _head.draw_identities(FACTOR_SIZES[0], _SEED)


def draw_faces(
    coefficients: Array,
    azimuths: Array = AZIMUTHS,
    elevations: Array = ELEVATIONS,
    lightings: Array = LIGHTINGS,
    *,
    side: int = SIDE,
    progress: bool = False,
) -> NDArray[np.uint8]:
    """Draw heads under every combination of pose and light.

    Identities are ``coefficients`` (I, 21), in standard deviations in the order of ``isa.data._head.COEFFICIENTS``;
    angles are in degrees. The pictures are ``uint8`` ``(I, azimuths, elevations, lightings, side, side)``.
    """
    images = np.empty((len(coefficients), len(azimuths), len(elevations), len(lightings), side, side), np.uint8)

    def draw(identity: int) -> None:
        head = _LitHead(_head.build_head(coefficients[identity]))
        for i, azimuth in enumerate(azimuths):
            for j, elevation in enumerate(elevations):
                images[identity, i, j] = head.draw(azimuth, elevation, lightings, side)

    with ThreadPoolExecutor(min(os.cpu_count() or 1, 8)) as pool:
        drawn = pool.map(draw, range(len(coefficients)))
        list(tqdm(drawn, "drawing heads", len(coefficients), unit="head", disable=not progress))
    return images


def read_faces(path: StrPath, shape: tuple[int, ...] = SHAPE) -> NDArray[np.uint8]:
    """Read the published renders, ``uint8`` of ``shape``.

    The file has one tensor, ``.pth`` or ``.pt`` (as ``basel_face_renders.pth`` has), or one array: ``.npy``, ``.npz``,
    or ``.mat`` up to version 7.
    """
    path, suffix = Path(path), Path(path).suffix.lower()
    with reading(path, "a .pth, .pt, .npy, .npz or .mat file with one array") as file:
        if suffix in (".pth", ".pt"):
            arrays = [torch.load(file, map_location="cpu", weights_only=True).numpy()]
        elif suffix == ".mat":
            arrays = [array for name, array in loadmat(file).items() if not name.startswith("__")]
        else:
            loaded = np.load(file, allow_pickle=False)
            arrays = loaded.values() if suffix == ".npz" else [loaded]
        (images,) = arrays
        if images.shape != shape or images.dtype != np.uint8:
            raise SourceError(f"{path} must hold uint8 {shape}, got {images.dtype} {images.shape}")
    return images


def load(source: StrPath | None = None, *, cache_dir: StrPath | None = None, progress: bool = False) -> FactorDataset:
    """Draw the stand-in, or read the published renders (see :func:`read_faces`); see :func:`isa.load`."""
    if source is None:
        numbers, *angles = (factor.values for factor in FACTORS)
        shape = (*(factor.size for factor in FACTORS), SIDE, SIDE)
        code = b"".join(Path(file).read_bytes() for file in (__file__, _head.__file__, _render.__file__))
        draw = partial(draw_faces, identities()[numbers], *angles, progress=progress)
        key = hashlib.sha256(code).hexdigest()[:16]
        images = cached_array("faces3d", key, draw, shape=shape, cache_dir=cache_dir)
        return FactorDataset.from_array("faces3d", TITLE, FACTORS, images, PROVENANCE)
    path = expand(source)
    images = read_faces(path, SHAPE)
    checksum = hashlib.sha256(path.read_bytes()).hexdigest()
    licence = "the Basel Face Model's licence: for non-commercial research, not to be passed on"
    rendering = "Read from the file as it is; the angles behind the indices are not published with it."
    provenance = Provenance(str(path), licence, _CITATION, rendering, False, f"sha256:{checksum}")
    factors = [Factor(factor.name, np.arange(size)) for factor, size in zip(FACTORS, FACTOR_SIZES, strict=True)]
    return FactorDataset.from_array("faces3d", "3D faces", factors, images, provenance)
