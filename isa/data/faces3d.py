"""3D faces: a procedural morphable head under a lamp that moves, or the real renders from a file.

The published images are renders of a licensed face model (Paysan et al. 2009) on the grid 50 identities x 21 azimuths
x 11 elevations x 11 lightings, 64 x 64 pixels in grey, and are not distributed here. Without a source :func:`load`
draws a stand-in on the same grid: heads of this project's own (``isa.data._head``), seen by a perspective camera.

The set-up of the stand-in:

- **identity** 0 to 49: coefficients drawn once with a fixed seed from ``identity_covariance`` there;
- **azimuth** -90 to 90 degrees in steps of 9: the head turns about its vertical axis, at positive angles towards the
  right of the picture;
- **elevation** -30 to 30 degrees in steps of 6: the camera rises, so at positive angles the head is seen from above;
- **lighting** -75 to 75 degrees in steps of 15: azimuth of the lamp, right of the camera at positive angles and always
  25 degrees above it. The lamp keeps its place beside the camera while the head turns.

Light is a lobe of about 13 degrees half width, so shadows have soft edges; each vertex knows which of 128 directions
it sees past the rest of the head, which gives shadows of the nose, brow and chin, and the darkening of hollows in the
ambient light. Highlights follow Blinn and Phong.
"""

from __future__ import annotations

import hashlib
import io
import math
import os
import pickletools
import re
import sys
import warnings
from pathlib import Path
from typing import IO

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from tqdm import tqdm

from isa.data import _head, _mat, _render
from isa.data._npz import open_archive, read_array, read_header, read_member
from isa.data.base import Factor, FactorDataset, Provenance, SourceError, SourceMissingError, expand
from isa.data.cache import cached_array, key_of

__all__ = [
    "AZIMUTHS",
    "ELEVATIONS",
    "FACTOR_NAMES",
    "FACTOR_SIZES",
    "LIGHTINGS",
    "SHAPE",
    "SIDE",
    "draw_faces",
    "load",
    "read_faces",
]

SIDE = 64
FACTOR_NAMES = ("identity", "azimuth", "elevation", "lighting")
FACTOR_SIZES = (50, 21, 11, 11)
SHAPE = (*FACTOR_SIZES, SIDE, SIDE)
AZIMUTHS = np.linspace(-90.0, 90.0, 21)
ELEVATIONS = np.linspace(-30.0, 30.0, 11)
LIGHTINGS = np.linspace(-75.0, 75.0, 11)

_CITATION = (
    "P. Paysan, R. Knothe, B. Amberg, S. Romdhani, T. Vetter: A 3D Face Model for Pose and Illumination Invariant "
    "Face Recognition. Advanced Video and Signal Based Surveillance, 296-301, 2009"
)
_SEED = 2009
_SAMPLES = 3  # per pixel and direction
_LAMP_ELEVATION = 25.0
_LAMP_CONCENTRATION = 18.0
_DIRECTIONS = 128
_PIVOT = (0.0, -1.6, -1.0)  # what the camera looks at, cm
_DISTANCE = 75.0  # camera to pivot, cm
_HALF_FRAME = 15.6  # half the frame's width at the pivot, cm
_LAMP, _AMBIENT, _HIGHLIGHT, _SHININESS = 1.6, 0.17, 0.11, 24.0
_SHADOW_RESOLUTION, _SHADOW_BIAS = 112, 0.35


