"""cars3d: the published renderings reduced to 64 x 64, or a procedural car over the same grid of views.

The published data are 183 MATLAB files of 96 renderings each. Of each file one array is read, once it has declared the
right name, type and shape.

The reduction from 128 x 128 to 64 x 64 is Pillow's bilinear filter, which averages over all pixels that a new one
covers. It gives the channel means that are published for the reduced set, 0.89767, 0.88917 and 0.88515, to all digits.
The Lanczos filter, which part of the literature uses, does not: it overshoots at the cars' outlines, is clipped at
white, and gives 0.89647, 0.88799 and 0.88397.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from isa.data import _car, _render
from isa.data._mat import read_array, read_declared
from isa.data.base import Factor, FactorDataset, Provenance, SourceError, SourceMissingError, expand
from isa.data.cache import cached_array, key_of

__all__ = [
    "CARS",
    "CHECKSUM",
    "PUBLISHED_MEANS",
    "SOURCE_CHECKSUM",
    "channel_means",
    "load",
    "read_car",
    "read_folder",
    "reduce_views",
    "source_checksum",
    "verify",
]

_UNUSED_NUMBERS = (55, 76, 77, 82, 84, 99, 105, 106, 117, 129, 134, 140, 143, 147, 185, 197)
#: Numbers in the published files' names, ``car_NNN_mesh.mat``: 183 between 1 and 199.
CARS = tuple(number for number in range(1, 200) if number not in _UNUSED_NUMBERS)
#: Elevations and azimuths of the camera in degrees, the ``PITCH_LIST`` and ``YAW_LIST`` of every published file.
ELEVATIONS = (0, 6, 12, 18)
AZIMUTHS = tuple(range(0, 360, 15))
#: Mean of red, green and blue over the published set at 64 x 64, in [0, 1].
PUBLISHED_MEANS = (0.89767, 0.88917, 0.88515)
#: :func:`source_checksum` of the files against which this reader was checked.
SOURCE_CHECKSUM = "7d7863f2a0b9b7d88c08cfda7ad55fe4fe74b1f4046392987cff0e2639693be4"
#: SHA-256 of those files' images as they lie in memory.
CHECKSUM = "da09f5f3504bcb49e03be07a64207785e9df7cb9a0934ead01279b4fceee0009"
STAND_IN_TITLE = "cars3d (procedural stand-in)"
STAND_IN_RENDERING = (
    "A procedural car with 183 sets of parameters, over the published grid of views. "
    "None of its images is published data."
)

_RAW_SHAPE = (128, 128, 3, len(AZIMUTHS), len(ELEVATIONS))
_SIDE = 64
_MOST_BYTES = 1 << 26  # of a file: its images take 4.7 MB
_CITATION = (
    "S. Reed, Y. Zhang, Y. Zhang, H. Lee: Deep Visual Analogy-Making. "
    "Advances in Neural Information Processing Systems 28, 2015"
)


def load(
    source: str | os.PathLike[str] | None = None,
    *,
    cache_dir: str | os.PathLike[str] | None = None,
    progress: bool = False,
) -> FactorDataset:
    """cars3d: read from a folder of the published files, or drawn; see :func:`isa.data.load`."""
    if source is None:
        return _procedural(cache_dir, progress)
    folder = expand(source)
    paths = _list_folder(folder, CARS)
    checksum = source_checksum(paths)
    images = cached_array(
        "cars3d",
        key_of("cars3d", checksum, "bilinear 64"),
        lambda: read_folder(folder, progress=progress),
        shape=(len(CARS), len(ELEVATIONS), len(AZIMUTHS), _SIDE, _SIDE, 3),
        codec="webp",
        cache_dir=cache_dir,
    )
    provenance = Provenance(
        source=str(folder),
        licence="none stated by its authors; not redistributed here",
        citation=_CITATION,
        rendering="The published renderings, reduced from 128 x 128 to 64 x 64 with Pillow's bilinear filter.",
        procedural=False,
        source_checksum=f"sha256:{checksum}",
    )
    return FactorDataset.from_array("cars3d", "cars3d", factors_of([f"car {n:03d}" for n in CARS]), images, provenance)


def _procedural(cache_dir: str | os.PathLike[str] | None, progress: bool) -> FactorDataset:
    images = cached_array(
        "cars3d-procedural",
        key_of(_car, _render),
        lambda: _car.draw_cars(progress=progress),
        shape=(len(CARS), len(ELEVATIONS), len(AZIMUTHS), _SIDE, _SIDE, 3),
        codec="webp",
        cache_dir=cache_dir,
    )
    provenance = Provenance(
        source="drawn by isa.data.cars3d",
        licence="MIT, as this package",
        citation="this package; the grid of views is that of " + _CITATION,
        rendering=STAND_IN_RENDERING,
        procedural=True,
    )
    return FactorDataset.from_array(
        "cars3d", STAND_IN_TITLE, factors_of([f"parameters {n + 1}" for n in range(len(CARS))]), images, provenance
    )


def factors_of(cars: list[str]) -> tuple[Factor, ...]:
    """The factors, with a label for every car."""
    return (
        Factor("car", np.array(cars)),
        Factor("elevation", np.array(ELEVATIONS, float), "degrees"),
        Factor("azimuth", np.array(AZIMUTHS, float), "degrees"),
    )


def _list_folder(folder: Path, cars: tuple[int, ...]) -> list[Path]:
    """Paths of all cars in order, or an error that names the files missing and the files too many."""
    if not folder.exists():
        raise SourceMissingError(f"{folder} does not exist")
    if not folder.is_dir():
        raise SourceError(f"{folder} is not a folder: cars3d is a folder of {len(cars)} files car_NNN_mesh.mat")
    expected = [f"car_{number:03d}_mesh.mat" for number in cars]
    present = {path.name for path in folder.iterdir() if path.suffix == ".mat"}
    missing = sorted(set(expected) - present)
    extra = sorted(present - set(expected))
    if len(missing) == len(expected):
        raise SourceError(f"{folder} holds none of the {len(expected)} files car_NNN_mesh.mat of cars3d")
    if missing or extra:
        found = (("lacks", missing), ("has beside them", extra))
        parts = [f"{what} {_shorten(names)}" for what, names in found if names]
        raise SourceError(f"{folder} should hold the {len(expected)} files of cars3d, but {' and '.join(parts)}")
    return [folder / name for name in expected]


def _shorten(names: list[str]) -> str:
    shown = ", ".join(names[:8])
    return shown if len(names) <= 8 else f"{shown} and {len(names) - 8} more"


def source_checksum(paths: list[Path]) -> str:
    """SHA-256 of the files' names and contents, in the order given."""

    def digest(path: Path) -> bytes:
        if not path.is_file() or path.stat().st_size > _MOST_BYTES:
            raise SourceError(f"{path} must be a file of at most {_MOST_BYTES:,} bytes")
        with path.open("rb") as file:
            return path.name.encode() + hashlib.file_digest(file, "sha256").digest()

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return hashlib.sha256(b"".join(pool.map(digest, paths))).hexdigest()


