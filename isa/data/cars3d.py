"""cars3d: the published renderings, reduced from 128 x 128 to 64 x 64.

The published data are 183 MATLAB files of 96 renderings each. They are reduced with Pillow's bilinear filter, which
averages over all pixels that a new one covers. It gives exactly the channel means published for the reduced set,
0.89767, 0.88917 and 0.88515. The Lanczos filter, which part of the literature uses, overshoots at the cars' outlines,
where it is clipped at white, and gives 0.89647, 0.88799 and 0.88397.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy.io import loadmat
from tqdm import tqdm

from isa.data.base import Factor, FactorDataset, Provenance, SourceError, SourceMissingError, StrPath, expand, reading
from isa.data.cache import cached_array

__all__ = ["AZIMUTHS", "CARS", "CHECKSUM", "ELEVATIONS", "PUBLISHED_MEANS", "SOURCE_CHECKSUM"]
__all__ += ["load", "read_car", "reduce_views", "source_checksum", "verify"]

_UNUSED_NUMBERS = (55, 76, 77, 82, 84, 99, 105, 106, 117, 129, 134, 140, 143, 147, 185, 197)
#: Numbers in the published files' names, ``car_NNN_mesh.mat``: 183 between 1 and 199.
CARS = tuple(number for number in range(1, 200) if number not in _UNUSED_NUMBERS)
#: Elevations and azimuths of the camera in degrees, the ``PITCH_LIST`` and ``YAW_LIST`` of every published file.
ELEVATIONS = (0, 6, 12, 18)
AZIMUTHS = tuple(range(0, 360, 15))
#: Mean of red, green and blue over the published set at 64 x 64, in [0, 1].
PUBLISHED_MEANS = (0.89767, 0.88917, 0.88515)
#: :func:`source_checksum` of the files that this reader was checked against.
SOURCE_CHECKSUM = "7d7863f2a0b9b7d88c08cfda7ad55fe4fe74b1f4046392987cff0e2639693be4"
#: SHA-256 of the reduced images of those files, as stored in memory.
CHECKSUM = "da09f5f3504bcb49e03be07a64207785e9df7cb9a0934ead01279b4fceee0009"

_RAW_SHAPE = (128, 128, 3, len(AZIMUTHS), len(ELEVATIONS))
_SIDE = 64
_PLACE = "http://www.scottreed.info/files/nips2015-analogy-data.tar.gz"
_CITATION = (
    "S. Reed, Y. Zhang, Y. Zhang, H. Lee: Deep Visual Analogy-Making. "
    "Advances in Neural Information Processing Systems 28, 2015"
)


def load(source: StrPath | None = None, *, cache_dir: StrPath | None = None, progress: bool = False) -> FactorDataset:
    """Read cars3d from the folder of its published files; see :func:`isa.load`."""
    if source is None:
        raise SourceMissingError(f"cars3d needs the folder of its {len(CARS)} published files: data/cars in {_PLACE}")
    folder = expand(source)
    paths = [folder / f"car_{number:03d}_mesh.mat" for number in CARS]
    if missing := [path.name for path in paths if not path.exists()]:
        names = ", ".join(missing[:8]) + ", ..." * (len(missing) > 8)
        raise SourceError(f"{folder} must be the folder of the {len(CARS)} files of cars3d, but lacks {names}")
    checksum = source_checksum(paths)
    shape = (len(CARS), len(ELEVATIONS), len(AZIMUTHS), _SIDE, _SIDE, 3)

    def read() -> np.ndarray:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            cars = pool.map(lambda path: reduce_views(read_car(path)), paths)
            return np.stack(list(tqdm(cars, "cars3d", len(paths), disable=not progress)))

    images = cached_array("cars3d", checksum[:16], read, shape=shape, cache_dir=cache_dir)
    factors = (
        Factor("car", np.array([f"car {number:03d}" for number in CARS])),
        Factor("elevation", np.array(ELEVATIONS, float), "degrees"),
        Factor("azimuth", np.array(AZIMUTHS, float), "degrees"),
    )
    licence = "none stated by its authors; not redistributed here"
    rendering = "The published renderings, reduced from 128 x 128 to 64 x 64 with Pillow's bilinear filter."
    provenance = Provenance(str(folder), licence, _CITATION, rendering, False, f"sha256:{checksum}")
    return FactorDataset.from_array("cars3d", "cars3d", factors, images, provenance)


def source_checksum(paths: list[Path]) -> str:
    """Return the SHA-256 of the names and contents of files, in the order given."""
    contents = (path.name.encode() + hashlib.sha256(path.read_bytes()).digest() for path in paths)
    return hashlib.sha256(b"".join(contents)).hexdigest()


def read_car(path: Path) -> np.ndarray:
    """Read the renderings of one car.

    The file has ``im``, ``uint8`` ``(128, 128, 3, 24, 4)``: row, column, colour, azimuth, elevation. The result is
    ``uint8`` ``(4, 24, 128, 128, 3)``: elevation, azimuth, row, column, colour.
    """
    with reading(path, "a MATLAB file with the array im") as file:
        images = loadmat(file, variable_names=["im"])["im"]
        if images.shape != _RAW_SHAPE or images.dtype != np.uint8:
            raise SourceError(f"im in {path} must be uint8 {_RAW_SHAPE}, got {images.dtype} {images.shape}")
    return np.ascontiguousarray(images.transpose(4, 3, 0, 1, 2))


def reduce_views(views: np.ndarray) -> np.ndarray:
    """Reduce ``uint8`` images ``(..., 128, 128, 3)`` to ``(..., 64, 64, 3)`` with Pillow's bilinear filter."""
    reduced = np.empty((*views.shape[:-3], _SIDE, _SIDE, 3), np.uint8)
    for place in np.ndindex(views.shape[:-3]):
        reduced[place] = Image.fromarray(views[place]).resize((_SIDE, _SIDE), Image.Resampling.BILINEAR)
    return reduced


def verify(dataset: FactorDataset) -> Iterator[tuple[str, bool]]:
    """Yield checks of the images in memory, each as a sentence and its result."""
    sums, source = dataset.storage.sum((0, 2, 3), dtype=torch.int64), dataset.provenance.source_checksum
    means = tuple(round(mean, 5) for mean in (sums.double() / (255 * len(dataset) * _SIDE**2)).tolist())
    yield f"channel means, {means}, are the published {PUBLISHED_MEANS}", means == PUBLISHED_MEANS
    yield f"checksum of the files, {source}, is the one recorded for them", source == f"sha256:{SOURCE_CHECKSUM}"
    yield f"SHA-256 of the images, {dataset.checksum}, is the one recorded for them", dataset.checksum == CHECKSUM