class _LitHead:
    """A head with the light that reaches its vertices from every direction."""

    def __init__(self, head: _head.Head) -> None:
        self.directions = _render.sphere_directions(_DIRECTIONS)
        seen = _render.visibility(head.mesh, self.directions, _SHADOW_RESOLUTION, _SHADOW_BIAS)
        self.transfer = _render.transfer(head.mesh, self.directions, seen)
        self.ambient = self.transfer.mean(1, keepdims=True) * (4 * _AMBIENT)
        self.mesh, self.albedo, self.gloss = head.mesh, head.albedo, head.gloss

    def draw(self, azimuth: float, elevation: float, lightings: NDArray[np.floating], side: int) -> NDArray[np.uint8]:
        """Pictures (lightings, side, side) of one pose."""
        turn = _rotation(azimuth, elevation)
        x, y, depth = _project(self.mesh.vertices, turn, side * _SAMPLES)
        fragments = _render.rasterise(x, y, depth, self.mesh.triangles, side * _SAMPLES)

        # only the vertices that are seen are shaded
        used = np.zeros(len(x), bool)
        used[fragments.corners] = True
        used = np.flatnonzero(used)
        number = np.empty(len(x), np.int32)
        number[used] = np.arange(used.size, dtype=np.int32)
        fragments = _render.Fragments(fragments.sample, number[fragments.corners], fragments.weights)

        lamps = _lamps(lightings) @ turn
        lobes = _render.lobe(self.directions, lamps, _LAMP_CONCENTRATION)
        light = _render.product(self.transfer[used], lobes)
        normals = self.mesh.normals[used]
        view = np.float32([0, 0, _DISTANCE]) @ turn + np.float32(_PIVOT) - self.mesh.vertices[used]
        view /= np.sqrt((view * view).sum(1, keepdims=True))
        # n.h / |h| with h = view + lamp, without forming h
        half = (normals * view).sum(1, keepdims=True) + _render.product(normals, lamps.T)
        half /= np.sqrt(np.maximum(2 + 2 * _render.product(view, lamps.T), 1e-3))
        np.maximum(half, 1e-3, out=half)
        highlight = np.exp(np.log(half, out=half) * _SHININESS, out=half)
        tone = self.albedo[used, None] * (light * _LAMP + self.ambient[used])
        tone += self.gloss[used, None] * _HIGHLIGHT * highlight * light
        picture = _render.resolve(fragments, _render.interpolate(fragments, tone), side, _SAMPLES)
        return _tone_map(picture).transpose(2, 0, 1)


def _rotation(azimuth: float, elevation: float) -> NDArray[np.float32]:
    """From the head's coordinates to the camera's."""
    a, e = np.deg2rad([azimuth, elevation])
    turn = np.array([[np.cos(a), 0, np.sin(a)], [0, 1, 0], [-np.sin(a), 0, np.cos(a)]])
    tilt = np.array([[1, 0, 0], [0, np.cos(e), -np.sin(e)], [0, np.sin(e), np.cos(e)]])
    return (tilt @ turn).astype(np.float32)


def _project(
    vertices: _render.Array, turn: NDArray[np.float32], size: int
) -> tuple[_render.Array, _render.Array, _render.Array]:
    """Perspective: x to the right and y down in a picture of ``size`` samples, and a depth that grows with distance."""
    points = _render.product(vertices - np.float32(_PIVOT), turn.T)
    nearness = size / 2 / _HALF_FRAME * _DISTANCE / (_DISTANCE - points[:, 2])
    return size / 2 + points[:, 0] * nearness, size / 2 - points[:, 1] * nearness, -nearness


def _lamps(lightings: NDArray[np.floating]) -> NDArray[np.float32]:
    """Unit vectors (L, 3) from the head to the lamp, in the camera's coordinates."""
    a, e = np.deg2rad(np.asarray(lightings, np.float64)), np.deg2rad(_LAMP_ELEVATION)
    lamps = np.stack([np.sin(a) * np.cos(e), np.full_like(a, np.sin(e)), np.cos(a) * np.cos(e)], axis=1)
    return lamps.astype(np.float32)