def read_car(path: Path) -> np.ndarray:
    """Read the renderings of one car.

    Parameters
    ----------
    path : Path
        MATLAB file with ``im``, ``uint8`` of shape ``(128, 128, 3, 24, 4)``: row, column, colour, azimuth, elevation.

    Returns
    -------
    ndarray
        ``uint8`` ``(4, 24, 128, 128, 3)``: elevation, azimuth, row, column, colour.

    Raises
    ------
    SourceError
        Where the file is truncated, corrupt, or holds anything else.
    """
    if not path.is_file():
        raise SourceMissingError(f"{path} does not exist, or is not a file")
    arrays = read_declared(path)
    found = next((one for one in arrays if one.name == "im"), None)
    if found is None:
        names = sorted(one.name for one in arrays)
        raise SourceError(f"{path} holds no array 'im'; it has {_shorten(names) or 'nothing'}")
    if (found.shape, found.kind) != (_RAW_SHAPE, "uint8"):
        raise SourceError(
            f"'im' in {path} must be uint8 of shape {_RAW_SHAPE}, found {found.kind} of shape {found.shape}"
        )
    return np.ascontiguousarray(read_array(path, found).transpose(4, 3, 0, 1, 2))


def reduce_views(views: np.ndarray) -> np.ndarray:
    """Reduce ``uint8`` images ``(..., 128, 128, 3)`` to ``(..., 64, 64, 3)`` with Pillow's bilinear filter."""
    reduced = np.empty((*views.shape[:-3], _SIDE, _SIDE, 3), np.uint8)
    for place in np.ndindex(views.shape[:-3]):
        reduced[place] = Image.fromarray(views[place]).resize((_SIDE, _SIDE), Image.Resampling.BILINEAR)
    return reduced


def read_folder(folder: Path, *, cars: tuple[int, ...] | None = None, progress: bool = False) -> np.ndarray:
    """Read and reduce the cars of a folder.

    Parameters
    ----------
    folder : Path
        Holds ``car_NNN_mesh.mat`` for every number in ``cars``, and no other ``.mat`` file.
    cars : tuple of int, optional
        The numbers; :data:`CARS` by default.
    progress : bool
        Show a progress bar.

    Returns
    -------
    ndarray
        ``uint8`` ``(len(cars), 4, 24, 64, 64, 3)``: car, elevation, azimuth, row, column, colour.

    Raises
    ------
    SourceError
        Where files are missing, too many, or corrupt; it names them.
    """
    paths = _list_folder(folder, CARS if cars is None else cars)
    images = np.empty((len(paths), len(ELEVATIONS), len(AZIMUTHS), _SIDE, _SIDE, 3), np.uint8)

    def read(number: int) -> None:
        images[number] = reduce_views(read_car(paths[number]))

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in tqdm(pool.map(read, range(len(paths))), "cars3d", len(paths), disable=not progress):
            pass
    return images


def channel_means(dataset: FactorDataset) -> tuple[float, ...]:
    """Mean of every channel over all images, in [0, 1], from exact sums."""
    storage = dataset.storage
    sums = sum(block.long().sum(dim=(0, 2, 3)) for block in storage.split(1024))
    pixels = len(dataset) * math.prod(dataset.image_shape[1:])
    return tuple(int(total) / (255 * pixels) for total in sums)


def verify(dataset: FactorDataset) -> Iterator[tuple[str, bool]]:
    """Checks of the images in memory, each a sentence and whether it holds; a procedural set has none of its own."""
    if dataset.procedural:
        return
    means = channel_means(dataset)
    shown = ", ".join(f"{mean:.5f}" for mean in means)
    yield (
        f"channel means, {shown}, are the published {', '.join(map(str, PUBLISHED_MEANS))}",
        bool(np.allclose(means, PUBLISHED_MEANS, rtol=0, atol=1e-5)),
    )
    yield (
        "the source files are, byte for byte, those against which this reader was checked",
        dataset.provenance.source_checksum == f"sha256:{SOURCE_CHECKSUM}",
    )
    checksum = dataset.checksum
    yield f"SHA-256 of the images, {checksum}, is the one recorded for those files", checksum == CHECKSUM