def _tone_map(light: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Grey levels of linear light: a soft shoulder below white, and the display's curve (gamma 2)."""
    level = np.sqrt(-np.expm1(-light * 1.6))
    return np.rint(level * 255).astype(np.uint8)


def draw_faces(
    coefficients: ArrayLike | None = None,
    azimuths: ArrayLike = AZIMUTHS,
    elevations: ArrayLike = ELEVATIONS,
    lightings: ArrayLike = LIGHTINGS,
    *,
    side: int = SIDE,
    progress: bool = False,
) -> NDArray[np.uint8]:
    """Draw heads under every combination of pose and light.

    Parameters
    ----------
    coefficients : (I, 21), optional
        Identities, in standard deviations in the order of ``isa.data._head.COEFFICIENTS``; the data set's 50 where not
        given.
    azimuths, elevations, lightings : one-dimensional
        Angles in degrees, as this module's head defines them.
    side : int
        Width and height of a picture in pixels.
    progress : bool
        Show a progress bar.

    Returns
    -------
    ndarray
        ``uint8``, ``(I, azimuths, elevations, lightings, side, side)``.

    Raises
    ------
    ValueError
        When an argument has the wrong shape or is not finite.
    """
    if coefficients is None:
        coefficients = _head.draw_identities(FACTOR_SIZES[0], _SEED)
    coefficients = np.asarray(coefficients, np.float64)
    if coefficients.ndim != 2 or coefficients.shape[1] != len(_head.COEFFICIENTS):
        raise ValueError(
            f"coefficients must have shape (identities, {len(_head.COEFFICIENTS)}), got {coefficients.shape}"
        )
    angles = []
    for name, value in (("azimuths", azimuths), ("elevations", elevations), ("lightings", lightings)):
        value = np.asarray(value, np.float64)
        if value.ndim != 1 or not np.isfinite(value).all():
            raise ValueError(
                f"{name} must be a one-dimensional array of finite angles in degrees, got shape {value.shape}"
            )
        angles.append(value)
    azimuths, elevations, lightings = angles
    if side < 1:
        raise ValueError(f"side must be at least 1 pixel, got {side}")
    images = np.empty((len(coefficients), len(azimuths), len(elevations), len(lightings), side, side), np.uint8)

    def draw(identity: int) -> None:
        head = _LitHead(_head.build_head(coefficients[identity]))
        for i, azimuth in enumerate(azimuths):
            for j, elevation in enumerate(elevations):
                images[identity, i, j] = head.draw(azimuth, elevation, lightings, side)

    done = _render.in_order(draw, range(len(coefficients)))
    for _ in tqdm(done, "drawing heads", len(coefficients), unit="head", disable=not progress):
        pass
    return images


def read_faces(path: str | os.PathLike[str], shape: tuple[int, ...] = SHAPE) -> NDArray[np.uint8]:
    """Read the real renders from a file without unpickling anything in it.

    Parameters
    ----------
    path : path
        ``.pth`` or ``.pt``: a torch tensor (as ``basel_face_renders.pth`` is); ``.npy``: an array; ``.npz`` or
        ``.mat`` (up to version 7): an archive with exactly one array of the right shape.
    shape : tuple of int
        Shape that the tensor must have.

    Returns
    -------
    ndarray
        ``uint8`` of that shape.

    Raises
    ------
    SourceMissingError
        When there is no such file.
    SourceError
        When it is of another kind, damaged, holds objects that would have to be unpickled, or has another shape or
        type.
    """
    path = Path(path)
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise SourceError(f"{path} must end in one of {', '.join(_READERS)}, got the suffix {path.suffix!r}")
    if not path.exists():
        raise SourceMissingError(f"{path} does not exist")
    if not path.is_file():
        raise SourceError(f"{path} is not a file")
    images = reader(path, tuple(shape))
    _check(path, images.shape, images.dtype, shape)
    return images


def _check(path: Path, shape: tuple[int, ...], dtype: object, expected: tuple[int, ...]) -> None:
    if tuple(shape) != tuple(expected) or str(dtype) not in ("uint8", "torch.uint8"):
        raise SourceError(f"{path} must hold uint8 of shape {tuple(expected)}, found {dtype} of shape {tuple(shape)}")


def _check_pickles(stream: IO[bytes], count: int, most: int) -> None:
    """Go through pickles one after the other without executing them, the last of which describe a tensor.

    torch executes of a pickle only what it knows to be harmless; but that can still ask for any amount of memory.

    Raises
    ------
    ValueError
        Where a pickle is damaged, or names or builds anything but one tensor with at most so many values.
    """
    storages = 0
    for number in range(count):
        for operation, argument, _ in pickletools.genops(stream):
            if operation.name not in _OPERATIONS:
                raise _ObjectsError(f"it has the operation {operation.name}")
            if operation.name == "GLOBAL" and not _NAMED.fullmatch(argument):
                raise _ObjectsError(f"it names {argument}")
            storages += operation.name == "BINPERSID"
            is_magic = number == 0 and count > 1
            if storages > 1 or (isinstance(argument, int) and not (0 <= argument <= most or is_magic)):
                raise ValueError("it describes more than one tensor of the right size")


def _check_torch(path: Path, most: int) -> None:
    """Check what a torch file would make torch do; most is the number of bytes of its tensor."""
    if path.stat().st_size > most + _MOST_BESIDE:
        raise SourceError(f"{path} must have at most {most + _MOST_BESIDE:,} bytes, it has {path.stat().st_size:,}")
    try:
        with path.open("rb") as file:
            if file.read(2) != b"PK":
                file.seek(0)
                _check_pickles(io.BytesIO(file.read(_MOST_BESIDE)), 5, max(most, 65_535))
                return
        with open_archive(path) as archive:
            if any(one.compress_type or one.compress_size != one.file_size for one in archive.infolist()):
                raise SourceError(f"{path} is compressed, which no torch file is")
            for name in archive.namelist():
                if name.endswith(".pkl"):
                    _check_pickles(io.BytesIO(read_member(archive, name, _MOST_BESIDE)), 1, most)
    except _ObjectsError as error:
        raise SourceError(
            f"{path} is no torch file of a plain tensor: it holds objects, which are never unpickled ({error})"
        ) from error
    except SourceError:
        raise
    except ValueError as error:
        raise SourceError(f"{path} is not a readable torch file, or is truncated: {_first_line(error)}") from error


def _read_torch(path: Path, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    _check_torch(path, math.prod(shape))
    try:
        with warnings.catch_warnings():  # torch warns of foreign pickles before it refuses them
            warnings.simplefilter("ignore", UserWarning)
            tensor = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch's reader raises many kinds on a damaged file
        raise SourceError(f"{path} is not a readable torch file, or is truncated: {_first_line(error)}") from error
    if not isinstance(tensor, torch.Tensor):
        raise SourceError(f"{path} must hold one tensor, found a {type(tensor).__name__}")
    _check(path, tensor.shape, tensor.dtype, shape)
    return tensor.contiguous().numpy()


def _read_npy(path: Path, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    with path.open("rb") as file:
        if file.peek(2)[:2] == b"PK":
            raise SourceError(f"{path} is a zip archive and no npy file: name it .npz")
        try:
            found, dtype, fortran = read_header(file)
        except ValueError as error:
            raise SourceError(f"{path} is not a readable npy file, or is truncated: {error}") from error
        if dtype.hasobject:
            raise SourceError(f"{path} holds pickled objects, which are never loaded")
        _check(path, found, dtype, shape)
        images = np.fromfile(file, np.uint8, math.prod(shape))
    if images.size != math.prod(shape):
        raise SourceError(f"{path} is not a readable npy file, or is truncated: it has {images.size:,} bytes of images")
    return np.ascontiguousarray(images.reshape(shape, order="F" if fortran else "C"))


def _read_npz(path: Path, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    with open_archive(path) as archive:
        members = [name for name in archive.namelist() if name.endswith(".npy")]
        if len(members) != 1:
            raise SourceError(
                f"{path} must hold exactly one array, found {len(members)}: {', '.join(members) or 'none'}"
            )
        return read_array(archive, members[0], shape, np.uint8)


def _read_mat(path: Path, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    arrays = _mat.read_declared(path)
    wanted = [one for one in arrays if one.shape == shape and one.kind == "uint8"]
    if len(wanted) != 1:
        listed = ", ".join(f"{one.name} ({one.kind}, {one.shape})" for one in arrays[:8]) or "nothing"
        raise SourceError(f"{path} must hold exactly one uint8 array of shape {shape}, found {listed}")
    return np.ascontiguousarray(_mat.read_array(path, wanted[0]))


class _ObjectsError(ValueError):
    """A pickle would do something else than describe a tensor."""


_MOST_BESIDE = 1 << 20  # bytes of a torch file beside its tensor's
_NAMED = re.compile(r"torch\._utils _rebuild_tensor(_v2)?|torch [A-Z][A-Za-z0-9]+Storage|collections OrderedDict")
_OPERATIONS = {"PROTO", "STOP", "GLOBAL", "REDUCE", "BINPERSID", "MARK", "NONE", "NEWTRUE", "NEWFALSE"}
_OPERATIONS |= {"EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_DICT", "SETITEM", "SETITEMS", "EMPTY_LIST"}
_OPERATIONS |= {"APPEND", "APPENDS", "BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET", "BININT", "BININT1", "BININT2"}
_OPERATIONS |= {"LONG1", "BINUNICODE", "SHORT_BINSTRING", "BINSTRING"}

_READERS = {".pth": _read_torch, ".pt": _read_torch, ".npy": _read_npy, ".npz": _read_npz, ".mat": _read_mat}


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def load(
    source: str | os.PathLike[str] | None = None,
    *,
    cache_dir: str | os.PathLike[str] | None = None,
    progress: bool = False,
) -> FactorDataset:
    """
    3D faces: the procedural stand-in (drawn once, then cached), or the real renders where ``source`` names their file.

    Parameters
    ----------
    source : path, optional
        See :func:`read_faces`.
    cache_dir : path, optional
        See :func:`isa.data.cache.directory`.
    progress : bool
        Show a progress bar while heads are drawn.
    """
    if source is not None:
        source = expand(source)
        images = read_faces(source, SHAPE)
        with source.open("rb") as file:
            checksum = hashlib.file_digest(file, "sha256").hexdigest()
        provenance = Provenance(
            source=str(source),
            licence="the Basel Face Model's licence: for non-commercial research, not to be passed on",
            citation=_CITATION,
            rendering="Read from the file as it is; the angles behind the indices are not published with it.",
            procedural=False,
            source_checksum=f"sha256:{checksum}",
        )
        factors = [Factor(name, np.arange(n)) for name, n in zip(FACTOR_NAMES, FACTOR_SIZES, strict=True)]
        return FactorDataset.from_array("faces3d", "3D faces", factors, images, provenance)

    def draw() -> NDArray[np.uint8]:
        coefficients = _head.draw_identities(FACTOR_SIZES[0], _SEED)
        return draw_faces(coefficients, AZIMUTHS, ELEVATIONS, LIGHTINGS, progress=progress)

    key = key_of(sys.modules[__name__], _head, _render)
    images = cached_array("faces3d", key, draw, shape=SHAPE, cache_dir=cache_dir)
    provenance = Provenance(
        source="drawn by isa.data.faces3d",
        licence="MIT, as this package",
        citation=_CITATION,
        rendering=(
            "Procedural heads of this project's own on the published grid of 50 identities, 21 azimuths, 11 "
            "elevations and 11 lightings; no image is a published one."
        ),
        procedural=True,
    )
    factors = [
        Factor("identity", np.arange(FACTOR_SIZES[0])),
        Factor("azimuth", AZIMUTHS, "degrees"),
        Factor("elevation", ELEVATIONS, "degrees"),
        Factor("lighting", LIGHTINGS, "degrees"),
    ]
    return FactorDataset.from_array("faces3d", "3D faces (procedural stand-in)", factors, images, provenance)
